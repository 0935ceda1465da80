"""The embedded default: a small base model, its conversations, its prose, and what made them.

base/                     a Llama of 0.5 million parameters, trained at a window of 128 tokens
conversations.jsonl.gz    what the tiny recipe fine-tunes on
prose/                    chapters 1 to 50 of the novel: all that base and conversations saw
haystack/                 chapters 51 to 61: the built-in haystack, seen by neither
corpus.py make.py         python -m skipalign.tiny.make remakes base and conversations
"""

from pathlib import Path

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"
CONVERSATIONS = FOLDER / "conversations.jsonl.gz"
PROSE = FOLDER / "prose"
HAYSTACK = FOLDER / "haystack"
