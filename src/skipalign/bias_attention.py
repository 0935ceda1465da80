"""Key biases inside the attention call, for implementations that take no float mask.

Flash attention adds nothing to its logits. But a logit is a dot product, so that a bias on keys
needs only more of a dimension: where every query has a 1 and key j has b_j / scaling,

    [q, 1] . [k_j, b_j / scaling] * scaling = q . k_j * scaling + b_j

No mask is made, and memory stays linear in the length of a row. Flex attention has a place of its
own for what is added to a logit.

What was run: sdpa, flex (forward) and a plain reference with the call of flash attention, all on
CPU. A real flash kernel was not run.

Shape letters: B batch, H heads, T tokens, D head dimension, E the same with the bias in it.
"""

import inspect
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from skipalign.errors import ModelError, VisibilityError

FLASH = ("flash_attention_2", "flash_attention_3")
FLEX = "flex_attention"
_MULTIPLE = 8  # of head dimensions, to which kernels would pad by a copy of their own
_LARGEST_HEAD = 256  # dimensions of a head in flash attention

Attend = Callable[..., tuple[Tensor, Any]]


def extended(
    query: Float[Tensor, " B H T D"],
    key: Float[Tensor, " B H T D"],
    value: Float[Tensor, " B H T D"],
    key_bias: Float[Tensor, " B T"],
    scaling: float,
) -> tuple[Float[Tensor, " B H T E"], Float[Tensor, " B H T E"], Float[Tensor, " B H T E"]]:
    """Return query, key and value whose attention is that of the old ones with the bias on keys.

    The bias takes two dimensions, its leading bits and the rest, so that bfloat16 holds 16 bits of
    it rather than 8: of biases up to 6 nats the output's error is then 0.0010, against 0.0031 with
    one dimension or in a mask of that dtype, and 0.0009 without any rounding of the bias (root
    mean square, of outputs of 0.57). In float64 it is below 1e-12. Heads of key and value may be
    fewer (grouped queries) and values narrower. Of the output only value's old dimensions count.

    Args:
        query, key, value: of one attention call.
        key_bias: in nats.
        scaling: by which the call multiplies its logits.
    """
    width = query.shape[-1]
    wide = -(-(width + 2) // _MULTIPLE) * _MULTIPLE
    carried = key_bias.to(torch.promote_types(key_bias.dtype, key.dtype)) / scaling
    # Cut at bfloat16 whatever the dtype is: flash attention may still cast what it is given.
    leading = carried.to(torch.bfloat16).to(carried.dtype)
    two = torch.stack([leading, carried - leading], dim=-1).to(key.dtype)
    two = two[:, None].expand(-1, key.shape[1], -1, -1)
    ones = query.new_ones(()).expand(*query.shape[:-1], 2)
    nothing = (0, wide - width - 2)
    pad = torch.nn.functional.pad
    return (
        pad(torch.cat([query, ones], dim=-1), nothing),
        pad(torch.cat([key, two], dim=-1), nothing),
        pad(value, (0, wide - value.shape[-1])),
    )


def through_keys(attend: Attend) -> Attend:
    """Return an attention function of transformers that also takes `key_bias`: Float[" B T"].

    Without one it is `attend` itself. With one and soft-capped logits it raises VisibilityError.
    """

    def attend_with_bias(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *,
        scaling: float | None = None,
        key_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if key_bias is None:
            return attend(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        if kwargs.get("softcap") is not None:
            raise VisibilityError(
                "a key bias inside keys with soft-capped logits: the cap would bend the bias too "
                "- use attn_implementation: eager, or key_bias: none"
            )
        given = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        wide = extended(query, key, value, key_bias, given)
        output, weights = attend(module, *wide, attention_mask, scaling=given, **kwargs)
        return output[..., : value.shape[-1]], weights

    return attend_with_bias


def through_scores(attend: Attend) -> Attend:
    """Return transformers' flex attention that also takes `key_bias`: Float[" B T"].

    Raises:
        ModelError: this release of transformers has no `position_bias` there.
    """
    if "position_bias" not in inspect.signature(attend).parameters:
        raise ModelError(
            "key_bias with flex_attention: this release of transformers adds nothing to its "
            "scores - use a newer one, or attn_implementation: sdpa"
        )

    def attend_with_bias(
        module: Any,
        query: Tensor,
        *args: Any,
        key_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if key_bias is not None:
            # A view: flex reads it by (row, head, query, key), and nothing of that size is made.
            shape = (*query.shape[:3], key_bias.shape[-1])
            kwargs["position_bias"] = key_bias[:, None, None].expand(shape)
        return attend(module, query, *args, **kwargs)

    return attend_with_bias


@contextmanager
def biased_keys(model: Any) -> Generator[None]:
    """While open, `model(..., key_bias=b)` adds b to the logits of its keys: Float[" B T"].

    The attention function that the model is set to is registered anew with transformers, under
    its own name, as one that takes the bias. A call without `key_bias` is as ever.

    Args:
        model: of transformers, wrapped or not, with an implementation other than eager.

    Raises:
        ModelError: its attention is none that is registered, such as eager.
    """
    name = str(getattr(model, "module", model).config._attn_implementation)
    before = ALL_ATTENTION_FUNCTIONS.get(name)
    if before is None:
        raise ModelError(
            f"a key bias inside keys with attn_implementation {name!r}: it is part of the model's "
            "own code - use sdpa or a flash attention"
        )
    AttentionInterface.register(
        name, through_scores(before) if name == FLEX else through_keys(before)
    )
    try:
        yield
    finally:
        AttentionInterface.register(name, before)


def refuse_biased_keys(config: Any, asked: str) -> None:
    """Refuse a key bias inside the attention call where the result would not be the same.

    Args:
        config: of the model.
        asked: what asks for it, for messages.

    Raises:
        VisibilityError: logits are soft-capped, or a head has no room for the bias.
    """
    if config._attn_implementation not in FLASH:
        return
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap is not None:
        raise VisibilityError(
            f"{asked} with {config._attn_implementation} and attn_logit_softcapping {cap}: the "
            "bias goes through the keys there, and the cap would bend it - use "
            "attn_implementation: eager, or key_bias: none"
        )
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    if width + 2 > _LARGEST_HEAD:
        raise VisibilityError(
            f"{asked} with {config._attn_implementation} and heads of {width} dimensions: the "
            f"bias takes two more, and that kernel has {_LARGEST_HEAD} at most - use "
            "attn_implementation: sdpa, or key_bias: none"
        )
