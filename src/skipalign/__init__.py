"""Teach a language model to use long contexts by fine-tuning on short conversations that skip."""

__version__ = "0.1.0"
