"""Examples -> Batch: positions are drawn here, and who may see whom is always said.

transformers guesses borders between samples from position ids when a batch has no mask: every
skip then cuts attention and the loss still looks healthy. So a batch from this room always
carries its mask, and positions never stand for borders.

Shape letters: B batch (rows), T tokens of the longest row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skipalign.encoding import IGNORE_INDEX, Example
from skipalign.errors import VisibilityError
from skipalign.key_bias import KeyBias
from skipalign.logit_scale import scale_of
from skipalign.packing import Attention
from skipalign.positions import Strategy, sample_rng
from skipalign.visits import Visit


class Batch(TypedDict):
    """What the model sees.

    `attention_mask` is 2-D (1 for a token, 0 for padding), or, with a key bias or block-diagonal
    packs, 4-D and float: what is added to the attention logits of (query, key), causal order,
    borders, padding and bias in one. Rows that hold several samples say so in `sample_ids`: 0, 1,
    ... in the order of the row, -1 for padding; the model does not take them.
    """

    input_ids: Int[Tensor, " B T"]
    labels: Int[Tensor, " B T"]
    position_ids: Int[Tensor, " B T"]
    attention_mask: Int[Tensor, " B T"] | Float[Tensor, " B 1 T T"]
    logit_scale: NotRequired[Float[Tensor, " B T"]]
    sample_ids: NotRequired[Int[Tensor, " B T"]]


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """An example with the positions, and the key bias and logit scale if any, of one visit."""

    example: Example
    position_ids: Int[np.ndarray, " T"]
    key_bias: Float[np.ndarray, " T"] | None = None
    logit_scale: float | None = None


class Collator:
    """Visits -> a padded Batch, each with the positions of (seed, epoch, sample id).

    Args:
        strategies: one per source name.
        seed: of the run.
        pad_token_id: what fills the rows; it is never seen.
        key_bias: what training adds to the attention logits of keys, or None.
        logit_scale: what training multiplies attention logits by, or None.
    """

    def __init__(
        self,
        strategies: Mapping[str, Strategy],
        *,
        seed: int,
        pad_token_id: int,
        key_bias: KeyBias | None = None,
        logit_scale: float | str | None = None,
    ) -> None:
        self.strategies = strategies
        self.seed = seed
        self.pad_token_id = pad_token_id
        self.key_bias = key_bias
        self.logit_scale = logit_scale

    def __call__(self, visits: Sequence[Visit]) -> Batch:
        return pad([self.place(visit) for visit in visits], self.pad_token_id)

    def place(self, visit: Visit) -> Placed:
        """Draw the positions of one visit, then its key bias, from the sample's own generator."""
        example = visit.example
        rng = sample_rng(self.seed, visit.epoch, example.id)
        strategy = self.strategies[example.source]
        position_ids = strategy.positions(example, rng)
        bias = scale = None
        if self.key_bias is not None:
            bias = self.key_bias.values(example, position_ids, rng)
        if self.logit_scale is not None:
            scale = scale_of(position_ids, self.logit_scale)
        return Placed(example, position_ids, bias, scale)


class PackCollator:
    """Packs of visits -> a Batch of rows that hold several samples each.

    Args:
        collator: draws the positions of each sample.
        attention: what the samples of a row see of each other.
    """

    def __init__(self, collator: Collator, attention: Attention) -> None:
        self.collator = collator
        self.attention: Attention = attention

    def __call__(self, packs: Sequence[Sequence[Visit]]) -> Batch:
        rows = [[self.collator.place(visit) for visit in visits] for visits in packs]
        return pack(rows, self.collator.pad_token_id, self.attention)


def pad(samples: Sequence[Placed], pad_token_id: int) -> Batch:
    """Give every sample a row, filled on the right to the longest; a mask says what is a token.

    Raises:
        VisibilityError: some samples carry a key bias or a logit scale and others none.
    """
    rows = [[sample] for sample in samples]
    return _batch(rows, pad_token_id, _sample_ids(rows), block_diagonal=False)


def pack(rows: Sequence[Sequence[Placed]], pad_token_id: int, attention: Attention) -> Batch:
    """Join the samples of each row; say which token is of which sample, and who sees whom.

    The first token of a sample is not trained: what stands before it is another sample.

    Raises:
        VisibilityError: causal attention with skipped positions or a key bias; or some samples
            carry a key bias or a logit scale and others none.
    """
    if attention == "causal":
        rows = [_one_text(row) for row in rows]
    sample_ids = _sample_ids(rows)
    batch = _batch(rows, pad_token_id, sample_ids, block_diagonal=attention == "block_diagonal")
    first = np.diff(sample_ids, prepend=-1, axis=1) != 0
    batch["labels"][torch.from_numpy(first)] = IGNORE_INDEX
    batch["sample_ids"] = torch.from_numpy(sample_ids)
    return batch


