"""Teach a language model to use long contexts by fine-tuning on short conversations that skip.

The names below are imported when they are first used, so that `import skipalign` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from skipalign.adapters import Dora, Lora, QLora, RsLora
    from skipalign.batch import Collator
    from skipalign.conversation import read_conversations
    from skipalign.encoding import Encoder, Example, Segment
    from skipalign.errors import SkipalignError
    from skipalign.example_file import ExampleFile
    from skipalign.key_bias import GapBias, NoiseBias, PermutedBias
    from skipalign.model import load_model, load_tokenizer, save_model
    from skipalign.packing import Packing
    from skipalign.positions import (
        Contiguous,
        Cream,
        Logo,
        LongRecipe,
        PoSE,
        PoSEAtMarkers,
        RandPos,
        SkipAlign,
        sample_rng,
    )
    from skipalign.prepare import Source
    from skipalign.rows import SkipAlignCollator
    from skipalign.training import train
    from skipalign.visits import VisitDataset, VisitSampler

_HOMES = {
    "adapters": ("Lora", "RsLora", "Dora", "QLora"),
    "batch": ("Collator",),
    "conversation": ("read_conversations",),
    "encoding": ("Encoder", "Example", "Segment"),
    "errors": ("SkipalignError",),
    "example_file": ("ExampleFile",),
    "key_bias": ("GapBias", "PermutedBias", "NoiseBias"),
    "model": ("load_model", "load_tokenizer", "save_model"),
    "packing": ("Packing",),
    "positions": (
        *("Contiguous", "SkipAlign", "PoSE", "PoSEAtMarkers", "Cream", "LongRecipe", "Logo"),
        *("RandPos", "sample_rng"),
    ),
    "prepare": ("Source",),
    "rows": ("SkipAlignCollator",),
    "training": ("train",),
    "visits": ("VisitDataset", "VisitSampler"),
}
_HOME_OF = {name: room for room, names in _HOMES.items() for name in names}
__all__ = [
    "Collator",
    "Contiguous",
    "Cream",
    "Dora",
    "Encoder",
    "Example",
    "ExampleFile",
    "GapBias",
    "Logo",
    "LongRecipe",
    "Lora",
    "NoiseBias",
    "Packing",
    "PermutedBias",
    "PoSE",
    "PoSEAtMarkers",
    "QLora",
    "RandPos",
    "RsLora",
    "Segment",
    "SkipAlign",
    "SkipAlignCollator",
    "SkipalignError",
    "Source",
    "VisitDataset",
    "VisitSampler",
    "__version__",
    "load_model",
    "load_tokenizer",
    "read_conversations",
    "sample_rng",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its room."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'skipalign' has no attribute {name!r}")
    return getattr(import_module(f"skipalign.{_HOME_OF[name]}"), name)
