"""The command line: what it imports, how it ends."""

import json
import signal
import subprocess
import sys
from typing import Any

import click
import pytest

from skipalign.cli import cli, main
from skipalign.commands import data, training
from skipalign.errors import DataError

COMMANDS = ("init", "preview", "prepare", "export", "train", "merge", "verify-export", "evaluate")
COMMANDS += ("score", "report", "run", "compare", "plan", "doctor")
HEAVY = ("torch", "transformers", "numpy", "pydantic", "pyarrow", "matplotlib", "rich", "yaml")


def test_the_commands_are_listed_in_the_order_of_the_work():
    assert tuple(cli.list_commands(click.Context(cli))) == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str):
    code = (
        "import sys\n"
        "from skipalign.cli import main\n"
        f"try:\n    main([*{command.split()!r}, '--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        f"print('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Usage: skipalign {command}".rstrip() in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_help_fits_80_columns_and_no_command_is_cut_short(run: Any):
    for command in ([], *([each] for each in COMMANDS)):
        found = run(*command, "--help")
        assert found.code == 0
        assert max(map(len, found.out.splitlines())) <= 80
    assert "..." not in run("--help").out.partition("Commands:")[2]


def test_the_version(run: Any):
    from skipalign import __version__

    assert run("--version").out == f"skipalign, version {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ("nosuch",),
        ("preview",),
        ("preview", "own.yaml", "--nosuch"),
        ("preview", "own.yaml", "--index", "-1"),
        ("run", "own.yaml", "trainer.max_steps"),
        ("run", "own.yaml", "--seeds", "0"),
        ("train", "many.yaml"),
        ("train", "many.yaml", "--method", "normal"),
        ("evaluate", "model", "--task", "nosuch"),
        ("evaluate", "model", "--task", "needle"),
        ("evaluate", "model", "--task", "needle", "--lengths", "a"),
        ("evaluate", "model", "--task", "needle", "--lengths", "64", "--distances", "64"),
        ("report",),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(run: Any, words: tuple[str, ...]):
    found = run(*words)
    assert found.code == 2
    assert found.out == ""
    assert "Error:" in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("run", "nosuch.yaml"), "no such file"),
        (("run", "own.yaml", "stratgy=pose"), "did you mean 'strategy'?"),
        (("run", "own.yaml", "trainer.learning_rat=1"), "did you mean 'learning_rate'?"),
        (("train", "many.yaml", "--method", "nosuch"), "the recipe has base, normal, skipalign"),
        (("train", "many.yaml", "--method", "normal", "--seed", "7"), "normal has 1, 2"),
        (("run", "many.yaml", "--only", "base,norml"), "did you mean 'normal'?"),
        (("prepare", "own.yaml", "train=false"), "no method trains"),
        (("preview", "many.yaml", "--method", "x"), "no method 'x'"),
        (("preview", "own.yaml", "--source", "x"), "no source 'x'"),
        (("preview", "own.yaml", "--index", "1"), "1 samples, and number 1"),
        (("preview", "own.yaml", "base=./nosuch"), "cannot load its tokenizer"),
        (
            ("evaluate", "m", "--task", "needle", "--lengths", "64", "lenghts=3"),
            "did you mean 'lengths'?",
        ),
        (("report", "nosuch"), "nosuch"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_problem_of_the_user_is_one_line_and_ends_with_1(
    run: Any, words: tuple[str, ...], part: str
):
    found = run(*words)
    assert found.code == 1
    assert found.out == ""
    (line,) = found.err.splitlines()
    assert line.startswith("error: ")
    assert part in line


def test_text_of_others_in_an_error_is_harmless(run: Any, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise DataError("row \x1b[2J\nsays \u202ehello")

    monkeypatch.setattr(data, "load", fail)
    found = run("preview", "own.yaml")
    assert found.err == "error: row \\x1b[2J says \\u202ehello\n"


def test_a_full_disk_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(data, "load", fail)
    found = run("preview", "own.yaml")
    assert found.code == 1
    assert found.err == (
        "error: runs/x: No space left on device; free some space there; what is done stays - "
        "to go on: skipalign preview own.yaml\n"
    )


def test_a_folder_that_may_not_be_used_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "runs/x")

    monkeypatch.setattr(data, "load", fail)
    assert run("preview", "own.yaml").err == (
        "error: runs/x: Permission denied; allow this user to use it, or name another folder "
        "(--runs-dir, --out)\n"
    )


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: no")])
def test_memory_that_is_short_is_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(data, "load", fail)
    found = run("preview", "own.yaml")
    assert found.code == 1
    assert found.err.startswith("error: out of memory; end other programs")
    assert found.err.endswith("to go on: skipalign preview own.yaml\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("of ours")

    monkeypatch.setattr(data, "load", fail)
    with pytest.raises(RuntimeError, match="of ours"):
        main(["preview", "own.yaml"])


def test_ctrl_c_says_how_to_go_on(run: Any, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "load", stop)
    found = run("run", "my recipe.yaml", "trainer.max_steps=3")
    assert found.code == 130
    assert "to go on: skipalign run 'my recipe.yaml' trainer.max_steps=3" in found.err


def test_a_real_interrupt_ends_with_130():
    code = (
        # A job in the background is started with Ctrl-C ignored.
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from skipalign import cli\n"
        "from skipalign.commands import training\n"
        "def wait(*_):\n    print('waiting', flush=True)\n    time.sleep(60)\n"
        "training.load = wait\n"
        "cli.main(['run', 'x.yaml'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "to go on: skipalign run x.yaml" in errors


def test_a_reader_that_has_gone_is_no_error():
    words = f"{sys.executable} -m skipalign --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ""


def test_json_is_all_that_stdout_holds(run: Any, study: dict[str, Any]):
    assert json.loads(run("run", "own.yaml", "--json").out)["rows"] == [{"method": "own"}]
    assert json.loads(run("train", "own.yaml", "--json").out) == {"steps": 2}
    assert json.loads(run("report", "runs/own", "--json").out) == [{"method": "own"}]
    assert "sources" in json.loads(run("prepare", "own.yaml", "--json").out)
    found = run("evaluate", "model", "--task", "needle", "--lengths", "64", "--json")
    assert json.loads(found.out)["task"] == "needle"
