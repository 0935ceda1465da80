"""The sample that is shown is the one that training sees."""

import json
from pathlib import Path

import numpy as np
import pytest

from made_tokenizers import tokenizer
from skipalign.batch import Collator
from skipalign.encoding import IGNORE_INDEX
from skipalign.errors import DataError, RecipeError
from skipalign.example_file import ExampleFile
from skipalign.key_bias import GapBias
from skipalign.positions import Contiguous, RandPos, SkipAlign
from skipalign.prepare import Source, prepare
from skipalign.sample import Sample, describe, draw_sample, text_of
from skipalign.visits import Visit

TOKENIZER = tokenizer("qwen25")
SKIPS = SkipAlign(max_position=4096, skip_fraction=1.0, cuts_within=2)


def chat(number: int) -> str:
    turns = [
        {"role": "user", "content": f"Question {number}? The fox jumps. It is quick."},
        {"role": "assistant", "content": f"Answer {number}: naïve 漢字 🙂."},
    ]
    return json.dumps({"messages": turns})


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("\n".join([chat(0), "no json", chat(1)]) + "\n")
    text = json.dumps({"text": "The quick brown fox. " * 30})
    second.write_text(text + "\n" + chat(2) + "\n")
    return [Source(str(first), "first"), Source(str(second), "second", max_tokens=100)]


def draw(sources: list[Source], index: int = 0, **given: object) -> Sample:
    strategies = {source.name: SKIPS for source in sources}
    return draw_sample(sources, strategies, TOKENIZER, index=index, **given)  # pyright: ignore


def test_samples_are_those_of_prepare_in_its_order(sources: list[Source], tmp_path: Path):
    prepare(sources, TOKENIZER, tmp_path / "out")
    made = ExampleFile(tmp_path / "out/data")
    assert len(made) > 4, "the document must be parted"
    for index, example in enumerate(made):
        found = draw(sources, index).example
        assert found.id == example.id
        assert found.source == example.source
        assert np.array_equal(found.input_ids, example.input_ids)
        assert np.array_equal(found.labels, example.labels)


def test_positions_and_bias_are_those_of_training(sources: list[Source]):
    collator = Collator({"first": SKIPS}, seed=5, pad_token_id=0, key_bias=GapBias())
    for epoch in (0, 3):
        found = draw(sources, 1, seed=5, epoch=epoch, key_bias=GapBias())
        placed = collator.place(Visit(found.example, epoch))
        assert np.array_equal(found.position_ids, placed.position_ids)
        assert placed.key_bias is not None
        assert found.key_bias is not None
        assert np.array_equal(found.key_bias, placed.key_bias)
    assert not np.array_equal(draw(sources, 1).position_ids, draw(sources, 1, epoch=1).position_ids)


def test_rows_before_it_that_were_lost_are_counted(sources: list[Source]):
    assert draw(sources, 0).num_skipped_rows == 0
    found = draw(sources, 1)
    assert found.num_skipped_rows == 1
    assert found.place.line == 3


def test_a_sample_that_is_not_there(sources: list[Source]):
    with pytest.raises(DataError, match="2 samples, and number 2 is asked for"):
        draw(sources[:1], 2)
    with pytest.raises(RecipeError, match="count from 0"):
        draw(sources, -1)


def test_what_is_trained_leaves_out_a_first_token(tmp_path: Path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"text": "The fox."}) + "\n")
    found = draw_sample([Source(str(path), "d")], {"d": Contiguous()}, TOKENIZER)
    assert found.example.labels[0] != IGNORE_INDEX
    assert not found.trained[0]
    assert found.trained[1:].all()


def test_skips_are_the_positions_left_out(sources: list[Source]):
    found = draw(sources)
    rebuilt = np.arange(len(found.position_ids))
    for token, length in found.skips.items():
        rebuilt[token:] += length
    assert len(found.skips) > 1
    assert np.array_equal(rebuilt, found.position_ids)


def test_a_first_position_above_zero_is_a_skip(sources: list[Source]):
    strategies = {source.name: RandPos(max_position=10**6) for source in sources}
    found = draw_sample(sources, strategies, TOKENIZER)
    assert found.skips[0] == found.position_ids[0] > 0


def test_max_position_without_skips_is_that_of_the_sample(sources: list[Source]):
    found = draw_sample(sources, {"first": Contiguous()}, TOKENIZER)
    assert found.max_position == len(found.position_ids)
    assert draw(sources).max_position == 4096


def test_the_description_adds_up(sources: list[Source]):
    found = draw(sources, key_bias=GapBias())
    told = json.loads(json.dumps(describe(found, TOKENIZER)))
    assert told["place"].endswith("first.jsonl line 1")
    assert told["strategy"]["name"] == "skipalign"
    assert told["position_ids"] == found.position_ids.tolist()
    segments = told["segments"]
    assert [each["role"] for each in segments] == ["user", "assistant"]
    assert segments[0]["start"] == 0
    assert segments[-1]["stop"] == told["num_tokens"] == len(told["input_ids"])
    trained = sum(each["num_trained_tokens"] for each in segments)
    assert trained == told["num_trained_tokens"] == sum(told["trained"])
    assert segments[0]["num_trained_tokens"] == 0
    skips = sum((each["skip_before"] > 0) + each["num_skips_within"] for each in segments)
    assert skips == len(told["skips"]) > 0
    for each in segments:
        assert each["first_position"] == told["position_ids"][each["start"]]
        assert each["last_position"] == told["position_ids"][each["stop"] - 1]
        inside = told["key_bias"][each["start"] : each["stop"]]
        assert each["key_bias"] == [
            pytest.approx(min(inside), abs=1e-4),
            pytest.approx(max(inside), abs=1e-4),
        ]
    assert "".join(each["text"] for each in segments) == TOKENIZER.decode(told["input_ids"])
    assert "naïve 漢字 🙂." in segments[1]["text"]


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_pieces_of_text_join_to_the_whole(kind: str):
    made = tokenizer("llama2", kind)
    ids = np.array(made("Héllo  漢字 world. The fox\n jumps")["input_ids"])
    whole = made.decode(ids)
    assert "漢字 world. The fox\n jumps" in whole
    for cut in range(len(ids) + 1):
        joined = text_of(made, ids, 0, cut) + text_of(made, ids, cut, len(ids))
        assert joined.replace("\ufffd", "") == whole  # a character may be parted
