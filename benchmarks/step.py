"""A training step of ours against a plain Trainer step on the same rows, in alternating pairs.

Promise: at most 1.01 times as long without a key bias. With a key bias there is no promise but a
measured ratio, for the bias in a float mask and in two more head dimensions. Of each pair one step
is ours and one transformers' Trainer with a padding collator that knows no positions; which comes
first alternates. Time is that of the process, on one thread. Each step draws its batch, goes
forward and backward and updates the weights.

The interval is that of the median of the ratios, by 10,000 bootstrap draws of the pairs.

    python benchmarks/step.py        # about three minutes of one thread
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from skipalign.batch import Collator
from skipalign.bias_attention import biased_keys
from skipalign.checkpoints import Counts
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.engine import Named, SkipTrainer
from skipalign.key_bias import GapBias
from skipalign.origin import write_result
from skipalign.positions import SkipAlign
from skipalign.visits import Visit

ROWS, TOKENS, PAIRS, DRAWS = 4, 448, 30, 10_000
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "attn_implementation": "sdpa",
}
SKIPS = SkipAlign(max_position=8192, skip_fraction=1.0, cuts_within=6)
# name -> (key bias, whether it goes into a float mask)
CASES = {
    "no key bias": (None, True),
    "key bias in a float mask": (GapBias(), True),
    "key bias in two more head dimensions": (GapBias(), False),
}


def visits(lengths: Sequence[int]) -> list[Visit]:
    """Return conversations of these lengths, answers in their second half."""
    rng = np.random.default_rng(0)
    made: list[Visit] = []
    for number, length in enumerate(lengths):
        half = length // 2
        ids = rng.integers(6, SIZES["vocab_size"], length)
        segments = (
            Segment(0, half, "user", 1, half),
            Segment(half, length, "assistant", half + 1, length - 1),
        )
        labels = np.where(np.arange(length) > half, ids, IGNORE_INDEX)
        breaks = np.arange(8, half, 9)
        made.append(Visit(Example(ids, labels, segments, breaks, str(number), "a"), 0))
    return made


def plain_collator(rows: Sequence[Visit]) -> dict[str, torch.Tensor]:
    """Pad ids and labels on the right, as any collator of fine-tuning does."""
    width = max(len(row.example.input_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE_INDEX)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        length = len(row.example.input_ids)
        ids[number, :length] = torch.from_numpy(row.example.input_ids)
        labels[number, :length] = torch.from_numpy(row.example.labels)
        mask[number, :length] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def arguments(out: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=out,
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        per_device_train_batch_size=ROWS,
        disable_tqdm=True,
    )


def stepper(
    trainer: Any,
    collate: Callable[..., Any],
    rows: list[Visit],
    *,
    model: Any = None,
    clock: Callable[[], float] = time.process_time,
) -> Callable[[], float]:
    """Return a function that does one step and returns its seconds.

    Args:
        trainer: ours or a plain one.
        collate: rows to a batch.
        rows: of every step.
        model: as accelerate prepared it; None is the trainer's own, as it is.
        clock: in seconds; by default the time of the process.
    """
    trainer.create_optimizer()
    model = trainer.model if model is None else model

    def step() -> float:
        started = clock()
        rows_of_step = iter([collate(rows)])
        batches, num_items = trainer.get_batch_samples(rows_of_step, 1, trainer.args.device)
        trainer.training_step(model, batches[0], num_items)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        return clock() - started

    return step


def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).train()


def median(ratios: np.ndarray) -> dict[str, float]:
    rng = np.random.default_rng(0)
    draws = np.median(rng.choice(ratios, (DRAWS, len(ratios))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "ratio": round(float(np.median(ratios)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def measure(name: str, lengths: Sequence[int], out: str) -> dict[str, Any]:
    """Return the ratio of one case on rows of these lengths."""
    bias, float_mask = CASES[name]
    rows = visits(lengths)
    collator = Collator({"a": SKIPS}, seed=0, pad_token_id=0, key_bias=bias, float_mask=float_mask)
    ours = SkipTrainer(model=model(), args=arguments(out))
    ours.counts = Counts()
    plain = Trainer(model=model(), args=arguments(out))
    with ExitStack() as stack:
        if not float_mask:
            stack.enter_context(biased_keys(ours.model))
        steps = [stepper(ours, Named(collator), rows), stepper(plain, plain_collator, rows)]
        pairs = np.array([_pair(steps, number) for number in range(PAIRS + 2)])[2:]
    return {
        "case": name,
        "padding": len(set(lengths)) > 1,
        **median(pairs[:, 0] / pairs[:, 1]),
        "plain_step_seconds": round(float(np.median(pairs[:, 1])), 3),
        "pairs": PAIRS,
    }


def _pair(steps: Sequence[Callable[[], float]], number: int) -> tuple[float, float]:
    if number % 2:
        second, first = steps[1](), steps[0]()
        return first, second
    return steps[0](), steps[1]()


def main() -> None:
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as out:
        for name, shorter in [*((name, 0) for name in CASES), (next(iter(CASES)), 24)]:
            lengths = [TOKENS - shorter * number for number in range(ROWS)]
            found.append(row := measure(name, lengths, out))
            print(
                f"{row['case']:38s} {'padded' if row['padding'] else 'full':6s} "
                f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  "
                f"plain step {row['plain_step_seconds']:.2f} s",
                file=sys.stderr,
                flush=True,
            )
    settings = {"rows": ROWS, "tokens": TOKENS, "model": SIZES, "threads": 1}
    results = {"promise": 1.01, "settings": settings, "cases": found}
    write_result(
        Path(__file__).parent / "results/step.json",
        results,
        seeds=[0],
        data={},
        exact=(),
        measured=("ratio", "low", "high", "plain_step_seconds"),
    )


if __name__ == "__main__":
    main()
