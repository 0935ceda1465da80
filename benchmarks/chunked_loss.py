"""What a loss in parts saves in memory and costs in time, against logits that stand whole.

One forward and backward pass of a model with a vocabulary of 32,000 over a row of 2,048 tokens, of
which all or a quarter are trained (the answers of a conversation). Memory is the most that stood in
tensors at one time of the pass beyond weights and gradients, as torch's profiler records every
allocation; time is that of the process on one thread, the median of three passes whose order
alternates. The losses must be equal to 1e-5.

    python benchmarks/chunked_loss.py        # about a minute
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from skipalign.chunked_loss import TOKENS_AT_ONCE, ChunkedHead, token_losses
from skipalign.encoding import IGNORE_INDEX
from skipalign.origin import write_result

TOKENS, PASSES = 2048, 3
SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
}


def one_pass(model: Any, head: ChunkedHead | None, share: float) -> float:
    """Go forward and backward over the row; return the loss."""
    ids = torch.randint(0, SIZES["vocab_size"], (1, TOKENS), generator=torch.manual_seed(0))
    labels = torch.where(torch.arange(TOKENS) >= TOKENS * (1 - share), ids, IGNORE_INDEX)
    with nullcontext() if head is None else head.in_parts(labels):
        given = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    losses = token_losses(given, labels) if head is None else given
    del given  # of the whole logits only what the backward pass needs
    loss = losses.sum() / (labels[:, 1:] != IGNORE_INDEX).sum()
    loss.backward()
    return loss.item()


def peak(do: Callable[[], object]) -> int:
    """Return the most bytes that stood in tensors beyond those of before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        do()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in changes]).max())


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).train()
    heads = {"whole": None, "in parts": ChunkedHead(model)}
    rows: list[dict[str, Any]] = []
    for share in (1.0, 0.25):
        runs = {way: partial(one_pass, model, head, share) for way, head in heads.items()}
        losses = {way: run() for way, run in runs.items()}
        assert abs(losses["whole"] - losses["in parts"]) < 1e-5, losses
        seconds: dict[str, list[float]] = {way: [] for way in runs}
        for number in range(PASSES):
            for way in list(runs)[:: -1 if number % 2 else 1]:
                started = time.process_time()
                runs[way]()
                seconds[way].append(time.process_time() - started)
        for way, run in runs.items():
            row = {
                "logits": way,
                "trained_share": share,
                "mebibytes": round(peak(run) / 2**20),
                "seconds": round(float(np.median(seconds[way])), 2),
                "loss": round(losses[way], 6),
            }
            rows.append(row)
            print(*row.values(), sep="\t", file=sys.stderr, flush=True)
    settings = {"tokens": TOKENS, "tokens_at_once": TOKENS_AT_ONCE, "model": SIZES}
    write_result(
        Path(__file__).parent / "results/chunked-loss.json",
        {"settings": settings, "rows": rows},
        seeds=[0],
        data={},
        exact=("loss", "mebibytes"),
        measured=("seconds",),
    )


if __name__ == "__main__":
    main()
