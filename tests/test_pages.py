"""Generated pages and tables are what their sources say; what was changed by hand is told."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from made_scripts import script

ROOT = Path(__file__).parents[1]
pages = script("benchmarks/pages.py")
# Random models of many families; tests/test_model_table.py asks some of them.
SLOW = "benchmarks/model_table.py"


@pytest.mark.parametrize(
    "path",
    [pytest.param(each, marks=[pytest.mark.long] * (each == SLOW)) for each in pages.SCRIPTS],
)
def test_documents_are_what_their_script_makes(path: str):
    documents = script(path).made()
    assert documents
    assert [each.name for each in pages.differing(documents)] == [], f"run python {path}"


def test_make_docs_runs_every_script_that_makes_documents():
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("benchmarks", "docs")
        for path in (ROOT / folder).glob("*.py")
        if "\ndef made() -> dict[Path, str]:\n" in path.read_text(encoding="utf-8")
    }
    assert found == set(pages.SCRIPTS)
    target = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs: ")[2]
    assert "/python benchmarks/pages.py\n" in target.partition("\n\n")[0]


def test_every_mark_of_the_documents_has_an_end_and_a_script():
    scripts = [script(path) for path in pages.SCRIPTS]
    marks = [each.MARK for each in scripts if hasattr(each, "MARK")]
    assert len(marks) > 2
    for path in pages.DOCUMENTS:
        comments = re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))
        for first, last in zip(comments[::2], comments[1::2], strict=True):
            assert any(re.fullmatch(mark, first) for mark in marks), f"{path.name}: {first}"
            assert first.startswith(last.removeprefix("/")) != first.startswith(last), path.name


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scripts of two, a result, and a document that asks for a part of it."""
    scripts = ("benchmarks/readme_tables.py", "benchmarks/results_table.py")
    for name in ("benchmarks/pages.py", *scripts, "benchmarks/results/demo-tiny.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/table.md").write_text(
        "Before.\n"
        "<!-- demo-tiny results of normal at 128 -->\n<!-- /demo-tiny results -->\n"
        "After.\n"
    )
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "SCRIPTS", scripts)
    return tmp_path


def test_check_names_what_would_change_and_changes_nothing(
    tree: Path, capfd: pytest.CaptureFixture[str]
):
    table = tree / "docs/table.md"
    asked = table.read_text()
    assert pages.remake(check=True) == 1
    told = capfd.readouterr().err
    assert "docs/table.md; run it" in told
    assert "docs/results.md; run it" in told
    assert table.read_text() == asked
    assert pages.remake(check=False) == 0
    assert pages.remake(check=True) == 0
    whole = table.read_text()
    assert re.fullmatch(
        r"Before\.\n<!-- .* -->\n\| method \| 128 \(1 x\) \|.*\n\|---.*\n"
        r"\| normal \| 1\.00 \[.*\n<!-- /demo-tiny results -->\nAfter\.\n",
        whole,
    )
    table.write_text(whole.replace("1.00 [", "0.99 [", 1))
    capfd.readouterr()
    assert pages.remake(check=True) == 1
    told = capfd.readouterr().err
    assert "docs/table.md" in told
    assert "docs/results.md" not in told
    assert pages.remake(check=False) == 0
    assert table.read_text() == whole


def test_one_script_that_fails_ends_with_1_and_stops_no_other(tree: Path):
    shutil.rmtree(tree / "docs")
    (tree / "docs").mkdir()
    assert pages.remake(check=False) == 1
    assert (tree / "docs/results.md").exists()


@pytest.mark.parametrize(
    "text",
    [
        "no mark\n",
        "<!-- bars -->\nno end\n",
        "<!-- bars -->\n<!-- arms -->\nold\n<!-- /arms -->\n",
    ],
)
def test_a_mark_that_was_lost_is_told(text: str, tmp_path: Path, monkeypatch: Any):
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(pages, "DOCUMENTS", (tmp_path / "page.md",))
    with pytest.raises(SystemExit, match="no <!-- bars --> with an end"):
        pages.filled("bars", lambda _: "new")


def test_only_what_stands_between_the_marks_is_made_anew(tmp_path: Path, monkeypatch: Any):
    page = tmp_path / "page.md"
    shown = "a\n<!-- one x -->\n{}<!-- /one -->\nb\n<!-- one y -->\n{}<!-- /one -->\nold\n"
    page.write_text(shown.format("", "old\n"))
    monkeypatch.setattr(pages, "DOCUMENTS", (page,))
    found = pages.filled("one (?P<word>.)", lambda mark: r"\1" + mark["word"])
    assert found == {page: shown.format("\\1x\n", "\\1y\n")}
