"""A key bias inside the attention call equals the one in an additive mask; gradients too."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Gemma2Config, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from made_models import SIZES
from skipalign.bias_attention import biased_keys, extended, refuse_biased_keys, through_keys
from skipalign.errors import ModelError, VisibilityError

LENGTH, SCALING = 50, 0.3


def drawn(dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """Query, key and value of 4 heads that share 2, values narrower than keys; gap-like biases."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(2, 4, LENGTH, 24), (2, 2, LENGTH, 24), (2, 2, LENGTH, 16)]
    made = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    bias = 6 * torch.rand(2, LENGTH, generator=random, dtype=torch.float64)
    return [*(each.to(dtype).requires_grad_() for each in made), bias]


def by_mask(query, key, value, bias):
    """The plain way: softmax over the logits plus an additive mask of queries x keys."""
    lowest = torch.finfo(query.dtype).min
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    mask = torch.where(causal, bias[:, None, None, :], lowest).to(query.dtype)
    return scaled_dot_product_attention(query, key, value, mask, scale=SCALING, enable_gqa=True)


def by_keys(query, key, value, bias):
    wide = extended(query, key, value, bias, SCALING)
    out = scaled_dot_product_attention(*wide, is_causal=True, scale=SCALING, enable_gqa=True)
    return out[..., : value.shape[-1]]


def gradients(output: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    return list(torch.autograd.grad((output.double() * weights).sum(), tensors))


def test_extended_keys_equal_the_additive_mask_in_float64_with_their_gradients():
    *tensors, bias = drawn(torch.float64)
    expected, found = by_mask(*tensors, bias), by_keys(*tensors, bias)
    assert (found - expected).abs().max() < 1e-12
    unbiased = by_keys(*tensors, torch.zeros_like(bias))
    assert (unbiased - expected).abs().max() > 0.1, "the bias must matter"
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert one.abs().max() > 0.01
        assert (one - other).abs().max() < 1e-11  # sums of 50 terms of up to 30


def test_head_dimensions_stay_multiples_of_eight_and_values_get_zeros():
    *tensors, bias = drawn(torch.float32)
    query, key, value = extended(*tensors, bias.float(), SCALING)
    assert query.shape == (2, 4, LENGTH, 32)
    assert key.shape == value.shape == (2, 2, LENGTH, 32)
    assert not value[..., 16:].any()
    assert not key[..., 26:].any()


def errors_in_bfloat16(seed: int) -> dict[str, float]:
    """Root mean square errors of the output against float64, of inputs that bfloat16 holds."""
    *tensors, bias = drawn(torch.bfloat16, seed)
    exact = by_mask(*(each.double() for each in tensors), bias)
    one = (bias / SCALING).bfloat16().double() * SCALING  # what a single dimension would hold
    found = {
        "no rounding of the bias": by_mask(*(each.double() for each in tensors), bias).bfloat16(),
        "one dimension": by_keys(*tensors, one),
        "two dimensions": by_keys(*tensors, bias),
        "mask": by_mask(*tensors, bias),
    }
    return {
        name: float((output.detach().double() - exact.detach()).square().mean().sqrt())
        for name, output in found.items()
    }


def test_two_dimensions_lose_less_in_bfloat16_than_one_or_a_mask():
    every = [errors_in_bfloat16(seed) for seed in range(5)]
    mean = {name: sum(each[name] for each in every) / 5 for name in every[0]}
    assert mean["two dimensions"] < 0.7 * mean["one dimension"], mean
    assert mean["two dimensions"] < 0.7 * mean["mask"], mean
    assert mean["two dimensions"] < 0.005, mean  # outputs have a root mean square of about 0.4


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).double().train()


def batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    positions = torch.arange(20) + 900 * (torch.arange(20) >= 9)
    return {
        "input_ids": torch.randint(0, 97, (2, 20), generator=random),
        "position_ids": positions.expand(2, -1),
        "labels": torch.randint(0, 97, (2, 20), generator=random),
    }


