"""Numbers -> drawings: geometry for the templates, which hold all the markup.

A `Plot` is laid out in units of an SVG view box; the page scales it. Nothing here makes HTML, so
nothing here can forget to escape.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LABEL_GAP = 14.0
CHARACTER = 6.3  # mean width of a label's character at the plots' 12 units of type
LEFT = 54.0  # for the label of the upright axis and its ticks
PANEL = (200.0, 132.0)  # size of one of many small plots
MAX_POINTS = 240  # of a loss curve; more are averaged in groups
LONGEST_LABEL = 18
MOST_LABELS = 32  # lines of one plot whose names have room; of more, none is shown
MANY = 6  # more lines than these, and only the one that is pointed at shows its interval


@dataclass(frozen=True, slots=True)
class Axis:
    """What runs along one side: its label with unit, its range, its ticks as (value, text)."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Return where `value` lies between low (0) and high (1), inside them."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (x, y) or (x, y, low, high); `style` picks its colour and dashes."""

    name: str
    points: tuple[tuple[float, ...], ...]
    style: int

    @property
    def spoken(self) -> str:
        """The line for those who do not see it."""
        values = ", ".join(f"{point[1]:.2f} at {number(point[0])}" for point in self.points)
        return f"{self.name}: {values}"


@dataclass(frozen=True, slots=True)
class Line:
    """A `Series`, laid out. `label_y` is where its name stands, clear of the other names."""

    name: str
    label: str
    spoken: str
    style: int
    path: str
    band: str
    dots: tuple[tuple[float, float, str], ...]
    end: tuple[float, float]
    label_y: float


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing, laid out in view box units: frame, ticks, upright marks, a level rule, an area,
    lines, and its data as a link to csv.
    """

    title: str
    description: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...]
    rule: float | None
    lines: tuple[Line, ...]
    area: str
    csv: str

    @property
    def many(self) -> bool:
        """Whether there are too many lines for every one to show its interval."""
        return len(self.lines) > MANY

    @property
    def crowded(self) -> bool:
        """Whether the names of the lines, where they stand, would cover each other."""
        return len(self.lines) > MOST_LABELS


# ---------------------------------------------------------------------------------------- axes


def tokens_axis(label: str, values: Iterable[float]) -> Axis:
    """Return a logarithmic axis with a tick at every value."""
    found = sorted(set(values)) or [1.0]
    ticks = tuple((value, f"{value:,.0f}") for value in found)
    return Axis(label, found[0], found[-1], ticks, log=True)


def unit_axis(label: str) -> Axis:
    """Return an axis of shares, 0 to 1."""
    return Axis(label, 0.0, 1.0, tuple((tick / 4, f"{tick / 4:.2f}") for tick in range(5)))


def linear_axis(label: str, low: float, high: float) -> Axis:
    """Return an axis with about four round ticks from `low` to at least `high`."""
    high = high if high > low else low + 1.0
    step = _round_step(high - low)
    count = max(1, math.ceil((high - low) / step - 1e-9))
    places = max(0, -math.floor(math.log10(step)))
    ticks = tuple((low + step * n, f"{low + step * n:,.{places}f}") for n in range(count + 1))
    return Axis(label, low, low + step * count, ticks)


