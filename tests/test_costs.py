"""Costs by arithmetic, held against models that are built, counted and measured."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from made_scripts import script
from skipalign.costs import LINEARS, PARTS, Load, LowRank, memory, token_flops
from skipalign.errors import RecipeError
from skipalign.shapes import shape_of

MEASURED = script("benchmarks/plan_memory.py")


def model_of(model_type: str, **more: Any) -> tuple[Any, Any]:
    """Return the config and a model on no device, with three layers."""
    sizes = {**MEASURED.sizes(64, 3, 8, 320), **more}
    config = AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(model_type: str, tied: bool):
    config, model = model_of(model_type, tie_word_embeddings=tied)
    found = shape_of(config, where="here").parameters
    assert found == sum(each.numel() for each in model.parameters())


def test_flops_are_those_that_torch_counts_but_for_the_half_that_is_not_causal():
    config, model = model_of("llama")
    shape = shape_of(config, where="here")
    tokens = 32
    ids = torch.zeros(2, tokens, dtype=torch.long, device="meta")
    positions = torch.arange(tokens, device="meta")[None]
    mask = torch.zeros(2, 1, tokens, tokens, device="meta")
    with FlopCounterMode(display=False) as counter:
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        model(**inputs, use_cache=False).logits.sum().backward()
    unseen = 6 * shape.num_layers * shape.q * tokens
    counted = counter.get_total_flops()
    assert counted == 2 * tokens * (token_flops(shape, tokens) + unseen)


def test_frozen_weights_cost_two_thirds():
    shape = shape_of(model_of("llama")[0], where="here")
    adapter = LowRank(r=1, targets=("q_proj",), embeddings=1)
    whole, frozen = token_flops(shape, 0), token_flops(shape, 0, adapter)
    assert frozen == whole * 4 // 6 + 6 * 3 * (64 + 64)


def test_what_low_ranks_train_is_what_peft_trains():
    from peft import LoraConfig, get_peft_model

    for model_type, norms in (("qwen3", ["q_norm", "k_norm"]), ("llama", [])):
        config, model = model_of(model_type)
        norms += ["norm", "input_layernorm", "post_attention_layernorm", "embed_tokens"]
        targets = list(LINEARS)
        wrapped = get_peft_model(
            model, LoraConfig(r=3, target_modules=targets, modules_to_save=norms)
        )
        adapter = LowRank(r=3, targets=targets, embeddings=1, norms=True)
        trained = sum(each.numel() for each in wrapped.parameters() if each.requires_grad)
        assert adapter.trained(shape_of(config, where="here")) == trained


# At the loss every tensor is counted; the end of the backward pass is bounded from above.
CASES = {
    "autocast, padded": ("qwen3", Load(rows=2, tokens=256, autocast=True, mask="padding"), 0.02),
    "float32, key bias, computed twice": (
        "llama",
        Load(rows=2, tokens=256, checkpointing=True, mask="float"),
        0.15,
    ),
    "autocast, key bias": ("qwen3", Load(rows=2, tokens=384, autocast=True, mask="float"), 0.02),
    "bfloat16, two passes": (
        "llama",
        Load(rows=1, tokens=512, weight_bytes=2, accumulates=True),
        0.02,
    ),
    "low rank": ("qwen3", Load(rows=2, tokens=256, adapter=LowRank(r=8, targets=LINEARS)), 0.02),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_is_what_a_step_takes(name: str):
    room = MEASURED
    model_type, load, tolerance = CASES[name]
    passes = 2 if load.accumulates else 1
    sizes = room.sizes(256, 4, 8, 4000)
    case = room.Case(model_type=model_type, sizes=sizes, load=load, steps_of_rows=passes)
    measured = room.measured(case)
    assert measured > 80e6
    assert room.planned(case).peak == pytest.approx(measured, rel=tolerance)


def test_every_setting_moves_the_part_that_it_is_about():
    shape = shape_of(model_of("llama")[0], where="here")
    plain = Load(rows=2, tokens=128)
    before = memory(shape, plain).parts
    assert tuple(before) == PARTS

    def changed(**settings: Any) -> set[str]:
        after = memory(shape, replace(plain, **settings)).parts
        return {name for name in PARTS if after[name] != before[name]}

    assert changed(shards=4) == {"weights", "gradients", "optimizer", "temporary"}
    assert changed(optimizer="sgd") == {"optimizer"}
    assert changed(checkpointing=True) == {"activations", "temporary"}
    assert changed(eager=True) == {"activations"}
    assert changed(mask="padding") == {"activations", "temporary"}
    assert changed(tokens=256) == {"activations", "logits", "temporary"}
    four_bit = LowRank(r=4, targets=LINEARS, four_bit=True)
    assert changed(adapter=four_bit) >= {"weights", "gradients", "optimizer", "activations"}
    assert changed(whole_logits=False) == {"logits"}
    assert changed(accumulates=True) == set()
    assert memory(shape, replace(plain, accumulates=True)).peak > memory(shape, plain).peak


def test_an_optimizer_that_is_not_known_is_refused():
    with pytest.raises(
        RecipeError, match="'adafactor'; what it keeps in memory is known for adamw"
    ):
        Load(rows=1, tokens=1, optimizer="adafactor")
