"""Examples + a model -> a run directory, by transformers' Trainer; a killed run resumes exactly.

Ours are five things only: the order of the samples (visits), the batch (batch), the probe before
step 1, checkpoints that are written aside and renamed, and the loss where each sample of a pack is
to weigh the same.
"""

import contextlib
import math
import os
import shutil
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from skipalign.adapters import refuse_virtual_tokens
from skipalign.arguments import training_arguments
from skipalign.batch import Collator, PackCollator
from skipalign.bias_attention import biased_keys
from skipalign.borders import takes_borders
from skipalign.checkpoints import Counts, counts_at, keep_losses_until, newest_checkpoint
from skipalign.chunked_loss import ChunkedHead
from skipalign.distribution import (
    is_first,
    largest,
    num_processes,
    refuse_engine,
    require_engine,
    require_whole,
    whole_weights,
)
from skipalign.engine import Named, SkipTrainer
from skipalign.errors import RecipeError, RunError, is_out_of_memory
from skipalign.example_file import ExampleFile
from skipalign.files import append_json_line, write_json
from skipalign.key_bias import KeyBias
from skipalign.layout import refuse_here, refuse_layout
from skipalign.logit_scale import scaled_logits
from skipalign.model import files_told, save_model
from skipalign.packing import Packing
from skipalign.positions import Strategy
from skipalign.probe import probe, require
from skipalign.progress import Bar, Progress, Silent
from skipalign.visits import PackDataset, PackSampler, VisitDataset, VisitSampler

_APART = ("loss_natural", "loss_skipped")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training did, for training.json and the report."""

    steps: int
    seconds: float
    num_sequences: int
    tokens: int
    trained_tokens: int
    max_row_tokens: int
    interrupted: bool


def train(
    model: Any,
    tokenizer: Any,
    examples: ExampleFile,
    out: Path,
    *,
    strategies: Mapping[str, Strategy],
    key_bias: KeyBias | None = None,
    packing: Packing | None = None,
    logit_scale: float | str | None = None,
    chunked_loss: bool = False,
    weights: Mapping[str, float | None] | None = None,
    trainer: Mapping[str, Any] | None = None,
    watchers: Sequence[Callable[[SkipTrainer], TrainerCallback]] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Fine-tune `model` on `examples`; leave probe.json, loss.jsonl, checkpoints/ and model/.

    Started again it goes on from the newest whole checkpoint; on CPU the weights end the same.

    Args:
        model: as `model.load_model` returns it.
        tokenizer: its tokenizer; saved with it.
        examples: what `prepare` made.
        out: folder of this training.
        strategies: position strategy by source name.
        key_bias: added to the attention logits of keys in training only.
        packing: how samples share rows; None gives each a row of its own.
        logit_scale: multiplies attention logits in training only: a number, or `span`.
        chunked_loss: compute the loss a part of the tokens at a time; logits never stand whole.
        weights: share of the tokens by source name.
        trainer: keys of TrainingArguments.
        watchers: each makes a callback of what trains.
        seed: of order, positions and dropout.
        progress: where to report steps.

    Raises:
        RecipeError, DataError, ModelError: options that do not fit each other, data or model.
        VisibilityError: the layout cannot be kept right, or the probe failed.
        RunError: the loss or a weight is no longer a number, or memory is too small.
    """
    args = training_arguments(trainer or {}, output_dir=out / "checkpoints", seed=seed)
    collator = Collator(
        strategies,
        seed=seed,
        pad_token_id=pad_token_id(tokenizer),
        key_bias=key_bias,
        logit_scale=logit_scale,
        float_mask=not takes_borders(model.config._attn_implementation),
    )
    engine = _engine(model, args, examples, collator, packing=packing, weights=weights or {})
    engine.take_head(_chunked_head(engine) if chunked_loss else None)
    watch = _watch(engine, out, _question(examples, collator, packing), watchers)
    bar, told = (progress or Silent()).bar("train", None), _told_with_the_cure(engine, out)
    with _ctrl_c_stops(watch), bar as watch.bar, _training_only(model, collator), told:
        _train_from(engine, newest_checkpoint(Path(args.output_dir)), out)
    if not watch.interrupted:
        _save_final(engine, tokenizer, out / "model", progress or Silent())
    return watch.outcome(engine)


def _watch(
    engine: SkipTrainer,
    out: Path,
    ask: Callable[[Any], dict[str, Any]],
    watchers: Sequence[Callable[[SkipTrainer], TrainerCallback]],
) -> "_Watch":
    watch = _Watch(engine, out, ask)
    for callback in (watch, *(make(engine) for make in watchers)):
        engine.add_callback(callback)
    return watch


