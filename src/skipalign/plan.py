"""Trainings -> what they will do, after all checks that need neither training nor network."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import try_to_load_from_cache

from skipalign import tiny
from skipalign.arguments import training_arguments
from skipalign.conversation import Rejection, read_conversations
from skipalign.errors import DataError, RecipeError
from skipalign.evaluating import check_tasks
from skipalign.layout import refuse_layout
from skipalign.model import extend, load_config, refuse_skips, rope_base
from skipalign.prepare import Source
from skipalign.readers import data_files
from skipalign.resolved import Training
from skipalign.shapes import read_architecture
from skipalign.tiny import make

COLUMNS = ("method", "seed", "base", "max_position", "steps", "tokens_per_step")
_ROWS_LOOKED_AT = 100
_MODEL_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# TrainingArguments refuses these where the device cannot do them; another machine may.
_OF_THE_DEVICE = ("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval")


def examine(trainings: Sequence[Training]) -> dict[str, Any]:
    """Check trainings and list them.

    Returns:
        {"trainings": [{method, seed, base, max_position, steps, tokens_per_step}], "notes": [what
        could not be looked at], "warnings": [what will run, but may not be meant]}.
        tokens_per_step are those of one device, at most: rows that are shorter than they may be
        hold fewer; None without training.

    Raises:
        SkipalignError: something that would stop the run.
    """
    notes: dict[str, None] = {}
    sources = dict.fromkeys(each for training in trainings for each in _sources(training))
    for source in sources:
        notes |= dict.fromkeys(_check_source(source))
    for training in trainings:
        notes |= dict.fromkeys(_check_trainer(training))
        notes |= dict.fromkeys(_check_base(training))
        _check_layout(training)
    # A hub's cache may hold a config and no tokenizer, and asking it would call home.
    check_tasks(each for each in trainings if Path(tiny.tokenizer_of(each.base.path)).exists())
    rows = [_row(training) for training in trainings]
    return {"trainings": rows, "notes": list(notes), "warnings": short_reaches(trainings)}


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `examine` found as lines of text: a table, warnings, notes."""
    head = dict(zip(COLUMNS, (*COLUMNS[:-1], "tokens a step, at most"), strict=True))
    cells = [[_shown(row[name]) for name in COLUMNS] for row in (head, *found["trainings"])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    table += [f"warning: {warning}" for warning in found["warnings"]]
    return [*table, *(f"not looked at: {note}" for note in found["notes"])]


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


def _row(training: Training) -> dict[str, Any]:
    row = {"method": training.method, "seed": training.seed, "base": training.base.path}
    row |= {"max_position": training.max_position or None, "steps": None, "tokens_per_step": None}
    if training.train:
        args = arguments_for_any_device(training)
        row["steps"] = args.max_steps if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
        tokens = max(source.max_tokens for source in training.sources)
        if training.packing is not None:
            tokens = training.packing.max_tokens
        num_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        row["tokens_per_step"] = num_rows * tokens
    return row


def _sources(training: Training) -> tuple[Source, ...]:
    return training.sources if training.train else ()


def _check_source(source: Source) -> Iterator[str]:
    place = tiny.data_place(source.path)
    if place is not None and not place.exists():
        yield f"data {source.path}, which is made when it is first used"
        return
    path = str(place or source.path)
    if not data_files(path):
        yield f"data {source.path}, which is not on this machine"
        return
    items = read_conversations(
        path, name=source.name, shape=source.shape, max_row_bytes=source.max_row_bytes
    )
    looked_at = list(islice(items, _ROWS_LOOKED_AT))
    if all(isinstance(item, Rejection) for item in looked_at):
        raise DataError(
            f"{path}: none of the first {len(looked_at)} rows can be used; the first one: "
            f"{looked_at[0]}"
        )


def arguments_for_any_device(training: Training) -> Any:
    """Return the TrainingArguments of a training, without what devices can do or not.

    Raises:
        RecipeError: a key or a value that is refused.
    """
    keys = {key: value for key, value in training.trainer.items() if key not in _OF_THE_DEVICE}
    return training_arguments(keys, output_dir=Path("runs"), seed=training.seed)


def _check_trainer(training: Training) -> Iterator[str]:
    if not training.train:
        return
    arguments_for_any_device(training)
    try:
        training_arguments(training.trainer, output_dir=Path("runs"), seed=training.seed)
    except RecipeError:
        asked = [key for key in _OF_THE_DEVICE if training.trainer.get(key)]
        yield f"trainer.{', trainer.'.join(asked)}, which this machine's devices cannot do"


def _check_base(training: Training) -> Iterator[str]:
    base = training.base
    place = tiny.base_place(base.path)
    if place is not None and not place.exists():
        yield f"base {base.path}, which is made when it is first used, in about ten minutes"
    if _config_here(training) is None:
        yield f"base {base.path}, which is not on this machine"
    config = config_of(training)
    if config is None:
        return
    max_position = training.max_position or None
    extend(config, training.rope, max_position, where=base.path)
    if max_position is not None:
        refuse_skips(config, max_position, where=base.path)


def short_reaches(trainings: Sequence[Training]) -> list[str]:
    """Say where RoPE extensions reach less far than positions; methods may mean that."""
    methods: dict[str, dict[str, None]] = {}
    for training in trainings:
        for told in _short_reach(training):
            methods.setdefault(told, {})[training.method] = None
    return [f"{told} ({', '.join(names)})" for told, names in methods.items()]


def _short_reach(training: Training) -> Iterator[str]:
    config, asked = _config_here(training), training.max_position
    if config is None or not asked:
        return
    base = rope_base(config, where=training.base.path)
    reach = training.rope.reach(base)
    if reach is None or reach >= asked:
        return
    factor = getattr(training.rope, "factor", None)
    stretched = f" x factor {factor:g} = {reach:,}" if factor else ""
    cure = f"give a factor of {asked / base.window:g}" if factor else "name a rope, such as ntk"
    yield (
        f"rope {training.rope.type}: window {base.window:,}{stretched} < max_position {asked:,}; "
        f"where that is not meant, {cure}"
    )


def _check_layout(training: Training) -> None:
    """Refuse what the attention of the base cannot keep right; nothing else of it is asked."""
    attention = SimpleNamespace(_attn_implementation=training.base.attn_implementation)
    refuse_layout(
        SimpleNamespace(config=attention),
        strategies=training.strategies,
        key_bias=training.key_bias,
        packing=training.packing,
        logit_scale=training.logit_scale,
    )


def config_of(training: Training) -> Any | None:
    """Return the config of a training's base, or that of its architecture file, or None.

    The file stands for a base that is not on this machine.

    Raises:
        ModelError: neither can be read.
    """
    architecture = training.architecture
    named = None if architecture is None else read_architecture(architecture)
    return _config_here(training) or named


def _config_here(training: Training) -> Any | None:
    """Return the base's config; None for a hub id that is not in the hub's cache here.

    A folder that an earlier run has still to make is missing too, where an architecture file
    stands for it.
    """
    base = training.base
    path = tiny.tokenizer_of(base.path)
    is_id = _MODEL_ID.fullmatch(path) is not None
    exists = Path(path).expanduser().exists()
    if exists or not (is_id or training.architecture):
        return make.config_of(base.path, revision=base.revision)
    if not is_id:
        return None
    # Asking transformers for local files alone would still have the hub's client call home.
    cached = try_to_load_from_cache(path, "config.json", revision=base.revision)
    return load_config(str(Path(cached).parent)) if isinstance(cached, str) else None
