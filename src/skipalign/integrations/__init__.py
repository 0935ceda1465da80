"""Other trainers with our positions: one module for each, imported by name."""