@contextlib.contextmanager
def _training_only(model: Any, collator: Collator) -> Generator[None]:
    """While open, the model takes what its batches carry in training alone; saving is silent."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(files_told(Silent()))  # checkpoints draw no bars below the training's
        if collator.logit_scale is not None:
            stack.enter_context(scaled_logits(model))
        if collator.key_bias is not None and not collator.float_mask:
            stack.enter_context(biased_keys(model))
        yield


def _engine(
    model: Any,
    args: TrainingArguments,
    examples: ExampleFile,
    collator: Collator,
    *,
    packing: Packing | None,
    weights: Mapping[str, float | None],
) -> SkipTrainer:
    """Return the Trainer with our rows in our order, after all that cannot be kept is refused."""
    longest = int(examples.lengths.max())
    refuse_layout(
        model,
        strategies=collator.strategies,
        key_bias=collator.key_bias,
        packing=packing,
        logit_scale=collator.logit_scale,
        longest=longest,
    )
    refuse_virtual_tokens(model)
    refuse_engine(args)
    _refuse_smoothing(args, packing)
    refuse_here(model, args, collator, packing, longest)
    torch.manual_seed(collator.seed)
    visits = VisitDataset(examples)
    rows = collator if packing is None else PackCollator(collator, packing.attention)
    with _installed():
        engine = SkipTrainer(
            model=model,
            args=args,
            train_dataset=visits if packing is None else PackDataset(visits),
            data_collator=cast(Any, Named(rows)),
        )
    engine.remove_callback(PrinterCallback)
    engine.sampler = _sampler(args, examples, packing, weights, collator.seed)
    engine.samples_weigh_the_same = packing is not None and packing.loss == "sample"
    return engine


def _sampler(
    args: TrainingArguments,
    examples: ExampleFile,
    packing: Packing | None,
    weights: Mapping[str, float | None],
    seed: int,
) -> VisitSampler | PackSampler:
    """Return the order of the samples, or of the packs."""
    visits = VisitSampler(
        examples.lengths,
        [examples.source_names[source] for source in examples.sources],
        weights,
        batch_size=args.per_device_train_batch_size if packing is None else None,
        seed=seed,
    )
    if packing is None:
        return visits
    return PackSampler(visits, packing.max_tokens, num_epochs=partial(_num_epochs, args))


@contextlib.contextmanager
def _installed() -> Generator[None]:
    """Name what `trainer.report_to` asks for and is not installed."""
    try:
        yield
    except (RuntimeError, ImportError) as error:
        if "to be installed" not in str(error):
            raise
        first_line = str(error).splitlines()[0]
        raise RecipeError(
            f"trainer.report_to: {first_line}; install it, or remove the line"
        ) from None


def _num_epochs(args: TrainingArguments, num_rows: int) -> int:
    """Return how many epochs of `num_rows` rows the run walks through at most."""
    if args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return math.ceil(args.max_steps / max(1, num_rows // rows_per_step))


def _train_from(engine: SkipTrainer, checkpoint: Path | None, out: Path) -> None:
    """Train from `checkpoint` on; from the last one there is nothing left but to load it.

    The Trainer would do one step more before it looks whether it has done them all.
    """
    before = counts_at(checkpoint)
    engine.counts = before if is_first() else Counts(started=before.started)
    if is_first():
        keep_losses_until(out / "loss.jsonl", checkpoint)
    if checkpoint is None:
        engine.train()
        return
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if state.global_step < state.max_steps:
        _require_as_many(before.num_processes, checkpoint)
        engine.train(resume_from_checkpoint=str(checkpoint))
        return
    require_whole(engine.args, checkpoint)
    engine.load(state, checkpoint)


def _require_as_many(before: int, checkpoint: Path) -> None:
    """Refuse to go on with another number of processes: a step would hold other samples."""
    if before != num_processes():
        raise RunError(
            f"{checkpoint}: of {before} process(es), {num_processes()} here, so that a step would "
            f"hold other samples; go on with {before}, or give the run a folder of its own "
            "(name=...)"
        )


@contextlib.contextmanager
def _told_with_the_cure(engine: SkipTrainer, out: Path) -> Generator[None]:
    """Say where a run stopped, what is kept and, of memory that is too small, what saves some."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{out}: {error}; {_kept(engine)}") from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        args, rows = engine.args, " x ".join(f"{each:,}" for each in engine.row_shape)
        raise RunError(
            f"{out}: out of memory at step {engine.state.global_step + 1}, with {rows} tokens; "
            f"lower trainer.per_device_train_batch_size ({args.per_device_train_batch_size}) and "
            "raise trainer.gradient_accumulation_steps by as much, set "
            "trainer.activation_checkpointing: true or base.dtype: bfloat16, lower max_tokens of "
            f"the data, or use adapter: lora; {_kept(engine)}"
        ) from None


def _kept(engine: SkipTrainer) -> str:
    newest = newest_checkpoint(Path(str(engine.args.output_dir)))
    return f"kept: {newest}" if newest else "there was no checkpoint yet"


