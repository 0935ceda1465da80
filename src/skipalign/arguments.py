"""A recipe's `trainer:` block -> transformers' TrainingArguments, every key and value checked.

TrainingArguments takes most values as they come and fails on them in the middle of a training, or
not at all; so each is held against the type that it declares before anything is begun.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from skipalign.distribution import engine_checkpoints
from skipalign.errors import RecipeError, did_you_mean

# What the run itself decides, with the reason that a recipe is told.
OWNED = {
    "output_dir": "the run folder decides it",
    "seed": "the recipe's own `seed` decides it",
    "data_seed": "the recipe's own `seed` decides it",
    "remove_unused_columns": "the data set hands whole examples to the collator",
    "train_sampling_strategy": "the sampler groups by length and carries the epoch",
    "group_by_length": "the sampler groups by length and carries the epoch",
    "label_names": "labels come from the collator",
    "resume_from_checkpoint": "a run resumes by itself from its newest whole checkpoint",
    "average_tokens_across_devices": "every token or sample of a step weighs the same",
    "dispatch_batches": "slicing a batch on one process breaks rows and positions",
    "accelerator_config": "batches are split by the sampler, never sliced",
    "do_eval": "evaluation is a stage of its own",
    "eval_strategy": "evaluation is a stage of its own",
    "load_best_model_at_end": "evaluation is a stage of its own",
    "disable_tqdm": "skipalign draws its own bar",
}
DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_steps": 200,
    "save_total_limit": 2,
    "lr_scheduler_type": "cosine",
    "logging_nan_inf_filter": False,  # it would hide a loss of NaN from the one who must stop
    "dataloader_pin_memory": torch.cuda.is_available(),
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
# What less would fail in the middle of a training, or undo it.
_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "num_train_epochs"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"), 0),
    **dict.fromkeys(("logging_steps", "save_steps", "dataloader_num_workers"), 0),
}


def training_arguments(trainer: Mapping[str, Any], *, output_dir: Path, seed: int) -> Any:
    """Return transformers' TrainingArguments of a recipe's `trainer:` block.

    Raises:
        RecipeError: a key that the run owns, an unknown key, or a value that is refused.
    """
    check(trainer)
    values: dict[str, Any] = {**DEFAULTS, **trainer}
    if engine_checkpoints():  # the Trainer takes it from one of the two only
        values["activation_checkpointing"] = False
    try:
        made = TrainingArguments(
            **values,
            output_dir=str(output_dir),
            seed=seed,
            data_seed=seed,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        _try(made)
        return made
    except (ValueError, TypeError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise RecipeError(f"trainer: {first_line}; change that value in the recipe") from None


def _try(args: TrainingArguments) -> None:
    """Make optimizer, schedule and reporters of them, for one number instead of a model.

    What this machine has not, a package or a kernel, is left to the training on one that has.

    Raises:
        ValueError, TypeError: settings that the training would end on.
    """
    get_reporting_integration_callbacks(args.report_to)
    if args.optim_target_modules is not None:  # these optimizers ask for the model
        return
    with suppress(ImportError, RuntimeError):
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **settings)
        given: Any = args.lr_scheduler_kwargs
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=given)


def check(trainer: Mapping[str, Any], where: str = "trainer") -> None:
    """Refuse keys that cannot be passed on, and values of another type or below their range.

    Args:
        trainer: the block.
        where: it stands, for messages.

    Raises:
        RecipeError: as above.
    """
    for key, value in trainer.items():
        if key in OWNED:
            raise RecipeError(f"{where}.{key}: not yours to set, {OWNED[key]}; remove the line")
        if key not in types_by_key():
            nearest = did_you_mean(key, [name for name in types_by_key() if name not in OWNED])
            raise RecipeError(
                f"{where}.{key}: transformers' TrainingArguments has no such key; {nearest}"
                "its documentation lists them"
            )
        _check_value(value, types_by_key()[key], f"{where}.{key}")
        if isinstance(value, Real) and value < _LEAST.get(key, value):
            raise RecipeError(f"{where}.{key}: is {value}; at least {_LEAST[key]} is required")


@cache
def types_by_key() -> dict[str, tuple[Any, ...]]:
    """Return the keys of TrainingArguments with the types that each may have."""
    hints = get_type_hints(TrainingArguments)
    known = [field.name for field in fields(TrainingArguments) if field.init]
    return {name: get_args(hints[name]) or (hints[name],) for name in known}


def _check_value(value: Any, types: tuple[Any, ...], place: str) -> None:
    """Refuse a value of another type; where others than plain ones are taken, transformers does."""
    plain = [each for each in types if each in _WORDS]
    if len(plain) < len([each for each in types if each is not NoneType]):
        return
    if (value is None and NoneType in types) or any(_is_a(value, each) for each in plain):
        return
    required = " or ".join(_WORDS[each] for each in plain)
    raise RecipeError(f"{place}: is {repr(value)[:80]}; {required} is required")


def _is_a(value: Any, kind: type[Any]) -> bool:
    """Tell whether a value is of a plain kind: whole numbers are numbers, true and false none."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, {int: Integral, float: Real}.get(kind, kind))
