"""The embedded default: a small base model, its conversations, its prose, and what made them.

base/                     a Llama of 0.5 million parameters, trained at a window of 128 tokens
conversations.jsonl.gz    what the tiny recipe fine-tunes on
prose/                    chapters 1 to 50 of the novel: all that base and conversations saw
haystack/                 chapters 51 to 61: the built-in haystack, seen by neither
corpus.py make.py         python -m skipalign.tiny.make remakes base and conversations

A recipe names them: `base: tiny` or `tiny-0` is base/, `data: tiny` the conversations. Made on
first use into the cache folder ($SKIPALIGN_CACHE, else ~/.cache/skipalign) are `base: tiny-N`,
pre-trained with seed N from 1 on, `base: tiny-SHAPE-N`, one of another shape (`SHAPES`),
`data: tiny-long`, conversations of 1 to 8 windows, and `data: tiny-prose`, the prose as one text.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipalign.errors import ModelError

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"
CONVERSATIONS = FOLDER / "conversations.jsonl.gz"
PROSE = FOLDER / "prose"
HAYSTACK = FOLDER / "haystack"
LONG = "tiny-long"
TEXT = "tiny-prose"
# What differs from the packaged base: two layers of four heads of 32 dimensions, tied embeddings.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "gqa": {"num_key_value_heads": 2},
    "one-head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "eight-heads": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "four-layers": {"num_hidden_layers": 4},
    "eight-layers": {"num_hidden_layers": 8},
    "qk-norm": {"model_type": "qwen3", "head_dim": 32},
    "untied": {"tie_word_embeddings": False},
}


def cache() -> Path:
    """Return the folder of what is made on first use."""
    return Path(os.environ.get("SKIPALIGN_CACHE") or "~/.cache/skipalign").expanduser()


def embedded(name: str) -> tuple[str, int] | None:
    """Return shape ("" as packaged) and pre-training seed of an embedded base, or None."""
    found = re.fullmatch(rf"tiny(?:-({'|'.join(SHAPES)}))?(?:-(0|[1-9]\d{{0,8}}))?", name)
    return (found[1] or "", int(found[2] or 0)) if found else None


def name_of(shape: str, seed: int) -> str:
    """Return the name of an embedded base."""
    return f"tiny-{shape}-{seed}" if shape else f"tiny-{seed}"


def base_place(name: str) -> Path | None:
    """Return where an embedded base lies, made or not, or None for another name."""
    known = embedded(name)
    if known is None:
        return None
    return cache() / name_of(*known) if any(known) else BASE


def found(name: str) -> str:
    """Return where a base lies: an embedded one's folder, or `name` itself.

    Raises:
        ModelError: an embedded base that is not made yet.
    """
    known, place = embedded(name), base_place(name)
    if known is None or place is None:
        return name
    if not place.exists():
        shape = f" --shape {known[0]}" if known[0] else ""
        raise ModelError(
            f"{name}: is not made yet; python -m skipalign.tiny.make{shape} --seed {known[1]} "
            "makes it in about ten minutes, and a recipe that names it does so of itself"
        )
    return str(place)


def data_place(name: str) -> Path | None:
    """Return where embedded data lies, made or not, or None for another name."""
    made = {each: cache() / f"{each}.jsonl.gz" for each in (LONG, TEXT)}
    return {"tiny": CONVERSATIONS, **made}.get(name)


def tokenizer_of(base: str) -> str:
    """Return where a base's tokenizer lies: the embedded bases share one, made or not."""
    return base if embedded(base) is None else str(BASE)
