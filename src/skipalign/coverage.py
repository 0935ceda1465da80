"""What a strategy teaches: the relative distances that trained tokens meet, and long runs.

Attention knows a position only as a difference of two ids. A trained token is predicted from the
tokens before it, at the place of the last of them; so it teaches the distances from that place to
every earlier one. Counted over all trained tokens of many samples, they show which part of
[0, max_position) a strategy reaches, and how evenly. LOGO (arXiv 2410.18533) asks a good law for
both; the mean run of consecutive ids tells what the law costs in whole text.

    skipalign          # measured by `measure`, stored as coverage.json
    max_position       4,096
    covered_fraction   share of the distances [0, max_position) met at least once
    uniform_distance   0: every distance as often as any other; near 1: all in one place
    mean_run           tokens in a row without a skip, mean over all runs

Shape letters: T tokens of a sample, P distances (max_position), E bins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from skipalign.encoding import IGNORE_INDEX, Example
from skipalign.errors import DataError
from skipalign.files import written_aside
from skipalign.key_bias import runs
from skipalign.positions import Strategy, sample_rng
from skipalign.progress import Progress, Silent, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_BINS = 64
MAX_SAMPLES = 256
_SILENT = Silent()
# Rows of the T x T table of differences that are held at once: 256 x 16,384 integers are 32 MB.
QUERIES_AT_ONCE = 256
UNIFORM_MEASURE = "total variation distance between the shares of equal bins and uniform shares"


# ------------------------------------------------------------------------------------- measure


def measure(
    strategy: Strategy | Mapping[str, Strategy],
    examples: Sequence[Example],
    *,
    max_position: int,
    seed: int,
    rng: np.random.Generator,
    epochs: int = 1,
    max_samples: int = MAX_SAMPLES,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Measure the distances that `strategy` gives to `examples`, drawn as training draws them.

    Args:
        strategy: whose positions are drawn, by `sample_rng(seed, epoch, example.id)`; or one for
            each source of the examples, by its name.
        examples: the samples that training sees.
        max_position: the range to cover; take the same for strategies that are to be compared.
        seed: the training's seed.
        rng: chooses `max_samples` of the examples where there are more.
        epochs: draws of every chosen example, for epochs 0 to epochs - 1.
        max_samples: measured examples at most; the result says how many of how many.
        progress: where to report examples.

    Raises:
        DataError: there is no example, or a position lies outside [0, max_position).
    """
    if not len(examples):
        raise DataError("coverage of 0 examples; it needs one or more - see accounting.json")
    chosen = np.arange(len(examples))
    if len(examples) > max_samples:
        chosen = np.sort(rng.choice(len(examples), max_samples, replace=False))
    tally = _Tally(np.zeros(max_position, np.int64))
    for index in counted(progress, "coverage", chosen):
        example = examples[int(index)]
        for epoch in range(epochs):
            draws = sample_rng(seed, epoch, example.id)
            own = strategy if isinstance(strategy, Strategy) else strategy[example.source]
            tally.add(example, own.positions(example, draws))
    all_of_them = [strategy] if isinstance(strategy, Strategy) else strategy.values()
    return {
        "strategy": ", ".join(dict.fromkeys(each.name for each in all_of_them)),
        "max_position": max_position,
        "num_samples": len(chosen),
        "num_examples": len(examples),
        "num_epochs": epochs,
        "seed": seed,
        **tally.figures(),
    }


@dataclass(slots=True)
class _Tally:
    """What the samples measured so far add up to; `counts[d]` are the pairs at distance d."""

    counts: Int[np.ndarray, " P"]
    num_trained: int = 0
    num_tokens: int = 0
    num_runs: int = 0

    def add(self, example: Example, positions: Int[np.ndarray, " T"]) -> None:
        _require_inside(positions, len(self.counts), example.id)
        queries = predicting_tokens(example.labels)
        add_distances(self.counts, positions, queries)
        self.num_trained += len(queries)
        self.num_tokens += len(positions)
        self.num_runs += len(runs(positions)[0])

    def figures(self) -> dict[str, Any]:
        edges = bin_edges(len(self.counts))
        binned = np.add.reduceat(self.counts, edges[:-1])
        return {
            "num_trained_tokens": self.num_trained,
            "num_pairs": int(self.counts.sum()),
            "covered_fraction": float(np.count_nonzero(self.counts) / len(self.counts)),
            "uniform_distance": uniform_distance(binned, edges),
            "uniform_measure": f"{UNIFORM_MEASURE}, {len(binned)} bins",
            "mean_run": self.num_tokens / self.num_runs,
            "histogram": {"edges": edges.tolist(), "counts": binned.tolist()},
        }


