"""Examples as rows: nothing that decides positions is lost on the way to other trainers."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skipalign.batch import Collator
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import DataError
from skipalign.key_bias import GapBias
from skipalign.positions import Contiguous, PoSE, SkipAlign
from skipalign.rows import SkipAlignCollator, example_of, row_of
from skipalign.visits import Visit

SKIPS = SkipAlign(max_position=500, cuts_within=2, cut_at="sentence")


def example(name: str = "a", num_tokens: int = 20) -> Example:
    ids = np.arange(5, 5 + num_tokens)
    labels = np.where(np.arange(num_tokens) >= 14, ids, IGNORE_INDEX)
    segments = (
        Segment(0, 3, "system", 1, 2),
        Segment(3, 12, "user", 4, 11),
        Segment(12, num_tokens, "assistant", 14, num_tokens - 1),
    )
    return Example(ids, labels, segments, np.array([6, 9]), name, "chats")


def test_a_row_makes_the_example_again():
    made = example_of(row_of(example()))
    for field in ("input_ids", "labels", "breaks"):
        assert np.array_equal(getattr(made, field), getattr(example(), field))
    assert (made.segments, made.id, made.source) == (example().segments, "a", "chats")


@pytest.mark.parametrize("bias", [None, GapBias()])
def test_the_batch_is_that_of_our_own_trainer(bias: GapBias | None):
    samples = [example("a"), example("b", 17)]
    ours = Collator({"chats": SKIPS}, seed=3, pad_token_id=1, key_bias=bias)
    theirs = SkipAlignCollator(SKIPS, seed=3, pad_token_id=1, key_bias=bias)
    theirs.set_epoch(4)
    expected = ours([Visit(sample, 4) for sample in samples])
    found = theirs([row_of(sample) for sample in samples])
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert not torch.equal(
        expected["position_ids"], ours([Visit(s, 0) for s in samples])["position_ids"]
    )


def test_the_trainer_tells_the_epoch_and_a_row_knows_better():
    collator = SkipAlignCollator(SKIPS, pad_token_id=0)
    at_first = collator.place(row_of(example())).position_ids
    collator.on_epoch_begin(None, SimpleNamespace(epoch=1.5), None)
    later = collator.place(row_of(example())).position_ids
    assert not np.array_equal(at_first, later)
    assert np.array_equal(collator.place({**row_of(example()), "epoch": 0}).position_ids, at_first)


def test_stored_positions_are_kept_where_nothing_is_to_be_drawn():
    stored = PoSE(max_position=90).positions(example(), np.random.default_rng(0))
    batch = SkipAlignCollator(pad_token_id=0)([{**row_of(example()), "position_ids": stored}])
    assert batch["position_ids"][0].tolist() == stored.tolist()
    assert batch["attention_mask"].all()
    with pytest.raises(DataError, match="brings no position_ids and the collator has no strategy"):
        SkipAlignCollator(pad_token_id=0)([row_of(example())])


def test_rows_whose_borders_were_taken_away_are_refused():
    row = row_of(replace(example()))
    del row["borders"], row["roles"]
    with pytest.raises(DataError, match=r"borders, roles are required too.*remove_unused_columns"):
        SkipAlignCollator(Contiguous(), pad_token_id=0)([row])
