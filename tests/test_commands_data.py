"""preview and prepare: what they print and what they pass on."""

import json
from pathlib import Path
from typing import Any

import pytest

from skipalign.progress import Silent


def test_preview_shows_a_method_that_skips(run: Any):
    found = run("preview", "many.yaml")
    assert found.code == 0
    assert "skipalign, seed 1, epoch 0" in found.out
    assert "\\x1b[2J" in found.out
    assert "\x1b" not in found.out
    assert found.last == "showed sample 0; next: skipalign preview many.yaml --index 1"
    assert "normal, seed 1" in run("preview", "many.yaml", "--method", "normal").out


def test_preview_makes_no_base(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SKIPALIGN_CACHE", str(tmp_path / "cache"))
    assert run("preview", "own.yaml", "base=tiny-{seed}", "--seed", "5").code == 0
    assert not (tmp_path / "cache").exists()
    found = run("preview", "own.yaml", "base=tiny-{seed}", "data=tiny-long", "--index", "3")
    assert found.last.startswith("showed sample 3")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny-long.jsonl.gz"]


def test_preview_in_json(run: Any):
    found = run("preview", "own.yaml", "--json", "--epoch", "2", "--seed", "7", "key_bias=gap")
    told = json.loads(found.out)
    assert (told["method"], told["epoch"], told["seed"]) == ("skipalign-bias", 2, 7)
    assert told["skips"]
    assert len(told["key_bias"]) == told["num_tokens"]
    assert "next:" in found.err


def test_preview_writes_a_page_of_several_samples(run: Any):
    row = Path("chats.jsonl").read_text()
    Path("three.jsonl").write_text(row.replace("no json\n", "") * 3)
    more = ("data=three.jsonl", "--samples", "2", "--index", "1")
    found = run("preview", "own.yaml", *more, "--html", "samples.html")
    following = "skipalign preview own.yaml data=three.jsonl --index 3"
    assert found.last == f"made samples.html of samples 1 to 2; next: {following}"
    page = Path("samples.html").read_text()
    assert page.count('<svg class="ruler"') == 2
    assert "\x1b" not in page
    shown = run("preview", "own.yaml", *more)
    assert "sample 1 of" in shown.out
    assert "sample 2 of" in shown.out
    refused = run("preview", "own.yaml", "--json", "--samples", "2")
    assert (refused.code, "--json prints one sample" in refused.err) == (2, True)


def test_preview_draws_what_the_options_say(run: Any):
    drawn = [
        json.loads(run("preview", "own.yaml", "--json", *more).out)["position_ids"]
        for more in ((), ("--epoch", "1"), ("--seed", "1"), ("--epoch", "0"))
    ]
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_preview_of_one_source(run: Any):
    Path("others.jsonl").write_text(Path("chats.jsonl").read_text().replace("Me.", "You."))
    data = "data=[chats.jsonl, others.jsonl]"
    assert "You." in run("preview", "own.yaml", data, "--source", "others").out
    assert "Me." in run("preview", "own.yaml", data).out


def test_prepare_prints_what_became_of_the_rows(run: Any, study: dict[str, Any]):
    found = run("prepare", "many.yaml", "--quiet", "--runs-dir", "elsewhere")
    assert "2 rows read = 1 used + 1 rejected + 0 dropped" in found.out
    assert "rejected: not_json 1" in found.out
    assert found.last == (
        "made elsewhere/many/normal/seed-1/data; "
        "next: skipalign train many.yaml --method normal --seed 1"
    )
    trainings, run_dir, progress, _ = study["prepare"]
    assert len(trainings) == 5
    assert run_dir == Path("elsewhere/many")
    assert isinstance(progress, Silent)
    assert "law: stars_and_bars" in study["begin"][1]
    assert study["begin"][2] == trainings
    assert study["begin"][3] == {"seeds": (1, 2)}
    assert run("prepare", "own.yaml").last.startswith(
        "made runs/own/data; next: skipalign train own"
    )
    short = run("prepare", "own.yaml", "name=short", "trainer.max_steps=2")
    assert short.last.endswith("next: skipalign train own.yaml name=short trainer.max_steps=2")
