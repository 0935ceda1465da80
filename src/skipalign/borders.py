"""Who sees whom, told to a model in the way that its attention takes.

A batch that carries its mask tells it itself. One that carries only its samples' borders (several
samples in a row, no padding) is told by lengths for flash attention and by blocks for flex
attention; no mask of queries x keys is made.

Shape letters: B rows, T tokens of a row, N samples and stretches of padding.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from skipalign.bias_attention import FLASH, FLEX
from skipalign.errors import VisibilityError

_SHARE = 4  # of the memory: a mask may take one part in so many


def implementation_of(model: Any) -> str:
    """Return the attention implementation of a model, wrapped or not."""
    config = getattr(model, "config", None) or model.module.config
    return str(getattr(config, "_attn_implementation", "unknown"))


def takes_borders(implementation: str) -> bool:
    """Tell whether borders and key biases reach this attention beside a mask, not inside one."""
    return implementation in (*FLASH, FLEX)


def visibility(batch: Mapping[str, Any], implementation: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return what the model is given so that each token sees its own sample up to itself.

    Args:
        batch: with an attention_mask, or with the sample_ids of every token.
        implementation: of the model's attention.
        dtype: of the model.

    Raises:
        VisibilityError: the batch says neither, or the attention takes no borders.
    """
    mask = batch.get("attention_mask")
    if mask is not None:
        return {"attention_mask": fit_mask(mask, dtype)}
    sample_ids = batch.get("sample_ids")
    if sample_ids is None:
        raise VisibilityError(
            "a batch has neither attention_mask nor sample_ids, so that borders would be guessed "
            "from positions - use a collator of skipalign.batch"
        )
    if implementation in FLASH:
        return sequence_lengths(sample_ids)
    if implementation == FLEX:
        return {"attention_mask": block_mask(sample_ids)}
    raise VisibilityError(
        f"a batch tells borders by sample_ids alone, which attn_implementation {implementation!r} "
        "does not take - give it a float mask (Collator(..., float_mask=True))"
    )


def sequence_lengths(sample_ids: Int[Tensor, " B T"]) -> dict[str, Any]:
    """Return where sequences begin in the rows laid end to end, as flash attention takes it.

    cu_seq_lens_q and cu_seq_lens_k are Int[" N+1"]; padding is a sequence of its own.
    """
    begins = torch.ones_like(sample_ids, dtype=torch.bool)
    begins[:, 1:] = sample_ids[:, 1:] != sample_ids[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    ends = torch.cat([starts, starts.new_tensor([sample_ids.numel()])]).to(torch.int32)
    longest = int(ends.diff().max())
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def block_mask(sample_ids: Int[Tensor, " B T"]) -> Any:
    """Return torch's BlockMask of rows whose tokens see their own sample up to themselves."""
    from torch.nn.attention.flex_attention import create_block_mask

    num_rows, width = sample_ids.shape

    def seen(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (sample_ids[row, query] == sample_ids[row, key])

    device = sample_ids.device
    # Compiled, it never stands whole; a CPU is for tests, where compiling takes longest.
    return create_block_mask(
        seen, num_rows, None, width, width, device=device, _compile=device.type == "cuda"
    )


def mask_dtype(
    implementation: str, weights: torch.dtype, autocast: torch.dtype | None
) -> torch.dtype:
    """Return the precision in which a float mask meets the attention logits.

    Under autocast sdpa casts the mask that it is given in every layer, and each keeps its copy for
    the backward pass; cast beforehand, all layers share one. Eager attention adds the mask to its
    logits in the precision of the two that is higher.

    Args:
        implementation: of the model's attention.
        weights: their precision.
        autocast: what autocast computes in, if it is on.
    """
    return autocast if autocast is not None and implementation == "sdpa" else weights


def fit_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float mask in the dtype of the attention logits, its lowest value kept finite."""
    if not mask.is_floating_point() or mask.dtype == dtype:
        return mask
    lowest = max(torch.finfo(dtype).min, torch.finfo(mask.dtype).min)
    return mask.clamp(min=lowest).to(dtype)


def refuse_large_mask(num_rows: int, width: int, memory: int, asked: str) -> None:
    """Refuse float masks of queries x keys that would take over a quarter of the memory.

    Args:
        num_rows: of a batch.
        width: tokens of its longest row.
        memory: bytes of the device, or of the machine where that is less.
        asked: what asks for the mask, for messages.

    Raises:
        VisibilityError: says the size and what is smaller.
    """
    size = 4 * num_rows * width * width
    if size * _SHARE <= memory:
        return
    raise VisibilityError(
        f"{asked} needs a float mask of {num_rows} x {width:,} x {width:,} numbers, "
        f"{size / 2**30:,.1f} GiB, more than a quarter of the {memory / 2**30:,.1f} GiB here - use "
        "attn_implementation: flash_attention_2 or flex_attention, which need no such mask, or "
        "lower trainer.per_device_train_batch_size or the number of tokens in a row"
    )
