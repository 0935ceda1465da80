"""transformers' Trainer, fed with our batches: what a step counts, weighs and saves.

Shape letters: B rows, T tokens of the longest row, S places for samples.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Trainer, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from skipalign import adapters, distribution
from skipalign.batch import Batch
from skipalign.borders import implementation_of, mask_dtype, visibility
from skipalign.checkpoints import Counts, seal
from skipalign.chunked_loss import ChunkedHead, token_losses
from skipalign.encoding import IGNORE_INDEX
from skipalign.errors import RunError
from skipalign.files import disk_faults_of
from skipalign.visits import PackSampler, Visit, VisitSampler

_SAMPLES_NAMED = 8
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
TokenLosses = Callable[[Tensor, Tensor], Tensor]
_TOKENS_AT_ONCE = 512  # whose logits stand in full precision while losses are told apart


class Named:
    """A collator whose batches also say which samples they hold, and how long their rows are.

    Rows that a batch without padding joins count as they were before.

    Args:
        collator: visits, or packs of visits, to a batch.
    """

    def __init__(self, collator: Callable[[Any], Batch]) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Visit | Sequence[Visit]]) -> dict[str, Any]:
        packs = [[row] if isinstance(row, Visit) else row for row in rows]
        lengths = [sum(len(visit.example.input_ids) for visit in pack) for pack in packs]
        samples = [visit.example.id for pack in packs for visit in pack]
        return {**self.collator(rows), "samples": samples, "row_tokens": max(lengths)}


class SkipTrainer(Trainer):
    """transformers' Trainer with our order, masks and loss; checkpoints are whole or absent.

    A loss, a gradient or a weight that is no longer a number raises RunError before it reaches
    the weights or a checkpoint.
    """

    sampler: VisitSampler | PackSampler
    counts: Counts
    samples_weigh_the_same: bool = False
    head: ChunkedHead | None = None  # if logits must not stand whole
    samples: Sequence[str] = ()  # of the batch at hand
    row_shape: tuple[int, ...] = ()
    _skipped: Tensor | None = None
    _losses: dict[str, tuple[float, int]]
    _step_samples: Sequence[str] = ()
    _aside: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._losses = {}

    def load(self, state: TrainerState, checkpoint: Path) -> None:
        """Take over the state and the weights of a checkpoint without training on."""
        self.state = state
        self._load_from_checkpoint(str(checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler

    def take_head(self, head: ChunkedHead | None) -> None:
        """Let the head compute the losses of tokens in parts; None leaves that to the model.

        Before the first step: whether a model that counts no tokens itself is told their number
        hangs on there being a loss function.
        """
        self.head = head
        of_tokens = partial(mean_over_tokens, token_losses=_as_they_are)
        self.compute_loss_func = None if head is None else of_tokens

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Return the batches of one optimizer step and what its loss is a mean over."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_samples = [each for batch in batches for each in batch.get("samples", ())]
        if not (self.samples_weigh_the_same and batches):
            return batches, num_items
        counts = [trained_per_sample(each["labels"], each["sample_ids"])[0] for each in batches]
        num_samples = torch.stack([(count > 0).sum() for count in counts]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            num_samples = cast(Tensor, self.accelerator.gather(num_samples)).sum()
        return batches, num_samples

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss, the samples' borders kept from the model."""
        sample_ids = inputs.pop("sample_ids", None)
        if self.samples_weigh_the_same:
            losses = token_losses if self.head is None else _as_they_are
            self.compute_loss_func = partial(
                mean_over_samples, sample_ids=sample_ids, token_losses=losses
            )
        labels = inputs["labels"]
        with nullcontext() if self.head is None else self.head.in_parts(labels):
            found: Any = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss, outputs = found
        self._require_number("loss", float(loss.detach()), self.samples)
        logits = outputs.get("logits")
        if logits is not None and self._skipped is not None and self._logs_this_step():
            self._tell_apart(logits.detach(), labels, self._skipped)
        return (loss, outputs) if return_outputs else loss

    def _logs_this_step(self) -> bool:
        every = self.state.logging_steps
        return self.args.logging_strategy == "steps" and (self.state.global_step + 1) % every == 0

    def _tell_apart(self, found: Tensor, labels: Tensor, skipped: Tensor) -> None:
        """Add up the losses of the tokens of natural and of skipped samples.

        Args:
            found: logits, or with a chunked head the losses themselves.
            labels: not shifted.
            skipped: whether each token's sample skips.
        """
        for part in (labels[:, 1:] != IGNORE_INDEX).nonzero().split(_TOKENS_AT_ONCE):
            rows, places = part.unbind(1)
            losses = found[rows, places]
            if self.head is None:
                losses = torch.nn.functional.cross_entropy(
                    losses.float(), labels[rows, places + 1], reduction="none"
                )
            of_skipped = skipped[rows, places]
            for name, which in (("natural", ~of_skipped), ("skipped", of_skipped)):
                total, count = self._losses.get(name, (0.0, 0))
                self._losses[name] = (total + float(losses[which].sum()), count + int(which.sum()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the loss of the last step told apart by natural and skipped samples."""
        if "loss" in logs:
            names = ("natural", "skipped")
            here = [value for name in names for value in self._losses.get(name, (0.0, 0))]
            all_of_them = distribution.summed(here)
            apart = zip(names, all_of_them[::2], all_of_them[1::2], strict=True)
            logs = {**logs, **{f"loss_{name}": s / n for name, s, n in apart if n}}
            self._losses = {}
        super().log(logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # A scaler of half precision expects gradients that overflow, and leaves those steps out.
        if norm is not None and self.accelerator.scaler is None:
            self._require_number("norm of the gradient", float(norm), self._step_samples)
        return norm

    def _require_number(self, what: str, value: float, samples: Sequence[str]) -> None:
        if math.isfinite(value):
            return
        named = ", ".join(samples[:_SAMPLES_NAMED])
        more = f" and {len(samples) - _SAMPLES_NAMED} more" if samples[_SAMPLES_NAMED:] else ""
        raise RunError(
            f"the {what} is {value} at step {self.state.global_step + 1}, samples {named}{more}; "
            "lower trainer.learning_rate, set trainer.max_grad_norm, or look at those samples "
            "(skipalign preview) - no weight was changed by that step"
        )

    def _prepare_inputs(self, inputs: Any) -> Any:
        batch = cast(Batch, super()._prepare_inputs(inputs))
        self.samples = cast(Any, batch).pop("samples", ())
        width = batch["input_ids"].shape[1]
        row_tokens = cast(Any, batch).pop("row_tokens", width)
        self.counts.max_row_tokens = max(self.counts.max_row_tokens, row_tokens)
        self.row_shape = tuple(batch["input_ids"].shape)
        self._skipped = skipped_tokens(batch["position_ids"], batch.get("sample_ids"))
        self._count(batch)
        weights = next(cast(Any, self.model).parameters()).dtype
        implementation = implementation_of(self.model)
        autocast = _AUTOCAST.get(self.accelerator.mixed_precision)
        dtype = mask_dtype(implementation, weights, autocast)
        seen = visibility(batch, implementation, dtype)
        batch.pop("attention_mask", None)
        return {**batch, **seen}

    def _count(self, batch: Batch) -> None:
        if "sample_ids" in batch:
            seen = batch["sample_ids"] >= 0
            num_sequences = int((batch["sample_ids"].amax(dim=1) + 1).sum())
        else:
            assert "attention_mask" in batch
            mask = batch["attention_mask"]
            # In a 4-D mask the last query sees every token of its row and no padding.
            seen = mask if mask.dim() == 2 else mask[:, 0, -1] > torch.finfo(mask.dtype).min
            num_sequences = len(mask)
        self.counts.num_sequences += num_sequences
        self.counts.tokens += int(seen.sum())
        self.counts.trained_tokens += int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    def totals(self) -> Counts:
        """Return what all processes together have fed to the model; all of them have to ask."""
        counts = self.counts
        sums = distribution.summed([counts.num_sequences, counts.tokens, counts.trained_tokens])
        num_sequences, tokens, trained_tokens = (int(each) for each in sums)
        return Counts(
            num_sequences=num_sequences,
            tokens=tokens,
            trained_tokens=trained_tokens,
            max_row_tokens=int(distribution.largest(counts.max_row_tokens)),
            num_processes=distribution.num_processes(),
            started=counts.started,
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not adapters.is_attached(self.model):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            adapters.save(self.model, Path(str(output_dir)), state_dict)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside) if self._aside else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save into a folder aside, then rename: a checkpoint that has its name is whole."""
        self.require_finite_weights()
        root = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        self._aside = root / ".partial"
        if self.args.should_save:
            shutil.rmtree(self._aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with disk_faults_of(root):
                super()._save_checkpoint(model, trial)
        except OSError:
            shutil.rmtree(self._aside, ignore_errors=True)  # what is left of a full disk
            raise
        finally:
            aside, self._aside = self._aside, None
        totals = self.totals()
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        seal(aside / name, totals)
        shutil.rmtree(root / name, ignore_errors=True)
        os.replace(aside / name, root / name)
        rotate_checkpoints(
            output_dir=str(root), save_total_limit=self.args.save_total_limit, use_mtime=False
        )

    def require_finite_weights(self) -> None:
        """Refuse to save weights that are no numbers.

        Raises:
            RunError: names the first of them.
        """
        for name, parameter in cast(Any, self.model).named_parameters():
            here = distribution.part_here(parameter)
            if parameter.requires_grad and not bool(torch.isfinite(here).all()):
                raise RunError(
                    f"the weight {name} is no longer a number after step "
                    f"{self.state.global_step}; lower trainer.learning_rate - it is not saved"
                )


def _as_they_are(losses: Tensor, _: Tensor) -> Tensor:
    """Return what a chunked head gives in place of logits: the losses."""
    return losses


def skipped_tokens(
    position_ids: Int[Tensor, " B T"], sample_ids: Int[Tensor, " B T"] | None
) -> Bool[Tensor, " B T"]:
    """Tell which tokens are of a sample whose positions skip.

    Args:
        position_ids: rising within a sample; padding, on the right, has 0.
        sample_ids: which sample of its row each token is of; None is one sample a row.
    """
    num_rows, width = position_ids.shape
    ids = torch.zeros_like(position_ids) if sample_ids is None else sample_ids
    jumps = (position_ids.diff(dim=1) > 1) & (ids.diff(dim=1) == 0)
    rows = torch.arange(num_rows, device=ids.device)[:, None]
    places = rows * width + ids.clamp(min=0)
    return torch.bincount(places[:, 1:][jumps], minlength=num_rows * width)[places] > 0


def trained_per_sample(
    labels: Int[Tensor, " B T"], sample_ids: Int[Tensor, " B T"]
) -> tuple[Int[Tensor, " S"], Int[Tensor, " B T"]]:
    """Count the trained tokens of every sample of a batch.

    Returns:
        the counts by place, 0 where no sample is, and for each token the place of its sample.
    """
    num_rows, width = labels.shape
    rows = torch.arange(num_rows, device=labels.device)[:, None]
    # Padding is never trained, so that any place will do for it.
    places = rows * width + sample_ids.clamp(min=0)
    counts = torch.bincount(places[labels != IGNORE_INDEX], minlength=num_rows * width)
    return counts, places


def mean_over_tokens(
    outputs: Any,
    labels: Int[Tensor, " B T"],
    num_items_in_batch: Tensor | int,
    *,
    token_losses: TokenLosses,
) -> Tensor:
    """Return the part of this batch in the mean over the trained tokens of an optimizer step."""
    return token_losses(outputs["logits"], labels).sum() / num_items_in_batch


def mean_over_samples(
    outputs: Any,
    labels: Int[Tensor, " B T"],
    num_items_in_batch: Tensor | int,
    *,
    sample_ids: Int[Tensor, " B T"],
    token_losses: TokenLosses = token_losses,
) -> Tensor:
    """Return the part of this batch in the mean over samples of their mean token loss.

    Args:
        outputs: of the model, with logits, or what `token_losses` takes in their place.
        labels: not shifted; the first token of a sample is not among the trained ones.
        num_items_in_batch: samples of the whole optimizer step: with gradient accumulation and
            several processes the parts add up to the mean, however samples fall into batches.
        sample_ids: which sample of its row each token is of.
        token_losses: logits and labels to the losses of tokens.

    Source: LongAlign, arXiv 2401.18058: sequence i with N_i trained tokens weighs K / (N_i M) in a
        mean over K packs of M sequences; that is 1 / (N_i M) in a sum over tokens.
    """
    counts, places = trained_per_sample(labels, sample_ids)
    weights = (labels != IGNORE_INDEX) / counts.clamp(min=1)[places]
    losses = token_losses(outputs["logits"], labels)
    return (losses * weights[:, 1:]).sum() / num_items_in_batch
