"""RoPE extensions against their formulas, and against transformers' own frequencies."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from skipalign.errors import ModelError, RecipeError
from skipalign.rope import ROPE_EXTENSIONS, Linear, NoExtension, Ntk, RopeBase, Spelled, Yarn

PLAIN = RopeBase({"rope_type": "default", "rope_theta": 10_000.0}, head_dim=32, window=128)


def frequencies(parameters: dict[str, object], window: int) -> tuple[torch.Tensor, float]:
    """Return transformers' inverse frequencies and factor on cos and sin for `parameters`."""
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=window,
        rope_parameters=parameters,
    )
    rope = LlamaRotaryEmbedding(config)
    return rope.inv_freq, rope.attention_scaling


def plain(theta: float) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, 32, 2).float() / 32)


def test_ntk_raises_the_base():
    parameters, window = Ntk(factor=8.0).apply(PLAIN, 0)
    assert window == 1024
    assert parameters["rope_theta"] == pytest.approx(10_000 * 8 ** (32 / 30))
    found, scaling = frequencies(parameters, window)
    assert torch.allclose(found, plain(10_000 * 8 ** (32 / 30)))
    assert scaling == 1.0


def test_temperature_lives_in_the_config_and_leaves_frequencies_alone():
    bare, window = Ntk(factor=8.0).apply(PLAIN, 0)
    warm, _ = Ntk(factor=8.0, temperature=1.45).apply(PLAIN, 0)
    (expected, _), (found, scaling) = frequencies(bare, window), frequencies(warm, window)
    # YaRN mixes two equal sets of frequencies: a unit in the last place of float32.
    assert torch.allclose(found, expected, rtol=2e-7, atol=0)
    assert scaling**2 == pytest.approx(1.45)


def test_linear_divides_every_frequency():
    parameters, window = Linear(factor=4.0).apply(PLAIN, 0)
    assert window == 512
    assert torch.allclose(frequencies(parameters, window)[0], plain(10_000) / 4)


def test_yarn_keeps_its_own_temperature_unless_told():
    parameters, window = Yarn(factor=8.0).apply(PLAIN, 0)
    assert frequencies(parameters, window)[1] == pytest.approx(
        0.1 * torch.log(torch.tensor(8.0)) + 1
    )
    told, _ = Yarn(factor=8.0, temperature=2.0).apply(PLAIN, 0)
    assert frequencies(told, window)[1] ** 2 == pytest.approx(2.0)


@pytest.mark.parametrize("extension", [Linear(), Ntk(), Yarn()])
def test_factor_comes_from_max_position_when_it_is_left_out(extension: Linear | Ntk | Yarn):
    assert extension.apply(PLAIN, 1024)[1] == 1024
    assert extension.stretch(PLAIN, 1024)[0] == 8
    assert extension.reach(PLAIN) is None
    assert extension.stretch(PLAIN, 64) == (1.0, 128)


def test_no_extension_and_spelled_out_parameters():
    assert NoExtension().apply(PLAIN, 4096) == (PLAIN.parameters, 4096)
    spelled = Spelled(parameters={"rope_theta": 5e5})
    assert spelled.apply(PLAIN, 0) == ({"rope_type": "default", "rope_theta": 5e5}, 128)


@pytest.mark.parametrize("name", ["linear", "ntk", "yarn"])
def test_a_stretched_base_is_refused_with_the_reason(name: str):
    llama3 = RopeBase({"rope_type": "llama3", "rope_theta": 5e5}, head_dim=128, window=131_072)
    with pytest.raises(ModelError, match="own RoPE is 'llama3'"):
        ROPE_EXTENSIONS[name]().apply(llama3, 0)


def test_an_extension_says_how_far_it_reaches():
    assert Linear(factor=4).reach(PLAIN) == 4 * PLAIN.window
    assert NoExtension().reach(PLAIN) == PLAIN.window
    assert Spelled(parameters={"factor": 2.0}).reach(PLAIN) is None


def test_a_factor_below_one_is_refused():
    with pytest.raises(RecipeError, match=r"factor is 0\.5"):
        Ntk(factor=0.5)


def test_ntk_needs_more_than_two_rotary_dimensions():
    partial = RopeBase(
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}, 8, 128
    )
    with pytest.raises(ModelError, match="2 dimensions of a head turn"):
        Ntk(factor=2.0).apply(partial, 0)
