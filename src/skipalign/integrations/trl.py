"""TRL's SFTTrainer and DPOTrainer with skipped positions: another import and one argument.

    from skipalign import SkipAlign
    from skipalign.integrations.trl import SkipSFTTrainer

    trainer = SkipSFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer,
                             strategy=SkipAlign(max_position=32768))

The rest of a script stays. Ours are what decides positions: the encoding of the rows (TRL's drops
the borders of turns), their order (the epoch travels with the index), the batch (TRL's collator
writes positions of its own, or none) and the probe before step 1. Evaluation has natural positions.

TRL's preparation, packing and padding-free rows would lose borders or mask, and are refused.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from skipalign.adapters import VIRTUAL_TOKENS, learns_prompt, refuse_virtual_tokens
from skipalign.batch import Collator
from skipalign.errors import ModelError, RecipeError
from skipalign.example_file import ExampleFile
from skipalign.files import read_json, write_json
from skipalign.model import load_tokenizer, refuse_skips
from skipalign.positions import Contiguous, Strategy
from skipalign.preference import PairCollator, read_pairs
from skipalign.prepare import Source, prepare
from skipalign.probe import probe, require
from skipalign.training import pad_token_id
from skipalign.visits import Visit, VisitDataset, VisitSampler

try:
    import datasets
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    raise ModelError(
        f"skipalign.integrations.trl: {error.name} is not installed; it drives TRL's trainers - "
        "pip install 'skipalign[trl]'"
    ) from None

_LOG = logging.getLogger(__name__)
_UNLIMITED = 2**31 - 1
TRAIN, EVAL = "train", "eval"  # names of the sources, by which their strategies are chosen

# What TRL would do to rows, with the reason that a caller is told.
REFUSED = {
    "packing": "a packed row keeps no borders between samples and no positions of theirs; "
    "`skipalign train` packs with both",
    "eval_packing": "a packed row keeps no borders between samples",
    "padding_free": "it gives up the attention mask, and without one attention is cut at skips",
    "precompute_ref_log_probs": "positions are drawn anew in every epoch, and the reference has "
    "to see the same ones as the model",
    "chat_template_path": "rows are rendered before it is read; set tokenizer.chat_template",
    "eos_token": "rows are rendered before it is set; set tokenizer.eos_token",
    "pad_to_multiple_of": "rows are as long as the longest sample of their batch",
    "data_collator": "the batch is what carries positions and mask",
    "formatting_func": "text without turns has no borders to skip at; give messages",
}
_UNREAD_COLUMNS = ("tools", "chat_template_kwargs", "image", "images")


class _Natural(Dataset[Visit]):
    """Samples for evaluation, in order, at their natural positions."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Visit:
        return Visit(self.samples[index], 0)


class _Probe(TrainerCallback):
    """Ask the model, wrapped as it trains, whether it sees what the batch says; stop if not."""

    def __init__(self, trainer: Trainer, max_position: int) -> None:
        self.trainer = trainer
        self.max_position = max_position

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        verdict = probe(self.trainer.model_wrapped, max_position=self.max_position)
        if self.trainer.is_world_process_zero():
            write_json(Path(str(args.output_dir)) / "probe.json", verdict)
        require(verdict)


