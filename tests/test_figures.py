"""figures.py: where things are drawn, and colours that can be read."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipalign import figures
from skipalign.figures import Series

AXES = (figures.tokens_axis("tokens", [128, 256, 1024]), figures.unit_axis("accuracy"))


def test_log_axis_gives_every_doubling_the_same_way():
    axis = figures.tokens_axis("tokens", [1024, 128, 256])
    assert [axis.share(value) for value in (128, 256, 1024)] == pytest.approx([0, 1 / 3, 1])
    assert axis.ticks == ((128, "128"), (256, "256"), (1024, "1,024"))


def test_axis_keeps_values_inside():
    axis = figures.unit_axis("accuracy")
    assert (axis.share(-1), axis.share(2)) == (0, 1)
    assert figures.decades_axis("x", 0.01, 30).share(0) == 0


@pytest.mark.parametrize(
    ("high", "ticks"),
    [
        (300, ["0", "100", "200", "300"]),
        (3.1, ["0", "1", "2", "3", "4"]),
        (0.7, ["0.0", "0.2", "0.4", "0.6", "0.8"]),
        (0, ["0.0", "0.5", "1.0"]),
    ],
)
def test_linear_axis_has_round_ticks_that_reach_the_end(high, ticks):
    axis = figures.linear_axis("step", 0.0, high)
    assert [text for _, text in axis.ticks] == ticks
    assert axis.high >= high


def test_decades_hold_the_values():
    axis = figures.decades_axis("x", 0.03, 40)
    assert [text for _, text in axis.ticks] == ["0.01", "0.1", "1", "10", "100"]
    assert figures.decades_axis("x", 1, 1).low < figures.decades_axis("x", 1, 1).high


def test_one_length_alone_can_be_drawn():
    axes = (figures.tokens_axis("tokens", [128]), figures.unit_axis("accuracy"))
    plot = figures.curves("t", "d", axes, [Series("a", ((128, 0.5, 0.2, 0.8),), 0)])
    assert plot.lines[0].dots[0][1] == pytest.approx((plot.top + plot.bottom) / 2)


def test_curve_and_band_lie_where_the_numbers_say():
    points = ((128, 1.0, 0.75, 1.0), (1024, 0.0, 0.0, 0.25))
    plot = figures.curves("t", "d", AXES, [Series("a", points, 3)])
    (line,) = plot.lines
    assert line.path == f"M{plot.left:g} {plot.top:g}L{plot.right:g} {plot.bottom:g}"
    quarter = (plot.bottom - plot.top) / 4
    corners = [pair.split() for pair in line.band.strip("MZ").split("L")]
    heights = [float(y) for _, y in corners]
    assert heights == pytest.approx(
        [plot.top, plot.bottom - quarter, plot.bottom, plot.top + quarter]
    )
    assert (line.style, line.dots[0][2]) == (3, "a, 128: 1.00")


def test_names_at_the_ends_do_not_cover_each_other():
    series = [Series(f"method {n}", ((128, 1.0), (1024, 1.0)), n) for n in range(20)]
    plot = figures.curves("t", "d", AXES, series)
    heights = sorted(line.label_y for line in plot.lines)
    gaps = [after - before for before, after in itertools.pairwise(heights)]
    assert min(gaps) >= figures.LABEL_GAP - 0.02
    assert heights[0] >= 0
    assert heights[-1] <= plot.height


def test_a_long_name_is_cut_and_leaves_room_for_the_plot():
    plot = figures.curves("t", "d", AXES, [Series("m" * 300, ((128, 1.0), (1024, 1.0)), 0)])
    assert plot.lines[0].label.endswith("m…")
    assert plot.lines[0].name == "m" * 300
    assert plot.right - plot.left > plot.width / 2


def test_many_lines_hide_their_intervals_and_too_many_their_names():
    def drawn(num):
        series = [
            Series(f"m{n}", ((128, 1.0, 0.5, 1.0), (1024, 0.5, 0.2, 0.7)), n) for n in range(num)
        ]
        return figures.curves("t", "d", AXES, series)

    assert not drawn(figures.MANY).many
    plot = drawn(figures.MANY + 1)
    assert plot.many
    assert plot.lines[2].spoken == "m2: 1.00 at 128, 0.50 at 1,024"
    crowd = drawn(figures.MOST_LABELS + 1)
    assert (plot.crowded, crowd.crowded) == (False, True)
    assert all(line.label_y == line.end[1] for line in crowd.lines), "no name is moved for another"
    assert crowd.height == drawn(figures.MOST_LABELS).height
    assert {line.name for line in crowd.lines} == {f"m{n}" for n in range(figures.MOST_LABELS + 1)}


def test_labels_leave_out_what_most_names_share():
    def labels(names):
        series = [Series(name, ((128, 1.0), (1024, 1.0)), 0) for name in names]
        return [line.label for line in figures.curves("t", "d", AXES, series).lines]

    many = [f"skip-fraction-{p}-max-position-{reach}" for p in ("0.5", "1") for reach in (256, 512)]
    expected = ["0", "0.5-256", "0.5-512", "1-256", "1-512"]
    assert labels(["skip-fraction-0", *many]) == expected
    assert labels(["pose-4", "pose-2"]) == ["pose-4", "pose-2"]
    unlike = ["packed-loss-weighted", "pose"]
    assert labels(unlike) == ["packed-loss-weigh…", "pose"]
    runs = ["a-long-name-of-a-method (run-007)", "pose (run-1)"]
    assert labels(runs) == ["a-long-n…(run-007)", "pose (run-1)"]
    alone = ["a-very-long-name-of-one-method"]
    assert labels(alone) == ["a-very-long-name-…"]


def test_panels_share_the_ground_of_their_ghosts():
    series = [
        Series("a", ((128, 1.0), (1024, 0.0)), 0),
        Series("b", ((128, 0.5, 0.4, 0.6), (1024, 0.5, 0.4, 0.6)), 1),
    ]
    plot = figures.panel("t", AXES, series, marks=[(256, "training window")])
    assert figures.ghosts(AXES, series) == "".join(line.path for line in plot.lines)
    assert [text for _, text in plot.x_ticks] == ["128", "256", "1k"]
    assert [text for _, text in plot.y_ticks] == ["0.00", "0.50", "1.00"]
    assert plot.marks == ((plot.x_ticks[1][0], ""),)
    assert plot.description == "a: 1.00 at 128, 0.00 at 1,024; b: 0.50 at 128, 0.50 at 1,024"


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([256, 512, 1024, 4096], True),
        ([0, 0.25, 0.5, 0.75, 1], False),
        ([0.25, 0.5, 0.75, 1], False),
        ([0.5], False),
        ([1, 2], False),
    ],
)
def test_the_axis_of_a_setting_is_logarithmic_where_its_values_double(values, log):
    axis = figures.values_axis("x", values)
    assert axis.log == log
    assert [value for value, _ in axis.ticks] == values
    assert [axis.share(value) for value in values] == sorted(axis.share(value) for value in values)


@pytest.mark.parametrize(
    ("value", "text"), [(131072, "131,072"), (1048576.0, "1,048,576"), (0.25, "0.25"), (0, "0")]
)
def test_numbers_as_people_write_them(value, text):
    assert figures.number(value) == text


@given(st.lists(st.floats(0, 200), max_size=12))
def test_spread_keeps_order_and_distance(places):
    found = figures.spread(places, 10, 0, 300)
    assert all(0 <= place <= 300 for place in found)
    ordered = sorted(found)
    assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(ordered))
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            assert a >= b or found[i] <= found[j] or i == j


def test_histogram_is_one_area_with_a_step_for_every_bin():
    axes = (figures.reach_axis("distance", 4), figures.decades_axis("times", 0.01, 1))
    plot = figures.histogram("t", "d", axes, [0, 2, 4], [1.0, 0.0], rule=1.0)
    middle = (plot.left + plot.right) / 2
    assert plot.area == (
        f"M{plot.left:g} {plot.bottom:g}V{plot.top:g}H{middle:g}"
        f"V{plot.bottom:g}H{plot.right:g}V{plot.bottom:g}Z"
    )
    assert plot.rule == plot.top
    assert [text for _, text in plot.x_ticks] == ["0", "1", "2", "3", "4"]


def test_ticks_that_would_touch_lose_their_text():
    axes = (figures.tokens_axis("tokens", range(1000, 1100)), figures.unit_axis("accuracy"))
    plot = figures.curves("t", "d", axes, [Series("a", ((1000, 1.0), (1099, 1.0)), 0)])
    shown = [x for x, text in plot.x_ticks if text]
    assert len(plot.x_ticks) == 100
    assert 2 <= len(shown) < 15


def test_long_curves_are_thinned_to_means():
    points = [(step, float(step % 2)) for step in range(10_000)]
    found = figures.thinned(points)
    assert len(found) == figures.MAX_POINTS
    assert all(0.4 < y < 0.6 for _, y in found)
    assert figures.thinned(points[:5]) == points[:5]