def predicting_tokens(labels: Int[np.ndarray, " T"]) -> Int[np.ndarray, " N"]:
    """Return the indices of the tokens at which a trained token is predicted, one before it."""
    return np.flatnonzero(labels[1:] != IGNORE_INDEX)


def add_distances(
    counts: Int[np.ndarray, " P"],
    positions: Int[np.ndarray, " T"],
    queries: Int[np.ndarray, " N"],
) -> None:
    """Add to `counts[d]` the pairs of a query and a token up to it that stand d apart."""
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = queries[start : start + QUERIES_AT_ONCE]
        keys = positions[: block[-1] + 1]
        distances = positions[block][:, None] - keys[None, :]
        # Ids increase strictly, so the keys after a query are those at a negative distance.
        found = np.bincount(distances[distances >= 0])
        counts[: len(found)] += found


def bin_edges(max_position: int) -> Int[np.ndarray, " E"]:
    """Return the borders of at most `NUM_BINS` bins of [0, max_position), equal to one position."""
    num_bins = min(NUM_BINS, max_position)
    return np.arange(num_bins + 1, dtype=np.int64) * max_position // num_bins


def uniform_distance(binned: Int[np.ndarray, " E-1"], edges: Int[np.ndarray, " E"]) -> float:
    """Return how far the bins are from uniform, in [0, 1): the total variation distance.

    It is the share of pairs that would have to move for every distance to be met equally often.
    """
    total = binned.sum()
    if not total:
        return 1.0
    return float(0.5 * np.abs(binned / total - np.diff(edges) / edges[-1]).sum())


def _require_inside(positions: Int[np.ndarray, " T"], max_position: int, sample_id: str) -> None:
    if positions[-1] >= max_position:
        raise DataError(
            f"sample {sample_id}: position {positions[-1]:,} lies outside [0, {max_position:,}), "
            "the range whose coverage is measured; measure with a larger max_position"
        )


# ---------------------------------------------------------------------------------------- show

_COLUMNS = (
    ("strategy", "strategy", "{}"),
    ("max_position", "max_position", "{:,}"),
    ("num_samples", "samples", "{:,}"),
    ("covered_fraction", "covered", "{:.1%}"),
    ("uniform_distance", "from uniform", "{:.2f}"),
    ("mean_run", "mean run", "{:,.1f}"),
)


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the figures as lines of plain text, one row for each named measurement."""
    rows = [["", *(title for _, title, _ in _COLUMNS)]]
    for name, coverage in measured.items():
        rows.append([name, *(form.format(coverage[key]) for key, _, form in _COLUMNS)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(_justified(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def _justified(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Names to the left, numbers to the right."""
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def draw(measured: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Draw one histogram below the other to `path` (.png, .svg, .pdf), on one common scale.

    The height of a bar is how often its distances are met, relative to uniform (dashed, 1).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    figure = Figure(figsize=(6.4, 1.0 + 1.3 * len(measured)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(measured), 1, sharex=True, sharey=True, squeeze=False)
    for axes, (name, coverage) in zip(grid[:, 0], measured.items(), strict=True):
        _draw_one(axes, name, coverage)
    grid[-1, 0].set_xlabel("relative distance (tokens)")
    figure.supylabel("times uniform", fontsize="medium")
    with written_aside(path) as aside:
        figure.savefig(aside, format=path.suffix.lstrip(".") or "png", dpi=150)
    return path


def density(histogram: Mapping[str, Sequence[int]]) -> Float[np.ndarray, " E-1"]:
    """Return how often the distances of every bin are met, relative to uniform (1)."""
    edges, counts = np.array(histogram["edges"]), np.array(histogram["counts"])
    total = max(int(counts.sum()), 1)
    return (counts / total) / (np.diff(edges) / edges[-1])


def _draw_one(axes: "Axes", name: str, coverage: Mapping[str, Any]) -> None:
    histogram = coverage["histogram"]
    edges = np.array(histogram["edges"])
    axes.bar(edges[:-1], density(histogram), np.diff(edges), align="edge", color="#2f6f8f")
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    figures = (
        f"covers {coverage['covered_fraction']:.0%}, "
        f"{coverage['uniform_distance']:.2f} from uniform, "
        f"mean run {coverage['mean_run']:,.1f}"
    )
    axes.set_title(f"{name}: {figures}", loc="left", fontsize="medium")
