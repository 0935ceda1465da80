"""A run folder with numbers from a seeded generator, for the tests of results to report."""

import json
import math
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from skipalign.coverage import measure
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.files import SCHEMA_VERSION
from skipalign.positions import Contiguous, PoSE, SkipAlign

WINDOW = 128
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TRIALS = 8
# Where a method's accuracy falls to a half, in tokens, on long text and on far positions.
METHODS = {
    "normal": (300, 500, Contiguous()),
    "skipalign": (1500, 30_000, SkipAlign(max_position=4096)),
    "skipalign-bias": (40_000, 90_000, PoSE(max_position=4096, num_chunks=7)),
}


def write_text(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value):
    """As `files.write_json`, without waiting for the disk: a run has 70 files."""
    write_text(path, json.dumps({"schema_version": SCHEMA_VERSION, **value}))


def make_run(folder: Path, methods=("normal", "skipalign", "skipalign-bias"), seeds=(0, 1, 2)):
    """Write a whole run of `methods` x `seeds`."""
    write_text(folder / "recipe.yaml", RECIPE)
    write_json(folder / "environment.json", ENVIRONMENT)
    for order, method in enumerate(methods):
        for seed in seeds:
            make_training(folder / method / f"seed-{seed}", method, seed, order=order)
    return folder


def make_training(folder: Path, method: str, seed: int, **extra) -> Path:
    rng = np.random.default_rng([seed, *method.encode()])
    reach, stretch_reach, strategy = METHODS.get(method, METHODS["normal"])
    write_json(folder / "training.json", training(method, seed, strategy, extra))
    write_json(folder / "accounting.json", ACCOUNTING)
    write_json(folder / "seconds.json", {"prepare": 3.25, "train": 47.5 + seed, "needle": 95.5})
    write_json(folder / "probe.json", PROBE)
    write_json(folder / "coverage.json", coverage(strategy, seed))
    write_text(folder / "loss.jsonl", "".join(loss_lines(rng)))
    write_needle(folder, cells("context_length", reach * rng.uniform(0.8, 1.25), rng))
    write_stretch(folder, cells("distance", stretch_reach * rng.uniform(0.8, 1.25), rng))
    return folder


def write_needle(folder: Path, found, **settings):
    settings = {**NEEDLE_SETTINGS, **settings}
    document = {"task": "needle", "settings": settings, "prompts": PROMPTS, "cells": found}
    write_json(folder / "evaluation/needle/needle.json", document)


def write_stretch(folder: Path, found, **settings):
    settings = {**STRETCH_SETTINGS, **settings}
    document = {"task": "stretch", "settings": settings, "prompts": PROMPTS, "cells": found}
    write_json(folder / "evaluation/stretch/stretch.json", document)


def cells(key, reach, rng):
    depths = DEPTHS if key == "context_length" else (None,)
    found = []
    natural = () if key == "context_length" else (61,)
    for tokens in (*natural, *LENGTHS):
        for depth in depths:
            n = TRIALS if depth is not None else 40
            ease = 1 / (1 + (tokens / reach) ** 2.2) - 0.12 * (depth or 0) * (tokens > WINDOW)
            correct = int(rng.binomial(n, min(max(ease, 0), 1)))
            cell = {key: tokens, "n": n, "correct": correct, "mean": correct / n}
            part = {"shifted": tokens not in natural} if depth is None else {"depth": depth}
            found.append({**cell, **part})
    return found


@lru_cache
def coverage(strategy, seed):
    labels = np.full(WINDOW, IGNORE_INDEX, np.int32)
    labels[80:] = 1
    segments = (Segment(0, 80, "user", 4, 78), Segment(80, WINDOW, "assistant", 84, 126))
    nothing = np.zeros(0, np.int64)
    ids = np.zeros(WINDOW, np.int32)
    examples = [Example(ids, labels, segments, nothing, str(n), "tiny") for n in range(60)]
    rng = np.random.default_rng(seed)
    return measure(strategy, examples, max_position=4096, seed=seed, rng=rng)


def loss_lines(rng):
    for step in range(10, 310, 10):
        loss = 0.4 + 3 * math.exp(-step / 60) + 0.06 * rng.standard_normal()
        yield (
            json.dumps({"step": step, "loss": loss, "learning_rate": 1e-3, "seconds": step}) + "\n"
        )


def training(method, seed, strategy, extra):
    return {
        "method": method,
        "seed": seed,
        "base": {"path": "tiny", "revision": None, "dtype": "float32"},
        "sources": [{"path": "tiny", "name": "tiny", "weight": None, "max_tokens": 128}],
        "strategies": {"tiny": {"name": strategy.name, **asdict(strategy)}},
        "key_bias": {"name": "gap", "cap": None} if method == "skipalign-bias" else None,
        "rope": {"type": "ntk", "factor": 32.0},
        "trainer": {"max_steps": 300, "learning_rate": 0.002, "per_device_train_batch_size": 32},
        "train": True,
        "steps": 300,
        "seconds": 47.5 + seed,
        "tokens": 1_228_800,
        "trained_tokens": 96_000 + seed,
        "max_row_tokens": WINDOW,
        "interrupted": False,
        **extra,
    }


NEEDLE_SETTINGS = {
    "lengths": list(LENGTHS),
    "depths": len(DEPTHS),
    "trials": TRIALS,
    "seed": 0,
    "haystack": None,
    "needle": "The secret number of {key} is {value}.",
    "question": "What is the secret number of {key}?",
    "max_new_tokens": 8,
}
STRETCH_SETTINGS = {
    "distances": list(LENGTHS),
    "context_length": 128,
    "trials": 40,
    "seed": 0,
    "haystack": None,
}
PROMPTS = {"haystack_sha256": "c0ffee", "haystack_tokens": 80_000}
SOURCE = {
    "rows_read": 9_612,
    "used": 9_600,
    "rejected": {"empty_answer": 3, "two_assistants": 1},
    "dropped": {"too_long": 8},
    "notes": {"special_text": 2, "middle_cut": 17},
    "examples": 9_600,
    "tokens": 1_105_920,
    "trained_tokens": 288_000,
    "longest": 128,
}
ACCOUNTING = {"sources": {"tiny": SOURCE}, "total": SOURCE}
PROBE = {
    "passed": True,
    "attn_implementation": "sdpa",
    "with_key_bias": False,
    "checks": [
        {
            "name": "attention crosses the skip",
            "expected": "moves",
            "change": 0.31,
            "threshold": 2.1e-06,
            "passed": True,
        },
        {
            "name": "other samples are unseen",
            "expected": "still",
            "change": 0.0,
            "threshold": 2.1e-06,
            "passed": True,
        },
    ],
}
ENVIRONMENT = {
    "python": "3.11.9",
    "packages": {"skipalign": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
    "system": "Linux-6.8-x86_64",
    "cpus": 2,
    "gpus": [],
    "seeds": [0, 1, 2],
}
RECIPE = """\
# Three methods from one base, with equal data and steps.
base: tiny
data:
  - {path: tiny, name: tiny, max_tokens: 128}
rope: {type: ntk, factor: 32}
trainer: {max_steps: 300, learning_rate: 2.0e-3, per_device_train_batch_size: 32}
seeds: [0, 1, 2]
methods:
  normal: {strategy: {name: contiguous}}
  skipalign: {strategy: {name: skipalign, max_position: 4096}}
  skipalign-bias: {strategy: {name: skipalign, max_position: 4096}, key_bias: {name: gap}}
evaluation:
  needle: {lengths: [128, 256, 512, 1024, 2048, 4096], depths: 5, trials: 8}
"""
