"""Shares with their intervals, and when an answer counts as right."""

import re
import unicodedata
from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float

_GROUPS = 0x6E0  # the stream that draws groups of answers
_FEW_VALUES = 8  # up to so many unlike values a resample is drawn as a tally of them
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def wilson_interval(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a share of `n` trials; (0, 1) where there are none.

    Source: E. B. Wilson 1927, JASA 22, 209-212.

    Raises:
        ValueError: `correct` is not within 0 to `n`, or `level` not within 0 and 1.
    """
    if not 0 <= correct <= n or not 0 < level < 1:
        raise ValueError(
            f"{correct} correct of {n} at level {level}; "
            "it must be 0 <= correct <= n and 0 < level < 1"
        )
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if correct == 0 else middle - half
    high = 1.0 if correct == n else middle + half
    return low, high


def share(correct: int, n: int) -> dict[str, Any]:
    """Return {n, correct, mean, low, high}: a share that never travels without its interval."""
    low, high = wilson_interval(correct, n)
    return {"n": n, "correct": correct, "mean": correct / n, "low": low, "high": high}


def share_of_groups(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the share of right answers that come in groups, such as those about one text.

    Its interval is the wider, at either end, of Wilson's, which takes all answers for independent,
    and of the bootstrap over groups, then answers, which has no width where all are right.

    Args:
        groups: for each group its answers, right 1 and wrong 0.

    Returns:
        as `share`.
    """
    correct, n = sum(int(sum(group)) for group in groups), sum(len(group) for group in groups)
    found = share(correct, n)
    low, high = bootstrap_nested(groups, np.random.default_rng(_GROUPS))
    return {**found, "low": min(found["low"], low), "high": max(found["high"], high)}


def bootstrap_nested(
    groups: Sequence[Sequence[float]],
    rng: np.random.Generator,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile interval of the mean over groups of each group's mean.

    Draws groups (training seeds) with replacement, then trials within each group drawn. The
    interval knows of no case that was not seen: where all trials are alike its width is 0, and
    with few groups it is too narrow. Read it together with the number of groups and trials.

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8.

    Raises:
        ValueError: there is no group, or one without trials.
    """
    if not groups or not all(len(group) for group in groups):
        sizes = [len(group) for group in groups]
        raise ValueError(f"groups of {sizes} trials; give at least one group, each with trials")
    picks = rng.integers(len(groups), size=(num_resamples, len(groups)))
    means = np.empty(picks.shape)
    for index, group in enumerate(groups):
        trials = np.asarray(group, dtype=np.float64)
        chosen = picks == index
        draws = rng.integers(len(trials), size=(int(chosen.sum()), len(trials)))
        means[chosen] = trials[draws].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means.mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_within(
    groups: Sequence[Sequence[float]],
    rng: np.random.Generator,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile interval of the mean over groups of each group's mean; groups are fixed.

    Draws the trials of each group with replacement, and no groups: the interval holds for these
    very groups, such as the tasks of a benchmark.

    Source: Davison and Hinkley 1997, section 3.2.

    Raises:
        ValueError: there is no group, or one without trials.
    """
    if not groups or not all(len(group) for group in groups):
        sizes = [len(group) for group in groups]
        raise ValueError(f"groups of {sizes} trials; give at least one group, each with trials")
    means = [
        _resampled_means(np.asarray(group, dtype=np.float64), num_resamples, rng)
        for group in groups
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.mean(means, axis=0), [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
    rng: np.random.Generator,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a percentile interval of the mean over groups of (first - second) of each pair.

    A pair is what two methods made of the same trials, in the same order, after training with one
    seed. Draws groups (training seeds) with replacement, then trials within each group drawn; a
    trial brings both its outcomes along, so what is hard for both cancels. Trials are drawn
    apart for every group, though all answered the same prompts: the interval holds for prompts
    like these, and with few groups it is too narrow.

    Source: Davison and Hinkley 1997, sections 2.4.3 and 3.8.
    Differs: where differences take few values, as those of right and wrong answers do, a
        resample's tally of them is drawn at once (multinomial): the same law, sooner.

    Raises:
        ValueError: there is no pair, one without trials, or one of unequal lengths.
    """
    sizes = [(len(first), len(second)) for first, second in pairs]
    if not sizes or any(one != other or not one for one, other in sizes):
        raise ValueError(
            f"pairs of {sizes} trials; give at least one pair, each with as many trials on one "
            "side as on the other"
        )
    picks = rng.integers(len(pairs), size=(num_resamples, len(pairs)))
    means = np.empty(picks.shape)
    for index, (first, second) in enumerate(pairs):
        chosen = picks == index
        differences = np.subtract(first, second, dtype=np.float64)
        means[chosen] = _resampled_means(differences, int(chosen.sum()), rng)
    tail = (1 - level) / 2
    low, high = np.quantile(means.mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(
    values: Float[np.ndarray, " N"], num: int, rng: np.random.Generator
) -> Float[np.ndarray, " R"]:
    """Return the means of `num` samples of N values each, drawn with replacement."""
    unlike, counts = np.unique(values, return_counts=True)
    if len(unlike) > _FEW_VALUES:
        return values[rng.integers(len(values), size=(num, len(values)))].mean(axis=1)
    tallies = rng.multinomial(len(values), counts / len(values), size=num)
    return tallies @ unlike / len(values)


def contains_value(answer: str, value: str) -> bool:
    """Whether `value` stands in `answer` as a word of its own.

    Letter case and the width of characters do not matter. Neither side of the value may touch a
    further letter, digit or underscore, so 47 is not in 1470; scripts that write without spaces
    (Chinese, Japanese) do not count as touching. A number of digits alone may carry thousands
    separators (1,234,567) and is not found within a decimal number (47 is not in 47.5 or 0.47).
    Whatever else the answer says is not looked at: one that lists every value counts as right.
    """
    answer, value = folded(answer), folded(value)
    if not value:
        return False
    is_number = value.isdecimal()
    if is_number:
        answer = _THOUSANDS.sub("", answer)
    for match in re.finditer(f"(?={re.escape(value)})", answer):
        before, after = answer[: match.start()], answer[match.start() + len(value) :]
        within_decimal = re.search(r"\d[.,]$", before) or re.match(r"[.,]\d", after)
        if is_number and within_decimal:
            continue
        if not (_touches(before[-1:], value[0]) or _touches(value[-1], after[:1])):
            return True
    return False


def folded(text: str) -> str:
    """Return a text without letter case, and with its characters of one width."""
    return unicodedata.normalize("NFKC", text).strip().casefold()


def _touches(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word; '' is the text's border."""
    return all(
        character != ""
        and (character.isalnum() or character == "_")
        and unicodedata.east_asian_width(character) != "W"
        for character in (left, right)
    )
