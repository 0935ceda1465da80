"""The larger base: stops after any step and goes on to the bit, is gated, and has its data."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skipalign import budget
from skipalign.errors import ModelError
from skipalign.model import load_config, load_tokenizer, weights_digest
from skipalign.recipe import load
from skipalign.shapes import read_architecture, shape_of
from skipalign.tiny import larger
from skipalign.tiny.corpus import KEYS, VALUES

LAW = larger.SHRUNKEN
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a base that was made without a stop."""
    folder = tmp_path_factory.mktemp("stories")
    assert larger.make("shrunken", 0, folder, law=LAW) == folder / "base-shrunken-0"
    return folder


@pytest.fixture
def begun(made: Path, tmp_path: Path) -> Path:
    """A folder whose tokenizer is made, to save the time."""
    shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
    return tmp_path


def test_what_is_made_is_an_ordinary_checkpoint_with_its_data(made: Path):
    base = made / "base-shrunken-0"
    assert load_config(str(base)).max_position_embeddings == LAW.window
    tokenizer = load_tokenizer(str(base))
    assert all(len(tokenizer(name)["input_ids"]) == 1 for name in (*KEYS, *VALUES))
    lines = gzip.decompress((made / "conversations.jsonl.gz").read_bytes()).splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    lengths = [len(tokenizer.apply_chat_template(chat)["input_ids"]) for chat in chats]
    assert len(chats) == LAW.num_conversations
    assert LAW.window / 2 < np.mean(lengths)
    assert max(lengths) <= LAW.window
    (line,) = gzip.decompress((made / "prose.jsonl.gz").read_bytes()).splitlines()
    assert len(json.loads(line)["text"].split()) > 500
    assert not (made / "base-shrunken-0.state").exists()


def test_a_base_that_is_stopped_after_every_step_is_the_same_to_the_bit(made: Path, begun: Path):
    rounds = 0
    while (found := larger.make("shrunken", 0, begun, law=LAW, minutes=0)) is None:
        rounds += 1
        state = json.loads((begun / "base-shrunken-0.state/state.json").read_text())
        assert len(list((begun / "base-shrunken-0.state").glob("*.pt"))) == 1
        assert not (begun / "base-shrunken-0").exists()
        assert state["state"]["attempt"] == 0
    # One step at 32 tokens, one at 64, three of text; the last one does not stop it.
    assert rounds in (4, 5)
    assert weights_digest(str(found)) == weights_digest(str(made / "base-shrunken-0"))
    for name in ("conversations.jsonl.gz", "prose.jsonl.gz"):
        assert (begun / name).read_bytes() == (made / name).read_bytes()


def test_what_is_made_is_not_made_again(made: Path):
    before = weights_digest(str(made / "base-shrunken-0"))
    assert larger.make("shrunken", 0, made, law=replace(LAW, gate=1.0)) is not None
    assert weights_digest(str(made / "base-shrunken-0")) == before


def test_another_law_does_not_go_on_from_a_state(begun: Path):
    assert larger.make("shrunken", 0, begun, law=LAW, minutes=0) is None
    with pytest.raises(ModelError, match="by another law"):
        larger.make("shrunken", 0, begun, law=replace(LAW, peak_rate=1.0), minutes=0)


def test_a_base_below_the_gate_is_not_written(begun: Path):
    with pytest.raises(ModelError, match=r"is 0\.\d+ and must be at least 0\.95"):
        larger.make("shrunken", 0, begun, law=replace(LAW, gate=0.95))
    assert not (begun / "base-shrunken-0").exists()


def test_an_attempt_that_does_not_retrieve_is_given_up(begun: Path):
    law = replace(LAW, formed=1.0, max_attempts=2)
    with pytest.raises(ModelError, match="none of 2 attempts came to retrieve in lists of 32"):
        larger.make("shrunken", 0, begun, law=law)
    with pytest.raises(ModelError, match="no size '7b'; give one of 30m, 60m, 150m"):
        larger.make_config("7b", law)


def test_an_answer_is_right_when_each_of_its_tokens_is(
    begun: Path, monkeypatch: pytest.MonkeyPatch
):
    assert larger.make("shrunken", 0, begun, law=LAW, minutes=0) is None
    prose = larger._prose(LAW)
    rows = larger.StoryRows(load_tokenizer(str(begun / "tokenizer")), prose, LAW.window)
    training = larger.Pretraining("shrunken", 0, begun / "base-shrunken-0.state", LAW, rows)
    tokenizer = load_tokenizer(str(begun / "tokenizer"))
    scores: dict[str, float] = {}
    for unknown in ("<|pad|>", "Ada", "<|end|>"):
        (number,) = tokenizer(unknown)["input_ids"]

        def predicted(ids: np.ndarray, number: int = number) -> np.ndarray:
            following = np.roll(ids, -1, axis=1)
            return np.where(following == number, 0, following)

        monkeypatch.setattr(training.learner, "predicted", predicted)
        scores[unknown] = training.retrieval()
    assert (scores["<|pad|>"], scores["<|end|>"]) == (1.0, 0.0)
    assert 0.9 < scores["Ada"] < 1.0  # one name of 64


@pytest.mark.parametrize("size", larger.SIZES)
def test_the_architecture_files_are_the_sizes(size: str):
    path = ROOT / f"recipes/architectures/made/stories-{size}.json"
    shape = shape_of(larger.make_config(size, larger.Law()), where=size)
    assert shape_of(read_architecture(str(path)), where=size) == shape
    assert 30e6 < shape.parameters < 150e6


def test_the_recipes_reach_64_windows_and_their_hours_are_planned():
    study, sweep = load("study-1k"), load("sweep-gpu")
    assert max(study.tasks["needle"].lengths) == 64 * larger.WINDOW
    assert {"normal", "pose", "skipalign", "skipalign-bias"} < set(study.methods)
    rates = {each.trainer["learning_rate"] for each in sweep.trainings()}
    steps = {each.trainer["max_steps"] for each in sweep.trainings()}
    assert (min(rates), max(rates)) == (5e-6, 2e-4)
    assert (min(steps), max(steps)) == (50, 2000)
    assert {each.adapter is None for each in sweep.trainings()} == {True, False}
    page = (ROOT / "docs/gpu.md").read_text()
    for recipe in (study, sweep):
        methods = budget.estimate(recipe.trainings(), gpu="h200")["methods"]
        assert {each["as_asked"]["gpus_needed"] for each in methods} == {1}
        hours = sum(each["as_asked"]["gpu_hours"] for each in methods)
        assert f"| `{recipe.name}` | {len(methods)} | {hours:.1f} |" in page
