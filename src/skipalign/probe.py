"""The start-up probe: does the model, wrapped as it trains, see what the batch says it sees?

transformers changed how it guesses document borders from position ids five times in two years,
and a wrong guess leaves the loss healthy. So every run asks the model itself before step 1, with
a small batch of the run's own layout: two samples, the first with a skip in its middle.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skipalign.batch import Batch, Placed, pad
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import VisibilityError
from skipalign.positions import sample_rng

NUM_TOKENS = 24
SKIP_BEFORE = 12
LONGEST_SKIP = 997

CURES = {
    "attention crosses the skip": (
        "attention is cut at the skip: the attention implementation took it for a document "
        "border - use attn_implementation: sdpa or eager, or another release of transformers"
    ),
    "the skip moves logits": (
        "the model ignores position_ids, so skips teach it nothing - choose a model with RoPE "
        "whose forward uses position_ids"
    ),
    "other samples are unseen": (
        "one sample of the batch sees another, so its loss is of mixed text - use "
        "attn_implementation: sdpa or eager"
    ),
    "later tokens are unseen": (
        "tokens see the ones after them, so the answer is given away - use attn_implementation: "
        "sdpa or eager"
    ),
}


def probe(model: Any, *, max_position: int, with_key_bias: bool = False) -> dict[str, Any]:
    """Change one thing at a time in a small batch and see which logits move.

    The model runs as it trains (training mode, checkpointing, wrappers), without gradients, with
    the same dropout in every pass, and leaves the random state as it was.

    Args:
        model: the model as the Trainer wrapped it.
        max_position: ids of the run lie in [0, max_position); bounds the probe's skip.
        with_key_bias: probe the 4-D float mask that carries a key bias.

    Returns:
        {passed, attn_implementation, with_key_bias, checks: [{name, expected, change, threshold,
        passed}]}, changes in logits.
    """
    vocab_size = getattr(model, "module", model).get_input_embeddings().weight.shape[0]
    rng = sample_rng(0, 0, "start-up probe")
    first = rng.integers(0, vocab_size, NUM_TOKENS)
    second = rng.integers(0, vocab_size, NUM_TOKENS - 4)
    skip = max(0, min(LONGEST_SKIP, max_position - NUM_TOKENS))

    def logits(
        first: Int[np.ndarray, " T"] = first,
        second: Int[np.ndarray, " U"] = second,
        skip: int = skip,
    ) -> Float[Tensor, " T V"]:
        return _first_row_logits(model, _batch(first, second, skip, with_key_bias))

    reference = logits()
    noise = _largest(logits() - reference)
    threshold = 10 * noise + 1e-6 * _largest(reference)
    tail = slice(SKIP_BEFORE, None)
    changes = {
        "attention crosses the skip": (
            "moves",
            (logits(first=_replaced(first, 2, vocab_size)) - reference)[tail],
        ),
        "later tokens are unseen": (
            "still",
            (logits(first=_replaced(first, NUM_TOKENS - 1, vocab_size)) - reference)[:-1],
        ),
        "other samples are unseen": ("still", logits(second=second[::-1].copy()) - reference),
    }
    if skip:
        changes["the skip moves logits"] = ("moves", (logits(skip=0) - reference)[tail])
    checks = [
        _check(name, expected, _largest(change), threshold)
        for name, (expected, change) in changes.items()
    ]
    return {
        "passed": all(check["passed"] for check in checks),
        "attn_implementation": _attn_implementation(model),
        "with_key_bias": with_key_bias,
        "checks": checks,
    }


def require(verdict: dict[str, Any]) -> None:
    """Stop a run whose probe failed.

    Raises:
        VisibilityError: names what failed and the cure.
    """
    failed = [check["name"] for check in verdict["checks"] if not check["passed"]]
    if failed:
        raise VisibilityError(
            f"start-up probe with attn_implementation {verdict['attn_implementation']!r}: "
            + "; ".join(CURES[name] for name in failed)
        )


def _batch(
    first: Int[np.ndarray, " T"], second: Int[np.ndarray, " U"], skip: int, with_key_bias: bool
) -> Batch:
    rows: list[Placed] = []
    for ids, gap in ((first, skip), (second, 0)):
        positions = np.arange(len(ids))
        positions[SKIP_BEFORE:] += gap
        segments = (Segment(0, len(ids), "user", 0, len(ids)),)
        nothing = np.full(len(ids), IGNORE_INDEX)
        example = Example(ids, nothing, segments, np.zeros(0, np.int64), "probe", "probe")
        bias = (np.arange(len(ids)) < SKIP_BEFORE).astype(np.float32) if with_key_bias else None
        rows.append(Placed(example, positions, bias))
    return pad(rows, pad_token_id=0)


def _first_row_logits(model: Any, batch: Batch) -> Float[Tensor, " T V"]:
    parameter = next(model.parameters())
    mask = batch["attention_mask"].to(parameter.device)
    was_training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            output = model(
                input_ids=batch["input_ids"].to(parameter.device),
                position_ids=batch["position_ids"].to(parameter.device),
                attention_mask=fit_mask(mask, parameter.dtype),
            )
    finally:
        model.train(was_training)
    return output.logits[0].float()


def fit_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float mask in the dtype of the attention logits, its lowest value kept finite."""
    if not mask.is_floating_point() or mask.dtype == dtype:
        return mask
    return mask.clamp(min=torch.finfo(dtype).min).to(dtype)


def _replaced(ids: Int[np.ndarray, " T"], index: int, vocab_size: int) -> Int[np.ndarray, " T"]:
    ids = ids.copy()
    ids[index] = (ids[index] + vocab_size // 2) % vocab_size
    return ids


def _largest(change: Tensor) -> float:
    return float(change.abs().max())


def _check(name: str, expected: str, change: float, threshold: float) -> dict[str, Any]:
    passed = change > threshold if expected == "moves" else change <= threshold
    return {
        "name": name,
        "expected": expected,
        "change": change,
        "threshold": threshold,
        "passed": passed,
    }


def _attn_implementation(model: Any) -> str:
    config = getattr(model, "config", None) or model.module.config
    return str(getattr(config, "_attn_implementation", "unknown"))
