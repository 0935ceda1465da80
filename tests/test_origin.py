"""Every figure says which code, machine, seeds and data it is of, and what of it repeats."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from skipalign import origin
from skipalign.files import read_json

BLOCK = {
    *("commit", "command", "python", "packages", "system", "machine", "cpu", "cpus"),
    *("torch_threads", "num_processes", "gpus", "cuda", "seeds", "data", "exact"),
}


def test_a_result_carries_the_whole_block(tmp_path: Path):
    origin.write_result(
        tmp_path / "x.json",
        {"rows": [{"accuracy": 1.0, "seconds": 2.0}]},
        seeds=[2, 0, 2],
        exact=["accuracy"],
        measured=["seconds"],
        data={"a.jsonl": "00"},
    )
    document = read_json(tmp_path / "x.json")
    block = document["environment"]
    assert set(block) == BLOCK
    assert document["rows"][0]["accuracy"] == 1.0
    assert block["seeds"] == [0, 2]
    assert block["exact"] == {"accuracy": origin.TO_THE_BIT, "seconds": origin.MEASURED}
    assert block["packages"]["torch"].startswith("2.")
    assert block["cpu"]


def test_what_a_gpu_made_is_within_tolerance(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origin, "environment", lambda: {"gpus": ["NVIDIA H100"]})
    block = origin.origin(seeds=[0], data={}, exact=["mean"], measured=["seconds"])
    assert block["exact"] == {"mean": origin.WITHIN_TOLERANCE, "seconds": origin.MEASURED}
    assert block["data"] == {}


def test_digests_are_those_of_sha256sum(tmp_path: Path):
    (tmp_path / "prose").mkdir()
    for name, text in {"prose/b.txt": "two", "prose/a.txt": "one", "c.jsonl": "{}"}.items():
        (tmp_path / name).write_text(text)
    found = origin.sha256_of_files([tmp_path / "prose", tmp_path / "c.jsonl"])
    assert list(found) == ["a.txt", "b.txt", "c.jsonl"]
    assert found["c.jsonl"] == hashlib.sha256(b"{}").hexdigest()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository that holds a package, which `origin` takes for its own."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    package = tmp_path / "src/skipalign"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("one = 1\n")
    (tmp_path / "README.md").write_text("read me\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    git(tmp_path, *who, "commit", "-q", "-m", "one")
    monkeypatch.setattr(origin, "__file__", str(package / "origin.py"))
    origin.commit.cache_clear()
    yield tmp_path
    origin.commit.cache_clear()


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_code(checkout: Path):
    (checkout / "README.md").write_text("other words decide no figure\n")
    assert origin.commit() == git(checkout, "rev-parse", "HEAD")


def test_changed_code_is_told(checkout: Path):
    (checkout / "src/skipalign/__init__.py").write_text("one = 2\n")
    assert origin.commit() == git(checkout, "rev-parse", "HEAD") + origin.CHANGED


def test_an_installed_package_has_no_commit_even_inside_a_repository(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
):
    installed = checkout / ".venv/skipalign"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("one = 1\n")
    monkeypatch.setattr(origin, "__file__", str(installed / "origin.py"))
    assert origin.commit() == origin.NOT_RECORDED


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("/opt/bin/skipalign", "skipalign run recipe.yaml"),
        ("/opt/site-packages/skipalign/__main__.py", "skipalign run recipe.yaml"),
        ("/home/me/benchmarks/help.py", "python benchmarks/help.py run recipe.yaml"),
        ("/opt/site-packages/pytest/__main__.py", origin.NOT_RECORDED),
    ],
)
def test_the_command_is_as_one_would_type_it(
    program: str, told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", [program, "run", "recipe.yaml"])
    assert origin.command() == told
