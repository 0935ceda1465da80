"""The embedded default: a small base model, its conversations, its prose, and what made them.

base/                     a Llama of 0.5 million parameters, trained at a window of 128 tokens
conversations.jsonl.gz    what the tiny recipe fine-tunes on
prose/                    chapters 1 to 50 of the novel: all that base and conversations saw
haystack/                 chapters 51 to 61: the built-in haystack, seen by neither
corpus.py make.py         python -m skipalign.tiny.make remakes base and conversations

A recipe names them: `base: tiny` or `tiny-0` is base/, `data: tiny` the conversations. Made on
first use into the cache folder ($SKIPALIGN_CACHE, else ~/.cache/skipalign) are `base: tiny-N`,
pre-trained with seed N from 1 on, `data: tiny-long`, conversations of 1 to 8 windows, and
`data: tiny-prose`, the prose as one text.
"""

import os
import re
from pathlib import Path

from skipalign.errors import ModelError

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"
CONVERSATIONS = FOLDER / "conversations.jsonl.gz"
PROSE = FOLDER / "prose"
HAYSTACK = FOLDER / "haystack"
LONG = "tiny-long"
TEXT = "tiny-prose"


def cache() -> Path:
    """Return the folder of what is made on first use."""
    return Path(os.environ.get("SKIPALIGN_CACHE") or "~/.cache/skipalign").expanduser()


def base_seed(name: str) -> int | None:
    """Return the pre-training seed of an embedded base, or None for another name."""
    found = re.fullmatch(r"tiny(?:-(0|[1-9]\d{0,8}))?", name)
    return int(found[1] or 0) if found else None


def base_place(name: str) -> Path | None:
    """Return where an embedded base lies, made or not, or None for another name."""
    seed = base_seed(name)
    if seed is None:
        return None
    return cache() / f"tiny-{seed}" if seed else BASE


def found(name: str) -> str:
    """Return where a base lies: an embedded one's folder, or `name` itself.

    Raises:
        ModelError: an embedded base that is not made yet.
    """
    place = base_place(name)
    if place is not None and not place.exists():
        raise ModelError(
            f"{name}: is not made yet; python -m skipalign.tiny.make --seed {base_seed(name)} "
            "makes it in about ten minutes, and a recipe that names it does so of itself"
        )
    return name if place is None else str(place)


def data_place(name: str) -> Path | None:
    """Return where embedded data lies, made or not, or None for another name."""
    made = {each: cache() / f"{each}.jsonl.gz" for each in (LONG, TEXT)}
    return {"tiny": CONVERSATIONS, **made}.get(name)


def tokenizer_of(base: str) -> str:
    """Return where a base's tokenizer lies: the embedded bases share one, made or not."""
    return base if base_seed(base) is None else str(BASE)
