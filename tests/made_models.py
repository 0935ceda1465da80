"""The small random models that tests share."""

from collections.abc import Callable
from typing import Any

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def families(**more: Any) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Return the class and the config of a model of each family, with more settings for all."""
    sizes = SIZES | more
    return {
        "llama": (LlamaForCausalLM, lambda: LlamaConfig(**sizes)),
        "mistral": (MistralForCausalLM, lambda: MistralConfig(**sizes, sliding_window=None)),
        "qwen3": (Qwen3ForCausalLM, lambda: Qwen3Config(**sizes, head_dim=8)),
    }
