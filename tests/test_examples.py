"""What examples/ show runs, and prints what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def python(*arguments: str, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_examples_are_numbered_without_a_hole():
    assert [path.name[:2] for path in EXAMPLES] == [f"{n:02}" for n in range(1, len(EXAMPLES) + 1)]
    assert EXAMPLES


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run every example once, in an empty folder of its own."""
    texts: dict[str, str] = {}
    for path in EXAMPLES:
        folder = tmp_path_factory.mktemp(path.stem)
        texts[path.name] = python(str(path), cwd=folder)
        assert not list(folder.iterdir()), f"{path.name} leaves files behind"
    return texts


def test_examples_run(printed: dict[str, str]):
    assert all(text.strip() for text in printed.values())


def test_positions_are_drawn_without_torch(tmp_path: Path):
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({str(EXAMPLES[0])!r}, run_name='__main__')\n"
        "assert 'torch' not in sys.modules\n"
    )
    drawn: dict[str, list[str]] = {}
    for line in python("-c", code, cwd=tmp_path).splitlines():
        if line.startswith("  "):
            drawn[list(drawn)[-1]].append(line.strip())
        else:
            drawn[line.partition(":")[0]] = []
    assert len(drawn) >= 4
    for name, lines in drawn.items():
        # The same 24 tokens in the same order, wherever they stand.
        assert {line.replace(".", "") for line in lines} == {"sssuuuuuuuuuuaaaauuuaaaa"}
        skips = any("." in line.strip(".") for line in lines)
        assert skips == (name != "contiguous"), f"{name}: {lines}"


def test_without_the_mask_attention_is_cut_and_with_our_batch_it_is_not(printed: dict[str, str]):
    text = printed["02_batch_is_visible.py"]
    rows = re.findall(r"^ +(\w+) +(no mask|our batch) +(\S+) ", text, re.MULTILINE)
    assert [(name, label) for name, label, _ in rows] == [
        ("sdpa", "no mask"),
        ("sdpa", "our batch"),
        ("eager", "no mask"),
        ("eager", "our batch"),
    ]
    for _, label, change in rows:
        assert (float(change) > 1e-4) == (label == "our batch")
