"""Training's logits are multiplied by each sample's own number; nothing else of a model changes."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from made_models import families
from skipalign.errors import ModelError, RecipeError
from skipalign.logit_scale import check_logit_scale, scale_of, scaled_logits
from skipalign.model import extend
from skipalign.rope import Ntk

FAMILIES = families(initializer_range=0.3)  # far from uniform, so that a scale shows


def model_of(family: str, attention: str = "sdpa") -> torch.nn.Module:
    torch.manual_seed(0)
    make, config = FAMILIES[family]
    model = make(config()).double()
    model.set_attn_implementation(attention)
    return model


def inputs(mask: str = "2-D") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(97, (2, 20), generator=generator)
    positions = torch.arange(20).repeat(2, 1)
    positions[0, 7:] += 311
    attention_mask = torch.ones(2, 20, dtype=torch.long)
    if mask == "bias":
        bias = torch.linspace(0, 2, 20).double()
        attention_mask = torch.where(
            torch.ones(20, 20, dtype=torch.bool).tril(), bias, torch.finfo(torch.float64).min
        ).repeat(2, 1, 1, 1)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": attention_mask}


def scaled_by_hand(model: torch.nn.Module, scale: float) -> torch.nn.Module:
    """Multiply what every attention layer multiplies its logits by."""
    twin = copy.deepcopy(model)
    for layer in twin.model.layers:
        layer.self_attn.scaling *= scale
    return twin


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask", ["2-D", "bias"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_scaled_as_a_model_of_that_scaling(family: str, attention: str, mask: str):
    model, batch = model_of(family, attention), inputs(mask)
    scales = torch.tensor([0.25, 1.75], dtype=torch.float64)
    with scaled_logits(model):
        found = model(**batch, logit_scale=scales[:, None].expand(2, 20)).logits
    plain = model(**batch).logits
    for row, scale in enumerate(scales.tolist()):
        expected = scaled_by_hand(model, scale)(**batch).logits[row]
        assert close(found[row], expected)
        assert not torch.allclose(expected, plain[row], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_temperature_in_the_config_multiplies_all_logits_also_behind_qk_norm(family: str):
    """Qwen3 normalises queries and keys; the temperature comes after that, with RoPE."""
    make, config = FAMILIES[family]
    models = []
    for temperature in (1.0, 1.45):
        extended = config()
        extend(extended, Ntk(factor=4.0, temperature=temperature), None, where=family)
        torch.manual_seed(0)
        models.append(make(extended).double())
    plain, warm = (model(**inputs()).logits for model in models)
    expected = scaled_by_hand(models[0], 1.45)(**inputs()).logits
    # transformers turns by float32 frequencies, and YaRN's mix differs in their last place.
    assert (warm - expected).abs().max() < 1e-3 < 0.01 * (plain - expected).abs().max()


def test_a_scale_of_one_and_no_scale_are_the_plain_model():
    model, batch = model_of("llama"), inputs()
    expected = model(**batch).logits
    with scaled_logits(model):
        assert torch.equal(model(**batch, logit_scale=torch.ones(2, 20)).logits, expected)
        model(**batch, logit_scale=torch.full((2, 20), 0.5))
        assert torch.equal(model(**batch).logits, expected), "a scale outlives its batch"
    assert torch.equal(model(**batch).logits, expected)


def test_tokens_of_one_row_may_have_the_scale_of_their_sample():
    """As in a block-diagonal pack: two samples, each as if alone with its own scale."""
    model, batch = model_of("llama"), inputs()
    lowest = torch.finfo(torch.float64).min
    mask = torch.full((20, 20), lowest, dtype=torch.float64).triu(1)
    mask[8:, :8] = lowest
    scale = torch.tensor([0.3] * 8 + [1.5] * 12, dtype=torch.float64).repeat(2, 1)
    packed = {**batch, "attention_mask": mask.repeat(2, 1, 1, 1)}
    with scaled_logits(model):
        found = model(**packed, logit_scale=scale).logits
    for part, value in ((slice(0, 8), 0.3), (slice(8, 20), 1.5)):
        alone = {name: tensor[:, part] for name, tensor in batch.items()}
        expected = scaled_by_hand(model, value)(**alone).logits
        assert close(found[:, part], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_checkpointing(reentrant: bool):
    batch, scale = inputs(), torch.full((2, 20), 0.4, dtype=torch.float64)
    gradients = []
    for checkpointing in (False, True):
        model = model_of("llama").train()
        if checkpointing:
            options = {"use_reentrant": reentrant}
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        with scaled_logits(model):
            loss = model(**batch, labels=batch["input_ids"], logit_scale=scale).loss
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    reference = scaled_by_hand(model_of("llama"), 0.4)
    reference(**batch, labels=batch["input_ids"]).loss.backward()
    gradients.append([parameter.grad for parameter in reference.parameters()])
    for plain, found, expected in zip(*gradients, strict=True):
        assert close(plain, expected)
        assert close(found, expected)


def test_the_model_keeps_its_attention_and_its_hooks_go_away(tmp_path):
    model, batch = model_of("llama"), inputs()
    with scaled_logits(model):
        assert model.config._attn_implementation == "sdpa"
        model(**batch, logit_scale=torch.full((2, 20), 0.5))
        model.save_pretrained(tmp_path)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert close(reloaded(**batch).logits, model(**batch).logits)


def test_rows_without_padding_keep_the_fast_causal_kernel():
    """A scale must not cost the mask its short cut: sdpa with no mask and is_causal."""
    model, batch = model_of("llama"), inputs()
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is plain:
                seen.append((kwargs["attn_mask"], kwargs["is_causal"]))
            return func(*args, **(kwargs or {}))

    with scaled_logits(model), Watch():
        model(**batch, logit_scale=torch.full((2, 20), 0.5))
    assert seen == [(None, True)] * 2


def test_a_bfloat16_model_stays_in_bfloat16():
    model = model_of("llama").bfloat16()
    with scaled_logits(model):
        logits = model(**inputs(), logit_scale=torch.full((2, 20), 0.5)).logits
    assert logits.dtype == torch.bfloat16


def test_a_model_without_rotary_embedding_is_refused():
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 32}
    model = OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=4, word_embed_proj_dim=32))
    with (
        pytest.raises(ModelError, match="OPTForCausalLM has no rotary"),
        scaled_logits(model),
    ):
        pass


def test_partial_rotary_embedding_is_not_scaled_as_a_whole():
    """Why the start-up probe compares: here the dimensions that do not turn keep their logits."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    model, batch = GPTNeoXForCausalLM(config).double(), inputs()
    with scaled_logits(model):
        found = model(**batch, logit_scale=torch.full((2, 20), 0.25).double()).logits
    twin = copy.deepcopy(model)
    twin.gpt_neox.layers[0].attention.scaling *= 0.25
    assert not torch.allclose(found, twin(**batch).logits, atol=1e-2)


def test_span_is_the_sample_s_own():
    assert scale_of(np.arange(9), "span") == 1.0
    assert scale_of(np.array([4, 5, 6]), "span") == 1.0
    assert scale_of(np.array([7]), "span") == 1.0
    skipped = np.array([3, 4, 5, 18])
    assert scale_of(skipped, "span") == pytest.approx(math.log(4) / math.log(16))
    assert scale_of(skipped, 0.7) == 0.7


@pytest.mark.parametrize("value", ["window", 0, -1.0, math.inf, math.nan, True])
def test_what_is_no_scale_is_refused(value: object):
    with pytest.raises(RecipeError, match=r"logit_scale is .*number above 0, or 'span'"):
        check_logit_scale(value)


@pytest.mark.parametrize("value", [None, "span", 1, 0.5, 2.0])
def test_what_is_a_scale_is_taken(value: float | str | None):
    check_logit_scale(value)
