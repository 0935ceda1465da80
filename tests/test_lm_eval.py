"""lm_eval.py: what the harness says of our model, word for word; all of it offline."""

from pathlib import Path

import pytest

from fixtures_eval import tiny_llama
from fixtures_suites import Teller, tokenizer
from made_progress import Telling
from skipalign.errors import ModelError, RecipeError, RunError
from skipalign.evaluation.lm_eval import LmEvalSettings, cells, evaluate_lm_eval
from skipalign.files import read_json
from skipalign.model import load_model, save_model
from skipalign.rope import Ntk
from skipalign.transformers_engine import TransformersGenerator

TASKS = str(Path(__file__).parent / "lm_eval_tasks")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def extended(tmp_path):
    """A model whose RoPE was extended by our own loading code."""
    base = tmp_path / "base"
    save_model(tiny_llama(len(tokenizer())), tokenizer(), base)
    return load_model(str(base), rope=Ntk(factor=8.0))


def test_the_numbers_are_the_harness_s_own_on_the_model_as_we_loaded_it(tmp_path):
    model = extended(tmp_path)
    settings = LmEvalSettings(tasks=("own_choice",), include_path=TASKS, batch_size=4)
    generator = TransformersGenerator(model, tokenizer())
    progress = Telling()
    document = evaluate_lm_eval(generator, tokenizer(), settings, tmp_path / "out", progress)
    (told,) = progress.stages
    assert told.is_whole
    assert told.done >= 20  # ten questions of two choices or more
    assert document == read_json(tmp_path / "out/lm_eval.json")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    direct = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=4),
        tasks=["own_choice"],
        task_manager=TaskManager(include_path=TASKS, include_defaults=False),
    )
    theirs = direct["results"]["own_choice"]
    for cell in document["cells"]:
        assert cell["mean"] == theirs[f"{cell['metric']},none"]
        assert cell["stderr"] == theirs[f"{cell['metric']}_stderr,none"]
        assert cell["high"] - cell["low"] == pytest.approx(2 * 1.959964 * cell["stderr"])
        assert cell["n"] == 10
    assert [cell["name"] for cell in document["cells"]] == ["own_choice acc", "own_choice acc_norm"]
    assert document["versions"] == {"own_choice": 3}
    assert document["harness"]["lm_eval"].startswith("0.")
    plain = TransformersGenerator(tiny_llama(len(tokenizer())), tokenizer())
    assert plain.model.config.rope_parameters != model.config.rope_parameters


def test_groups_filters_and_figures_without_an_error_are_kept_apart():
    found = {
        "results": {
            "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1},
            "b": {"ppl,none": 12.5, "ppl_stderr,none": "N/A", "em,strict": 1.0},
            "both": {"alias": "both", "acc,none": 0.4},
        },
        "groups": {"both": {"alias": "both", "acc,none": 0.4}},
        "group_subtasks": {"both": ["a", "b"]},
        "n-samples": {"a": {"effective": 4}, "b": {"effective": 6}},
        "higher_is_better": {"b": {"ppl": False}},
    }
    got = list(cells(found))
    assert [(cell["name"], cell["n"], cell["low"]) for cell in got] == [
        ("both acc", 10, None),
        ("a acc", 4, pytest.approx(0.304, abs=1e-4)),
        ("b ppl", 6, None),
        ("b em (strict)", 6, None),
    ]
    assert [cell["higher_is_better"] for cell in got] == [True, True, False, True]


def test_what_cannot_be_asked_is_named(tmp_path, monkeypatch):
    settings = LmEvalSettings(tasks=("own_choice",))
    with pytest.raises(ModelError, match="the backend is Teller; the harness needs a model"):
        evaluate_lm_eval(Teller(str), tokenizer(), settings, tmp_path)
    with pytest.raises(RecipeError, match="tasks are none"):
        LmEvalSettings(tasks=())
    with pytest.raises(RecipeError, match="batch_size is 0; it must be at least 1"):
        LmEvalSettings(tasks=("a",), batch_size=0)
    generator = TransformersGenerator(tiny_llama(len(tokenizer())), tokenizer())
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ModelError, match=r"not installed.*pip install 'skipalign\[lm-eval\]'"):
        evaluate_lm_eval(generator, tokenizer(), settings, tmp_path)


@pytest.mark.long
def test_a_task_that_the_harness_does_not_have_is_named(tmp_path):
    generator = TransformersGenerator(tiny_llama(len(tokenizer())), tokenizer())
    settings = LmEvalSettings(tasks=("own_choise",), include_path=TASKS)
    with pytest.raises(RunError, match="has no task 'own_choise'"):
        evaluate_lm_eval(generator, tokenizer(), settings, tmp_path)