def decades_axis(label: str, low: float, high: float) -> Axis:
    """Return a logarithmic axis over whole powers of ten that hold `low` to `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    ticks = tuple((10.0**power, f"{10.0**power:g}") for power in range(first, last + 1))
    return Axis(label, 10.0**first, 10.0**last, ticks, log=True)


def values_axis(label: str, values: Iterable[float]) -> Axis:
    """Return an axis with a tick at every value of a setting, logarithmic where they double."""
    found = sorted(set(values))
    ticks = tuple((value, number(value)) for value in found)
    steps = [after / before for before, after in pairwise(found) if before > 0]
    doubling = len(steps) == len(found) - 1 > 1 and min(steps) >= 1.5
    return Axis(label, found[0], found[-1], ticks, log=doubling)


def reach_axis(label: str, high: int) -> Axis:
    """Return an axis from 0 to `high` tokens with ticks at its quarters."""
    ticks = tuple((high * part / 4, f"{high * part / 4:,.0f}") for part in range(5))
    return Axis(label, 0.0, float(high), ticks)


def _round_step(span: float) -> float:
    """Return the 1, 2 or 5 times a power of ten that divides `span` into four or so."""
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough - 1e-12)


# --------------------------------------------------------------------------------------- plots


def curves(
    title: str,
    description: str,
    axes: tuple[Axis, Axis],
    series: Sequence[Series],
    *,
    marks: Sequence[tuple[float, str]] = (),
    size: tuple[float, float] = (400, 270),
    csv_text: str = "",
) -> Plot:
    """Lay out lines with their intervals, each named at its end; `marks` are upright lines."""
    labels = _labels([each.name for each in series])
    width, height = size[0], max(size[1], LABEL_GAP * min(len(series), MOST_LABELS) + 70)
    right = width - 20 - CHARACTER * max(map(len, labels), default=0)
    frame = _Frame(LEFT, right, 24 if marks else 12, height - 42, *axes)
    drawn = [(label, each) for label, each in zip(labels, series, strict=True) if each.points]
    ends = [frame.y(each.points[-1][1]) for _, each in drawn]
    gap = LABEL_GAP if len(series) <= MOST_LABELS else 0.0
    places = spread(ends, gap, frame.top, frame.bottom)
    lines = tuple(
        _line(frame, label, each, place) for (label, each), place in zip(drawn, places, strict=True)
    )
    return frame.plot(
        title, description, (width, height), lines=lines, marks=marks, csv_text=csv_text
    )


def panel(
    title: str,
    axes: tuple[Axis, Axis],
    series: Sequence[Series],
    *,
    marks: Sequence[tuple[float, str]] = (),
) -> Plot:
    """Lay out one of many small plots: few ticks, no names at the lines' ends, unnamed marks."""
    frame = _panel_frame(axes)
    lines = tuple(_line(frame, "", each, 0.0) for each in series if each.points)
    description = "; ".join(each.spoken for each in series if each.points)
    unnamed = [(value, "") for value, _ in marks]
    return frame.plot(title, description, PANEL, lines=lines, marks=unnamed)


def ghosts(axes: tuple[Axis, Axis], series: Sequence[Series]) -> str:
    """Return the lines of all methods as one path, to stand behind each panel."""
    frame = _panel_frame(axes)
    return "".join(
        _path([(frame.x(point[0]), frame.y(point[1])) for point in each.points])
        for each in series
        if each.points
    )