def _chunked_head(engine: SkipTrainer) -> ChunkedHead:
    """Return the model's head for `chunked_loss`, or refuse what it does not go with."""
    for key in ("label_smoothing_factor", "use_liger_kernel"):
        if value := getattr(engine.args, key):
            raise RecipeError(
                f"trainer.{key} is {value!r}: it computes a loss of its own, and so does "
                "chunked_loss; leave one of them out"
            )
    if engine.is_deepspeed_enabled:
        raise RecipeError(
            "chunked_loss with DeepSpeed: it computes the head again in the backward pass, where "
            "ZeRO may hold no weights of it; leave it out, use DDP or FSDP2, or on GPUs "
            "trainer.use_liger_kernel"
        )
    return ChunkedHead(engine.model)


def _refuse_smoothing(args: TrainingArguments, packing: Packing | None) -> None:
    if packing is None or packing.loss != "sample":
        return
    if args.use_liger_kernel:
        raise RecipeError(
            "trainer.use_liger_kernel is True: its loss knows no samples, as packing.loss sample "
            "asks; leave it out, with chunked_loss: true in its place, or use packing.loss: token"
        )
    if args.label_smoothing_factor:
        raise RecipeError(
            f"trainer.label_smoothing_factor is {args.label_smoothing_factor}: packing.loss "
            "sample has no label smoothing; leave it out, or use packing.loss: token"
        )


def pad_token_id(tokenizer: Any) -> int:
    """Return what rows are filled with; it is masked, so any id of the vocabulary serves."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None:
            return int(value)
    return 0


def _question(
    examples: ExampleFile, collator: Collator, packing: Packing | None
) -> Callable[[Any], dict[str, Any]]:
    """Return the probe of the run's own layout, to be asked of the model."""
    ranges = [getattr(each, "max_position", 0) for each in collator.strategies.values()]
    if packing is not None and packing.attention == "causal":
        ranges.append(packing.max_tokens)
    return partial(
        probe,
        max_position=max(*ranges, int(examples.lengths.max())),
        with_key_bias=collator.key_bias is not None,
        with_logit_scale=collator.logit_scale is not None,
        packed=packing.attention if packing else None,
    )


class _Watch(TrainerCallback):
    """Probe before step 1, write losses, advance the bar, stop on Ctrl-C or a loss of NaN."""

    def __init__(
        self, trainer: SkipTrainer, out: Path, ask: Callable[[Any], dict[str, Any]]
    ) -> None:
        self.trainer = trainer
        self.out = out
        self.ask = ask
        self.bar: Bar | None = None
        self.interrupted = False

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        require_engine(args, self.trainer.model_wrapped)
        verdict = self.ask(self.trainer.model_wrapped)
        if self.trainer.is_world_process_zero():
            write_json(self.out / "probe.json", verdict)
        require(verdict)
        if self.bar is not None:
            self.bar.set_total(state.max_steps)
            self.bar.already(state.global_step)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.advance()
        self.interrupted = largest(self.interrupted) > 0  # all stop after the same step
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if self.trainer.is_world_process_zero():
            line = {
                "step": state.global_step,
                "loss": float(logs["loss"]),
                "learning_rate": float(logs["learning_rate"]),
                "seconds": round(self.trainer.counts.spent, 3),
                **{key: float(logs[key]) for key in _APART if key in logs},
            }
            append_json_line(self.out / "loss.jsonl", line)

    def outcome(self, trainer: SkipTrainer) -> Outcome:
        """Return the figures of the training, resumed parts and all processes included."""
        totals = trainer.totals()
        return Outcome(
            steps=trainer.state.global_step,
            seconds=totals.spent,
            num_sequences=totals.num_sequences,
            tokens=totals.tokens,
            trained_tokens=totals.trained_tokens,
            max_row_tokens=totals.max_row_tokens,
            interrupted=self.interrupted,
        )


class _ctrl_c_stops:  # noqa: N801 - reads as a verb where it is used
    """While open, the first Ctrl-C ends the step, saves and stops; the second one aborts."""

    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __enter__(self) -> None:
        self.before = None
        with contextlib.suppress(ValueError):  # not the main thread: its signals are not ours
            self.before = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        if self.watch.interrupted:
            raise KeyboardInterrupt
        self.watch.interrupted = True

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def _save_final(trainer: SkipTrainer, tokenizer: Any, folder: Path, progress: Progress) -> None:
    trainer.require_finite_weights()
    gathered = whole_weights(trainer)
    if is_first():
        aside = folder.with_name(".model.partial")
        shutil.rmtree(aside, ignore_errors=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        with files_told(progress):
            save_model(model, tokenizer, aside, gathered)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    trainer.accelerator.wait_for_everyone()
