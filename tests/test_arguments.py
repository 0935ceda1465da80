"""A `trainer:` block is refused, key or value, before anything is begun; what is good is passed."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from skipalign.arguments import DEFAULTS, OWNED, check, training_arguments, types_by_key
from skipalign.errors import RecipeError
from skipalign.recipe import load, packaged_recipes


def test_keys_that_the_run_owns_and_unknown_ones_are_refused_with_the_reason(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"trainer\.output_dir: not yours to set"):
        training_arguments({"output_dir": "x"}, output_dir=tmp_path, seed=0)
    with pytest.raises(RecipeError, match=r"learning_rat: .* no such key; did you mean 'learning_"):
        training_arguments({"learning_rat": 1.0}, output_dir=tmp_path, seed=0)
    with pytest.raises(RecipeError, match="trainer: "):
        training_arguments({"lr_scheduler_type": "cubic"}, output_dir=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("key", "value", "required"),
    [
        ("learning_rate", "1e-5x", "a number"),
        ("learning_rate", None, "a number"),
        ("learning_rate", -1, "at least 0"),
        ("max_steps", "ten", "a whole number"),
        ("max_steps", 1.5, "a whole number"),
        ("max_steps", True, "a whole number"),
        ("max_steps", {"x": 1}, "a whole number"),
        ("per_device_train_batch_size", 0, "at least 1"),
        ("gradient_accumulation_steps", 2.5, "a whole number"),
        ("warmup_steps", [1], "a number"),
        ("bf16", "yes", "true or false"),
        ("bf16", 1, "true or false"),
        ("save_total_limit", "two", "a whole number"),
        ("run_name", 3, "a text"),
    ],
)
def test_values_that_would_fail_within_a_training_are_refused_before(
    key: str, value: Any, required: str
):
    with pytest.raises(RecipeError) as found:
        check({key: value}, "own.yaml: trainer")
    message = str(found.value)
    assert message.startswith(f"own.yaml: trainer.{key}: is ")
    assert message.endswith(f"{required} is required")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ({"lr_scheduler_kwargs": {"x": 1}}, "unexpected keyword argument 'x'"),
        ({"optim_args": "x"}, "not enough values"),
        ({"adam_beta1": 2}, "Invalid beta"),
        ({"report_to": "foo"}, "foo is not supported"),
    ],
)
def test_what_optimizer_schedule_or_reporter_refuse_is_refused_before(
    trainer: dict[str, Any], told: str, tmp_path: Path
):
    with pytest.raises(RecipeError, match=f"^trainer: .*{told}.*change that value in the recipe$"):
        training_arguments(trainer, output_dir=tmp_path, seed=0)


def test_what_transformers_takes_is_passed_on(tmp_path: Path):
    plain: dict[str, Any] = {"learning_rate": 1, "warmup_steps": 0.1, "bf16": False}
    plain |= {"save_total_limit": None, "report_to": ["none"], "optim": "adamw_torch"}
    # Another machine may have what an optimizer needs.
    training_arguments({"optim": "paged_adamw_8bit"}, output_dir=tmp_path, seed=0)
    training_arguments({"lr_scheduler_type": "constant"}, output_dir=tmp_path, seed=0)
    found = training_arguments(plain, output_dir=tmp_path, seed=3)
    assert found.learning_rate == 1
    assert found.seed == 3
    assert found.save_steps == DEFAULTS["save_steps"]
    assert "learning_rate" in types_by_key()


def test_what_the_run_sets_and_every_default_of_transformers_passes():
    check(DEFAULTS)
    for name in types_by_key().keys() - OWNED.keys():
        default = TrainingArguments.__dataclass_fields__[name].default
        if isinstance(default, bool | int | float | str) and name != "local_rank":
            check({name: default})


def test_no_packaged_recipe_is_refused():
    for path in packaged_recipes().values():
        assert load(path).trainings()
