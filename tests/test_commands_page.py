"""docs/commands.md has every option; every command has the modes that it promises."""

import json
import os
import sys
from typing import Any

import click
import pytest

from made_scripts import script
from skipalign.cli import cli


@pytest.fixture(scope="module")
def writer() -> Any:
    return script("docs/commands.py")


def test_the_page_lists_every_option_of_every_command(writer: Any):
    parts = writer.page().split("\n## ")
    for name, command in cli.commands.items():
        (part,) = [each for each in parts if each.startswith(f"{name}\n")]
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.opts[0] in part


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_is_quiet_or_read_by_machines_when_asked(writer: Any, name: str):
    command = cli.commands[name]
    names = {option for param in command.params for option in param.opts}
    assert {"--json", "--quiet", "--verbose"} <= names
    assert len(writer.gives(command)) > len("the results")


@pytest.mark.parametrize("words", [("--quiet",), ()])
def test_downloads_draw_bars_on_a_terminal_that_wants_them(
    run: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("plan", "nosuch.yaml", *words).code == 1
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == ("1" if words else "0")


def test_a_command_that_found_something_wrong_still_prints_one_document(
    run: Any, monkeypatch: pytest.MonkeyPatch
):
    from skipalign import doctor, serving

    monkeypatch.setattr(doctor, "examine", lambda *_: {"ok": False})
    found = run("doctor", "--json")
    assert (found.code, json.loads(found.out)) == (1, {"ok": False})
    answer = {"ok": False, "tokens": 8, "first_compared": 4, "tolerance": 0.1, "loaders": {}}
    monkeypatch.setattr(serving, "verify_export", lambda *_, **__: answer)
    found = run("verify-export", "model", "--json")
    assert (found.code, json.loads(found.out)["ok"]) == (1, False)
