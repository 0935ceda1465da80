"""Examples -> Batch: positions are drawn here, and who may see whom is always said.

transformers guesses borders between samples from position ids when a batch has no mask: every
skip then cuts attention and the loss still looks healthy. So a batch from this room always
carries its mask or its borders, and positions never stand for borders.

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
from skipalign.errors import DataError, VisibilityError
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

    For attention that takes no float mask (flash, flex) the bias stands in `key_bias`, and
    block-diagonal packs have no mask at all: one row without padding, told by its sample_ids
    (`borders.visibility`).
    """

    input_ids: Int[Tensor, " B T"]
    labels: Int[Tensor, " B T"]
    position_ids: Int[Tensor, " B T"]
    attention_mask: NotRequired[Int[Tensor, " B T"] | Float[Tensor, " B 1 T T"]]
    key_bias: NotRequired[Float[Tensor, " B T"]]
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
        float_mask: tell key biases and the borders of packs in a 4-D float mask, as sdpa and eager
            take it; False leaves them beside, as flash and flex attention do.
    """

    def __init__(
        self,
        strategies: Mapping[str, Strategy],
        *,
        seed: int,
        pad_token_id: int,
        key_bias: KeyBias | None = None,
        logit_scale: float | str | None = None,
        float_mask: bool = True,
    ) -> None:
        self.strategies = strategies
        self.seed = seed
        self.pad_token_id = pad_token_id
        self.key_bias = key_bias
        self.logit_scale = logit_scale
        self.float_mask = float_mask

    def __call__(self, visits: Sequence[Visit]) -> Batch:
        samples = [self.place(visit) for visit in visits]
        return pad(samples, self.pad_token_id, float_mask=self.float_mask)

    def place(self, visit: Visit) -> Placed:
        """Draw the positions of one visit, then its key bias, from the sample's own generator."""
        example = visit.example
        rng = sample_rng(self.seed, visit.epoch, example.id)
        strategy = self.strategies[example.source]
        position_ids = strategy.positions(example, rng)
        _require_increasing(position_ids, strategy, example)
        bias = scale = None
        if self.key_bias is not None:
            bias = self.key_bias.values(example, position_ids, rng)
        if self.logit_scale is not None:
            scale = scale_of(position_ids, self.logit_scale)
        return Placed(example, position_ids, bias, scale)


def _require_increasing(
    position_ids: Int[np.ndarray, " T"], strategy: Strategy, example: Example
) -> None:
    """Hold a strategy to its promise; one that is new may break it, and the loss would not tell.

    Raises:
        DataError: not one position for each token, strictly increasing, in [0, max_position).
    """
    known = f"sample {example.id}: strategy {strategy.name} gave"
    cure = "; give each token one position, strictly increasing from 0 or more - mend positions()"
    if len(position_ids) != len(example.input_ids):
        lengths = f"{len(position_ids):,} positions for {len(example.input_ids):,} tokens"
        raise DataError(f"{known} {lengths}{cure}")
    falls = position_ids[1:] <= position_ids[:-1]
    if position_ids[0] < 0 or falls.any():
        token = 0 if position_ids[0] < 0 else int(falls.argmax()) + 1
        before = f" after {position_ids[token - 1]}" if token else ""
        raise DataError(f"{known} token {token} position {position_ids[token]}{before}{cure}")
    limit = getattr(strategy, "max_position", None)
    if limit is not None and position_ids[-1] >= limit:
        raise DataError(
            f"{known} position {position_ids[-1]:,}, and its max_position is {limit:,}; positions "
            "lie below that - mend positions()"
        )


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
        float_mask = self.collator.float_mask
        return pack(rows, self.collator.pad_token_id, self.attention, float_mask=float_mask)


def pad(samples: Sequence[Placed], pad_token_id: int, *, float_mask: bool = True) -> Batch:
    """Give every sample a row, filled on the right to the longest; a mask says what is a token.

    Args:
        samples: one for each row.
        pad_token_id: what fills the rows.
        float_mask: carry a key bias in the mask, not beside it.

    Raises:
        VisibilityError: some samples carry a key bias or a logit scale and others none.
    """
    rows = [[sample] for sample in samples]
    sample_ids = _sample_ids(rows)
    batch = _batch(rows, pad_token_id, sample_ids)
    if float_mask and "key_bias" in batch:
        return _with_float_mask(batch, sample_ids)
    batch["attention_mask"] = _is_token(sample_ids)
    return batch


def pack(
    rows: Sequence[Sequence[Placed]],
    pad_token_id: int,
    attention: Attention,
    *,
    float_mask: bool = True,
) -> Batch:
    """Join the samples of each row; say which token is of which sample, and who sees whom.

    The first token of a sample is not trained: what stands before it is another sample.

    Args:
        rows: the samples of each.
        pad_token_id: what fills the rows.
        attention: what the samples of a row see of each other.
        float_mask: tell block-diagonal packs in a float mask. False joins all of them into one row
            without padding, of which sample_ids tell the borders, and no mask is made.

    Raises:
        VisibilityError: causal attention with skipped positions or a key bias; or some samples
            carry a key bias or a logit scale and others none.
    """
    if attention == "causal":
        rows = [_one_text(row) for row in rows]
    elif not float_mask:
        rows = [[sample for row in rows for sample in row]]
    sample_ids = _sample_ids(rows)
    batch = _batch(rows, pad_token_id, sample_ids)
    if attention == "causal":
        batch["attention_mask"] = _is_token(sample_ids)
    elif float_mask:
        batch = _with_float_mask(batch, sample_ids)
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
    rows: Sequence[Sequence[Placed]], pad_token_id: int, sample_ids: Int[np.ndarray, " B T"]
) -> Batch:
    """Return the batch without what tells who sees whom."""
    samples = [sample for row in rows for sample in row]
    is_token = sample_ids >= 0
    batch = Batch(
        input_ids=_grid(is_token, pad_token_id, [each.example.input_ids for each in samples]),
        labels=_grid(is_token, IGNORE_INDEX, [each.example.labels for each in samples]),
        position_ids=_grid(is_token, 0, [each.position_ids for each in samples]),
    )
    if _all_carry("key_bias", samples):
        biases = [each.key_bias for each in samples if each.key_bias is not None]
        batch["key_bias"] = _grid(is_token, 0, biases, np.float32)
    if _all_carry("logit_scale", samples):
        scales = [np.full(len(each.position_ids), each.logit_scale) for each in samples]
        batch["logit_scale"] = _grid(is_token, 1, scales, np.float32)
    return batch


def _is_token(sample_ids: Int[np.ndarray, " B T"]) -> Int[Tensor, " B T"]:
    return torch.from_numpy((sample_ids >= 0).astype(np.int64))


def _with_float_mask(batch: Batch, sample_ids: Int[np.ndarray, " B T"]) -> Batch:
    """Return the batch with its borders, padding and key bias, if any, in one float mask."""
    bias = batch.pop("key_bias", None)
    values = np.zeros(sample_ids.shape, np.float32) if bias is None else bias.numpy()
    batch["attention_mask"] = torch.from_numpy(_additive_mask(values, sample_ids))
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