def float_mask(is_token: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    length = bias.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & is_token[:, None, None].bool()
    return torch.where(seen, bias[:, None, None], torch.finfo(bias.dtype).min)


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("padded", [0, 6])
def test_a_model_trains_the_same_through_keys_as_by_a_float_mask(model, padded, checkpointing):
    inputs = batch()
    is_token = torch.ones(2, 20, dtype=torch.long)
    if padded:
        is_token[1, -padded:] = 0
        inputs["labels"][1, -padded:] = -100
    bias = 5 * torch.rand(2, 20, dtype=torch.float64)
    expected = loss_and_gradients(model, **inputs, attention_mask=float_mask(is_token, bias))
    if checkpointing:
        model.gradient_checkpointing_enable()
    with biased_keys(model):
        found = loss_and_gradients(model, **inputs, attention_mask=is_token, key_bias=bias)
        without = loss_and_gradients(model, **inputs, attention_mask=is_token)
    assert found[0] == pytest.approx(expected[0], abs=1e-12)
    assert without[0] != pytest.approx(expected[0], abs=1e-4)
    for one, other in zip(found[1], expected[1], strict=True):
        assert torch.allclose(one, other, atol=1e-12, rtol=0)


def test_the_attention_of_before_is_back_afterwards_also_after_an_error(model):
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with biased_keys(model):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with pytest.raises(ZeroDivisionError), biased_keys(model):
        raise ZeroDivisionError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_without_a_scaling_the_call_keeps_its_default_of_the_old_head_dimension():
    *tensors, bias = drawn(torch.float64)
    tensors[2] = tensors[1]
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    attend = through_keys(sdpa_attention_forward)
    given, _ = attend(module, *tensors, None, scaling=1 / math.sqrt(24), key_bias=bias)
    default, _ = attend(module, *tensors, None, key_bias=bias)
    assert torch.equal(given, default)


def test_what_cannot_be_right_is_refused(model):
    config = LlamaConfig(**SIZES)
    config._attn_implementation = "flash_attention_2"
    refuse_biased_keys(config, "key_bias 'gap'")
    config.head_dim = 256
    with pytest.raises(VisibilityError, match="heads of 256 dimensions"):
        refuse_biased_keys(config, "key_bias 'gap'")
    capped = Gemma2Config(head_dim=64)
    capped._attn_implementation = "flash_attention_2"
    with pytest.raises(VisibilityError, match=r"attn_logit_softcapping 50\.0"):
        refuse_biased_keys(capped, "key_bias 'gap'")
    *tensors, bias = drawn(torch.float64)
    with pytest.raises(VisibilityError, match="soft-capped"):
        through_keys(sdpa_attention_forward)(None, *tensors, None, key_bias=bias, softcap=50.0)
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="'eager'"), biased_keys(model):
        pass


def test_flex_attention_adds_the_bias_to_its_scores(model):
    inputs = batch()
    is_token = torch.ones(2, 20, dtype=torch.long)
    is_token[1, -6:] = 0
    bias = 5 * torch.rand(2, 20)
    model.float().eval()
    expected = model(**inputs, attention_mask=float_mask(is_token, bias)).logits
    model.set_attn_implementation("flex_attention")
    # The compiled kernel takes half a minute to build; torch's own plain form is the same.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), biased_keys(model):
        found = model(**inputs, attention_mask=is_token, key_bias=bias).logits
    seen = is_token.bool()
    assert torch.allclose(found[seen], expected[seen], atol=2e-5)


def test_a_release_of_transformers_without_a_place_for_it_is_refused(model):
    config = model.config
    before = ALL_ATTENTION_FUNCTIONS["flex_attention"]
    config._attn_implementation = "flex_attention"
    AttentionInterface.register("flex_attention", lambda *args, **kwargs: None)
    try:
        with pytest.raises(ModelError, match="a newer one"), biased_keys(model):
            pass
    finally:
        AttentionInterface.register("flex_attention", before)
