"""A whole study on a small random model: the run folder, what a second start does, what is told."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from skipalign import report, study, tiny
from skipalign.errors import RecipeError, RunError
from skipalign.evaluation.needle import NeedleSettings
from skipalign.evaluation.stretch import StretchSettings
from skipalign.files import read_json, write_json
from skipalign.key_bias import GapBias
from skipalign.model import weights_digest
from skipalign.origin import TO_THE_BIT
from skipalign.packing import Packing
from skipalign.positions import Contiguous, SkipAlign, Strategy
from skipalign.prepare import Source
from skipalign.progress import Silent
from skipalign.resolved import Base, Training
from skipalign.results import read_run, read_training
from skipalign.rope import Ntk
from test_training import make_base

STAGES = ("train", "needle", "stretch")
TEXTS = {
    "needle": "{key} x {value} .",
    "question": "{key} ?",
    "separator": " ",
    "keys": ("a", "b", "c"),
    "values": ("d", "e", "f"),
    "max_new_tokens": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    make_base(root / "base")
    words = ["g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"]
    (root / "hay").mkdir()
    (root / "hay/prose.txt").write_text(" ".join(f"{' '.join(words)} ." for _ in range(40)))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{w} {v} a x d ."},
                {"role": "assistant", "content": "d"},
            ]
        }
        for w in words
        for v in words
    ]
    lines = [json.dumps(row) for row in rows]
    lines.insert(3, "{not json")
    lines.insert(9, json.dumps({"messages": [{"role": "user", "content": "alone"}]}))
    (root / "chats.jsonl").write_text("\n".join(lines) + "\n")
    return root


def trainings(folder: Path, **changes: object) -> list[Training]:
    def one(method: str, seed: int, strategy: Strategy, bias: GapBias | None) -> Training:
        hay = str(folder / "hay")
        values = {
            "method": method,
            "seed": seed,
            "directory": f"{method}/seed-{seed}",
            "base": Base(path=str(folder / "base")),
            "sources": (Source(path=str(folder / "chats.jsonl"), name="chats"),),
            "strategies": {"chats": strategy},
            "key_bias": bias,
            "rope": Ntk(factor=8.0),
            "trainer": {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1},
            "tasks": {
                "needle": NeedleSettings(
                    lengths=(64, 128), depths=2, trials=2, haystack=hay, **TEXTS
                ),
                "stretch": StretchSettings(
                    distances=(256,), context_length=64, trials=3, haystack=hay, **TEXTS
                ),
            },
        }
        return Training(**{**values, **changes})  # type: ignore[arg-type]

    skips = SkipAlign(max_position=512, skip_fraction=1.0)
    return [
        one("normal", 0, Contiguous(), None),
        one("skipalign", 0, skips, GapBias()),
        one("skipalign", 1, skips, GapBias()),
    ]


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    out = folder / "runs/demo"
    study.run(trainings(folder), out, recipe_text="name: demo\n")
    return out


def test_a_run_leaves_the_documented_folder(finished: Path):
    for name in ("recipe.yaml", "environment.json", "report.html"):
        assert (finished / name).is_file(), name
    for training in ("normal/seed-0", "skipalign/seed-0", "skipalign/seed-1"):
        out = finished / training
        for name in (
            *("data/examples.arrow", "data/manifest.json", "rejected.jsonl", "accounting.json"),
            *("probe.json", "loss.jsonl", "training.json", "coverage.json", "model/README.md"),
            *("evaluation/needle/needle.json", "evaluation/stretch/stretch.json"),
        ):
            assert (out / name).is_file(), f"{training}/{name}"
        for path in out.rglob("*.json"):
            if "model" not in path.parts and "checkpoints" not in path.parts:
                assert json.loads(path.read_text())["schema_version"] == 1, path


def test_a_run_names_its_code_machine_seeds_and_data(finished: Path, folder: Path):
    digest = hashlib.sha256((folder / "chats.jsonl").read_bytes()).hexdigest()
    assert read_json(finished / "normal/seed-0/training.json")["data_sha256"] == {
        "chats": {"chats.jsonl": digest}
    }
    assert digest in (finished / "normal/seed-0/model/README.md").read_text()
    assert digest in (finished / "report.html").read_text()
    found = report.study_document([finished])["environment"]
    assert found["data"] == {"chats/chats.jsonl": digest}
    assert found["seeds"] == [0, 1]
    assert found["exact"]["mean"] == TO_THE_BIT
    assert found["commit"]


def test_accounting_adds_up(finished: Path):
    total = read_json(finished / "normal/seed-0/accounting.json")["total"]
    assert total["rows_read"] == 14 * 14 + 2
    assert total["rejected"].values()
    assert total["rows_read"] == total["used"] + sum(
        [*total["rejected"].values(), *total["dropped"].values()]
    )


def test_equal_data_is_made_once(finished: Path):
    one, two = (
        finished / name / "data/examples.arrow" for name in ("normal/seed-0", "skipalign/seed-1")
    )
    assert one.stat().st_ino == two.stat().st_ino


def test_the_table_has_every_method_and_length(finished: Path):
    rows = report.table([finished])
    assert [(r["method"], r["context_length"]) for r in rows] == [
        ("normal", 64),
        ("normal", 128),
        ("skipalign", 64),
        ("skipalign", 128),
    ]
    assert [r["num_seeds"] for r in rows] == [1, 1, 2, 2]
    assert [r["num_trials"] for r in rows] == [4, 4, 8, 8]


def test_the_card_carries_results(finished: Path):
    card = (finished / "skipalign/seed-1/model/README.md").read_text()
    assert "Not evaluated yet" not in card
    assert "| 128 |" in card
    assert "196 used + 2 rejected" in card


def test_a_second_start_repeats_nothing_and_repairs_what_is_missing(folder: Path, finished: Path):
    model = finished / "normal/seed-0/model/model.safetensors"
    cells = finished / "skipalign/seed-0/evaluation/needle"
    kept, before = model.stat().st_mtime_ns, (cells / "needle.json").read_bytes()
    shutil.rmtree(cells)
    (finished / "report.html").unlink()
    study.run(trainings(folder), finished, recipe_text="name: demo\n")
    assert model.stat().st_mtime_ns == kept
    assert (cells / "needle.json").read_bytes() == before
    assert (finished / "report.html").exists()


class Watching(Silent):
    """Keeps the names of the stages that were begun; is stopped as one of them begins."""

    def __init__(self, stopped_at: str = "") -> None:
        self.begun: list[str] = []
        self.stopped_at = stopped_at

    def bar(self, description: str, total: int | None):
        if description == self.stopped_at:
            raise KeyboardInterrupt
        if description.rpartition(": ")[2] in (*STAGES, "prepare chats"):  # no loading or writing
            self.begun.append(description)
        return super().bar(description, total)


def test_a_run_that_is_stopped_anywhere_repeats_nothing_that_is_finished(
    folder: Path, tmp_path: Path
):
    asked = trainings(folder)[:2]
    whole = [
        "prepare chats",
        *(f"{each.method}, seed 0: {stage}" for each in asked for stage in STAGES),
    ]
    begun: list[str] = []
    for stopped_at in ("normal, seed 0: stretch", "skipalign, seed 0: needle", ""):
        watching = Watching(stopped_at)
        if stopped_at:
            with pytest.raises(KeyboardInterrupt):
                study.run(asked, tmp_path, watching, recipe_text="name: demo\n")
        else:
            study.run(asked, tmp_path, watching, recipe_text="name: demo\n")
        begun += watching.begun
    assert sorted(begun) == sorted(whole)
    again = Watching()
    study.run(asked, tmp_path, again, recipe_text="name: demo\n")
    assert again.begun == []


@pytest.mark.long
def test_trainings_at_once_end_as_one_after_the_other(folder: Path, tmp_path: Path):
    before = torch.get_num_threads()
    try:
        for jobs in (1, 2):
            torch.set_num_threads(jobs)  # one thread for each training either way
            out = tmp_path / str(jobs)
            page = study.run(trainings(folder), out, recipe_text="name: demo\n", jobs=jobs)
            assert page == out / "report.html"
    finally:
        torch.set_num_threads(before)
    for training in trainings(folder):
        one, two = (tmp_path / jobs / training.directory for jobs in ("1", "2"))
        for name in ("model/model.safetensors", "evaluation/needle/needle.trials.jsonl"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), (name, training.method)
        orders = [read_json(each / "training.json")["order"] for each in (one, two)]
        assert orders[0] == orders[1]


def test_methods_that_are_left_out_stay_as_they_are(folder: Path, tmp_path: Path):
    asked = trainings(folder, tasks={})
    study.run(asked, tmp_path, recipe_text="name: demo\n", only=["skipalign"])
    assert not (tmp_path / "normal").exists()
    training = read_json(tmp_path / "skipalign/seed-1/training.json")
    assert training["order"] == 1
    assert read_json(tmp_path / "skipalign/seed-1/coverage.json")["max_position"] == 512
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("skipalign/**/*")}
    study.run(asked, tmp_path, recipe_text="name: demo\n", only=["normal"])
    assert (tmp_path / "normal/seed-0/training.json").exists()
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_results_that_know_nothing_of_a_new_setting_are_results_of_its_default(tmp_path: Path):
    path = tmp_path / "evaluation/needle/needle.json"
    path.parent.mkdir(parents=True)
    asked = NeedleSettings(lengths=(64,), depths=2, nested=False)
    known = json.loads(json.dumps({**asdict(asked), "haystack_sha256": "x"}))
    del known["num_needles"], known["tokens_per_record"]
    write_json(path, {"settings": known})
    assert study._answered(tmp_path, "needle", asked)
    for others in ({"nested": True}, {"num_needles": 2}, {"depths": 3}):
        assert not study._answered(tmp_path, "needle", replace(asked, **others))


def test_answers_of_an_older_model_are_not_those_of_the_model_that_took_its_place(
    folder: Path, tmp_path: Path
):
    (one, *_) = trainings(folder)
    one = replace(one, tasks={"stretch": one.tasks["stretch"]})
    study.run([one], tmp_path / "run", recipe_text="name: demo\n")
    out = tmp_path / "run" / one.directory
    shutil.rmtree(out / "model")
    study.run([one], tmp_path / "run", recipe_text="name: demo\n")  # to the bit the same model
    document = read_json(out / "training.json")
    assert document["model_digest"] == weights_digest(str(out / "model"))
    write_json(out / "training.json", {**document, "model_digest": "of other weights"})
    assert "stretch" not in read_training(out).documents
    with pytest.raises(RunError, match=r"stretch\.json: holds answers of an older model .* delete"):
        study.run([one], tmp_path / "run", recipe_text="name: demo\n")
    shutil.rmtree(out / "evaluation/stretch")
    study.evaluate(one, tmp_path / "run")
    assert read_json(out / "evaluation/stretch/stretch.json")["model_digest"]


def test_a_training_that_becomes_one_of_several_is_neither_moved_nor_repeated(
    folder: Path, tmp_path: Path
):
    out, few = tmp_path / "run", {"max_steps": 2, "per_device_train_batch_size": 2}
    _, first, second = trainings(folder, tasks={}, trainer=few)
    study.run([replace(first, directory="")], out, recipe_text="name: demo\n")
    before = (out / "training.json").stat().st_mtime_ns
    study.run([first, second], out, recipe_text="name: demo\n")
    assert (out / "training.json").stat().st_mtime_ns == before
    assert [path.name for path in (out / "skipalign").iterdir()] == ["seed-1"]
    found = [(each.method, each.seed, each.folder) for each in read_run(out).trainings]
    assert found == [("skipalign", 0, out), ("skipalign", 1, out / "skipalign/seed-1")]
    alone = replace(second, directory="")
    study.run([alone], out, recipe_text="name: demo\n")
    assert read_json(out / "training.json")["seed"] == 0


def test_a_task_that_no_prompt_can_be_made_of_stops_the_run_before_it_begins(
    folder: Path, tmp_path: Path
):
    first, second, _ = trainings(folder)
    narrow = replace(second.tasks["needle"], lengths=(12, 64))
    both = [first, replace(second, tasks={**second.tasks, "needle": narrow})]
    with pytest.raises(RecipeError, match="context_length 12: template, question and 1 record"):
        study.run(both, tmp_path / "run", recipe_text="name: demo\n")
    assert not (tmp_path / "run").exists(), "an hour of training would be lost on it"


def test_other_settings_never_mix_with_a_finished_training(folder: Path, finished: Path):
    changed = trainings(folder, trainer={"max_steps": 5})
    with pytest.raises(RunError, match=r"other settings \(trainer\.max_steps: 4 there, 5 here; "):
        study.run(changed, finished, recipe_text="name: other\n")
    assert (finished / "recipe.yaml").read_text() == "name: demo\n", "it says what lies there"


def test_a_folder_that_began_from_other_weights_is_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "base", tmp_path / "base")
    (one, *_) = trainings(folder, base=Base(path=str(tmp_path / "base")), tasks={})
    study.run([one], tmp_path / "run", recipe_text="name: demo\n")
    digest = weights_digest(str(tmp_path / "base"))
    for name in ("settings.json", "training.json"):
        found = read_json(tmp_path / "run" / one.directory / name)
        assert found["base_digest"] == digest
        assert (found.get("digest") is None) == (name == "training.json")
    other = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    other.lm_head.weight.data += 1
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(RunError, match=f"digest {digest}, the one here now has [0-9a-f]"):
        study.run([one], tmp_path / "run", recipe_text="name: demo\n")
    (tmp_path / "run" / one.directory / "training.json").unlink()
    with pytest.raises(RunError, match="began from a base with the digest"):
        study.run([one], tmp_path / "run", recipe_text="name: demo\n")
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(folder / "base", tmp_path / "base")
    study.run([one], tmp_path / "run", recipe_text="name: demo\n")


def test_packing_and_logit_scale_reach_the_training(folder: Path, tmp_path: Path):
    one = replace(trainings(folder)[0], tasks={}, directory="")
    packed = replace(one, packing=Packing(max_tokens=64), logit_scale=0.5)
    for name, each in (("one", one), ("packed", packed)):
        study.run([each], tmp_path / name, recipe_text="name: demo\n")
    found = {name: read_json(tmp_path / name / "training.json") for name in ("one", "packed")}
    assert found["packed"]["max_row_tokens"] > 2 * found["one"]["max_row_tokens"]
    assert found["packed"]["packing"] == {
        "max_tokens": 64,
        "attention": "causal",
        "loss": "token",
    }
    assert (found["one"]["packing"], found["one"]["logit_scale"]) == (None, None)
    names = [check["name"] for check in read_json(tmp_path / "packed/probe.json")["checks"]]
    assert set(names) > {c["name"] for c in read_json(tmp_path / "one/probe.json")["checks"]}
    card = (tmp_path / "packed/model/README.md").read_text()
    assert "| packing.max\\_tokens | 64 |" in card
    assert "| logit\\_scale | 0.5 |" in card
    with pytest.raises(RunError, match=r"of other settings \(packing: "):
        study.run([one], tmp_path / "packed", recipe_text="name: demo\n")


def test_embedded_bases_share_a_tokenizer_and_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SKIPALIGN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny.BASE, tmp_path / "cache/tiny-1")
    found = [
        Training(
            method="normal",
            seed=seed,
            directory=f"normal/seed-{seed}",
            base=Base(path=f"tiny-{seed}"),
            sources=(Source("tiny", "tiny", max_tokens=128),),
            strategies={"tiny": Contiguous()},
            rope=Ntk(factor=8.0),
            trainer={"max_steps": 1, "per_device_train_batch_size": 1},
        )
        for seed in (0, 1)
    ]
    out = tmp_path / "run"
    study.run(found, out, recipe_text="name: demo\n")
    one, two = (out / each.directory / "data/examples.arrow" for each in found)
    assert one.stat().st_ino == two.stat().st_ino
    for path in (
        *out.glob("*/*/*.json"),
        out / "environment.json",
        *out.glob("*/*/model/README.md"),
    ):
        assert str(tmp_path / "cache") not in path.read_text(), path
    assert read_json(out / "normal/seed-1/training.json")["base"]["path"] == "tiny-1"
    shutil.rmtree(tmp_path / "cache")  # what is finished needs no base
    study.run(found, out, recipe_text="name: demo\n")
    assert not (tmp_path / "cache").exists()


def test_an_untrained_base_is_evaluated_as_it_is(folder: Path, tmp_path: Path):
    one = trainings(folder)[0]
    needle = {"needle": one.tasks["needle"]}
    alone = replace(one, train=False, directory="", tasks=needle, method="base-ntk")
    study.run([alone], tmp_path / "base", recipe_text="name: base\n")
    assert (tmp_path / "base/evaluation/needle/needle.json").exists()
    assert not (tmp_path / "base/data").exists()
    assert "no weight was changed" in (tmp_path / "base/model/README.md").read_text()