class _SkipTrainer(Trainer):
    """What both trainers share: order of the samples, evaluation, probe."""

    sampler: VisitSampler

    def _samples(self, rows: Any, source: str, folder: Path) -> tuple[Sequence[Any], list[int]]:
        """Return the rows of a data set as samples, and their lengths."""
        raise AssertionError(f"no samples of {rows}, {source}, {folder}: each trainer has its own")

    def _feed(self, train_rows: Any, eval_rows: Any, strategy: Strategy) -> None:
        """Take the rows in place of those that TRL was shown, and check the model."""
        _refuse_shards(self)
        refuse_virtual_tokens(self.model)
        max_position = getattr(strategy, "max_position", 0)
        if max_position:
            config = cast(Any, self.model).config
            refuse_skips(config, max_position, where="model")
            if max_position > config.max_position_embeddings:
                _LOG.warning(
                    "strategy has max_position %d, and the model's window is %d; load it with its "
                    "RoPE extended: skipalign.load_model(path, rope=..., max_position=...)",
                    *(max_position, config.max_position_embeddings),
                )
        samples, lengths = self._samples(train_rows, TRAIN, self._folder(TRAIN))
        self.train_dataset = VisitDataset(samples)
        self.sampler = VisitSampler(
            np.array(lengths),
            [TRAIN] * len(samples),
            {},
            batch_size=self.args.per_device_train_batch_size,
            seed=seed_of(self.args),
        )
        if isinstance(eval_rows, Mapping):
            sets = cast(Mapping[str, Any], eval_rows)
            named = {name: self._natural(rows, f"{EVAL}-{name}") for name, rows in sets.items()}
            self.eval_dataset = cast(Any, named)
        elif eval_rows is not None:
            self.eval_dataset = self._natural(eval_rows, EVAL)
        self.add_callback(_Probe(self, max(max_position, *lengths)))

    def _folder(self, name: str) -> Path:
        return Path(str(self.args.output_dir)) / "skipalign" / name

    def _natural(self, rows: Any, name: str) -> _Natural:
        return _Natural(self._samples(rows, EVAL, self._folder(name))[0])

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ARG002
        return self.sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the loader of an evaluation, also of a data set that was not given before."""
        if isinstance(eval_dataset, datasets.Dataset):
            eval_dataset = self._natural(eval_dataset, EVAL)
        return super().get_eval_dataloader(eval_dataset)

    def _send_telemetry(self) -> None:
        """Send nothing: no network is used unasked."""


class SkipSFTTrainer(_SkipTrainer, SFTTrainer):
    """TRL's SFTTrainer whose samples skip positions as in `skipalign train`.

    Rows may be messages, ShareGPT, Alpaca, prompt / completion or text. The loss is on answers
    alone, with any chat template, so assistant_only_loss changes nothing; nothing of an answer is
    cut at max_length. What became of each row stands in output_dir/skipalign/train.

    Args:
        model: of transformers, or its path; extended with RoPE beforehand where it has to be
            (`load_model(path, rope=..., max_position=...)`).
        args: of TRL.
        train_dataset: with a length.
        strategy: draws positions.
        processing_class: the tokenizer; the model's by default.
        eval_dataset: one, or several by name; evaluated at natural positions.
        template_kwargs: what the chat template takes.
        others: of TRL's SFTTrainer.

    Raises:
        RecipeError: an option that would take borders, mask or positions away.
        ModelError: attention of the model would be wrong under skips.
        VisibilityError: at the start of training, if the probe fails.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        *,
        train_dataset: datasets.Dataset,
        strategy: Strategy,
        processing_class: Any = None,
        eval_dataset: Any = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        _refuse(args, others, train_dataset)
        args = copy.copy(args)
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        # Our labels are of answers alone; TRL's way needs a template that it knows.
        args.assistant_only_loss = False
        self._tokenizer_of_rows = processing_class or _tokenizer_of(model)
        self._max_tokens = _max_tokens(args, strategy)
        self._template_kwargs = template_kwargs
        super().__init__(
            model=model,
            args=args,
            data_collator=_collator(self._tokenizer_of_rows, strategy, args),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self._tokenizer_of_rows,
            **others,
        )
        self._feed(train_dataset, eval_dataset, strategy)

    def _samples(self, rows: Any, source: str, folder: Path) -> tuple[Sequence[Any], list[int]]:
        asked = Source(path=str(folder / "rows.parquet"), name=source, max_tokens=self._max_tokens)
        with self.args.main_process_first(local=False):
            if self.is_world_process_zero():
                folder.mkdir(parents=True, exist_ok=True)
                rows.to_parquet(asked.path)
                accounting = prepare(
                    [asked],
                    self._tokenizer_of_rows,
                    folder,
                    template_kwargs=self._template_kwargs,
                )
                Path(asked.path).unlink()
                _tell(accounting["total"], folder)
        examples = ExampleFile(folder / "data")
        return examples, examples.lengths.tolist()


