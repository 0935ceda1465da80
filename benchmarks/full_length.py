"""A step on a short sample that skips against a step on a sample of the full target length.

SkipAlign shows a model the distances of k x T positions in T tokens; long training reads k x T
tokens. Per sample the short step must be cheaper by about k or more; per token it saves only what
attention costs beyond the rest, which is little where the model, not attention, takes the time:
both are measured, time on one thread and the most memory that stood in tensors during the step,
beyond what stood there before it (weights, optimizer).
Steps alternate; the interval is that of the median of the ratios.

    python benchmarks/full_length.py        # about four minutes of one thread
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chunked_loss import peak
from step import SIZES, arguments, median, model, plain_collator, stepper, visits
from transformers import Trainer

from skipalign.batch import Collator
from skipalign.checkpoints import Counts
from skipalign.engine import Named, SkipTrainer
from skipalign.origin import write_result
from skipalign.positions import SkipAlign

TOKENS, MULTIPLES, PAIRS = 512, (2, 4, 8, 16), 5


def measure(multiple: int, out: str) -> dict[str, Any]:
    """Return the ratios, full length to short, of one target."""
    strategy = SkipAlign(max_position=multiple * TOKENS, skip_fraction=1.0)
    short, full = visits([TOKENS]), visits([multiple * TOKENS])
    ours = SkipTrainer(model=model(), args=arguments(out))
    ours.counts = Counts()
    plain = Trainer(model=model(), args=arguments(out))
    skips = stepper(ours, Named(Collator({"a": strategy}, seed=0, pad_token_id=0)), short)
    whole = stepper(plain, plain_collator, full)
    pairs = np.array([(skips(), whole()) for _ in range(PAIRS + 1)])[1:]
    per_sample = median(pairs[:, 1] / pairs[:, 0])
    memory = [peak(skips), peak(whole)]
    return {
        "target": multiple * TOKENS,
        "multiple": multiple,
        "per_sample": per_sample,
        "per_token": {name: round(value / multiple, 3) for name, value in per_sample.items()},
        "seconds": [round(float(value), 3) for value in np.median(pairs, axis=0)],
        "peak_mebibytes": [round(value / 2**20) for value in memory],
        "memory_ratio": round(memory[1] / memory[0], 2),
        "pairs": PAIRS,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as out:
        for multiple in MULTIPLES:
            rows.append(measure(multiple, out))
            print(*rows[-1].values(), sep="\t", flush=True)
    settings = {"tokens": TOKENS, "model": SIZES, "threads": 1}
    write_result(
        Path(__file__).parent / "results" / "full-length.json",
        {"settings": settings, "rows": rows},
        seeds=[0],
        data={},
        exact=("peak_mebibytes",),
        measured=("ratio", "low", "high", "seconds"),
    )


if __name__ == "__main__":
    main()
