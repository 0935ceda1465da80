"""An architecture file -> a config -> the numbers that costs are made of.

An architecture file holds the numbers of a published config and where they were checked. It stands
for a base that is not on this machine, in plans and dry runs; no weights are ever loaded by it.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers import PretrainedConfig as Config

from skipalign.costs import Shape
from skipalign.errors import ModelError

# Decoders whose layers are as `costs` counts them.
COUNTED = ("llama", "mistral", "qwen2", "qwen3")


def read_architecture(path: str) -> Config:
    """Return the config that an architecture file describes.

    Raises:
        ModelError: no such file, or not {"source": ..., "config": {"model_type": ..., ...}}.
    """
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"architecture {path}: cannot be read ({error}); give a JSON file such as "
            "recipes/architectures/llama-2-7b.json"
        ) from None
    config = found.get("config") if isinstance(found, dict) else None
    if not isinstance(config, dict) or not isinstance(found.get("source"), str):
        raise ModelError(
            f"architecture {path}: must hold `source`, where its numbers are from, and `config`, "
            "with the keys of the model's own config.json; add what is missing"
        )
    numbers: dict[str, Any] = dict(config)
    model_type = str(numbers.pop("model_type", "missing"))
    try:
        return AutoConfig.for_model(model_type, **numbers)
    except (ValueError, TypeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(
            f"architecture {path}: no config of model_type {model_type!r} ({first_line}); mend it"
        ) from None


def shape_of(config: Config, *, where: str) -> Shape:
    """Return the numbers that costs depend on.

    Raises:
        ModelError: a kind of model whose layers are not counted.
    """
    if config.model_type not in COUNTED:
        raise ModelError(
            f"{where}: what a {config.model_type} costs is not known here; plans are made for "
            f"{', '.join(COUNTED)} - measure a short run instead"
        )
    biased = getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    if biased:
        raise ModelError(
            f"{where}: attention_bias or mlp_bias adds weights that are not counted; plans are "
            "made for models without them - measure a short run instead"
        )
    heads = config.num_attention_heads
    return Shape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        window=config.max_position_embeddings,
        qkv_bias=config.model_type == "qwen2",
        qk_norm=config.model_type == "qwen3",
    )
