"""A plain stand-in for the flash attention of transformers, which needs a GPU, for tests."""

from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "flash_attention_2"


def plain_flash(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence: rows by a 2-D mask, or whatever cu_seq_lens say."""
    assert softcap is None
    assert dropout == 0
    assert query.shape[-1] == key.shape[-1] == value.shape[-1], "as a flash kernel asks"
    num_rows, heads, width, _ = query.shape
    groups = heads // key.shape[1]
    flat = [
        each.transpose(1, 2).reshape(num_rows * width, -1, each.shape[-1]).repeat_interleave(n, 1)
        for each, n in ((query, 1), (key, groups), (value, groups))
    ]
    if attention_mask is not None:
        assert attention_mask.shape == (num_rows, width), "flash attention takes 2-D masks only"
        lengths = attention_mask.sum(1).tolist()
        spans = [(row * width, row * width + n) for row, n in enumerate(lengths)]
    elif cu_seq_lens_q is not None:
        assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
        assert cu_seq_lens_q.dtype == torch.int32
        ends = cu_seq_lens_q.tolist()
        assert (ends[0], ends[-1]) == (0, num_rows * width)
        spans = list(pairwise(ends))
        longest = max(stop - start for start, stop in spans)
        assert max_length_q == max_length_k == longest
    else:
        spans = [(row * width, (row + 1) * width) for row in range(num_rows)]
    output = torch.zeros_like(flat[0][..., : value.shape[-1]])
    for start, stop in spans:
        places = torch.arange(stop - start)
        back = places[:, None] - places[None, :]
        seen = (back >= 0) & (back < (sliding_window or stop - start))
        parts = [each[start:stop].transpose(0, 1) for each in flat]
        logits = parts[0] @ parts[1].transpose(1, 2) * scaling
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        output[start:stop] = (weights @ parts[2]).transpose(0, 1)
    return output.view(num_rows, width, heads, -1), None


@contextmanager
def flash_stood_in(model: Any) -> Generator[None]:
    """Set the model to flash attention, which is `plain_flash` while open."""
    before = ALL_ATTENTION_FUNCTIONS[NAME]
    AttentionInterface.register(NAME, plain_flash)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        AttentionInterface.register(NAME, before)
