"""The registry of tasks: what each line says holds for the documents that the task writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures_eval import tiny_llama, train_tokenizer
from skipalign.evaluation.tasks import TASKS, task_of
from skipalign.progress import Silent
from skipalign.schema import plain
from skipalign.transformers_engine import TransformersGenerator

SUITES = Path(__file__).parent / "suites_rows"
SMALL: dict[str, dict[str, Any]] = {
    "needle": {"lengths": (96, 128), "depths": 2, "trials": 1, "max_new_tokens": 2},
    "stretch": {"distances": (256,), "context_length": 128, "trials": 1, "max_new_tokens": 2},
    "perplexity": {"lengths": (64, 32), "documents": 2, "stride": 16},
    "longbench": {"data": str(Path(__file__).parent / "longbench_rows"), "max_prompt_tokens": 40},
    "longbench_v2": {"data": str(SUITES / "longbench_v2"), "max_prompt_tokens": 40},
    "infinitebench": {"data": str(SUITES / "infinitebench")},
    "babilong": {"data": str(SUITES / "babilong")},
    "nolima": {
        "data": str(SUITES / "nolima"),
        "lengths": (32, 16),
        "depths": 2,
        "max_new_tokens": 2,
    },
    "ruler": {"lengths": (640, 480), "tasks": ("niah_single_1", "niah_single_2"), "trials": 1},
    "short_check": {"kinds": ("copy", "count"), "max_new_tokens": 2},
    "lm_eval": {
        "tasks": ("own_choice",),
        "include_path": str(Path(__file__).parent / "lm_eval_tasks"),
    },
}


def test_every_task_has_a_small_form_here():
    assert sorted(SMALL) == sorted(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_what_the_registry_says_holds_for_the_document(name: str, tmp_path: Path):
    task = TASKS[name]
    settings = task.settings(**SMALL[name])
    assert task_of(settings) is task
    assert set(task.required) <= set(SMALL[name])
    tokenizer = train_tokenizer()
    generator = TransformersGenerator(tiny_llama(len(tokenizer)), tokenizer)
    out = tmp_path / task.document
    document = task.evaluate(generator, tokenizer, settings, out.parent, Silent())
    assert json.loads(out.read_text()) == document
    assert document["task"] == name
    asked = json.loads(json.dumps(plain(settings)))
    assert {key: document["settings"][key] for key in asked} == asked
    rows = task.rows(document)
    assert len(rows) == 2
    if task.against is not None:
        places = [row[task.against] for row in rows]
        assert places == sorted(set(places))
    for row in rows:
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["n"] > 0
        assert ("correct" in row) == (task.measure == "accuracy")
    assert sum(row["n"] for row in rows) == sum(cell["n"] for cell in document["cells"])


A_NEW_TASK = '''
from dataclasses import dataclass
from pathlib import Path
from skipalign.evaluation.tasks import TASKS, Task

@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    lengths: tuple[int, ...]
    question: str = "What is six times seven?"

TASKS["answer"] = Task("answer", AnswerSettings, lambda *given: {}, "context_length")

from skipalign.cli import main
from skipalign.recipe import load

Path("own.yaml").write_text("""
base: a
data: b.jsonl
strategy: contiguous
template_kwargs: {thinking: false}
evaluation: {answer: {lengths: [64]}}
""")
recipe = load("own.yaml")
assert recipe.tasks == {"answer": AnswerSettings(lengths=(64,))}
Path("again.yaml").write_text(recipe.resolved())
assert load("again.yaml").tasks == recipe.tasks
assert recipe.trainings()[0].tasks == recipe.tasks
main(["evaluate", "m", "--task", "answer", "--distances", "4"])
'''


def test_a_task_is_known_everywhere_by_its_line_in_the_registry(tmp_path: Path):
    words = [sys.executable, "-c", A_NEW_TASK]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Error: --distances belongs to --task stretch" in done.stderr, done.stderr
    assert done.returncode == 2


def test_the_registry_needs_no_torch():
    code = (
        "import sys, skipalign.evaluation.tasks\n"
        "print(*{'torch', 'transformers', 'matplotlib'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
