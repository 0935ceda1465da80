"""One number per sample by which training multiplies its attention logits; evaluation uses 1.

A short row has few keys, so its attention is sharp; the same weights on a long text spread thinner.
Training with logits scaled by s < 1 shows the model thin attention in a short row: the cheapest
rival of a key bias, and one that any attention implementation can run.

It is done where YaRN puts its temperature, in cos and sin of the rotary embedding: both times
sqrt(s) at every token makes q . k times s between all tokens of a sample. Nothing of it is in the
saved model.

Shape letters: B batch, T tokens, D dimensions of a head that turn.
"""

import math
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from skipalign.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

SPAN = "span"


def check_logit_scale(value: float | str | None) -> None:
    """Accept None, a number above 0, or `span`.

    Raises:
        RecipeError: it is something else.
    """
    if value is None or value == SPAN:
        return
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    # Integers of YAML may be larger than any float.
    if not 0 < number <= sys.float_info.max:
        raise RecipeError(
            f"logit_scale is {repr(value)[:80]}; attention logits are multiplied by it in "
            "training: give a number above 0, or 'span' for log T / log(last position - first + 1) "
            "of each sample"
        )


def scale_of(position_ids: Int[np.ndarray, " T"], logit_scale: float | str) -> float:
    """Return the scale of one sample.

    `span` is log T / log(last position - first + 1), 1 for a sample that does not skip: as if its
    T tokens' attention were as thin as that of a text of the whole span.
    """
    if logit_scale != SPAN:
        return float(logit_scale)
    span = int(position_ids[-1] - position_ids[0]) + 1
    return 1.0 if span == len(position_ids) else math.log(len(position_ids)) / math.log(span)


@contextmanager
def scaled_logits(model: Any) -> Generator[None]:
    """While open, `model(..., logit_scale=s)` multiplies attention logits by s: Float[" B T"].

    All tokens of a sample must carry the same s. A call without `logit_scale` is as ever.

    Args:
        model: of transformers, wrapped or not; hooks are put on it and taken away again.

    Raises:
        ModelError: it has no rotary embedding module.
    """
    rotary = [module for module in model.modules() if hasattr(module, "attention_scaling")]
    if not rotary:
        raise ModelError(
            f"logit_scale: {type(model).__name__} has no rotary embedding module of transformers "
            "through which attention logits could be scaled - leave logit_scale out"
        )
    current: dict[str, Tensor | None] = {"scale": None}

    def take(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # It stays until the next call: checkpointing may run a layer again in the backward pass.
        current["scale"] = kwargs.pop("logit_scale", None)
        return args, kwargs

    def stretch(_: Any, __: Any, output: "tuple[Tensor, ...] | Tensor") -> Any:
        scale = current["scale"]
        if scale is None:
            return output
        if isinstance(output, tuple):
            return tuple(_times_root(part, scale) for part in output)
        return _times_root(output, scale)

    handles = [model.register_forward_pre_hook(take, with_kwargs=True)]
    handles += [module.register_forward_hook(stretch) for module in rotary]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _times_root(part: "Float[Tensor, ' B T D']", scale: "Float[Tensor, ' B T']") -> "Tensor":
    wide = scale + part.new_zeros(1)  # in the wider of the two dtypes
    return (part * wide.sqrt()[..., None]).to(part.dtype)
