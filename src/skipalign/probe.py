"""The start-up probe: does the model, wrapped as it trains, see what the batch says it sees?

transformers changed how it guesses document borders from position ids five times in two years,
and a wrong guess leaves the loss healthy. So every run asks the model itself before step 1, with
a small batch of the run's own layout. One sample is watched, with a skip in its middle; others
stand beside it, in a row of their own and, in packs, before it in its row.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from skipalign.batch import Batch, Placed, pack, pad
from skipalign.borders import implementation_of, takes_borders, visibility
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import ModelError, VisibilityError
from skipalign.packing import Attention
from skipalign.positions import sample_rng

NUM_TOKENS = 24
SKIP_BEFORE = 12
LONGEST_SKIP = 997
PROBED_SCALE = 3.0
SEEN = ("input_ids", "position_ids", "key_bias", "logit_scale")
_NUM_BESIDE = NUM_TOKENS - 4

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
    "earlier samples are seen": (
        "attention is cut between the samples of a causal pack, so long rows teach no long "
        "distances - use attn_implementation: sdpa or eager, or another release of transformers"
    ),
    "later tokens are unseen": (
        "tokens see the ones after them, so the answer is given away - use attn_implementation: "
        "sdpa or eager"
    ),
    "the key bias moves logits": (
        "the key bias changes nothing: it does not reach the attention of this model - use "
        "attn_implementation: sdpa, or key_bias: none"
    ),
    "the scale moves logits": (
        "logit_scale changes nothing: it does not reach the rotary embedding - leave it out"
    ),
    "the scale is of all logits": (
        "logit_scale does not multiply the whole of the attention logits, as with heads or layers "
        "that turn in part or not at all - leave it out, or choose a model such as Llama, Mistral "
        "or Qwen3"
    ),
}


@dataclass(frozen=True, slots=True)
class _Case:
    """What one pass is fed: the watched sample, `beside` in its row, `other` in the next."""

    watched: Int[np.ndarray, " T"]
    beside: Int[np.ndarray, " U"]
    other: Int[np.ndarray, " U"]
    skip: int
    scale: float
    other_scale: float
    bias: float
    vocab_size: int


@dataclass(frozen=True, slots=True)
class _Layout:
    with_key_bias: bool
    with_logit_scale: bool
    packed: Attention | None
    float_mask: bool


Logits = Callable[..., Float[Tensor, " T V"]]


def probe(
    model: Any,
    *,
    max_position: int,
    with_key_bias: bool = False,
    with_logit_scale: bool = False,
    packed: Attention | None = None,
) -> dict[str, Any]:
    """Change one thing at a time in a small batch and see which logits move.

    The model runs as it trains (training mode, checkpointing, wrappers), without gradients, with
    the same dropout in every pass, and leaves the random state as it was.

    Args:
        model: the model as the Trainer wrapped it.
        max_position: ids of the run lie in [0, max_position); bounds the probe's skip.
        with_key_bias: probe a key bias, in the 4-D float mask or, where the attention takes none,
            under `bias_attention.biased_keys(model)`.
        with_logit_scale: probe the scale, under `logit_scale.scaled_logits(model)`.
        packed: probe rows of several samples with this attention.

    Returns:
        {passed, attn_implementation, with_key_bias, with_logit_scale, packed, checks: [{name,
        expected, change, threshold, passed}]}, changes in logits.

    Raises:
        ModelError: there is nothing to compare the logit scale with.
    """
    implementation = implementation_of(model)
    layout = _Layout(with_key_bias, with_logit_scale, packed, not takes_borders(implementation))
    longest_skip = 0 if packed == "causal" else min(LONGEST_SKIP, max_position - NUM_TOKENS)
    case = _drawn_case(model, max(0, longest_skip))

    def logits(**changed: Any) -> Float[Tensor, " T V"]:
        return _watched_logits(model, _batch(replace(case, **changed), layout))

    reference = logits()
    noise = _largest(logits() - reference)
    threshold = 10 * noise + 1e-6 * _largest(reference)
    checks = [
        _check(name, expected, _largest(change), threshold)
        for name, (expected, change) in _changes(logits, reference, case, layout).items()
    ]
    if with_logit_scale:
        checks += _scale_checks(model, logits, reference, threshold)
    return {
        "passed": all(check["passed"] for check in checks),
        "attn_implementation": implementation,
        "with_key_bias": with_key_bias,
        "with_logit_scale": with_logit_scale,
        "packed": packed,
        "checks": checks,
    }


def _drawn_case(model: Any, skip: int) -> _Case:
    vocab_size = getattr(model, "module", model).get_input_embeddings().weight.shape[0]
    rng = sample_rng(0, 0, "start-up probe")
    return _Case(
        watched=rng.integers(0, vocab_size, NUM_TOKENS),
        beside=rng.integers(0, vocab_size, _NUM_BESIDE),
        other=rng.integers(0, vocab_size, _NUM_BESIDE),
        skip=skip,
        scale=PROBED_SCALE,
        other_scale=PROBED_SCALE,
        bias=1.0,
        vocab_size=vocab_size,
    )


def _changes(
    logits: Logits, reference: Float[Tensor, " T V"], case: _Case, layout: _Layout
) -> dict[str, tuple[str, Tensor]]:
    """Return what is expected of each change, and by how much the watched logits moved."""
    others = {"other": case.other[::-1].copy(), "other_scale": 1.0}
    beside = {"beside": case.beside[::-1].copy()}
    tail = slice(SKIP_BEFORE, None)
    first = logits(watched=_replaced(case.watched, 2, case.vocab_size)) - reference
    last = logits(watched=_replaced(case.watched, NUM_TOKENS - 1, case.vocab_size)) - reference
    changes = {
        "attention crosses the skip": ("moves", first[tail]),
        "later tokens are unseen": ("still", last[:-1]),
    }
    if layout.packed == "causal":
        changes["other samples are unseen"] = ("still", logits(**others) - reference)
        changes["earlier samples are seen"] = ("moves", (logits(**beside) - reference)[-1:])
    else:
        changes["other samples are unseen"] = ("still", logits(**others, **beside) - reference)
    if case.skip:
        changes["the skip moves logits"] = ("moves", (logits(skip=0) - reference)[tail])
    if layout.with_key_bias:
        changes["the key bias moves logits"] = ("moves", (logits(bias=0.0) - reference)[tail])
    return changes


def _scale_checks(
    model: Any, logits: Logits, reference: Float[Tensor, " T V"], threshold: float
) -> list[dict[str, Any]]:
    """Compare the scale in the batch with one written into the attention layers."""
    plain = logits(scale=1.0, other_scale=1.0)
    with _attention_scaled(model, PROBED_SCALE):
        by_layers = logits(scale=1.0, other_scale=1.0)
    # The two round differently, in whatever precision the model runs. So does a scale that is a
    # little larger: by so much they may differ. Logits left out differ several times as much.
    nearly = logits(scale=1.02 * PROBED_SCALE) - reference
    return [
        _check("the scale moves logits", "moves", _largest(reference - plain), threshold),
        _check(
            "the scale is of all logits",
            "still",
            _root_mean_square(reference - by_layers),
            threshold + 1.5 * _root_mean_square(nearly),
        ),
    ]


@contextmanager
def _attention_scaled(model: Any, factor: float) -> Generator[None]:
    """Multiply the `scaling` of every attention layer, by which transformers scales logits."""
    layers = [m for m in model.modules() if isinstance(getattr(m, "scaling", None), float)]
    if not layers:
        raise ModelError(
            f"logit_scale: no layer of {_name(model)} has the attribute `scaling` to compare "
            "with, so that it cannot be shown to be right - leave logit_scale out"
        )
    before = [layer.scaling for layer in layers]
    try:
        for layer in layers:
            layer.scaling *= factor
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


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


def _batch(case: _Case, layout: _Layout) -> Batch:
    float_mask = layout.float_mask
    watched = _placed(case.watched, case.skip, case.scale, case.bias, layout)
    other = _placed(case.other, 0, case.other_scale, case.bias, layout)
    if layout.packed is None:
        return pad([watched, other], 0, float_mask=float_mask)
    # In a causal pack a row is one text and has one scale.
    scale = case.scale if layout.packed == "causal" else case.other_scale
    beside = _placed(case.beside, 0, scale, case.bias, layout)
    return pack([[beside, watched], [other]], 0, layout.packed, float_mask=float_mask)


def _placed(
    ids: Int[np.ndarray, " T"], skip: int, scale: float, height: float, layout: _Layout
) -> Placed:
    positions = np.arange(len(ids))
    positions[SKIP_BEFORE:] += skip
    segments = (Segment(0, len(ids), "user", 0, len(ids)),)
    nothing = np.full(len(ids), IGNORE_INDEX)
    example = Example(ids, nothing, segments, np.zeros(0, np.int64), "probe", "probe")
    bias = np.where(np.arange(len(ids)) < SKIP_BEFORE, height, 0).astype(np.float32)
    return Placed(
        example,
        positions,
        bias if layout.with_key_bias else None,
        scale if layout.with_logit_scale else None,
    )


def _watched_logits(model: Any, batch: Batch) -> Float[Tensor, " T V"]:
    """Return the logits of the watched sample, in the first row behind the one beside it if any."""
    parameter = next(model.parameters())
    tensors = {
        name: value.to(parameter.device) for name, value in cast(dict[str, Tensor], batch).items()
    }
    inputs = {name: tensors[name] for name in SEEN if name in tensors}
    seen = visibility(tensors, implementation_of(model), parameter.dtype)
    was_training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            output = model(**inputs, **seen)
    finally:
        model.train(was_training)
    start = _NUM_BESIDE if "sample_ids" in batch else 0
    return output.logits[0, start : start + NUM_TOKENS].float()


def _replaced(ids: Int[np.ndarray, " T"], index: int, vocab_size: int) -> Int[np.ndarray, " T"]:
    ids = ids.copy()
    ids[index] = (ids[index] + vocab_size // 2) % vocab_size
    return ids


def _largest(change: Tensor) -> float:
    return float(change.abs().max())


def _root_mean_square(change: Tensor) -> float:
    return float(change.square().mean().sqrt())


def _check(name: str, expected: str, change: float, threshold: float) -> dict[str, Any]:
    passed = change > threshold if expected == "moves" else change <= threshold
    return {
        "name": name,
        "expected": expected,
        "change": change,
        "threshold": threshold,
        "passed": passed,
    }


def _name(model: Any) -> str:
    return type(getattr(model, "module", model)).__name__
