"""coverage.py: the figures against samples small enough to count by hand."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_progress import Telling
from skipalign import coverage
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import DataError
from skipalign.positions import Contiguous, PoSE, RandPos, SkipAlign, Strategy


def example(num_tokens: int, trained: range | None = None, name: str = "a") -> Example:
    labels = np.full(num_tokens, IGNORE_INDEX, np.int32)
    trained = range(1, num_tokens) if trained is None else trained
    labels[list(trained)] = 7
    border = max(1, num_tokens // 2)
    segments = [Segment(0, border, "user", 0, border)]
    if border < num_tokens:
        segments.append(Segment(border, num_tokens, "assistant", border, num_tokens))
    none = np.zeros(0, np.int64)
    ids = np.zeros(num_tokens, np.int32)
    return Example(ids, labels, tuple(segments), none, name, "source")


@dataclass(frozen=True)
class Fixed(Strategy):
    """The same ids for every sample."""

    ids: tuple[int, ...]
    name = "fixed"

    def positions(self, example, rng):
        return np.array(self.ids)


class Asked(list):
    """Examples that note which of them were read."""

    def __init__(self, examples):
        super().__init__(examples)
        self.indices = []

    def __getitem__(self, index):
        self.indices.append(index)
        return super().__getitem__(index)


def measure(strategy, examples, max_position, **options):
    options = {"seed": 0, "rng": np.random.default_rng(0), **options}
    return coverage.measure(strategy, examples, max_position=max_position, **options)


def test_figures_of_one_sample_counted_by_hand():
    # Trained tokens 3 and 4, so the queries stand at 5 and 10.
    # From 5 the tokens up to it are 5, 4, 0 away: 0, 1, 5; from 10: 0, 5, 6, 10.
    progress = Telling()
    found = measure(Fixed((0, 4, 5, 10, 11)), [example(5, range(3, 5))], 16, progress=progress)
    assert [(each.description, each.is_whole) for each in progress.stages] == [("coverage", True)]
    assert found["histogram"]["edges"] == list(range(17))
    counts = np.zeros(16, int)
    np.add.at(counts, [0, 1, 5, 0, 5, 6, 10], 1)
    assert found["histogram"]["counts"] == counts.tolist()
    assert found["covered_fraction"] == 5 / 16
    assert found["mean_run"] == 5 / 3  # runs: 0 | 4 5 | 10 11
    assert (found["num_pairs"], found["num_trained_tokens"]) == (7, 2)
    # Two distances of 2/7 and three of 1/7 where uniform gives each 1/16.
    assert found["uniform_distance"] == pytest.approx(1 - 5 / 16)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True),
    st.lists(st.integers(1, 11), max_size=8),
)
def test_distances_equal_a_plain_double_loop(ids, trained):
    ids = sorted(ids)
    trained = [token for token in sorted(set(trained)) if token < len(ids)]
    found = measure(Fixed(tuple(ids)), [example(len(ids), trained)], 61)
    expected = np.zeros(61, int)
    for token in trained:
        for key in range(token):
            expected[ids[token - 1] - ids[key]] += 1
    assert found["histogram"]["counts"] == expected.tolist()


def test_many_queries_are_counted_in_blocks_without_loss(monkeypatch):
    whole = measure(Contiguous(), [example(300)], 300)
    monkeypatch.setattr(coverage, "QUERIES_AT_ONCE", 7)
    assert measure(Contiguous(), [example(300)], 300) == whole


def test_contiguous_covers_its_row_and_no_more():
    found = measure(Contiguous(), [example(128)], 1024)
    assert found["covered_fraction"] == 127 / 1024  # the last query is the last but one token
    assert found["mean_run"] == 128
    assert found["uniform_distance"] > 0.85


def test_skipping_covers_more_and_more_evenly_than_contiguous():
    examples = [example(64, name=f"s{index}") for index in range(200)]
    figures = {
        strategy.name: measure(strategy, examples, 1024)
        for strategy in (
            Contiguous(),
            SkipAlign(max_position=1024),
            RandPos(max_position=1024),
        )
    }
    covered = {name: found["covered_fraction"] for name, found in figures.items()}
    uniform = {name: found["uniform_distance"] for name, found in figures.items()}
    runs = {name: found["mean_run"] for name, found in figures.items()}
    assert covered["contiguous"] < 0.1 < 0.8 < covered["skipalign"]
    assert uniform["randpos"] < uniform["skipalign"] < uniform["contiguous"]
    assert runs["randpos"] < 2 < runs["skipalign"] < runs["contiguous"]


def test_every_distance_alike_is_uniform():
    edges = coverage.bin_edges(1000)
    assert coverage.uniform_distance(np.diff(edges), edges) == pytest.approx(0)
    assert coverage.uniform_distance(np.zeros(64), edges) == 1.0


@pytest.mark.parametrize("max_position", [1, 3, 64, 65, 1000, 2**20])
def test_bins_are_gapless_and_equal_to_one_position(max_position):
    edges = coverage.bin_edges(max_position)
    assert (edges[0], edges[-1]) == (0, max_position)
    widths = np.diff(edges)
    assert widths.min() >= 1
    assert widths.max() - widths.min() <= 1


def test_positions_are_those_of_training_and_epochs_add_up():
    pose = PoSE(max_position=256)
    examples = [example(20, name="a")]
    first = measure(pose, examples, 256)
    assert first == measure(pose, examples, 256)
    assert first != measure(pose, examples, 256, seed=1)
    assert first != measure(pose, [replace(examples[0], id="b")], 256)
    both = measure(pose, examples, 256, epochs=2)
    assert both["num_pairs"] == 2 * first["num_pairs"]
    assert both["covered_fraction"] > first["covered_fraction"]


def test_subsample_is_stated_and_follows_the_generator():
    lengths = [4 + index for index in range(50)]
    examples = [example(length, name=str(length)) for length in lengths]
    asked = Asked(examples)
    found = measure(Contiguous(), asked, 64, max_samples=10)
    assert len(set(asked.indices)) == len(asked.indices) == 10
    assert (found["num_samples"], found["num_examples"]) == (10, 50)
    again = measure(Contiguous(), examples, 64, max_samples=10, rng=np.random.default_rng(0))
    other = measure(Contiguous(), examples, 64, max_samples=10, rng=np.random.default_rng(1))
    assert found == again != other


def test_each_source_is_measured_with_its_own_strategy():
    samples = [replace(example(5, range(3, 5), name), source=name) for name in ("a", "b")]
    near, far = Contiguous(), Fixed((0, 4, 5, 10, 11))
    both = measure({"a": near, "b": far}, samples, 16)
    alone = [measure(near, samples[:1], 16), measure(far, samples[1:], 16)]
    counts = [np.array(each["histogram"]["counts"]) for each in alone]
    assert both["histogram"]["counts"] == (counts[0] + counts[1]).tolist()
    assert both["mean_run"] == 10 / 4  # runs: 0 to 4; 0 | 4 5 | 10 11
    assert both["strategy"] == "contiguous, fixed"
    assert measure({"a": far, "b": far}, samples, 16)["strategy"] == "fixed"


def test_a_sample_without_trained_tokens_teaches_nothing():
    found = measure(Contiguous(), [example(8, range(0))], 64)
    assert (found["num_pairs"], found["covered_fraction"]) == (0, 0)
    assert found["uniform_distance"] == 1
    assert found["mean_run"] == 8


def test_positions_outside_the_range_are_refused():
    with pytest.raises(DataError, match=r"sample a: position 127 lies outside \[0, 64\)"):
        measure(Contiguous(), [example(128)], 64)
    with pytest.raises(DataError, match="0 examples"):
        measure(Contiguous(), [], 64)


def test_figures_are_ready_for_json():
    found = measure(PoSE(max_position=256), [example(20)], 256)
    assert json.loads(json.dumps(found)) == found


def test_table_lines_up():
    measured = {
        "normal": measure(Contiguous(), [example(128)], 2048),
        "ours": measure(PoSE(max_position=2048), [example(128)], 2048),
    }
    lines = coverage.table(measured).splitlines()
    assert lines[0].split() == [
        *("strategy", "max_position", "samples", "covered", "from", "uniform", "mean", "run")
    ]
    assert lines[1].split() == ["normal", "contiguous", "2,048", "1", "6.2%", "0.94", "128.0"]
    assert len({len(line) for line in lines}) == 1


def test_drawing_holds_one_histogram_each(tmp_path):
    measured = {
        "normal": measure(Contiguous(), [example(32)], 256),
        "ours": measure(PoSE(max_position=256), [example(32)], 256),
    }
    path = coverage.draw(measured, tmp_path / "coverage.svg")
    text = path.read_text()
    assert text.count('id="axes_') == 2
    assert coverage.draw(measured, tmp_path / "coverage.png").read_bytes()[1:4] == b"PNG"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["coverage.png", "coverage.svg"]


def test_density_of_uniform_counts_is_one():
    assert coverage.density({"edges": [0, 2, 6], "counts": [10, 20]}).tolist() == [1, 1]


def test_import_brings_neither_torch_nor_matplotlib():
    code = (
        "import sys, skipalign.coverage;"
        "sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
