"""Rows of several samples without padding, against padded batches and TRL's packed rows.

Tokens per second of the process's own time, on one thread, the same model and conversations. Each
round runs all three in an order that turns; the ratios are those of its rounds. sdpa on a CPU: the
borders of samples travel in a float mask of queries x keys, and all of it is computed; flash
attention on a GPU leaves out what lies between samples, and was not measured. Our two arms skip
positions, TRL's does not.

    python benchmarks/padding_free.py FILE    # of conversations; without one, the tiny ones
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from against_trl import (
    MAX_TOKENS,
    ROWS,
    STEPS,
    Bench,
    Measured,
    conversations,
    hush,
    make_tokenizer,
)
from step import median

from skipalign import Packing, tiny
from skipalign.origin import sha256_of_files, write_result

ROUNDS = 12
PADDED, FREE, TRL = "padded", "padding-free", "TRL packed"


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=tiny.CONVERSATIONS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/padding-free.json"
    )
    given = parser.parse_args()
    hush()
    chats = conversations(given.file)
    tokenizer = make_tokenizer([turn["content"] for chat in chats for turn in chat])
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Bench(chats, tokenizer, Path(folder)), given.rounds)
    results = {"data": given.file.name, "conversations": len(chats), "rows": ROWS}
    results |= {"max_tokens": MAX_TOKENS, "steps": STEPS - 1, "rounds": given.rounds, **found}
    write_result(
        given.out,
        results,
        seeds=range(given.rounds),
        exact=(),
        measured=("tokens_per_second", "ratios", "ratio", "low", "high"),
        data=sha256_of_files([given.file]),
    )
    for name, ratio in found["ratios"].items():
        print(f"{name:30s} {ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]")


def measure(bench: Any, rounds: int) -> dict[str, Any]:
    """Run the three in turn; return what each did and the ratios of padding-free rows to others."""
    packing = Packing(max_tokens=MAX_TOKENS, attention="block_diagonal")
    arms: dict[str, Callable[[int], Measured]] = {
        PADDED: bench.ours,
        FREE: lambda seed: bench.ours(seed, packing),
        TRL: lambda seed: bench.theirs(seed, True),
    }
    runs: dict[str, list[Measured]] = {name: [] for name in arms}
    for number in range(rounds):
        for turn in range(len(arms)):
            name = list(arms)[(number + turn) % len(arms)]
            runs[name].append(arms[name](number))
            print(f"{number} {name} {runs[name][-1]['rate']:.0f} tokens/s", file=sys.stderr)
    rates = {name: np.array([run["rate"] for run in each]) for name, each in runs.items()}
    shares = {name: np.median([run["tokens_share"] for run in each]) for name, each in runs.items()}
    return {
        "tokens_per_second": {name: round(float(np.median(rates[name])), 1) for name in arms},
        "tokens_share": {name: round(float(shares[name]), 3) for name in arms},
        "ratios": {
            f"{FREE} to {other}": median(rates[FREE] / rates[other]) for other in (PADDED, TRL)
        },
    }


if __name__ == "__main__":
    main()
