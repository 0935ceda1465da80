"""The commands, one file for each group; cli.py lists them and says how they end."""
