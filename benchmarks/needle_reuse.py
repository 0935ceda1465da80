"""A needle grid with reuse against the plain way: tokens computed, and wall-clock time.

Promise: on grids of the tiny base with linear lengths, 2.5 x fewer tokens at 10 x 10 and 8 x fewer
at 35 x 35, and every answer the same. Both ways are timed in alternation on one thread, in seconds
of the clock and of the processor; what else runs on the machine moves the first, so ratios are of
the second.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipalign import reuse, tiny
from skipalign.evaluating import load_generator
from skipalign.evaluation.needle import NeedlePrompt, NeedleSettings, build_prompts
from skipalign.origin import sha256_of_files, write_result
from skipalign.tiny.corpus import KEYS, NEEDLE, QUESTION, VALUES
from skipalign.transformers_engine import TransformersGenerator

# (lengths and depths, tokens of the longest prompt, timed pairs)
GRIDS = ((10, 4096, 3), (35, 4096, 1), (10, 32768, 0), (35, 32768, 0))
NEW = 6


def settings(num: int, longest: int) -> NeedleSettings:
    """Return a grid of `num` linear lengths and depths, one trial a cell."""
    return NeedleSettings(
        lengths=tuple(round(longest * (index + 1) / num) for index in range(num)),
        depths=num,
        trials=1,
        nested=True,
        needle=NEEDLE,
        question=QUESTION,
        separator=" ",
        keys=KEYS,
        values=VALUES,
        max_new_tokens=NEW,
    )


def timed(generator: TransformersGenerator, prompts: list[NeedlePrompt], pairs: int) -> Any:
    """Return seconds of both ways in alternation, and how many answers differ."""
    ids = [prompt.ids.tolist() for prompt in prompts]
    generator.generate(ids[:2], max_new_tokens=NEW)
    clock: dict[str, list[float]] = {"plain": [], "reuse": []}
    processor: dict[str, list[float]] = {"plain": [], "reuse": []}
    differ = 0
    for _ in range(pairs):
        marks = [(time.perf_counter(), time.process_time())]
        plain = generator.generate(ids, max_new_tokens=NEW)
        marks.append((time.perf_counter(), time.process_time()))
        reused = list(reuse.answers(generator, ids, max_new_tokens=NEW))
        marks.append((time.perf_counter(), time.process_time()))
        for name, start, stop in zip(clock, marks, marks[1:], strict=False):
            clock[name].append(round(stop[0] - start[0], 2))
            processor[name].append(round(stop[1] - start[1], 2))
        differ = sum(each.completion != plain[each.index] for each in reused)
    ratios = np.divide(processor["plain"], processor["reuse"])
    return {
        "clock_seconds": clock,
        "processor_seconds": processor,
        "time_ratio": round(float(np.median(ratios)), 2),
        "time_ratio_low": round(float(ratios.min()), 2),
        "time_ratio_high": round(float(ratios.max()), 2),
        "answers_that_differ": differ,
    }


def main() -> None:
    """Print and keep tokens and times of each grid."""
    torch.set_num_threads(1)
    generator, tokenizer = load_generator(tiny.BASE)
    rows = []
    for num, longest, pairs in GRIDS:
        prompts = build_prompts(tokenizer, settings(num, longest))
        ids = [prompt.ids for prompt in prompts]
        total = sum(len(each) for each in ids)
        computed = sum(len(ids[index]) - kept for index, kept in reuse.order(ids))
        row: dict[str, Any] = {
            "grid": f"{num} x {num}",
            "longest": longest,
            "cells": len(ids),
            "unlike_prompts": len({each.tobytes() for each in ids}),
            "plain_tokens": total,
            "reuse_tokens": computed,
            "token_ratio": round(total / computed, 2),
            "timed_pairs": pairs,
        }
        row |= timed(generator, prompts, pairs) if pairs else {}
        rows.append(row)
        print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    write_result(
        Path(__file__).parent / "results/needle-reuse.json",
        {"max_new_tokens": NEW, "rows": rows},
        seeds=[settings(1, 1).seed],
        data=sha256_of_files([tiny.HAYSTACK, *tiny.BASE.glob("*.safetensors")]),
        exact=("plain_tokens", "reuse_tokens", "token_ratio", "answers_that_differ"),
        measured=("clock_seconds", "processor_seconds", "time_ratio"),
    )


if __name__ == "__main__":
    main()
