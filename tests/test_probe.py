"""The start-up probe passes right models and names what is wrong with broken ones."""

import pytest
import torch
from transformers import (
    AttentionInterface,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from made_models import SIZES
from skipalign.errors import VisibilityError
from skipalign.logit_scale import scaled_logits
from skipalign.packing import Attention
from skipalign.probe import NUM_TOKENS, probe, require


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


class Broken(torch.nn.Module):
    """A wrapper that spoils one input on its way to the model."""

    def __init__(self, model: LlamaForCausalLM, spoil: str) -> None:
        super().__init__()
        self.module = model
        self.spoil = spoil

    def forward(self, input_ids, position_ids, attention_mask, logit_scale=None):
        if self.spoil == "mask":
            attention_mask = None
        if self.spoil == "borders":
            causal = torch.ones(input_ids.shape[1], input_ids.shape[1]).tril()[None, None]
            attention_mask = torch.where(causal == 1, 0.0, torch.finfo(torch.float32).min)
        if self.spoil == "packed":
            length = input_ids.shape[1]
            attention_mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
            border = length - NUM_TOKENS
            attention_mask[border:, :border] = torch.finfo(torch.float32).min
            attention_mask = attention_mask[None, None]
        if self.spoil == "positions":
            position_ids = torch.arange(input_ids.shape[1])[None].expand_as(input_ids)
        output = self.module(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
            **(
                {} if logit_scale is None or self.spoil == "scale" else {"logit_scale": logit_scale}
            ),
        )
        if self.spoil == "samples":
            output.logits = output.logits + output.logits.mean(dim=0, keepdim=True)
        if self.spoil == "future":
            output.logits = output.logits + output.logits.mean(dim=1, keepdim=True)
        return output


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_models_pass(
    model: LlamaForCausalLM, attention: str, biased: bool, dtype: torch.dtype
):
    model.set_attn_implementation(attention)
    verdict = probe(model.to(dtype), max_position=4096, with_key_bias=biased)
    require(verdict)
    assert verdict["attn_implementation"] == attention
    assert len(verdict["checks"]) == 4 + biased
    moved = {c["name"]: c["change"] for c in verdict["checks"] if c["expected"] == "moves"}
    assert min(moved.values()) > 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("mask", "attention is cut at the skip"),
        ("positions", "ignores position_ids"),
        ("samples", "sees another"),
        ("future", "the answer is given away"),
    ],
)
def test_broken_models_are_stopped_with_the_cure(model: LlamaForCausalLM, spoil: str, message: str):
    verdict = probe(Broken(model, spoil), max_position=4096)
    assert not verdict["passed"]
    with pytest.raises(VisibilityError, match=message):
        require(verdict)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_models_pass_with_block_diagonal_packs(
    model: LlamaForCausalLM, attention: str, biased: bool, scaled: bool, dtype: torch.dtype
):
    model.set_attn_implementation(attention)
    with scaled_logits(model):
        verdict = probe(
            model.to(dtype),
            max_position=4096,
            with_key_bias=biased,
            with_logit_scale=scaled,
            packed="block_diagonal",
        )
    require(verdict)
    assert len(verdict["checks"]) == (6 if scaled else 4) + biased
    assert verdict["packed"] == "block_diagonal"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scaled", [False, True])
def test_right_models_pass_with_causal_packs(model, attention: str, scaled: bool):
    model.set_attn_implementation(attention)
    with scaled_logits(model):
        verdict = probe(model, max_position=4096, with_logit_scale=scaled, packed="causal")
    require(verdict)
    expected = {c["name"]: c["expected"] for c in verdict["checks"]}
    assert expected["earlier samples are seen"] == "moves"
    assert "the skip moves logits" not in expected


@pytest.mark.parametrize(
    ("spoil", "packed", "message"),
    [
        ("borders", "block_diagonal", "sees another"),
        ("samples", "block_diagonal", "sees another"),
        ("packed", "causal", "cut between the samples"),
    ],
)
def test_packs_that_are_not_kept_apart_or_together_are_stopped(
    model: LlamaForCausalLM, spoil: str, packed: Attention, message: str
):
    verdict = probe(Broken(model, spoil), max_position=4096, packed=packed)
    with pytest.raises(VisibilityError, match=message):
        require(verdict)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_that_does_not_arrive_is_stopped(model: LlamaForCausalLM, dtype: torch.dtype):
    with scaled_logits(model):
        verdict = probe(Broken(model.to(dtype), "scale"), max_position=4096, with_logit_scale=True)
    with pytest.raises(VisibilityError, match="logit_scale changes nothing"):
        require(verdict)


def test_a_scale_of_a_part_of_the_logits_is_stopped():
    """Partial rotary embedding: most dimensions of a head do not turn and keep their logits."""
    torch.manual_seed(0)
    sizes = {**SIZES, "initializer_range": 0.1}
    sizes.pop("num_key_value_heads")
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
    with scaled_logits(model):
        verdict = probe(model, max_position=4096, with_logit_scale=True)
    require(probe(model, max_position=4096))
    with pytest.raises(VisibilityError, match="the whole of the attention logits"):
        require(verdict)


def test_the_probe_of_a_scale_leaves_the_layers_as_they_were(model: LlamaForCausalLM):
    before = [layer.self_attn.scaling for layer in model.model.layers]
    with scaled_logits(model):
        probe(model, max_position=4096, with_logit_scale=True)
    assert [layer.self_attn.scaling for layer in model.model.layers] == before


def test_an_attention_that_ignores_the_mask_is_stopped(model: LlamaForCausalLM):
    def blind(module, query, key, value, attention_mask, scaling, **kwargs):
        key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return output.transpose(1, 2), None

    AttentionInterface.register("blind", blind)
    model.set_attn_implementation("blind")
    with pytest.raises(VisibilityError, match="the ones after them"):
        require(probe(model, max_position=4096))


def test_probe_leaves_model_and_random_state_alone(model: LlamaForCausalLM):
    model.eval()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    probe(model, max_position=4096)
    assert torch.equal(torch.rand(1), expected)
    assert not model.training


def test_dropout_does_not_pass_for_change():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.5))
    require(probe(model, max_position=4096))
    assert not probe(Broken(model, "positions"), max_position=4096)["passed"]


def test_a_range_without_room_for_a_skip_checks_the_rest(model: LlamaForCausalLM):
    verdict = probe(model, max_position=10)
    assert verdict["passed"]
    assert len(verdict["checks"]) == 3
