"""The visibility promise, of rows and of packs, by a plain float64 attention; drawn positions."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
)

from made_models import SIZES, families
from skipalign.batch import Batch, Collator, PackCollator, Placed, pack, pad
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import DataError, VisibilityError
from skipalign.key_bias import GapBias
from skipalign.logit_scale import scale_of
from skipalign.packing import Attention
from skipalign.positions import Contiguous, SkipAlign, Strategy
from skipalign.visits import Visit, VisitDataset, VisitSampler

FAMILIES = families()
SKIPS = SkipAlign(max_position=4096, skip_fraction=1.0, cuts_within=3, cut_at="token")


def example(length: int, name: str, source: str = "a") -> Example:
    rng = np.random.default_rng(sum(name.encode()))
    ids = rng.integers(0, 97, length)
    half = length // 2
    segments = (
        Segment(0, half, "user", 1, half),
        Segment(half, length, "assistant", half + 1, length),
    )
    labels = np.where(np.arange(length) > half, ids, IGNORE_INDEX)
    return Example(ids, labels, segments, np.zeros(0, np.int64), name, source)


def collator(key_bias: GapBias | None = None, seed: int = 0) -> Collator:
    return Collator({"a": SKIPS, "b": Contiguous()}, seed=seed, pad_token_id=0, key_bias=key_bias)


def plain_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """Write attention out: softmax over visible keys, in the dtype of its input (float64 here)."""
    visible, bias = module.config.reference
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling + bias[:, None, None, :]
    weights = torch.softmax(logits.masked_fill(~visible[:, None], -torch.inf), dim=-1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, value), weights


AttentionInterface.register("plain_attention", plain_attention)


def reference_logits(model, rows: list[Placed]) -> list[torch.Tensor]:
    """Run each row alone, in float64, by `plain_attention`: nothing is padded or guessed."""
    twin = type(model)(type(model.config)(**model.config.to_dict())).double()
    twin.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    twin.set_attn_implementation("plain_attention")
    outputs = []
    for row in rows:
        length = len(row.position_ids)
        bias = np.zeros(length) if row.key_bias is None else row.key_bias
        visible = torch.ones(1, length, length, dtype=torch.bool).tril()
        twin.config.reference = (visible, torch.tensor(bias).double()[None])
        with torch.no_grad():
            outputs.append(
                twin(
                    input_ids=torch.tensor(row.example.input_ids)[None],
                    position_ids=torch.tensor(row.position_ids)[None],
                    use_cache=False,
                ).logits[0]
            )
    return outputs


def test_the_key_bias_of_a_sample_is_that_of_its_skipped_positions():
    sample = example(40, "a")
    placed = collator(GapBias()).place(Visit(sample, 0))
    rng = np.random.default_rng(0)  # a gap bias draws nothing
    assert np.ptp(placed.key_bias) > 0
    assert np.array_equal(placed.key_bias, GapBias().values(sample, placed.position_ids, rng))


@pytest.mark.parametrize("biased", [False, True], ids=["mask", "key_bias"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_shows_each_sample_all_of_itself_and_nothing_else(
    family: str, attention: str, checkpointing: bool, biased: bool
):
    torch.manual_seed(0)
    make, config = FAMILIES[family]
    model = make(config())
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    collate = collator(GapBias() if biased else None)
    visits = [Visit(example(length, f"{family}{length}"), 0) for length in (40, 23, 31)]
    rows = [collate.place(visit) for visit in visits]
    assert all(row.position_ids[-1] > 40 for row in rows), "the samples must skip"
    batch = collate(visits)
    output = model(**batch)
    for index, expected in enumerate(reference_logits(model, rows)):
        found = output.logits[index, : len(expected)].double()
        assert torch.allclose(found, expected, atol=2e-6), (found - expected).abs().max()
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def packed_rows(collate: Collator) -> list[list[Placed]]:
    lengths = [(40, 23), (31, 12, 9)]
    return [[collate.place(Visit(example(n, f"p{n}"), 0)) for n in row] for row in lengths]


def pieces(logits: torch.Tensor, row: list[Placed]) -> list[torch.Tensor]:
    lengths = [len(sample.position_ids) for sample in row]
    return list(logits[: sum(lengths)].split(lengths))


@pytest.mark.parametrize("biased", [False, True], ids=["mask", "key_bias"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_diagonal_pack_shows_each_sample_all_of_itself_and_nothing_else(
    family: str, attention: str, biased: bool
):
    torch.manual_seed(0)
    make, config = FAMILIES[family]
    model = make(config()).train()
    model.set_attn_implementation(attention)
    rows = packed_rows(collator(GapBias() if biased else None))
    batch = pack(rows, 0, "block_diagonal")
    output = model(**seen_by_model(batch))
    for index, row in enumerate(rows):
        for found, expected in zip(
            pieces(output.logits[index], row), reference_logits(model, row), strict=True
        ):
            assert torch.allclose(found.double(), expected, atol=2e-6)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_causal_pack_is_one_long_text(attention: str):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model.set_attn_implementation(attention)
    natural = Collator({"a": Contiguous()}, seed=0, pad_token_id=0)
    rows = packed_rows(natural)
    batch = pack(rows, 0, "causal")
    assert batch["attention_mask"].tolist() == [[1] * 63, [1] * 52 + [0] * 11]
    with torch.no_grad():
        logits = model(**seen_by_model(batch)).logits
    for index, row in enumerate(rows):
        ids = np.concatenate([sample.example.input_ids for sample in row])
        whole = replace(row[0].example, input_ids=ids)
        (expected,) = reference_logits(model, [Placed(whole, np.arange(len(ids)))])
        assert batch["position_ids"][index, : len(ids)].tolist() == list(range(len(ids)))
        assert torch.allclose(logits[index, : len(ids)].double(), expected, atol=2e-6)


def seen_by_model(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "sample_ids"}


@pytest.mark.parametrize("attention", ["causal", "block_diagonal"])
def test_no_sample_is_trained_from_the_one_before_it(attention: Attention):
    """Also of documents, whose every token is trained, and whatever stands at the border."""
    samples = [example(n, f"d{n}") for n in (5, 7, 6)]
    samples = [replace(each, labels=each.input_ids) for each in samples]
    natural = Collator({"a": Contiguous()}, seed=0, pad_token_id=0)
    batch = pack([[natural.place(Visit(each, 0)) for each in samples]], 0, attention)
    untrained = (batch["labels"][0] == IGNORE_INDEX).nonzero().flatten()
    assert untrained.tolist() == [0, 5, 12]
    assert batch["sample_ids"][0].tolist() == [0] * 5 + [1] * 7 + [2] * 6


def test_a_packed_loss_is_that_of_the_samples_alone():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    row = packed_rows(collator())[1]
    with torch.no_grad():
        together = model(**seen_by_model(pack([row], 0, "block_diagonal"))).loss
        alone = [model(**pad([sample], 0)) for sample in row]
    counts = [int((sample.example.labels[1:] != IGNORE_INDEX).sum()) for sample in row]
    expected = sum(one.loss * count for one, count in zip(alone, counts, strict=True)) / sum(counts)
    assert torch.allclose(together, expected, atol=1e-6)


def test_positions_make_no_border_and_borders_no_position():
    """A sample whose ids go on where the last sample's ended is still a sample of its own."""
    first, second = example(5, "first"), example(4, "second")
    going_on = Placed(second, np.array([5, 6, 7, 30]))
    batch = pack([[Placed(first, np.array([0, 1, 2, 3, 4])), going_on]], 0, "block_diagonal")
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 30]
    visible = batch["attention_mask"][0, 0] == 0
    assert visible.int().sum(dim=1).tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert visible[8].tolist() == [False] * 5 + [True] * 4


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Placed(example(4, "x"), np.array([0, 1, 2, 9])), "sample x skips.*contiguous"),
        (Placed(example(4, "x"), np.arange(4), np.ones(4)), "sample x carries a key bias"),
    ],
)
def test_causal_packs_of_skipped_or_biased_samples_are_refused(sample: Placed, message: str):
    with pytest.raises(VisibilityError, match=message):
        pack([[sample]], 0, "causal")


