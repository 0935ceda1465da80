"""Examples <-> rows of a data set, and rows -> Batch: for trainers that are not ours.

A row tells all that decides positions, in plain columns, so that any tool can carry it:

    input_ids, labels   the tokens, and what the loss reads of them (IGNORE_INDEX elsewhere)
    borders, roles      the tokens at which blocks begin, the first is 0, and who speaks in each
    contents            start and stop of each block's own text, one pair after the other
    breaks              the tokens at which sentences and paragraphs begin
    id, source          of the sample
    epoch               of the visit, where positions were drawn for it; else absent
    position_ids        drawn for that visit; else absent

Shape letters: T tokens of a sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from skipalign.batch import Batch, Collator, Placed, pad
from skipalign.encoding import Example, Segment
from skipalign.errors import DataError
from skipalign.key_bias import KeyBias
from skipalign.positions import Strategy
from skipalign.visits import Visit

COLUMNS = ("input_ids", "labels", "borders", "roles", "contents", "breaks", "id", "source")


def row_of(example: Example) -> dict[str, Any]:
    """Return an example as a row; `example_of` makes the same example of it."""
    return {
        "input_ids": example.input_ids.tolist(),
        "labels": example.labels.tolist(),
        "borders": [segment.start for segment in example.segments],
        "roles": [segment.role for segment in example.segments],
        "contents": [
            edge for each in example.segments for edge in (each.content_start, each.content_stop)
        ],
        "breaks": example.breaks.tolist(),
        "id": example.id,
        "source": example.source,
    }


def example_of(row: Mapping[str, Any]) -> Example:
    """Return the example that a row tells.

    Raises:
        DataError: columns are missing.
    """
    if missing := [name for name in COLUMNS if name not in row]:
        raise DataError(
            f"a row has the columns {', '.join(row)}; {', '.join(missing)} are required too, for "
            "where positions skip depends on them - give the trainer remove_unused_columns=False "
            "and no preparation of its own"
        )
    ids = np.array(row["input_ids"], np.int64)
    edges = [*row["borders"], len(ids)]
    contents = row["contents"]
    segments = tuple(
        Segment(edges[n], edges[n + 1], role, contents[2 * n], contents[2 * n + 1])
        for n, role in enumerate(row["roles"])
    )
    labels, breaks = np.array(row["labels"], np.int64), np.array(row["breaks"], np.int64)
    return Example(ids, labels, segments, breaks, row["id"], row["source"])


class SkipAlignCollator(TrainerCallback):
    """Rows -> a padded Batch whose mask is always said: for any trainer that takes a collator.

    The draw depends on the epoch, which a collator is not told. Given to transformers' Trainer
    among its `callbacks` too, it learns the epoch there; else a row's `epoch` decides, or 0.

    Args:
        strategy: draws the positions; None keeps the rows' own `position_ids`.
        pad_token_id: what fills the rows; it is never seen.
        seed: of the run.
        key_bias: what training adds to the attention logits of keys, or None. It makes the mask
            4-D and float, which flash attention does not take.

    Raises:
        DataError: a row lacks columns.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        pad_token_id: int,
        seed: int = 0,
        key_bias: KeyBias | None = None,
    ) -> None:
        self.strategy = strategy
        self.pad_token_id = pad_token_id
        self.seed = seed
        self.key_bias = key_bias
        # Workers of a data loader outlive an epoch; shared memory tells them of the next one.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next positions are drawn for."""
        self._epoch[0] = epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the epoch from transformers' Trainer."""
        self.set_epoch(int(state.epoch or 0))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        return pad([self.place(row) for row in rows], self.pad_token_id)

    def place(self, row: Mapping[str, Any]) -> Placed:
        """Return a row's example with its positions.

        Raises:
            DataError: a column is missing, or nobody says the positions.
        """
        example = example_of(row)
        if self.strategy is None:
            if row.get("position_ids") is None:
                raise DataError(
                    f"row {example.id} brings no position_ids and the collator has no strategy to "
                    "draw them; give it one, or rows as `skipalign export` writes them"
                )
            return Placed(example, np.array(row["position_ids"], np.int64))
        collator = Collator(
            {example.source: self.strategy},
            seed=self.seed,
            pad_token_id=self.pad_token_id,
            key_bias=self.key_bias,
        )
        epoch = row.get("epoch")
        return collator.place(Visit(example, int(self._epoch) if epoch is None else epoch))
