"""Every published figure carries what it comes from, and docs/results.md tells all of them."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from skipalign.origin import CHANGED, MEASURED, NOT_RECORDED, TO_THE_BIT, WITHIN_TOLERANCE

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))
REQUIRED = {
    *("commit", "command", "python", "packages", "system", "machine", "cpu", "cpus"),
    *("torch_threads", "num_processes", "gpus", "cuda", "seeds", "data", "exact"),
}
OPTIONAL = {"came_with", "note", "bases", "driver"}
COMMIT = re.compile(rf"[0-9a-f]{{40}}({CHANGED})?|{NOT_RECORDED}")


def fields(value) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(fields, value.values()))
    return set().union(*map(fields, value)) if isinstance(value, list) else set()


def blocks(document):
    found = document["environment"]
    return [found] if "commit" in found else list(found.values())


def test_there_are_results():
    assert len(RESULTS) > 10


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_carries_what_it_comes_from(path: Path):
    document = json.loads(path.read_text(encoding="utf-8"))
    known = fields({key: value for key, value in document.items() if key != "environment"})
    for block in blocks(document):
        assert REQUIRED <= set(block) <= REQUIRED | OPTIONAL
        assert COMMIT.fullmatch(block["commit"])
        known_else = {"came_with", "note"} & set(block)
        untold = NOT_RECORDED in (block["commit"], block["data"])
        assert known_else or not untold, "say in `note` what is known of its commit and data"
        assert {"skipalign", "torch", "transformers", "numpy"} <= set(block["packages"])
        assert all(isinstance(seed, int) for seed in block["seeds"])
        digests = block["data"].values() if block["data"] != NOT_RECORDED else ()
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        assert block["exact"]
        assert set(block["exact"]) <= known, "it names a field that the figures do not have"
        again = WITHIN_TOLERANCE if block["gpus"] else TO_THE_BIT
        assert set(block["exact"].values()) <= {again, MEASURED}


def test_commits_that_results_name_are_commits():
    named = set()
    for path in RESULTS:
        for block in blocks(json.loads(path.read_text(encoding="utf-8"))):
            named |= {block["commit"].removesuffix(CHANGED), block.get("came_with", NOT_RECORDED)}
    named -= {NOT_RECORDED}
    asked = subprocess.run(
        ["git", "cat-file", "--batch-check"],
        cwd=ROOT,
        input="\n".join(sorted(named)),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode or not named:
        pytest.skip("needs a git clone with its history")
    kinds = {line.split()[1] for line in asked.stdout.splitlines()}
    if "missing" in kinds and (ROOT / ".git/shallow").exists():
        pytest.skip("needs the whole history: this clone is shallow")
    assert kinds == {"commit"}