def _panel_frame(axes: tuple[Axis, Axis]) -> "_Frame":
    across, up = axes
    named = tuple((value, text) for value, text in up.ticks[:: max(1, (len(up.ticks) - 1) // 2)])
    short = tuple((value, short_tokens(round(value))) for value, _ in across.ticks)
    return _Frame(
        *(34, PANEL[0] - 8, 8, PANEL[1] - 22),
        Axis("", across.low, across.high, short, across.log),
        Axis("", up.low, up.high, named, up.log),
    )


def number(value: float) -> str:
    """Return a number as people write it: 131,072 or 0.25."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def short_tokens(tokens: int) -> str:
    """Return a number of tokens in few characters: 512, 4k (k is 1,024)."""
    return f"{tokens // 1024:,}k" if tokens and tokens % 1024 == 0 else f"{tokens:,}"


def histogram(
    title: str,
    description: str,
    axes: tuple[Axis, Axis],
    edges: Sequence[float],
    heights: Sequence[float],
    *,
    rule: float | None = None,
    csv_text: str = "",
) -> Plot:
    """Lay out a histogram as one stepped area; `rule` is a level line."""
    size = (360.0, 210.0)
    last = axes[0].ticks[-1][1]  # its text reaches beyond the frame
    frame = _Frame(LEFT, size[0] - 4 - 4 * len(last), 10, size[1] - 42, *axes)
    corners = [f"M{frame.x(edges[0]):g} {frame.bottom:g}"]
    for stop, height in zip(edges[1:], heights, strict=True):
        corners.append(f"V{frame.y(height) if height > 0 else frame.bottom:g}H{frame.x(stop):g}")
    area = "".join(corners) + f"V{frame.bottom:g}Z"
    return frame.plot(title, description, size, area=area, csv_text=csv_text, rule=rule)


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Return at most `MAX_POINTS` points, each the mean of a group of neighbours."""
    if len(points) <= MAX_POINTS:
        return [(float(x), y) for x, y in points]
    groups = np.array_split(np.array(points, dtype=np.float64), MAX_POINTS)
    return [(float(x), float(y)) for x, y in (group.mean(axis=0) for group in groups)]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move `places` as little as needed so that any two are `gap` apart, inside [low, high].

    >>> spread([10, 11, 50], 10, 0, 100)
    [10, 20, 50]
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = list(places)
    floor = low
    for index in order:
        found[index] = max(found[index], floor)
        floor = found[index] + gap
    ceiling = max(high, low + gap * (len(places) - 1))
    for index in reversed(order):
        found[index] = min(found[index], ceiling)
        ceiling = found[index] - gap
    return found


@dataclass(frozen=True, slots=True)
class _Frame:
    left: float
    right: float
    top: float
    bottom: float
    x_axis: Axis
    y_axis: Axis

    def x(self, value: float) -> float:
        return round(self.left + (self.right - self.left) * self.x_axis.share(value), 2)

    def y(self, value: float) -> float:
        return round(self.bottom - (self.bottom - self.top) * self.y_axis.share(value), 2)

    def plot(
        self,
        title: str,
        description: str,
        size: tuple[float, float],
        *,
        lines: tuple[Line, ...] = (),
        marks: Sequence[tuple[float, str]] = (),
        area: str = "",
        rule: float | None = None,
        csv_text: str = "",
    ) -> Plot:
        return Plot(
            title=title,
            description=description,
            width=size[0],
            height=size[1],
            left=self.left,
            right=round(self.right, 2),
            top=self.top,
            bottom=self.bottom,
            x_label=self.x_axis.label,
            y_label=self.y_axis.label,
            x_ticks=_apart([(self.x(value), text) for value, text in self.x_axis.ticks]),
            y_ticks=tuple((self.y(value), text) for value, text in self.y_axis.ticks),
            marks=tuple((self.x(value), text) for value, text in marks),
            rule=None if rule is None else self.y(rule),
            lines=lines,
            area=area,
            csv=csv_text,
        )


def _line(frame: _Frame, label: str, series: Series, label_y: float) -> Line:
    points = [(frame.x(point[0]), frame.y(point[1])) for point in series.points]
    band = ""
    if len(series.points[0]) == 4:
        upper = [(frame.x(point[0]), frame.y(point[3])) for point in series.points]
        lower = [(frame.x(point[0]), frame.y(point[2])) for point in reversed(series.points)]
        band = _path([*upper, *lower]) + "Z"
    dots = tuple(
        (x, y, f"{series.name}, {number(point[0])}: {point[1]:.2f}")
        for (x, y), point in zip(points, series.points, strict=True)
    )
    return Line(
        name=series.name,
        label=label,
        spoken=series.spoken,
        style=series.style,
        path=_path(points),
        band=band,
        dots=dots if len(dots) <= 16 else (),
        end=points[-1],
        label_y=round(label_y, 2),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _apart(ticks: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Leave out the text of ticks that would touch the one before."""
    found: list[tuple[float, str]] = []
    free = -math.inf
    for x, text in ticks:
        half = CHARACTER * len(text) / 2 + 2
        if x - half >= free:
            found.append((x, text))
            free = x + half
        else:
            found.append((x, ""))
    return tuple(found)


def _labels(names: Sequence[str]) -> list[str]:
    """Return names short enough to stand beside a plot; words that most have are left out first."""
    if max(map(len, names), default=0) > LONGEST_LABEL:
        words = [name.split("-") for name in names]
        counts = Counter(word for each in words for word in set(each) if word.isalpha())
        common = {word for word, count in counts.items() if 3 * count > 2 * len(names)}
        kept = ["-".join(word for word in each if word not in common) for each in words]
        names = kept if all(kept) and len(set(kept)) == len(names) else names
    return [_shortened(name) for name in names]


def _shortened(text: str) -> str:
    """Cut a name; the run in brackets, which tells it from its namesakes, stays."""
    if len(text) <= LONGEST_LABEL:
        return text
    start = text.rfind("(")
    tail = text[start:] if text.endswith(")") and len(text) - start <= LONGEST_LABEL - 6 else ""
    return f"{text[: LONGEST_LABEL - 1 - len(tail)]}…{tail}"
