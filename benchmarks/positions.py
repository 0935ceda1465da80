"""Positions of 32 rows of 128 tokens, alternating with a training step of the tiny model.

Promise: at most 2 ms and at most 2% of the step for the positions of every strategy; rows with a
key bias count the bias as well.
"""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from skipalign import tiny
from skipalign.batch import Collator
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.key_bias import GapBias, KeyBias, PermutedBias
from skipalign.model import load_model
from skipalign.origin import write_result
from skipalign.positions import (
    Contiguous,
    Cream,
    Logo,
    LongRecipe,
    PoSE,
    PoSEAtMarkers,
    RandPos,
    SkipAlign,
    Strategy,
)
from skipalign.visits import Visit

ROWS, TOKENS, PAIRS = 32, 128, 30
RANGE = {"max_position": 8192, "skip_fraction": 1.0}
CASES: dict[str, tuple[Strategy, KeyBias | None]] = {
    "contiguous": (Contiguous(), None),
    "skipalign, block borders": (SkipAlign(**RANGE), None),
    "skipalign, any token": (SkipAlign(**RANGE, skip_at=("token",)), None),
    "skipalign, 6 cuts, gap bias": (SkipAlign(**RANGE, cuts_within=6), GapBias()),
    "skipalign, 6 cuts, permuted bias": (SkipAlign(**RANGE, cuts_within=6), PermutedBias()),
    "pose": (PoSE(**RANGE), None),
    "pose, before 24 token ids": (PoSEAtMarkers(**RANGE, markers=tuple(range(6, 30))), None),
    "cream": (Cream(**RANGE), None),
    "longrecipe": (LongRecipe(**RANGE), None),
    "logo": (Logo(**RANGE, chunk_tokens=16), None),
    "randpos": (RandPos(**RANGE), None),
}


def examples() -> list[Example]:
    """Return rows with six blocks and sentence breaks, as the tiny conversations have."""
    rng = np.random.default_rng(0)
    borders = [0, 88, 96, 104, 112, 120, TOKENS]
    segments = tuple(
        Segment(start, stop, ("user", "assistant")[index % 2], start + 1, stop - 1)
        for index, (start, stop) in enumerate(pairwise(borders))
    )
    ids = rng.integers(6, 1000, (ROWS, TOKENS))
    labels = np.where(np.arange(TOKENS) > 96, ids, IGNORE_INDEX)
    breaks = np.arange(10, 80, 9)
    return [Example(ids[i], labels[i], segments, breaks, str(i), "a") for i in range(ROWS)]


def main() -> None:
    """Print and keep the median of each case and its share of the step beside it."""
    model = load_model(str(tiny.BASE)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    visits = [Visit(example, 0) for example in examples()]
    rows = []
    for name, (strategy, bias) in CASES.items():
        collate = Collator({"a": strategy}, seed=0, pad_token_id=0, key_bias=bias)
        drawing, step = [], []
        for _ in range(PAIRS):
            started = time.perf_counter()
            for visit in visits:
                collate.place(visit)
            drawing.append(time.perf_counter() - started)
            batch = collate(visits)
            started = time.perf_counter()
            model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step.append(time.perf_counter() - started)
        shares = np.array(drawing) / np.array(step)
        row = {
            "case": name,
            "milliseconds": round(1000 * float(np.median(drawing)), 3),
            "step_milliseconds": round(1000 * float(np.median(step)), 1),
            "share_of_step": round(float(np.median(shares)), 4),
            "share_low": round(float(np.quantile(shares, 0.025)), 4),
            "share_high": round(float(np.quantile(shares, 0.975)), 4),
        }
        rows.append(row)
        print(
            f"{name:36s} {row['milliseconds']:6.2f} ms  {100 * row['share_of_step']:5.2f}% of a "
            f"step of {row['step_milliseconds']:.0f} ms "
            f"[{100 * row['share_low']:.2f}, {100 * row['share_high']:.2f}]"
        )
    write_result(
        Path(__file__).parent / "results/positions.json",
        {"pairs": PAIRS, "rows": rows},
        seeds=[0],
        data={},
        exact=(),
        measured=("milliseconds", "step_milliseconds", "share_of_step", "share_low", "share_high"),
    )


if __name__ == "__main__":
    main()
