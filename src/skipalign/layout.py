"""What attention and the layout of a batch cannot keep right together, refused before a step."""

from collections.abc import Mapping
from typing import Any

import psutil
import torch
from transformers import TrainingArguments

from skipalign.batch import Collator
from skipalign.bias_attention import FLASH, FLEX, refuse_biased_keys
from skipalign.borders import refuse_large_mask, takes_borders
from skipalign.errors import ModelError, VisibilityError
from skipalign.key_bias import KeyBias
from skipalign.logit_scale import check_logit_scale
from skipalign.model import sliding_window, stateful_layers
from skipalign.packing import Packing
from skipalign.positions import Contiguous, Strategy

# Those that take a 4-D float mask, in which a key bias and the borders of packs travel.
MASK_IMPLEMENTATIONS = ("eager", "sdpa")


def refuse_layout(
    model: Any,
    *,
    strategies: Mapping[str, Strategy],
    key_bias: KeyBias | None = None,
    packing: Packing | None = None,
    logit_scale: float | str | None = None,
    longest: int = 0,
) -> None:
    """Refuse combinations of attention and batch layout that cannot be kept right.

    Args:
        model: with its config.
        strategies: position strategy by source name.
        key_bias: of the run.
        packing: of the run.
        logit_scale: of the run.
        longest: tokens of the longest sample, where it is known.

    Raises:
        RecipeError: a logit scale that is none.
        VisibilityError: a key bias or block-diagonal packs where the attention takes neither a
            float mask nor borders, where its mask would show a layer more than its sliding window,
            or where keys cannot carry the bias; or causal packs of samples that skip or carry a
            key bias.
    """
    check_logit_scale(logit_scale)
    if key_bias is not None:
        _refuse_mask(model, longest, f"key_bias {key_bias.name!r}", "key_bias: none")
        refuse_biased_keys(model.config, f"key_bias {key_bias.name!r}")
    if packing is None:
        return
    if packing.attention == "block_diagonal":
        _refuse_mask(model, longest, "packing.attention block_diagonal", "no packing")
        return
    for source, strategy in strategies.items():
        if not isinstance(strategy, Contiguous):
            raise VisibilityError(
                f"packing.attention causal with strategy {strategy.name!r} of source {source!r}: "
                "a causal pack is one text with positions 0, 1, 2, ... - use strategy: "
                "contiguous, or packing.attention: block_diagonal"
            )
    if key_bias is not None:
        raise VisibilityError(
            f"packing.attention causal with key_bias {key_bias.name!r}: the samples of a causal "
            "pack compete for the same attention - use packing.attention: block_diagonal, or "
            "key_bias: none"
        )


def _refuse_mask(model: Any, longest: int, asked: str, without: str) -> None:
    """Refuse a bias or borders where they are not taken, or a mask of them that would be wrong."""
    implementation = model.config._attn_implementation
    if implementation not in MASK_IMPLEMENTATIONS and not takes_borders(implementation):
        raise VisibilityError(
            f"{asked} with attn_implementation {implementation!r}: it travels in a 4-D float "
            "mask or in keys and borders, which are not known to reach this implementation - use "
            f"{', '.join((*MASK_IMPLEMENTATIONS, *FLASH, FLEX))}, or {without}"
        )
    if others := stateful_layers(model.config):
        raise VisibilityError(
            f"{asked} with layers of kind {', '.join(others)}: a state or convolution runs along "
            f"the row and knows of neither biases nor borders - use {without}, or a model with "
            "attention in all layers"
        )
    window = sliding_window(model.config)
    # Flash attention keeps the window of a layer by itself, inside the borders it is given.
    if window is not None and window < longest and implementation not in FLASH:
        raise VisibilityError(
            f"{asked} with a model of which some layers see {window:,} tokens back "
            f"(sliding_window) and a sample of {longest:,} tokens: its 4-D mask would show them "
            f"all of it - lower the source's max_tokens to {window:,}, or use {without}"
        )


def refuse_here(
    model: Any,
    args: TrainingArguments,
    collator: Collator,
    packing: Packing | None,
    longest: int,
) -> None:
    """Refuse what this machine cannot do: flex attention on a CPU, masks beyond its memory.

    Args:
        model: with its config.
        args: with the device and the rows of a batch.
        collator: of the run.
        packing: of the run.
        longest: tokens of the longest sample.

    Raises:
        ModelError: flex attention on a CPU.
        VisibilityError: a mask that is larger than the memory.
    """
    if model.config._attn_implementation == FLEX and args.device.type == "cpu":
        raise ModelError(
            "attn_implementation 'flex_attention' on a CPU: torch has no backward pass for it "
            "there - use sdpa, or a GPU"
        )
    asked = "packing.attention block_diagonal"
    if packing is None and collator.key_bias is not None:
        asked = f"key_bias {collator.key_bias.name!r}"
    elif packing is None or packing.attention == "causal":
        return
    if collator.float_mask:
        width = packing.max_tokens if packing else longest
        rows = args.per_device_train_batch_size
        refuse_large_mask(rows, width, _memory_bytes(args.device), asked)


def _memory_bytes(device: torch.device) -> int:
    """Return the memory in which a mask is made, and of the device if that is less."""
    found = int(psutil.virtual_memory().total)
    if device.type == "cuda":
        found = min(found, int(torch.cuda.get_device_properties(device).total_memory))
    return found
