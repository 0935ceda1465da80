"""The confirmation's bars: each judged by the number it names, on either side of its border."""

import pytest

from made_scripts import script

bars = script("benchmarks/confirmation_bars.py")

# (mean or difference, low, high) of each bar, in order: just met, just missed.
MET = [
    (0.9, 0.8, 1.0),
    (0.05, 0.01, 0.09),
    (-0.03, -0.08, 0.02),
    (-0.01, -0.02, 0.0),
    (0.02, 0.0, 0.04),
    (0.02, 0.0, 0.04),
    (-0.3, -0.4, -0.2),
]
MISSED = [
    (0.89, 0.8, 1.0),
    (0.05, 0.0, 0.1),
    (-0.04, -0.09, 0.01),
    (-0.02, -0.03, -0.001),
    (0.02, 0.01, 0.03),
    (0.02, 0.01, 0.03),
    (0.1, 0.05, 0.15),
]


def documents(found):
    """Return results documents in which every bar finds its own number and decoys stand around."""
    made = {
        name: {"rows": [], "paired": [], "tasks": {"perplexity": {"rows": [], "paired": []}}}
        for name in ("normal", "pose", "long")
    }
    for bar, (middle, low, high) in zip(bars.BARS, found, strict=True):
        document = made[bar.against or "normal"]
        table = document if bar.task == "needle" else document["tasks"][bar.task]
        kind, key = ("paired", "difference") if bar.against else ("rows", "mean")
        numbers = {key: middle, "low": low, "high": high}
        for method, tokens in (("cuts", bar.tokens), ("noise-1", 7), ("noise-1", bar.tokens)):
            decoy = method == "cuts" or tokens == 7
            shown = dict.fromkeys(numbers, 9.0) if decoy else numbers
            table[kind].append({"method": method, "context_length": tokens, **shown})
    return made


@pytest.mark.parametrize("index", range(7))
def test_each_bar_is_judged_by_its_own_number(index):
    found = list(MET)
    found[index] = MISSED[index]
    verdicts = [line.split("|")[4].strip() for line in bars.table(documents(found)).split("\n")[2:]]
    assert verdicts == ["missed" if each == index else "met" for each in range(7)]


def test_a_bar_that_was_not_measured_ends_in_one_line():
    made = documents(MET)
    made["long"]["paired"] = []
    with pytest.raises(SystemExit, match="not measured for the bar: needle at 1,024"):
        bars.table(made)
