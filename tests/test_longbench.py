"""longbench.py: every sample is asked once, as the official code asks; kills; what is refused."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures_eval import tiny_llama, train_tokenizer
from skipalign import tiny
from skipalign.errors import DataError, RecipeError, RunError
from skipalign.evaluation import longbench
from skipalign.evaluation.longbench import LongBenchSettings, cells, evaluate_longbench
from skipalign.evaluation.longbench_score import TASKS, TASKS_E, score_folder
from skipalign.files import read_json
from skipalign.generation import Completion
from skipalign.transformers_engine import TransformersGenerator

NUM = 7


class Parrot:
    """Answers with the number in the question, keeps what it was asked, dies where told to."""

    def __init__(self, tokenizer, *, identity="parrot", dies_after=None, says="row {}"):
        self.tokenizer, self.identity, self.says = tokenizer, identity, says
        self.dies_after = dies_after
        self.prompts, self.calls = [], []

    def generate(self, prompts, *, max_new_tokens, position_ids=None, **more):
        assert position_ids is None
        self.calls.append({"num": len(prompts), "max_new_tokens": max_new_tokens, **more})
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt):
        if self.dies_after is not None and len(self.prompts) >= self.dies_after:
            raise KeyboardInterrupt
        text = self.tokenizer.decode(prompt)
        self.prompts.append(text)
        return Completion([], self.says.format(text.rpartition("number ")[2].partition("?")[0]))


def row(task: str, number: int, **more) -> dict:
    return {
        "input": f"Which is number {number}?",
        "context": f"The river walked to house {number}. " * 20,
        "answers": [f"row {number}"],
        "length": 3000 * number,
        "dataset": task,
        "language": "en",
        "all_classes": [f"row {each}" for each in range(NUM)] if task in ("trec", "lsht") else None,
        "_id": f"{task}-{number}",
    } | more


def write_data(folder: Path, *tasks: str, ending: str = ".jsonl") -> str:
    folder.mkdir(exist_ok=True)
    for task in tasks:
        lines = [json.dumps(row(task, number)) + "\n" for number in range(NUM)]
        (folder / f"{task}{ending}").write_text("".join(lines), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", "qasper", "samsum", "trec")


@pytest.fixture(autouse=True)
def _few_samples_at_once(monkeypatch):
    monkeypatch.setattr("skipalign.generation._TOKENS_AT_ONCE", 700)


def ask(generator, settings, out, **more):
    return evaluate_longbench(generator, generator.tokenizer, settings, out, **more)


def settings_for(data: str, **more) -> LongBenchSettings:
    return LongBenchSettings(**{"data": data, "max_prompt_tokens": 400} | more)


def predictions(out: Path, task: str) -> list[dict]:
    path = out / "predictions" / f"{task}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_sample_is_asked_once_in_order_and_kept_in_the_official_fields(
    tokenizer, data, tmp_path
):
    parrot = Parrot(tokenizer)
    document = ask(parrot, settings_for(data), tmp_path)
    assert len(parrot.prompts) == 3 * NUM
    assert max(call["num"] for call in parrot.calls) == 2, "as many as fit into 700 tokens"
    for task in ("qasper", "samsum", "trec"):
        found = predictions(tmp_path, task)
        assert [each["_id"] for each in found] == [f"{task}-{number}" for number in range(NUM)]
        assert found[3] == {
            "pred": "row 3",
            "answers": ["row 3"],
            "all_classes": row(task, 3)["all_classes"],
            "length": 9000,
            "_id": f"{task}-3",
        }
    assert read_json(tmp_path / "longbench.json") == document
    assert document["tasks"]["qasper"] == {"score": 100.0, "n": NUM, "low": 100.0, "high": 100.0}
    scored = score_folder(tmp_path / "predictions")
    assert all(document[key] == scored[key] for key in ("tasks", "categories", "averages"))
    assert document["protocol"] == "longbench-v1"
    assert document["prompts"]["qasper"]["max_prompt_tokens"] == 400
    assert document["settings"]["data"] == data


def test_each_task_has_its_answer_length_and_samsum_its_stop(tokenizer, data, tmp_path):
    parrot = Parrot(tokenizer)
    ask(parrot, settings_for(data, tasks=("samsum", "qasper")), tmp_path)
    calls = [{key: call[key] for key in call if key != "num"} for call in parrot.calls]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    plain = {"max_new_tokens": 128}
    assert calls[0] == plain
    assert calls[-1] == plain | {"more_stop_ids": (newline,), "min_new_tokens": 1}
    assert not (tmp_path / "predictions/trec.jsonl").exists()


def test_a_killed_run_goes_on_and_asks_nothing_twice(tokenizer, data, tmp_path):
    whole = ask(Parrot(tokenizer), settings_for(data), tmp_path / "whole")
    out = tmp_path / "killed"
    asked = 0
    for dies_after in (5, 3, None):
        parrot = Parrot(tokenizer, dies_after=dies_after)
        if dies_after is None:
            document = ask(parrot, settings_for(data), out)
        else:
            with pytest.raises(KeyboardInterrupt):
                ask(parrot, settings_for(data), out)
            assert not (out / "longbench.json").exists()
            with (out / "predictions/qasper.jsonl").open("a") as handle:
                handle.write('{"pred": "half a li')
        asked += len(parrot.prompts)
    # What was asked and not yet written when it died, one group at most, is asked again.
    assert 3 * NUM <= asked <= 3 * NUM + 2
    for task in ("qasper", "samsum", "trec"):
        assert predictions(out, task) == predictions(tmp_path / "whole", task)
    assert document == whole
    again = Parrot(tokenizer)
    assert ask(again, settings_for(data), out) == whole
    assert again.prompts == []


def test_more_samples_and_tasks_can_be_asked_later(tokenizer, data, tmp_path):
    first = ask(Parrot(tokenizer), settings_for(data, tasks=("qasper",), limit=2), tmp_path)
    assert first["incomplete"] == {"qasper": "2 of 200"}
    parrot = Parrot(tokenizer)
    document = ask(parrot, settings_for(data, limit=4), tmp_path)
    assert len(parrot.prompts) == 2 + 4 + 4
    assert {task: entry["n"] for task, entry in document["tasks"].items()} == dict.fromkeys(
        ("qasper", "trec", "samsum"), 4
    )
    assert {*ask(Parrot(tokenizer), settings_for(data, tasks=("trec",)), tmp_path)["tasks"]} == {
        "trec"
    }


@pytest.mark.parametrize(
    ("model", "change", "named"),
    [
        ("another", {}, "other model"),
        ("parrot", {"max_prompt_tokens": 300}, "other max_prompt_tokens"),
        ("parrot", {"template_kwargs": {"x": 1}}, "other template_kwargs"),
        ("parrot", None, "other data_sha256"),
        ("parrot", {"e": True}, "other e;"),
    ],
)
def test_answers_of_something_else_are_not_gone_on_with(
    tokenizer, data, tmp_path, model: str, change: dict | None, named: str
):
    ask(Parrot(tokenizer), settings_for(data, tasks=("qasper",)), tmp_path)
    write_data(Path(data), "qasper", ending="_e.jsonl")
    if change is None:
        with (Path(data) / "qasper.jsonl").open("a") as handle:
            handle.write(json.dumps(row("qasper", NUM)) + "\n")
    changed = settings_for(data, tasks=("qasper",), **change or {})
    parrot = Parrot(tokenizer, identity=model)
    with pytest.raises(RunError, match=named):
        ask(parrot, changed, tmp_path)
    assert parrot.prompts == []
    ask(parrot, changed, tmp_path, overwrite=True)
    assert len(parrot.prompts) == len(predictions(tmp_path, "qasper")) >= NUM


def test_predictions_of_unknown_making_are_not_gone_on_with(tokenizer, data, tmp_path):
    ask(Parrot(tokenizer), settings_for(data), tmp_path)
    (tmp_path / "predictions/asked.json").unlink()
    with pytest.raises(RunError, match=r"qasper\.jsonl: nothing says what it was made with"):
        ask(Parrot(tokenizer), settings_for(data), tmp_path)
    (tmp_path / "predictions/qasper.jsonl").write_text('{"pred": "x"}\n')
    with pytest.raises(RunError, match="line 1: no prediction with an _id"):
        ask(Parrot(tokenizer), settings_for(data), tmp_path)


def test_longbench_e_reads_its_own_files_and_is_scored_in_buckets(tokenizer, data, tmp_path):
    write_data(Path(data), "lcc", ending="_e.jsonl")
    document = ask(Parrot(tokenizer), settings_for(data, e=True), tmp_path)
    assert document["protocol"] == "longbench-e"
    counts = {bucket: entry["n"] for bucket, entry in document["tasks"]["lcc"].items()}
    assert counts == {"0-4k": 2, "4-8k": 1, "8k+": 4}
    assert [cell["name"] for cell in document["cells"]] == ["lcc 0-4k", "lcc 4-8k", "lcc 8k+"]


def test_cells_are_shares_with_their_intervals(tokenizer, data, tmp_path):
    document = ask(Parrot(tokenizer, says="row 1 {}"), settings_for(data), tmp_path)
    entry = document["tasks"]["qasper"]
    (cell,) = (each for each in document["cells"] if each["name"] == "qasper")
    assert cell == {
        "name": "qasper",
        "n": NUM,
        **{"mean": entry["score"] / 100, "low": entry["low"] / 100, "high": entry["high"] / 100},
    }
    assert 0 < cell["low"] <= cell["mean"] <= cell["high"] < 1
    assert len(cells(document)) == len(document["cells"]) == 3


def test_thoughts_that_do_not_end_are_counted(data, tmp_path):
    plain = train_tokenizer()
    document = ask(Parrot(plain, says="<think> hm {}"), settings_for(data), tmp_path / "said")
    assert document["unclosed_think"] == {"qasper": NUM, "trec": NUM, "samsum": NUM}
    opening = train_tokenizer(
        template="{% for m in messages %}{{ m.content }}{% endfor %}\n<think>\n"
    )
    for says, num in (("hm", NUM), ("hm</think> row", 0)):
        out = tmp_path / f"opened-{num}"
        document = ask(Parrot(opening, says=says), settings_for(data), out)
        assert document["unclosed_think"] == {"qasper": num, "trec": 0, "samsum": 0}
        assert sum("unclosed_think" in each for each in predictions(out, "qasper")) == num


def test_the_limit_comes_from_the_window_where_none_is_given(tokenizer, data, tmp_path):
    model = tiny_llama(len(tokenizer))
    generator = TransformersGenerator(model, tokenizer)
    settings = LongBenchSettings(data=data, tasks=("qasper",), limit=1)
    document = evaluate_longbench(generator, tokenizer, settings, tmp_path)
    assert model.config.max_position_embeddings == 64
    assert document["prompts"]["qasper"]["max_prompt_tokens"] == 56
    with pytest.raises(RecipeError, match="the window of the model is not known"):
        ask(Parrot(tokenizer), settings, tmp_path / "other")


def test_a_model_answers_and_samsum_ends_at_the_line(tokenizer, data, tmp_path):
    generator = TransformersGenerator(tiny_llama(len(tokenizer)), tokenizer)
    settings = settings_for(data, limit=3, max_prompt_tokens=60)
    document = evaluate_longbench(generator, tokenizer, settings, tmp_path)
    assert {task: entry["n"] for task, entry in document["tasks"].items()} == dict.fromkeys(
        ("qasper", "trec", "samsum"), 3
    )
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    maker = longbench.PromptMaker(tokenizer, 60, {})
    samples, _ = longbench.DataFiles(data).samples("samsum")
    prompts = [maker.ids("samsum", sample) for sample in samples[:3]]
    answers = generator.generate(
        prompts, max_new_tokens=128, more_stop_ids=[newline], min_new_tokens=1
    )
    found = predictions(tmp_path, "samsum")
    assert [each["pred"] for each in found] == [answer.text for answer in answers]
    assert all(answer.ids and newline not in answer.ids for answer in answers)


def test_settings_that_cannot_be_are_refused(data, tmp_path):
    for more, message in (
        ({"tasks": ("qaspr",)}, "tasks name qaspr; LongBench has narrativeqa"),
        ({"tasks": ()}, "tasks are none"),
        ({"tasks": ("musique",), "e": True}, "tasks name musique; LongBench-E has qasper"),
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"max_prompt_tokens": 1}, "max_prompt_tokens is 1; it must be at least 2"),
    ):
        with pytest.raises(RecipeError, match=message):
            LongBenchSettings(data=data, **more)
    assert len(TASKS) == 21
    assert {*TASKS_E} < {*TASKS}


def test_data_that_lacks_what_is_asked_is_refused(tokenizer, data, tmp_path):
    with pytest.raises(DataError, match=r"lcc\.jsonl: no such file"):
        ask(Parrot(tokenizer), settings_for(data, tasks=("lcc",)), tmp_path)
    with pytest.raises(DataError, match=r"holds no file of LongBench-E, such as qasper_e\.jsonl"):
        ask(Parrot(tokenizer), settings_for(data, e=True), tmp_path)


@pytest.mark.long
def test_a_run_that_is_killed_twice_has_every_sample_once(tmp_path):
    rows = [row("hotpotqa", number, context="On a day in May. " * 400) for number in range(150)]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "hotpotqa.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    words = [sys.executable, "-m", "skipalign", "evaluate", str(tiny.BASE), "--task", "longbench"]
    words += ["--data", str(folder), "--out", str(tmp_path), "-q", "max_prompt_tokens=1500"]
    path = tmp_path / "predictions/hotpotqa.jsonl"
    for _ in range(2):
        before = len(path.read_bytes()) if path.exists() else 0
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and (not path.exists() or len(path.read_bytes()) <= before):
            time.sleep(0.2)
        process.kill()
        process.communicate()
    assert 0 < len(predictions(tmp_path, "hotpotqa")) < 150
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "hotpotqa" in done.stdout
    ids = [each["_id"] for each in predictions(tmp_path, "hotpotqa")]
    assert ids == [each["_id"] for each in rows]
