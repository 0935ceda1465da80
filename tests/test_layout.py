"""layout.py: what attention and the layout of a batch cannot keep right together."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from skipalign.errors import RecipeError, VisibilityError
from skipalign.key_bias import GapBias
from skipalign.layout import refuse_layout
from skipalign.packing import Packing
from skipalign.positions import Contiguous, PoSE

LONGEST = 100
BLOCKS = {"packing": Packing(max_tokens=256, attention="block_diagonal")}
CAUSAL = {"packing": Packing(max_tokens=256, attention="causal")}
BIAS = {"key_bias": GapBias()}
SKIPS = {"strategies": {"chats": PoSE(max_position=512)}}


def model(attention="sdpa", **config):
    """What is asked of a model here is its config."""
    made = LlamaConfig(num_hidden_layers=2, **config)
    made._attn_implementation = attention
    return SimpleNamespace(config=made)


def refuse(asked, **options):
    layout = {"strategies": {"chats": Contiguous()}, "longest": LONGEST, **options}
    refuse_layout(asked, **layout)


@pytest.mark.parametrize(
    ("options", "attention", "message"),
    [
        (BIAS, "paged|eager", r"'gap' with attn_implementation 'paged\|eager'"),
        (BLOCKS, "paged|eager", r"block_diagonal with attn_implementation 'paged\|eager'"),
        ({**CAUSAL, **SKIPS}, "sdpa", "strategy 'pose' of source 'chats'"),
        ({**CAUSAL, **BIAS}, "sdpa", "causal with key_bias 'gap'"),
    ],
)
def test_what_cannot_be_kept_right_is_refused(options, attention, message):
    with pytest.raises(VisibilityError, match=message):
        refuse(model(attention), **options)
    refuse(model("sdpa"), **{**options, **BLOCKS, "key_bias": None})


@pytest.mark.parametrize("options", [BIAS, BLOCKS], ids=["bias", "packs"])
@pytest.mark.parametrize("kind", ["linear_attention", "conv", "mamba"])
def test_layers_that_carry_a_state_take_neither_biases_nor_borders(options, kind):
    asked = model()
    asked.config.layer_types = ["full_attention", kind]
    with pytest.raises(VisibilityError, match=f"layers of kind {kind}: a state"):
        refuse(asked, **options)
    refuse(asked)


@pytest.mark.parametrize("options", [BIAS, BLOCKS], ids=["bias", "packs"])
def test_masks_that_would_widen_a_sliding_window_are_refused(options):
    narrow, wide = model(), model()
    narrow.config.sliding_window, wide.config.sliding_window = LONGEST - 1, LONGEST
    with pytest.raises(VisibilityError, match=r"99 tokens back .* sample of 100 tokens"):
        refuse(narrow, **options)
    refuse(wide, **options)
    refuse(narrow)


def test_a_logit_scale_that_is_none_is_refused():
    with pytest.raises(RecipeError, match="logit_scale is 'spam'"):
        refuse(model(), logit_scale="spam")
