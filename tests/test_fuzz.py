"""Whatever is read: conversations, rejections and errors of one line, never another exception."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_malformed import ANY, GOOD, PATHS, RECIPE, parquet, with_value, yaml
from made_rows import lines, wrote
from made_scripts import script
from skipalign import readers
from skipalign.conversation import SHAPES, Conversation, read_conversations
from skipalign.errors import DataError, RecipeError
from skipalign.key_bias import KEY_BIASES
from skipalign.positions import EIGHT_TOKENS, STRATEGIES, sample_rng
from skipalign.recipe import load
from skipalign.yaml_tree import overridden

ROOT = Path(__file__).parents[1]
FUZZ = script("benchmarks/fuzz.py")


# --- the corpus


KEPT = sorted(file.stem for file in (ROOT / "tests/fuzz_corpus").glob("*.jsonl"))


@pytest.mark.parametrize("target", KEPT)
def test_every_input_of_the_corpus_keeps_the_promise(target: str, tmp_path: Path):
    corpus = FUZZ.kept(target)
    assert len(corpus) > 50
    ended = [FUZZ.TARGETS[target](data, tmp_path) for data in corpus]
    assert len(set(ended)) > 20


def test_the_corpus_is_small_and_what_its_figures_say():
    figures = json.loads(FUZZ.RESULT.read_text(encoding="utf-8"))
    assert sum(file.stat().st_size for file in FUZZ.CORPUS.iterdir()) < 300_000
    assert sorted(row["target"] for row in figures["rows"]) == KEPT
    assert "rows" in KEPT
    for row in figures["rows"]:
        assert row["corpus_files"] == len(FUZZ.kept(row["target"]))
        assert row["crashes"] == 0


def test_a_broken_promise_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AssertionError):
        FUZZ.one_line("a\nb")
    with pytest.raises(UnicodeEncodeError):
        FUZZ.one_line("\ud800")
    monkeypatch.setattr("skipalign.conversation.parse_json", lambda _: {}["x"])
    with pytest.raises(KeyError):
        FUZZ.rows(b"\x00{}\n", tmp_path)


# --- rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
KEYS = sorted({key for row in GOOD.values() for key in row})
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "gpt", ""]) | VALUES,
        "content": st.text(max_size=4) | VALUES,
        "from": st.sampled_from(["human", "gpt"]),
        "value": st.text(max_size=4),
        "tool_calls": VALUES,
    },
)
ROWS = st.dictionaries(
    st.sampled_from(KEYS), st.text(max_size=4) | st.lists(TURN | VALUES, max_size=5) | VALUES
)


def read(path: Path, **options: Any) -> list[Any]:
    """Read all; the source is refused exactly where no row is good."""
    items: list[Any] = []
    refused = ""
    try:
        items.extend(read_conversations(str(path), name="x", **options))
    except DataError as error:
        refused = str(error)
        FUZZ.one_line(refused)
        return []
    for item in items:
        FUZZ.one_line(str(item) if not isinstance(item, Conversation) else item.id)
    return items


@settings(max_examples=60, deadline=None)
@given(row=ROWS, shape=st.none() | st.sampled_from(list(SHAPES)))
def test_any_columns_of_any_shape_are_one_item(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], shape: str | None
):
    good = {**GOOD["messages"], **GOOD["sharegpt"], **GOOD["alpaca"], "text": "t"}
    good |= GOOD["prompt_completion"]
    path = wrote(tmp_path_factory.getbasetemp(), "shape.jsonl", lines(row, good))
    items = read(path, shape=shape)
    assert len(items) == 2
    assert isinstance(items[1], Conversation)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=4))
def test_any_table_of_parquet_is_one_item_for_each_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
):
    try:
        table = parquet(pa.Table.from_pylist([*rows, {"text": "good"}]))
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return  # a column of parquet holds values of one type
    items = read(wrote(tmp_path_factory.getbasetemp(), "a.parquet", table))
    assert len(items) in (0, len(rows) + 1)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))))
def test_any_bytes_of_parquet_are_survived(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
):
    raw = bytearray(parquet(pa.Table.from_pylist([{"text": "first"}, {"text": "second"}])))
    for part, byte in changes:
        raw[int(part * len(raw))] = byte
    read(wrote(tmp_path_factory.getbasetemp(), "b.parquet", bytes(raw)))


def test_a_row_of_parquet_is_judged_by_its_size_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make, made = readers._parquet_row, []
    monkeypatch.setattr(readers, "_parquet_row", lambda *row: made.append(row[1]) or make(*row))
    texts = ["small", "x" * 5000, "small"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    first, large, last = read(tmp_path / "a.parquet", max_row_bytes=1000)
    assert isinstance(first, Conversation)
    assert isinstance(last, Conversation)
    assert large.reason == "too_large"
    assert [row.nbytes < 1000 for row in made] == [True, True]


# --- recipes


@settings(max_examples=80, deadline=None)
@given(
    path=st.sampled_from(PATHS) | st.text(max_size=5).filter(lambda text: text not in "."),
    value=VALUES | st.sampled_from(ANY),
)
def test_any_value_anywhere_in_a_recipe_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, path: str, value: Any
):
    folder = tmp_path_factory.getbasetemp()
    FUZZ.recipe(yaml(with_value(path, value)), folder)


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(PATHS) | st.text(max_size=6),
    text=st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["[", "{", "*a", "!x"]),
)
def test_any_override_is_done_or_refused(key: str, text: str):
    try:
        assert isinstance(overridden(RECIPE, f"{key}={text}"), dict)
    except RecipeError as error:
        FUZZ.one_line(str(error))


NUMBERS = st.sampled_from([0, 1, -1, 2, 7, 0.5, 1.5, 1e-9, 1e18, 10**9, 10**30, True, None, "x"])


@settings(max_examples=80, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(STRATEGIES)), seed=st.integers(0, 2**32))
def test_any_settings_of_a_strategy_are_refused_or_give_positions(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str, seed: int
):
    fields = [field for field in STRATEGIES[name].__dataclass_fields__ if field != "max_position"]
    given_fields = data.draw(
        st.dictionaries(st.sampled_from(fields), NUMBERS, max_size=2) if fields else st.just({})
    )
    if name != "contiguous":
        given_fields["max_position"] = data.draw(st.sampled_from([4096, 8, 9, 10**9]) | NUMBERS)
    strategy = settings_of(tmp_path_factory, "strategy", {"name": name, **given_fields})
    if strategy is None:
        return
    try:
        found = strategy.positions(EIGHT_TOKENS, sample_rng(seed, 0, "x"))
    except DataError as error:
        FUZZ.one_line(str(error))
        return
    assert (np.diff(found) >= 1).all()
    assert 0 <= found[0] <= found[-1] < getattr(strategy, "max_position", 8)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(KEY_BIASES)))
def test_any_settings_of_a_key_bias_are_refused_or_give_finite_values(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
):
    fields = list(KEY_BIASES[name].__dataclass_fields__)
    drawn = data.draw(st.dictionaries(st.sampled_from(fields), NUMBERS, max_size=2))
    bias = settings_of(tmp_path_factory, "key_bias", {"name": name, **drawn})
    if bias is None:
        return
    positions = np.array([0, 1, 2, 50, 51, 52, 4094, 4095])
    values = bias.values(EIGHT_TOKENS, positions, sample_rng(0, 0, "x"))
    assert np.isfinite(values).all()


def settings_of(tmp_path_factory: pytest.TempPathFactory, key: str, tree: dict[str, Any]) -> Any:
    """Return what a recipe makes of a mapping, None where it is refused."""
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    file.unlink(missing_ok=True)
    file.write_bytes(yaml(with_value(key, tree)))
    try:
        (method,) = load(file).methods.values()
    except RecipeError as error:
        FUZZ.one_line(str(error).replace(str(file), ""))
        return None
    return method.key_bias if key == "key_bias" else method.strategies["chats"]