def test_every_token_carries_the_scale_of_its_own_sample():
    collate = Collator({"a": SKIPS}, seed=0, pad_token_id=0, logit_scale="span")
    rows = packed_rows(collate)
    batch = pack(rows, 0, "block_diagonal")
    for index, row in enumerate(rows):
        scales = [scale_of(sample.position_ids, "span") for sample in row]
        assert len(set(scales)) == len(scales)
        expected = np.repeat(scales, [len(sample.position_ids) for sample in row])
        assert np.allclose(batch["logit_scale"][index, : len(expected)], expected)
    plain = pad(rows[0], 0)["logit_scale"]
    assert plain[:, 0].tolist() == plain[:, 22].tolist()
    assert "logit_scale" not in collator()([Visit(example(9, "x"), 0)])


def test_packs_of_visits_are_placed_like_single_ones():
    collate = collator(GapBias())
    visits = [Visit(example(n, f"v{n}"), 1) for n in (12, 9)]
    found = PackCollator(collate, "block_diagonal")([visits])
    expected = pack([[collate.place(visit) for visit in visits]], 0, "block_diagonal")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_same_batch_without_its_mask_is_wrong():
    """The trap itself: should a release of transformers mend it, the mask may become optional."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    collate = collator()
    visits = [Visit(example(40, "alone"), 0)]
    batch = collate(visits)
    batch.pop("attention_mask")
    (expected,) = reference_logits(model, [collate.place(visit) for visit in visits])
    with torch.no_grad():
        found = model(**batch, use_cache=False).logits[0].double()
    assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize("biased", [False, True])
def test_a_batch_always_carries_its_mask_and_explicit_positions(biased: bool):
    batch = collator(GapBias() if biased else None)([Visit(example(9, "x"), 0)])
    assert set(batch) == {"input_ids", "labels", "position_ids", "attention_mask"}
    assert batch["attention_mask"].dim() == (4 if biased else 2)


def test_padding_is_masked_and_never_trained():
    batch = collator()([Visit(example(9, "x"), 0), Visit(example(5, "y"), 0)])
    assert batch["attention_mask"].tolist()[1] == [1] * 5 + [0] * 4
    assert (batch["labels"][1, 5:] == IGNORE_INDEX).all()


def test_a_user_token_is_never_trained():
    sample = example(30, "z")
    batch = collator()([Visit(sample, 0)])
    user = slice(sample.segments[0].start, sample.segments[0].stop)
    assert (batch["labels"][0, user] == IGNORE_INDEX).all()
    assert (batch["labels"][0] != IGNORE_INDEX).sum() == 14


def test_key_bias_in_some_rows_only_is_refused():
    collate = collator(GapBias())
    row = collate.place(Visit(example(9, "x"), 0))
    with pytest.raises(VisibilityError, match=r"1 of 2 samples.*key bias"):
        pad([row, Placed(row.example, row.position_ids, None)], 0)


def test_positions_ignore_the_global_generator_and_change_with_the_epoch():
    collate, sample = collator(), example(30, "x")
    torch.manual_seed(1)
    first = collate([Visit(sample, 0)])["position_ids"]
    torch.manual_seed(2)
    assert torch.equal(first, collate([Visit(sample, 0)])["position_ids"])
    assert not torch.equal(first, collate([Visit(sample, 1)])["position_ids"])
    assert not torch.equal(first, collator(seed=1)([Visit(sample, 0)])["position_ids"])


def walk(num_workers: int, batch_size: int = 4) -> dict[tuple[int, str], list[int]]:
    """Return the positions of every sample over two epochs, by (epoch, sample)."""
    samples = [example(10 + index, f"s{index}") for index in range(22)]
    sampler = VisitSampler(
        np.array([len(s.input_ids) for s in samples]),
        ["a"] * len(samples),
        {},
        batch_size=batch_size,
        seed=5,
    )
    collate = collator(seed=5)
    seen: dict[tuple[int, str], list[int]] = {}

    def keep(visits: list[Visit]) -> list[tuple[int, str, list[int]]]:
        return [(v.epoch, v.example.id, collate.place(v).position_ids.tolist()) for v in visits]

    loader = DataLoader(
        VisitDataset(samples),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=keep,
        multiprocessing_context="fork" if num_workers else None,
    )
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in loader:
            seen |= {(e, name): ids for e, name, ids in batch}
    return seen


def test_positions_are_the_same_on_any_number_of_workers_and_in_any_order():
    alone = walk(0)
    assert len(alone) == 44
    assert alone == walk(2)
    assert alone == walk(0, batch_size=7)
    changed = [alone[0, f"s{i}"] != alone[1, f"s{i}"] for i in range(22)]
    assert sum(changed) > 5


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda n: np.arange(n)[::-1], "token 1 position 18 after 19"),
        (lambda n: np.arange(n) // 2, "token 1 position 0 after 0"),
        (lambda n: np.arange(n) - 1, "token 0 position -1;"),
        (lambda n: np.arange(n + 1), "21 positions for 20 tokens"),
        (lambda n: np.arange(n) + 90, "position 109, and its max_position is 100"),
    ],
)
def test_a_strategy_that_breaks_its_promise_is_refused(made, message: str):
    @dataclass(frozen=True)
    class Broken(Strategy):
        name: ClassVar[str] = "broken"
        max_position: int = 100

        def positions(self, example, rng):
            return made(len(example.input_ids))

    broken = Collator({"a": Broken()}, seed=0, pad_token_id=0)
    with pytest.raises(DataError, match=f"sample one: strategy broken gave {message}"):
        broken([Visit(example(20, "one"), 0)])
