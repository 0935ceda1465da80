"""train, run and compare: what they choose, print and pass on."""

import json
from pathlib import Path
from typing import Any

from fixtures_cli import TRAINED
from skipalign.adapters import Lora
from skipalign.model import load_model, load_tokenizer, save_model
from skipalign.rope import Ntk
from test_training import make_base


def test_a_dry_run_prints_the_resolved_recipe_and_does_nothing(run: Any):
    for command in ("prepare", "train", "run", "compare"):
        found = run(command, "many.yaml", "--dry-run", "trainer.max_steps=9")
        assert found.code == 0
        for part in ("methods:", "normal:", "skipalign:", "max_steps: 9", "law: stars_and_bars"):
            assert part in found.out
        assert found.err == ""
        Path("again.yaml").write_text(found.out)
        assert run(command, "again.yaml", "--dry-run").out == found.out
    assert not Path("runs").exists()


def test_export_writes_the_positions_of_one_training(run: Any):
    found = run("export", "many.yaml", "out/data.jsonl", "--method", "skipalign", "--seed", "2")
    assert found.code == 0, found.err
    assert found.last == "made out/data.jsonl; next: read out/README.md"
    assert "1 rows, " in found.out
    (row,) = [json.loads(line) for line in Path("out/data.jsonl").read_text().splitlines()]
    preview = ("preview", "many.yaml", "--json", "--method", "skipalign", "--seed", "2")
    assert row["position_ids"] == json.loads(run(*preview).out)["position_ids"]
    words = ("export", "many.yaml", "d.jsonl", "--method", "skipalign", "--seed", "2", "--json")
    assert json.loads(run(*words, "--epochs", "3").out)["rows"] == 3
    assert run("export", "many.yaml", "d.jsonl").code == 2
    assert "does not train" in run("export", "many.yaml", "d.jsonl", "--method", "base").err
    assert "suffix is '.csv'" in run("export", "own.yaml", "d.csv").err


def test_a_dry_run_in_json(run: Any):
    tree = json.loads(run("train", "many.yaml", "--dry-run", "--json").out)
    assert list(tree["methods"]) == ["base", "normal", "skipalign"]
    found = json.loads(run("run", "many.yaml", "--dry-run", "--json").out)
    assert found["recipe"] == tree
    assert [each["method"] for each in found["trainings"]] == ["base", *TRAINED]
    assert found["notes"] == []


def test_a_dry_run_lists_the_trainings_that_are_chosen(run: Any):
    found = run("compare", "many.yaml", "--dry-run", "--only", "skipalign,base", "--seeds", "3")
    comments = [line.split() for line in found.out.splitlines() if line.startswith("#")]
    told = [words[1:4] for words in comments if words[1] == "warning:"]
    assert told == [["warning:", "rope", "none:"]]
    assert [words[1:4] for words in comments if words[1] != "warning:"] == [
        ["method", "seed", "base"],
        ["base", "0", "tiny"],
        ["skipalign", "0", "tiny"],
        ["skipalign", "1", "tiny"],
        ["skipalign", "2", "tiny"],
    ]
    assert "normal:" in found.out
    assert "seeds: [0, 1, 2]" in found.out
    assert run("run", "many.yaml", "--dry-run", "data=nosuch.jsonl").code == 1


def test_a_run_of_chosen_methods_and_seeds(run: Any, study: dict[str, Any]):
    run("compare", "many.yaml", "--only", "normal, base", "--seeds", "1")
    trainings, _, _, given = study["run"]
    assert [(each.method, each.seed) for each in trainings] == [
        ("base", 1),
        ("normal", 1),
        ("skipalign", 1),
    ]
    assert given["only"] == ("base", "normal")
    assert "seeds: [1]" in given["recipe_text"]
    assert "skipalign:" in given["recipe_text"]


def test_train_trains_the_one_that_is_chosen(run: Any, study: dict[str, Any]):
    found = run("train", "many.yaml", "--method", "skipalign", "--seed", "2")
    training, run_dir, _, given = study["train"]
    assert (training.method, training.seed) == ("skipalign", 2)
    assert study["prepare"][0] == [training]
    assert run_dir == Path("runs/many")
    assert given == {"order": 2, "coverage_range": 4096}
    model = "runs/many/skipalign/seed-2/model"
    assert found.last == f"made {model}; next: skipalign evaluate {model} --task needle"
    run("train", "many.yaml", "--method", "base")
    assert study["train"][0].seed == 1
    assert "--lengths" in run("train", "own.yaml").last


def test_run_prints_table_times_and_report(run: Any, study: dict[str, Any]):
    for command in ("run", "compare"):
        found = run(command, "many.yaml")
        assert found.out.splitlines() == [
            "the table",
            "time: train 12 s; together 12 s",
            "made runs/own/report.html; next: open it in a browser",
        ]
    trainings, run_dir, _, given = study["run"]
    assert len(trainings) == 5
    assert run_dir == Path("runs/many")
    assert "seeds: [1, 2]" in given["recipe_text"]


def test_merge_makes_a_plain_model_of_an_adapter(run: Any, tmp_path: Path):
    base = make_base(tmp_path / "base")
    model = load_model(str(base), rope=Ntk(factor=4.0), adapter=Lora(r=2))
    save_model(model, load_tokenizer(str(base)), tmp_path / "adapter")
    base.rename(tmp_path / "moved")
    asked = ("merge", str(tmp_path / "adapter"), str(tmp_path / "plain"))
    found = run(*asked)
    assert found.code == 1
    assert "base: cannot load its model" in found.err
    moved = ("--base", str(tmp_path / "moved"), "--dtype", "bfloat16", "--json")
    told = json.loads(run(*asked, *moved).out)
    assert told["model"] == str(tmp_path / "plain")
    assert told["dtype"] == "bfloat16"
    config = json.loads((tmp_path / "plain/config.json").read_text())
    assert config["max_position_embeddings"] == 4 * 64
    assert config["dtype"] == "bfloat16"
    assert "skipalign" in (tmp_path / "plain/README.md").read_text()
    assert "is there already" in run(*asked).err


def test_a_plan_says_what_training_will_cost(run: Any):
    found = run("plan", "many.yaml", "--gpu", "rtx4090")
    assert found.code == 0, found.err
    assert "rtx4090: 22 GiB" in found.out
    assert "at full length" in found.out
    assert found.last == "planned many; next: skipalign run many.yaml --dry-run"
    tree = json.loads(run("plan", "many.yaml", "trainer.max_steps=5", "--json").out)
    assert [each["method"] for each in tree["methods"]] == ["normal", "skipalign"]
    assert tree["methods"][0]["steps"] == 5
    assert "no GPU 'abacus'" in run("plan", "many.yaml", "--gpu", "abacus").err
    assert not Path("runs").exists()
