"""init: what it prints, what it writes, that its recipe runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from skipalign import recipe, starter


def test_init_writes_a_recipe_that_passes_the_dry_run(run: Any):
    found = run("init", "tiny", "chats.jsonl", "--max-position", "1024")
    assert found.code == 0
    assert "tiny: llama, 492,160 parameters, window 128, rope_type default" in found.out
    assert "chats.jsonl: 2 rows of the shape messages, 1 rejected" in found.out
    assert found.last == "made recipe.yaml; next: skipalign run recipe.yaml --dry-run"
    assert "note: chats.jsonl: rejected not_json 1" in found.err
    dry = run(*found.last.partition("next: skipalign ")[2].split())
    assert dry.code == 0
    assert "1,024" in dry.out
    for line in found.out.splitlines()[-4:-1]:
        assert line.startswith("  skipalign ")
    assert run("preview", "recipe.yaml").code == 0


def test_init_in_json_is_one_document(run: Any):
    told = run("init", "tiny", "chats.jsonl", "--json", "--quiet", "--out", "a b.yaml")
    found = json.loads(told.out)
    assert found["recipe"] == "a b.yaml"
    assert found["model"]["window"] == 128
    assert found["data"][0]["rejected"] == {"not_json": 1}
    assert found["data"][0]["at_max_tokens"]["longer"] == 0
    assert found["choices"]["max_position"] == 512
    assert "skipalign run 'a b.yaml'" in found["next"]
    assert "note:" not in told.err
    assert Path("a b.yaml").exists()


def test_init_overwrites_only_when_told(run: Any, monkeypatch: pytest.MonkeyPatch):
    Path("recipe.yaml").write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(starter, "start", lambda *_, **__: pytest.fail("looked before it asked"))
        refused = run("init", "tiny", "chats.jsonl")
    assert refused.code == 1
    assert "--force" in refused.err
    assert Path("recipe.yaml").read_text() == "mine"
    assert run("init", "tiny", "chats.jsonl", "--force").code == 0
    assert recipe.load("recipe.yaml").trainings()


def test_init_says_when_skips_are_not_needed(run: Any):
    found = run("init", "tiny", "chats.jsonl", "--max-position", "128")
    assert "note: skips are probably not needed" in found.err
    assert "docs/when-not.md" in found.err


def test_a_refusal_leaves_no_recipe(run: Any):
    found = run("init", "tiny", "nosuch.jsonl")
    assert found.code == 1
    (line,) = [line for line in found.err.splitlines() if line.startswith("error: ")]
    assert "nosuch.jsonl" in line
    assert not Path("recipe.yaml").exists()
    assert run("init", "tiny").code == 2
