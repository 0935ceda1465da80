"""Judge the confirmation's bars: python benchmarks/confirmation_bars.py [--check]

The bars are those of recipes/confirmation-tiny.yaml, the table that of docs/confirmation.md, made
from confirmation-tiny.json, confirmation-tiny-against-pose.json and
confirmation-tiny-against-long.json in benchmarks/results/, which `skipalign report RUN [--against
METHOD] --json-out FILE` writes. A bar on a score is judged by its mean, one on a difference as it
says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pages

from skipalign.scores import side

MARK = "bars"
HEADS = ("bar", "found", "95% interval", "verdict")
METHOD = "noise-1"
NEEDLE, PROSE = "needle", "perplexity"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One sentence that was written down before the run, and when it holds.

    Args:
        text: the sentence.
        task: what is measured.
        tokens: at which context length.
        against: the method that a difference is taken against; None for the score itself.
        holds: of the row {mean or difference, low, high}.
    """

    text: str
    task: str
    tokens: int
    against: str | None = None
    holds: Callable[[Row], bool]


BARS = (
    Bar(
        text="needle at 4,096 tokens: 0.9 or better",
        task=NEEDLE,
        tokens=4096,
        holds=lambda row: row["mean"] >= 0.9,
    ),
    Bar(
        text="needle at 4,096 tokens: above PoSE, the whole interval above 0",
        task=NEEDLE,
        tokens=4096,
        against="pose",
        holds=lambda row: side(row) > 0,
    ),
    Bar(
        text="needle at 1,024 tokens: not more than 0.03 below long fine-tuning",
        task=NEEDLE,
        tokens=1024,
        against="long",
        holds=lambda row: row["difference"] >= -0.03,
    ),
    Bar(
        text="needle at 128 tokens: not below normal fine-tuning, the interval reaches 0",
        task=NEEDLE,
        tokens=128,
        against="normal",
        holds=lambda row: side(row) >= 0,
    ),
    Bar(
        text="prose at 128 tokens, nats: not worse than normal fine-tuning, the interval reaches 0",
        task=PROSE,
        tokens=128,
        against="normal",
        holds=lambda row: side(row) <= 0,
    ),
    Bar(
        text="prose at 128 tokens, nats: not worse than PoSE, the interval reaches 0",
        task=PROSE,
        tokens=128,
        against="pose",
        holds=lambda row: side(row) <= 0,
    ),
    Bar(
        text="prose at 4,096 tokens, nats: not worse than PoSE, the interval reaches 0",
        task=PROSE,
        tokens=4096,
        against="pose",
        holds=lambda row: side(row) <= 0,
    ),
)


def row_of(bar: Bar, documents: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return what was measured for a bar; `documents` by the method they are against."""
    document = documents[bar.against or "normal"]
    table = document if bar.task == NEEDLE else document["tasks"][bar.task]
    rows: Sequence[Row] = table["paired" if bar.against else "rows"]
    for row in rows:
        if row["method"] == METHOD and row["context_length"] == bar.tokens:
            return row
    raise SystemExit(f"{METHOD} was not measured for the bar: {bar.text}")


def table(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all bars with what was found and the verdict."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    for bar in BARS:
        row = row_of(bar, documents)
        found = f"{row['difference']:+.3f}" if bar.against else f"{row['mean']:.3f}"
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
        verdict = "met" if bar.holds(row) else "missed"
        lines.append(f"| {bar.text} | {found} | {interval} | {verdict} |")
    return "\n".join(lines)


def read() -> dict[str, Mapping[str, Any]]:
    """Return the three documents, by the method that their differences are against."""
    names = {"normal": "", "pose": "-against-pose", "long": "-against-long"}
    found = {against: pages.result(f"confirmation-tiny{name}") for against, name in names.items()}
    for against, document in found.items():
        if document["reference"] != against:
            raise SystemExit(f"confirmation-tiny{names[against]}.json is not against {against}")
    return found


def made() -> dict[Path, str]:
    """Return the document that has the table."""
    return pages.filled(MARK, lambda _: table(read()))


if __name__ == "__main__":
    pages.main(made, __doc__)
