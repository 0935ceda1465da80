"""A training -> a data set with its positions written out, for trainers that read one.

Every visit of every epoch is a row, in the order and with the positions of our own training; a
README beside it says what such a trainer must not do.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from skipalign.batch import Collator
from skipalign.errors import DataError, RecipeError
from skipalign.example_file import ExampleFile
from skipalign.files import write_text, written_aside
from skipalign.progress import Progress, Silent
from skipalign.resolved import Training
from skipalign.rows import row_of
from skipalign.visits import Visit, VisitSampler

SUFFIXES = (".jsonl", ".parquet")
TITLE = "# Tokenized conversations with positions"
_SILENT = Silent()
_ROWS_AT_ONCE = 512
_NUMBERS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("input_ids", "labels", "position_ids", "attention_mask"), _NUMBERS),
        "borders": _NUMBERS,
        "roles": pa.list_(pa.string()),
        **dict.fromkeys(("contents", "breaks"), _NUMBERS),
        **dict.fromkeys(("id", "source"), pa.string()),
        "epoch": pa.int32(),
    }
)


def export(
    training: Training,
    examples: ExampleFile,
    out: Path,
    *,
    num_epochs: int = 1,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Write the samples of a training with their positions into `out`, a README beside it.

    Args:
        training: its strategies, seed and mixture decide positions and order.
        examples: its prepared data.
        out: .jsonl or .parquet; its folder must have no README.md of another kind.
        num_epochs: each draws positions anew.
        progress: where to report rows.

    Returns:
        {path, rows, tokens, epochs, max_position}.

    Raises:
        RecipeError: the suffix is unknown, or the training has what no data set can carry.
        DataError: the folder's README.md is not ours.
    """
    _refuse(training, out, num_epochs)
    sampler = _sampler(training, examples)
    num_rows = num_tokens = max_position = 0
    with ExitStack() as stack:
        writer = _WRITERS[out.suffix](stack, stack.enter_context(written_aside(out)))
        bar = stack.enter_context(progress.bar(f"write {out.name}", num_epochs * len(sampler)))
        for row in _rows(training, examples, sampler, num_epochs):
            writer.write(row)
            num_rows += 1
            num_tokens += len(row["input_ids"])
            max_position = max(max_position, row["position_ids"][-1] + 1)
            bar.advance()
        writer.close()
    made = {"path": str(out), "rows": num_rows, "tokens": num_tokens}
    made |= {"epochs": num_epochs, "max_position": max_position}
    write_text(out.parent / "README.md", readme(training, made))
    return made


def _refuse(training: Training, out: Path, num_epochs: int) -> None:
    if out.suffix not in SUFFIXES:
        raise RecipeError(f"{out}: the suffix is {out.suffix!r}; it must be .jsonl or .parquet")
    if num_epochs < 1:
        raise RecipeError(f"{num_epochs} epochs; at least one is required")
    for name in ("key_bias", "logit_scale", "packing"):
        if getattr(training, name) is not None:
            raise RecipeError(
                f"{name} acts inside a training step, and a data set cannot carry it; export a "
                "method without it, or train with `skipalign train`"
            )
    page = out.parent / "README.md"
    if page.exists() and not page.read_text(encoding="utf-8").startswith(TITLE):
        raise DataError(
            f"{page}: is there, and a README of the data set would take its place; give the data "
            "set a folder of its own"
        )


def _sampler(training: Training, examples: ExampleFile) -> VisitSampler:
    return VisitSampler(
        examples.lengths,
        [examples.source_names[source] for source in examples.sources],
        {source.name: source.weight for source in training.sources},
        # 8 is the default of transformers' TrainingArguments.
        batch_size=training.trainer.get("per_device_train_batch_size", 8),
        seed=training.seed,
    )


def _rows(
    training: Training, examples: ExampleFile, sampler: VisitSampler, num_epochs: int
) -> Iterator[dict[str, Any]]:
    collator = Collator(training.strategies, seed=training.seed, pad_token_id=0)
    for epoch in range(num_epochs):
        for visit_epoch, index in sampler.walk(epoch):
            placed = collator.place(Visit(examples[index], visit_epoch))
            yield {
                **row_of(placed.example),
                "position_ids": placed.position_ids.tolist(),
                "attention_mask": [1] * len(placed.position_ids),
                "epoch": visit_epoch,
            }


class _Lines:
    """Writes rows as lines of JSON."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.file = stack.enter_context(path.open("w", encoding="utf-8"))

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps({name: row[name] for name in _SCHEMA.names}) + "\n")

    def close(self) -> None:
        self.file.close()


class _Parquet:
    """Writes rows as a table, some at a time."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.writer = stack.enter_context(pq.ParquetWriter(path, _SCHEMA, compression="zstd"))
        self.waiting: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        self.waiting.append(row)
        if len(self.waiting) == _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.waiting, schema=_SCHEMA))
        self.waiting = []

    def close(self) -> None:
        if self.waiting:
            self.flush()
        self.writer.close()


_WRITERS: dict[str, type[_Lines] | type[_Parquet]] = {".jsonl": _Lines, ".parquet": _Parquet}


def readme(training: Training, made: dict[str, Any]) -> str:
    """Return the page that tells users of the data set what their trainer must do."""
    settings = training.settings()
    told = {name: settings[name] for name in ("seed", "strategies", "rope")}
    kind = {".jsonl": "json"}.get(Path(made["path"]).suffix, "parquet")
    return _README.format(
        title=TITLE,
        name=Path(made["path"]).name,
        kind=kind,
        settings=json.dumps(told, indent=1),
        base=training.base.path,
        revision=training.base.revision or "its default revision",
        **{key: f"{made[key]:,}" for key in ("rows", "tokens", "epochs", "max_position")},
    )


_README = """{title}

`{name}`: {rows} rows, {tokens} tokens, {epochs} epoch(s), positions below {max_position}.
Tokenized for `{base}` ({revision}). Written by `skipalign export`.

    datasets.load_dataset("{kind}", data_files="{name}")

| column | what |
|---|---|
| input_ids, labels | tokens; -100 where the loss reads nothing |
| position_ids | strictly increasing, with skips |
| attention_mask | ones: pass it on, see below |
| borders, roles | the tokens at which messages begin, and who speaks |
| contents, breaks | start and stop of each message's own text; where sentences begin |
| id, source | of the sample |
| epoch | how often its source had been walked through before; each epoch has new positions |

Rows stand in the order of training, epoch after epoch. Train on them once, in this order, without
shuffling; the model's RoPE must reach the positions (extend it first, as below).

## The attention mask must reach the model

A transformers model that gets `position_ids` and no mask takes every skip for the border of
another document and cuts attention there. The loss looks healthy. So:

| trainer | what to do |
|---|---|
| eager, sdpa or flex attention | pass `attention_mask` (2-D, 0 for padding), always |
| flash attention, one sample a row | right with the mask and without |
| transformers' Trainer, TRL | `remove_unused_columns=False`; TRL also `dataset_kwargs={{"skip_prepare_dataset": True}}`; as collator `SkipAlignCollator(pad_token_id=...)` of skipalign |
| any that packs, is padding-free, or counts positions itself | do not use it: borders or positions are lost |
| DeepSpeed Ulysses, context parallelism | do not use it: rows are cut at skips, or the mask is dropped |
| prompt and prefix tuning | do not use it: positions are dropped or moved |

## What decided the positions

```json
{settings}
```
"""  # noqa: E501