class SkipDPOTrainer(_SkipTrainer, DPOTrainer):
    """TRL's DPOTrainer whose pairs skip positions, the same for chosen and rejected.

    Rows have prompt, chosen and rejected (answers, as messages or text), or chosen and rejected
    whole conversations. A pair longer than max_length is left out, not cut. What became of each
    row stands in output_dir/skipalign/train.

    Args:
        model: of transformers, or its path; extended with RoPE beforehand where it has to be.
        ref_model: as in TRL; it sees the same positions.
        args: of TRL.
        train_dataset: with a length.
        strategy: draws positions.
        processing_class: the tokenizer; the model's by default.
        eval_dataset: one, or several by name; evaluated at natural positions.
        template_kwargs: what the chat template takes.
        others: of TRL's DPOTrainer.

    Raises:
        RecipeError: an option that would take borders, mask or positions away.
        ModelError: attention of the model would be wrong under skips.
        VisibilityError: at the start of training, if the probe fails.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPOConfig | None = None,
        *,
        train_dataset: datasets.Dataset,
        strategy: Strategy,
        processing_class: Any = None,
        eval_dataset: Any = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        args = DPOConfig("dpo") if args is None else args
        _refuse(args, others, train_dataset)
        self._tokenizer_of_rows = processing_class or _tokenizer_of(model)
        self._max_tokens = _max_tokens(args, strategy)
        self._template_kwargs = template_kwargs
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=cast(
                Any, PairCollator(_collator(self._tokenizer_of_rows, strategy, args))
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self._tokenizer_of_rows,
            **others,
        )
        _refuse_other_rope(self)
        self._feed(train_dataset, eval_dataset, strategy)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Leave the rows as they are: ours takes messages, not tokens."""
        return dataset

    def _samples(self, rows: Any, source: str, folder: Path) -> tuple[Sequence[Any], list[int]]:
        pairs = read_pairs(
            rows,
            self._tokenizer_of_rows,
            folder,
            name=source,
            max_tokens=self._max_tokens,
            template_kwargs=self._template_kwargs,
        )
        _tell(read_json(folder / "accounting.json"), folder)
        return pairs, [len(pair.longer.input_ids) for pair in pairs]


# --- what both take -----------------------------------------------------------------------------


def seed_of(args: Any) -> int:
    """Return the seed of order and positions: that of the data, where it has its own."""
    return int(args.seed if args.data_seed is None else args.data_seed)


def _collator(tokenizer: Any, strategy: Strategy, args: Any) -> Any:
    strategies = {TRAIN: strategy, EVAL: Contiguous()}
    return Collator(strategies, seed=seed_of(args), pad_token_id=pad_token_id(tokenizer))


def _tokenizer_of(model: Any) -> Any:
    return load_tokenizer(model if isinstance(model, str) else model.config._name_or_path)


def _max_tokens(args: Any, strategy: Strategy) -> int:
    """Return the longest sample: what the caller allows, and what has room for skips."""
    limits = (args.max_length, getattr(strategy, "max_position", None), _UNLIMITED)
    return min(limit for limit in limits if limit is not None)


def _refuse(args: Any, others: Mapping[str, Any], rows: Any) -> None:
    """Refuse what would take borders, mask or positions away.

    Raises:
        RecipeError: names the option, the reason and what to do.
    """
    given = {**vars(args), **others}
    for name, reason in REFUSED.items():
        if given.get(name):
            raise RecipeError(f"{name} is {given[name]!r}: {reason}; leave {name} out")
    if learns_prompt(others.get("peft_config")):
        raise RecipeError(f"peft_config {VIRTUAL_TOKENS}; give a LoraConfig, or none")
    if not isinstance(rows, datasets.Dataset):
        raise RecipeError(
            f"train_dataset is a {type(rows).__name__}; a datasets.Dataset is required, for order "
            "and positions of an epoch are drawn over all of its rows"
        )
    if unread := [name for name in _UNREAD_COLUMNS if name in rows.column_names]:
        raise RecipeError(
            f"train_dataset has the column {unread[0]!r}, which is not rendered here; write it "
            "into the messages, or give template_kwargs, and remove the column"
        )


def _refuse_shards(trainer: Trainer) -> None:
    """Refuse engines that cut a row between devices: they take each jump for a document."""
    config = trainer.accelerator.parallelism_config
    if config is not None and (config.cp_enabled or config.sp_enabled):
        raise RecipeError(
            "the accelerator shards sequences (cp_size or sp_size above 1), which drops the "
            "attention mask and cuts at skips; use data parallelism - rows with skips are short"
        )


def _refuse_other_rope(trainer: DPOTrainer) -> None:
    """Refuse a reference whose RoPE is not that of the model, as TRL loads it from the path."""
    if trainer.ref_model is None:
        return
    models: list[Any] = [trainer.model, trainer.ref_model]
    ropes = [trainer.accelerator.unwrap_model(each).config.rope_parameters for each in models]
    if ropes[0] != ropes[1]:
        raise RecipeError(
            f"the model has rope_parameters {ropes[0]} and its reference {ropes[1]}: at far "
            "positions the reference would say nothing; give ref_model=load_model(..., rope=...) "
            "with the extension of the model"
        )


def _tell(accounting: Mapping[str, Any], folder: Path) -> None:
    """Say how many rows are not used."""
    lost = accounting["rows_read"] - accounting["used"]
    if lost:
        _LOG.warning(
            "%d of %d rows are not used; %s names each and its reason",
            *(lost, accounting["rows_read"], folder / "rejected.jsonl"),
        )
