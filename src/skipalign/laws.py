"""How long skips are: the laws that turn free positions into gaps.

A sample of T tokens with ids in [0, P) has P - T positions to leave out, its budget. A law draws
the budget's part that is used and divides it over the sample's cuts.

Shape letter: K cuts.
"""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Int


class Law(ABC):
    """How a sample's free positions (max_position - T) become the lengths of its skips."""

    @abstractmethod
    def gaps(self, budget: int, num_cuts: int, rng: np.random.Generator) -> Int[np.ndarray, " K"]:
        """Draw one gap >= 0 for each of `num_cuts` >= 1 cuts; their sum is at most `budget`."""


def divide(total: int, num_parts: int, rng: np.random.Generator) -> Int[np.ndarray, " K"]:
    """Divide `total` into `num_parts` integers >= 0, every such division equally likely.

    Stars and bars: of total + K - 1 places, K - 1 hold a bar; the stars between bars are the parts.
    """
    places = total + num_parts - 1
    bars = np.sort(rng.choice(places, num_parts - 1, replace=False, shuffle=False))
    return np.diff(np.concatenate([[-1], bars, [places]])) - 1


class StarsAndBars(Law):
    """Total uniform in {0..budget}, divided uniformly over the cuts: the default.

    Distances of every size occur, small ones included. A law that always spends its whole budget
    leaves a hole in the middle of the distances that a model meets.
    """

    def gaps(self, budget: int, num_cuts: int, rng: np.random.Generator) -> Int[np.ndarray, " K"]:
        return divide(int(rng.integers(budget + 1)), num_cuts, rng)


class OneBorder(Law):
    """Total uniform in {0..budget}, the whole of it at one cut drawn at random."""

    def gaps(self, budget: int, num_cuts: int, rng: np.random.Generator) -> Int[np.ndarray, " K"]:
        gaps = np.zeros(num_cuts, np.int64)
        gaps[rng.integers(num_cuts)] = rng.integers(budget + 1)
        return gaps


class Sequential(Law):
    """Each gap uniform in {0..what is left}, in order, so that its mean halves at every cut.

    Source: the rule of PoSE at markers in axolotl (`use_pose`).
    """

    def gaps(self, budget: int, num_cuts: int, rng: np.random.Generator) -> Int[np.ndarray, " K"]:
        gaps = np.zeros(num_cuts, np.int64)
        for cut in range(num_cuts):
            gaps[cut] = rng.integers(budget + 1)
            budget -= int(gaps[cut])
        return gaps


class WholeBudget(Law):
    """The whole budget in every sample, divided uniformly: for comparison, not for use."""

    def gaps(self, budget: int, num_cuts: int, rng: np.random.Generator) -> Int[np.ndarray, " K"]:
        return divide(budget, num_cuts, rng)


LAWS: dict[str, Law] = {
    "stars_and_bars": StarsAndBars(),
    "one_border": OneBorder(),
    "sequential": Sequential(),
    "whole_budget": WholeBudget(),
}
