"""The order of samples and of packs: everything once an epoch, the same after a crash."""

from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader

from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import DataError
from skipalign.visits import PackDataset, PackSampler, VisitDataset, VisitSampler

LENGTHS = np.random.default_rng(0).integers(5, 120, 300)


def order(sampler: VisitSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_example_comes_once_an_epoch_in_an_order_of_its_own():
    lengths = np.random.default_rng(0).integers(5, 500, 333)
    sampler = VisitSampler(lengths, ["a"] * 333, {}, batch_size=8, seed=1)
    first, second = order(sampler, 0), order(sampler, 1)
    assert sorted(index for _, index in first) == list(range(333))
    assert {epoch for epoch, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]
    assert first == order(sampler, 0)
    assert len(sampler) == 333


def test_batches_hold_like_lengths():
    lengths = np.random.default_rng(0).integers(5, 500, 4000)
    sampler = VisitSampler(lengths, ["a"] * 4000, {}, batch_size=8, seed=1)
    rows = lengths[[index for _, index in sampler]].reshape(-1, 8)
    grouped = rows.sum() / (rows.max(axis=1) * 8).sum()
    shuffled = np.random.default_rng(1).permutation(lengths).reshape(-1, 8)
    assert grouped > 0.95
    assert shuffled.sum() / (shuffled.max(axis=1) * 8).sum() < 0.65


def test_weights_are_shares_of_tokens():
    lengths = np.array([10] * 300 + [100] * 70)
    sources = ["short"] * 300 + ["long"] * 70
    sampler = VisitSampler(lengths, sources, {"short": 1.0, "long": 1.0}, batch_size=4, seed=0)
    tokens = Counter()
    for epoch in range(3):
        for _, index in order(sampler, epoch):
            tokens[sources[index]] += int(lengths[index])
    assert abs(tokens["short"] / tokens.total() - 0.5) < 0.01
    assert abs(tokens.total() / 3 - lengths.sum()) / lengths.sum() < 0.01


def test_a_source_walked_through_twice_an_epoch_draws_new_positions():
    sampler = VisitSampler(
        np.array([10] * 10 + [10] * 90),
        ["few"] * 10 + ["many"] * 90,
        {"few": 0.2, "many": 0.8},
        batch_size=4,
        seed=0,
    )
    visits = [v for epoch in range(2) for v in order(sampler, epoch) if v[1] < 10]
    assert len(visits) == 40
    assert len(set(visits)) == 40


def test_a_sample_holds_each_source_as_often_as_an_epoch_visits_it():
    rng = np.random.default_rng(0)
    lengths, names = np.full(400, 10), ["a"] * 100 + ["b"] * 300
    alone = VisitSampler(lengths, ["a"] * 400, {}, batch_size=None, seed=0)
    assert alone.sample(40, np.random.default_rng(7)).tolist() == (
        np.random.default_rng(7).permutation(400)[:40].tolist()
    )
    natural = VisitSampler(lengths, names, {}, batch_size=None, seed=0).sample(40, rng)
    assert np.bincount(natural // 100 > 0).tolist() == [10, 30]
    even = VisitSampler(lengths, names, {"a": 1.0, "b": 1.0}, batch_size=None, seed=0)
    assert np.bincount(even.sample(40, rng) // 100 > 0).tolist() == [20, 20]
    # 200 visits of 100 examples: more than half of the epoch would have one twice.
    everything = even.sample(400, rng)
    assert np.bincount(everything // 100 > 0).tolist() == [100, 100]
    assert len(set(everything.tolist())) == 200


def packs_of(
    lengths: np.ndarray = LENGTHS, *, epochs: int = 3, seed: int = 1, max_tokens: int = 256
) -> PackSampler:
    visits = VisitSampler(lengths, ["a"] * len(lengths), {}, batch_size=None, seed=seed)
    return PackSampler(visits, max_tokens, num_epochs=lambda num_packs: epochs)


def walk(sampler: PackSampler, epoch: int) -> list[tuple[tuple[int, int], ...]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_example_is_in_one_pack_of_every_epoch_and_no_pack_is_too_long():
    sampler = packs_of()
    for epoch in range(3):
        packs = walk(sampler, epoch)
        assert sorted(index for pack in packs for _, index in pack) == list(range(300))
        assert {visit for pack in packs for visit, _ in pack} == {epoch}
        assert all(sum(LENGTHS[index] for _, index in pack) <= 256 for pack in packs)


def test_packs_are_a_pure_function_of_seed_and_epoch():
    first = walk(packs_of(), 2)
    assert first == walk(packs_of(), 2)
    assert first != walk(packs_of(), 1)
    assert first != walk(packs_of(seed=2), 2)
    together = {frozenset(index for _, index in pack) for pack in first}
    assert not together & {frozenset(i for _, i in pack) for pack in walk(packs_of(), 1)}


def test_every_epoch_has_as_many_packs_as_the_longest_of_the_run():
    """The Trainer counts steps by one length; an epoch of another would break an exact resume."""
    lengths = np.random.default_rng(3).integers(40, 90, 90)
    alone = {len(walk(packs_of(lengths, epochs=1, seed=seed), 0)) for seed in range(20)}
    assert len(alone) > 1, "without the rule the lengths must differ"
    sampler = packs_of(lengths, epochs=20)
    assert {len(walk(sampler, epoch)) for epoch in range(20)} == {len(sampler)}


def test_packs_are_nearly_full_and_the_emptier_ones_are_not_all_last():
    sampler = packs_of(np.random.default_rng(0).integers(5, 120, 4000), epochs=1)
    lengths = sampler.visits.lengths
    filled = [sum(lengths[index] for _, index in pack) for pack in walk(sampler, 0)]
    assert np.mean(filled) > 0.97 * 256
    emptiest = np.argsort(filled)[:20]
    assert min(emptiest) < len(filled) // 2


def test_a_source_with_a_weight_keeps_its_own_epoch_in_packs():
    visits = VisitSampler(
        np.array([10] * 100),
        ["few"] * 10 + ["many"] * 90,
        {"few": 0.2, "many": 0.8},
        batch_size=None,
        seed=0,
    )
    sampler = PackSampler(visits, 50, num_epochs=lambda num_packs: 1)
    keys = [key for pack in sampler for key in pack if key[1] < 10]
    assert Counter(epoch for epoch, _ in keys) == {0: 10, 1: 10}


def test_an_example_longer_than_a_pack_is_refused():
    with pytest.raises(DataError, match=r"120 tokens, but packing\.max_tokens is 100"):
        packs_of(np.array([5, 120]), max_tokens=100)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_hands_over_whole_packs(num_workers: int):
    samples = [one_token_example(index) for index in range(12)]
    sampler = packs_of(np.ones(12, np.int64), max_tokens=4)
    loader = DataLoader(
        PackDataset(VisitDataset(samples)),
        batch_size=2,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=lambda packs: [[visit.example.id for visit in pack] for pack in packs],
        multiprocessing_context="fork" if num_workers else None,
    )
    batches = list(loader)
    assert [len(batch) for batch in batches] == [2, 1]
    expected = [[f"s{index}" for _, index in pack] for pack in sampler]
    assert [pack for batch in batches for pack in batch] == expected


def one_token_example(number: int) -> Example:
    ids = np.array([number])
    segments = (Segment(0, 1, "assistant", 0, 1),)
    return Example(ids, np.array([IGNORE_INDEX]), segments, np.zeros(0, int), f"s{number}", "a")
