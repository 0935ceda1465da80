"""Which examples come when: the order of the samples, and of the packs, of every epoch.

Both are pure functions of (seed, epoch), so that a run that was killed goes on where it stopped.

Shape letters: N examples, M visits of an epoch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset, Sampler

from skipalign.encoding import Example
from skipalign.packing import best_fit, split_to
from skipalign.positions import sample_rng

Key = tuple[int, int]  # (epoch of the visit, index of the example)


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """An example at one of its visits: how often its source had been walked through before."""

    example: Example
    epoch: int


class VisitDataset(Dataset[Visit]):
    """Examples by (epoch, index). Workers know no epoch, so it travels with the index."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key) -> Visit:  # pyright: ignore[reportIncompatibleMethodOverride]
        epoch, index = key
        return Visit(self.examples[index], epoch)


class PackDataset(Dataset[list[Visit]]):
    """The visits of one row by their keys."""

    def __init__(self, visits: VisitDataset) -> None:
        self.visits = visits

    def __len__(self) -> int:
        return len(self.visits)

    def __getitem__(self, keys: Sequence[Key]) -> list[Visit]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return [self.visits[key] for key in keys]


class VisitSampler(Sampler[Key]):
    """Yield (epoch, index) in an order that is a pure function of (seed, epoch).

    Neighbours have like lengths, so that batches of `batch_size` hold little padding. A source
    with a weight is walked through as often, or in such a part, as its share of the epoch's
    tokens asks; at each of these visits its examples draw new positions.

    Args:
        lengths: tokens of each example.
        sources: source name of each example.
        weights: share of the tokens by source, relative; a source that is absent or None counts
            with the tokens that it has. One epoch has about as many tokens as all examples.
        batch_size: examples of one batch; None leaves the order random, for packs.
        seed: of the run.

    Source: LongAlign's sorted batching (arXiv 2401.18058) sorts the whole data set by length and
        takes random groups of neighbours as batches.
    Differs: sorted within random blocks of 50 batches, not over the whole data set, so that every
        epoch has other batches; batches come in random order. A batch still holds 95% tokens.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, " N"],
        sources: Sequence[str],
        weights: Mapping[str, float | None],
        *,
        batch_size: int | None,
        seed: int,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        names = np.array(sources)
        self._members = {name: np.flatnonzero(names == name) for name in sorted(set(sources))}
        self._counts = self._visits_per_epoch(weights)

    def _visits_per_epoch(self, weights: Mapping[str, float | None]) -> dict[str, int]:
        tokens = {name: int(self.lengths[rows].sum()) for name, rows in self._members.items()}
        if all(weights.get(name) is None for name in tokens):
            return {name: len(rows) for name, rows in self._members.items()}
        total = sum(tokens.values())
        given = {name: weights.get(name) for name in tokens}
        shares = {
            name: float(weight) if weight is not None else tokens[name] / total
            for name, weight in given.items()
        }
        norm = sum(shares.values())
        return {
            name: max(1, round(len(rows) * shares[name] / norm * total / tokens[name]))
            for name, rows in self._members.items()
        }

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next walk; the Trainer calls it."""
        self.epoch = epoch

    def sample(self, most: int, rng: np.random.Generator) -> Int[np.ndarray, " N"]:
        """Return about `most` examples, none twice, of each source as many as its share of visits.

        They are fewer where a source that is visited often has few examples.
        """
        rows_per_visit = [len(rows) / self._counts[name] for name, rows in self._members.items()]
        share = min(most / len(self), *rows_per_visit)
        nums = {name: max(1, round(count * share)) for name, count in self._counts.items()}
        return np.concatenate(
            [rng.permutation(rows)[: nums[name]] for name, rows in self._members.items()]
        )

    def __len__(self) -> int:
        return sum(self._counts.values())

    def __iter__(self) -> Iterator[Key]:
        yield from self.walk(self.epoch)

    def walk(self, epoch: int) -> list[Key]:
        """Return the visits of an epoch in their order."""
        rng = sample_rng(self.seed, epoch, "order of the epoch")
        visits = np.concatenate(
            [
                self._visits(rows, self._counts[name], epoch, rng)
                for name, rows in self._members.items()
            ]
        )
        order = rng.permutation(len(visits))
        if self.batch_size is not None:
            order = self._grouped(order, visits[:, 1], self.batch_size, rng)
        return [(visit, index) for visit, index in visits[order].tolist()]

    def _visits(
        self, rows: Int[np.ndarray, " N"], count: int, epoch: int, rng: np.random.Generator
    ) -> Int[np.ndarray, " M 2"]:
        """Return `count` visits of one source as (its own epoch, index)."""
        walks = -(-count // len(rows))
        order = np.concatenate([rng.permutation(rows) for _ in range(walks)])[:count]
        epochs = epoch * walks + np.arange(count) // len(rows)
        return np.stack([epochs, order], axis=1)

    def _grouped(
        self,
        order: Int[np.ndarray, " M"],
        indices: Int[np.ndarray, " M"],
        batch_size: int,
        rng: np.random.Generator,
    ) -> Int[np.ndarray, " M"]:
        """Sort within blocks of 50 batches, shuffle the full batches."""
        block = batch_size * 50
        blocks = [order[start : start + block] for start in range(0, len(order), block)]
        order = np.concatenate(
            [part[np.argsort(-self.lengths[indices[part]], kind="stable")] for part in blocks]
        )
        full = len(order) // batch_size * batch_size
        batches = rng.permutation(order[:full].reshape(-1, batch_size))
        return np.concatenate([batches.reshape(-1), order[full:]])


class PackSampler(Sampler[tuple[Key, ...]]):
    """Yield packs of (epoch, index) in an order that is a pure function of (seed, epoch).

    Every epoch packs its own random walk anew, so a sample meets other neighbours. How many packs
    that takes varies a little, but the Trainer counts steps by the first epoch's length: so the
    longest epoch of the run is the length of all, and in the others a few packs are halved.

    Args:
        visits: the walk, made without a batch size.
        max_tokens: of a pack.
        num_epochs: how many epochs a run has at most if one of them has so many packs.

    Raises:
        DataError: an example is longer than a pack.
    """

    def __init__(
        self, visits: VisitSampler, max_tokens: int, *, num_epochs: Callable[[int], int]
    ) -> None:
        self.visits = visits
        self.max_tokens = max_tokens
        self.epoch = 0
        self.num_packs = 0
        epoch = 0
        while epoch < num_epochs(self.num_packs):
            self.num_packs = len(self._packs(epoch))
            epoch += 1

    def _packs(self, epoch: int) -> list[tuple[Key, ...]]:
        """Return the packs of an epoch, at least `num_packs`."""
        walk = self.visits.walk(epoch)
        lengths = self.visits.lengths[[index for _, index in walk]]
        rows = split_to(best_fit(lengths, self.max_tokens), self.num_packs)
        return [tuple(walk[place] for place in row) for row in rows]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next walk; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_packs

    def __iter__(self) -> Iterator[tuple[Key, ...]]:
        packs = self._packs(self.epoch)
        assert len(packs) == self.num_packs, "an epoch after the last one of the run"
        # Best fit closes its last packs half empty, and without the short samples: they must not
        # all come at the end.
        rng = sample_rng(self.visits.seed, self.epoch, "order of the packs")
        for place in rng.permutation(len(packs)):
            yield tuple(packs[place])