def _one_text(row: Sequence[Placed]) -> list[Placed]:
    """Give the samples of a row the positions 0, 1, 2, ... of one long text."""
    placed: list[Placed] = []
    start = 0
    for sample in row:
        stop = start + len(sample.position_ids)
        if sample.position_ids[-1] - sample.position_ids[0] != stop - start - 1:
            raise VisibilityError(
                f"sample {sample.example.id} skips positions in a causal pack, where a row is one "
                "text - use strategy: contiguous, or packing.attention: block_diagonal"
            )
        if sample.key_bias is not None:
            raise VisibilityError(
                f"sample {sample.example.id} carries a key bias in a causal pack, where other "
                "samples compete for the same attention - use packing.attention: block_diagonal, "
                "or key_bias: none"
            )
        placed.append(replace(sample, position_ids=np.arange(start, stop)))
        start = stop
    return placed


def _batch(
    rows: Sequence[Sequence[Placed]],
    pad_token_id: int,
    sample_ids: Int[np.ndarray, " B T"],
    *,
    block_diagonal: bool,
) -> Batch:
    samples = [sample for row in rows for sample in row]
    is_token = sample_ids >= 0
    mask = is_token.astype(np.int64)
    bias = np.zeros(mask.shape, np.float32)
    biases = [each.key_bias for each in samples if each.key_bias is not None]
    if _all_carry("key_bias", samples):
        bias[is_token] = np.concatenate(biases)
    if biases or block_diagonal:
        mask = _additive_mask(bias, sample_ids)
    batch = Batch(
        input_ids=_grid(is_token, pad_token_id, [each.example.input_ids for each in samples]),
        labels=_grid(is_token, IGNORE_INDEX, [each.example.labels for each in samples]),
        position_ids=_grid(is_token, 0, [each.position_ids for each in samples]),
        attention_mask=torch.from_numpy(mask),
    )
    if _all_carry("logit_scale", samples):
        scales = [np.full(len(each.position_ids), each.logit_scale) for each in samples]
        batch["logit_scale"] = _grid(is_token, 1, scales, np.float32)
    return batch


def _sample_ids(rows: Sequence[Sequence[Placed]]) -> Int[np.ndarray, " B T"]:
    """Return 0, 1, ... for the tokens of a row's samples, -1 for padding on the right."""
    lengths = [[len(each.position_ids) for each in row] for row in rows]
    ids = np.full((len(rows), max(map(sum, lengths))), -1, np.int64)
    for place, row in enumerate(lengths):
        ids[place, : sum(row)] = np.repeat(np.arange(len(row)), row)
    return ids


def _grid(
    is_token: Bool[np.ndarray, " B T"],
    padding: int,
    parts: Sequence[np.ndarray],
    dtype: type[np.generic] = np.int64,
) -> Tensor:
    """Write the samples' tokens, row after row, where tokens are."""
    grid = np.full(is_token.shape, padding, dtype)
    grid[is_token] = np.concatenate(parts)
    return torch.from_numpy(grid)


def _all_carry(field: str, samples: Sequence[Placed]) -> bool:
    count = sum(getattr(each, field) is not None for each in samples)
    if 0 < count < len(samples):
        name = field.replace("_", " ")
        raise VisibilityError(
            f"{count} of {len(samples)} samples of a batch carry a {name}; all or none must - use "
            f"one {field} for the whole run"
        )
    return count > 0


def _additive_mask(
    bias: Float[np.ndarray, " B T"], sample_ids: Int[np.ndarray, " B T"]
) -> Float[np.ndarray, " B 1 T T"]:
    """Return what is added to the logit of (query, key): the key's bias, or the lowest float.

    A token sees its own sample up to itself. Padding sees the row's tokens: no softmax is empty.
    """
    queries, keys = sample_ids[:, :, None], sample_ids[:, None, :]
    causal = np.tri(sample_ids.shape[1], dtype=bool)
    visible = causal & (keys >= 0) & ((queries == keys) | (queries < 0))
    lowest = np.finfo(np.float32).min
    return np.where(visible, bias[:, None, :], lowest)[:, None].astype(np.float32)
