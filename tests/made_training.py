"""A training as recipes resolve it, for tests of what is kept of one; nothing of it is on disk."""

from skipalign.positions import SkipAlign
from skipalign.prepare import Source
from skipalign.resolved import Base, Training
from skipalign.rope import Ntk


def training(**changes: object) -> Training:
    """Return a training of SkipAlign with these fields changed."""
    values = {
        "method": "skipalign",
        "seed": 0,
        "directory": "",
        "base": Base(path="base"),
        "sources": (Source(path="chats.jsonl", name="chats"),),
        "strategies": {"chats": SkipAlign(max_position=512)},
        "rope": Ntk(factor=4.0),
    }
    return Training(**{**values, **changes})  # type: ignore[arg-type]
