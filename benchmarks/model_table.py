"""Write docs/models.md: which models train with skips, key biases and packs, and why others do not.

Of each family a random model of four narrow layers is asked three times by the start-up probe,
after what is refused by its config alone. What the probe passes is then computed a second way: a
skipped row beside the long row whose gap is unseen, a key bias of log 2 beside a key that stands
there twice.

    python benchmarks/model_table.py [--check]
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pages
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from skipalign.errors import SkipalignError
from skipalign.key_bias import GapBias
from skipalign.layout import refuse_layout
from skipalign.model import refuse_skips
from skipalign.packing import Packing
from skipalign.positions import SkipAlign
from skipalign.probe import probe, require

PAGE = pages.ROOT / "docs/models.md"
REACH = 4096  # positions that skips use
CLOSE = 1e-4  # of the largest logit: float32 computed in another order differs by 1e-6
NUM_TOKENS, GAP, WEIGHED = 24, 600, 5  # the gap is wider than the windows below

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": REACH,
    "initializer_range": 0.1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    **{"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16},
    **{"v_head_dim": 16, "first_k_dense_replace": 1, "moe_intermediate_size": 32},
    **{"n_shared_experts": 1, "num_key_value_heads": 4},
}
LINEAR = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16},
    **{"linear_value_head_dim": 16, "head_dim": 16},
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
SOFT_CAP = {"head_dim": 16, "query_pre_attn_scalar": 16}


def rope(rope_type: str, **more: Any) -> dict[str, Any]:
    """Return the key of a config that holds its RoPE."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4, **more}}


SINKS = {"head_dim": 16, **LOCAL_EXPERTS, **rope("default")}
CHUNKS = {"head_dim": 16, "intermediate_size_mlp": 96, "num_local_experts": 2}
BY_POSITION = {"original_max_position_embeddings": 256, "llama_4_scaling_beta": 0.1}
SHORT_AND_LONG = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0}

# Family, what is special about it, model_type, what its config differs in from SIZES.
FAMILIES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("Llama 2 and 3, Yi", "grouped queries", "llama", {}),
    (
        "Llama 3.1",
        "RoPE stretched by wavelength",
        "llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=512,
        ),
    ),
    ("Llama with YaRN", "fixed stretched RoPE", "llama", rope("yarn", factor=4.0)),
    ("Llama with dynamic NTK", "RoPE by the batch", "llama", rope("dynamic", factor=4.0)),
    ("Mistral 7B v0.3", "grouped queries", "mistral", {"sliding_window": None}),
    ("Mistral 7B v0.1", "all layers slide", "mistral", {"sliding_window": 512}),
    ("Qwen2, Qwen2.5", "biases", "qwen2", {}),
    ("Qwen3", "QK-norm", "qwen3", {"head_dim": 16}),
    ("Gemma 2", "soft-capped logits, layers slide", "gemma2", {**SOFT_CAP, "sliding_window": 512}),
    (
        "Gemma 2, within its window",
        "soft-capped logits",
        "gemma2",
        {**SOFT_CAP, "sliding_window": REACH},
    ),
    ("Gemma 3", "layers slide, two RoPEs", "gemma3_text", {"head_dim": 16, "sliding_window": 512}),
    ("gpt-oss", "learned sinks, layers slide", "gpt_oss", {**SINKS, "sliding_window": 128}),
    ("gpt-oss, within its window", "learned sinks", "gpt_oss", {**SINKS, "sliding_window": REACH}),
    (
        "SmolLM3",
        "layers without positions",
        "smollm3",
        {"no_rope_layer_interval": 2, "pad_token_id": 0},
    ),
    (
        "Llama 4",
        "chunks, layers without positions",
        "llama4_text",
        {**CHUNKS, "attention_chunk_size": 512, "floor_scale": REACH},
    ),
    (
        "Llama 4, within a chunk",
        "layers without positions",
        "llama4_text",
        {**CHUNKS, "attention_chunk_size": REACH, "floor_scale": REACH},
    ),
    (
        "Llama 4, tuned early",
        "temperature by number of tokens",
        "llama4_text",
        {**CHUNKS, "attention_chunk_size": REACH, "floor_scale": 512},
    ),
    (
        "Ministral 3",
        "temperature by position",
        "ministral3",
        {"head_dim": 16, "sliding_window": None, **rope("yarn", factor=16.0, **BY_POSITION)},
    ),
    ("Command R7B", "layers slide, or have no positions", "cohere2", {"sliding_window": 512}),
    ("Phi-2", "partial RoPE", "phi", {}),
    ("Phi-3 mini 4k", "joined projections", "phi3", {"pad_token_id": 0}),
    (
        "Phi-3 mini 128k",
        "RoPE by the batch",
        "phi3",
        {
            "pad_token_id": 0,
            "original_max_position_embeddings": REACH,
            **rope("longrope", **SHORT_AND_LONG),
        },
    ),
    ("GLM-4", "partial RoPE", "glm", {"head_dim": 16, "pad_token_id": 0}),
    ("StableLM 2", "partial RoPE", "stablelm", {}),
    ("Pythia, GPT-NeoX", "partial RoPE", "gpt_neox", {}),
    ("Falcon 7B", "one key for all queries", "falcon", {"alibi": False}),
    ("Falcon RW", "ALiBi", "falcon", {"alibi": True}),
    ("GPT-2", "learned positions", "gpt2", {"n_embd": 64, "n_layer": 4, "n_head": 4}),
    ("OLMo 2", "norms after, QK-norm", "olmo2", {}),
    ("OLMo 3", "layers slide, two RoPEs", "olmo3", {"sliding_window": 512}),
    ("Granite 3", "scaled residuals", "granite", {}),
    ("DeepSeek V2", "MLA, MoE", "deepseek_v2", LATENT),
    ("DeepSeek V3", "MLA, MoE", "deepseek_v3", LATENT),
    ("Mixtral", "MoE", "mixtral", LOCAL_EXPERTS),
    ("Qwen3 MoE", "MoE, QK-norm", "qwen3_moe", {**EXPERTS, "head_dim": 16}),
    ("OLMoE", "MoE, QK-norm", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    (
        "Qwen3-Next",
        "linear attention, MoE",
        "qwen3_next",
        {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 32},
    ),
    (
        "MiniMax-Text-01",
        "lightning attention, MoE",
        "minimax",
        {**LOCAL_EXPERTS, "head_dim": 16, "pad_token_id": 0},
    ),
    ("LFM2", "convolutions", "lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    ("Falcon-H1", "attention and SSM side by side", "falcon_h1", {**MAMBA, "mamba_d_ssm": 128}),
    ("Bamba", "SSM hybrid", "bamba", {**MAMBA, "attn_layer_indices": [1, 3]}),
    (
        "RecurrentGemma",
        "recurrences, layers slide",
        "recurrent_gemma",
        {"attention_window_size": REACH},
    ),
    (
        "Jamba",
        "SSM hybrid without positions",
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
    ("Mamba", "SSM", "mamba", {}),
)


def row(family: str, special: str, model_type: str, differs: dict[str, Any]) -> str:
    """Return a family's row of the table.

    Raises:
        AssertionError: the probe passes what is not the same computed a second way.
    """
    config = AutoConfig.for_model(model_type, **{**SIZES, **differs})
    refused = verdict(lambda: refuse_skips(config, REACH, where="it"))
    if refused != "right":
        return f"| {family} | {special} | - | {refused} | - | - |"
    attention, model = built(config)
    cells = [
        verdict(lambda: require(probe(model, max_position=REACH))),
        verdict(lambda: ask(model, key_bias=GapBias())),
        verdict(lambda: ask(model, packing=Packing(max_tokens=1024, attention="block_diagonal"))),
    ]
    if cells[0] != "right":
        cells[1:] = ["-", "-"]
    for cell, difference in zip(cells, (of_a_gap, of_a_weight), strict=False):
        found = difference(model) if cell == "right" else 0.0
        assert found < CLOSE, (
            f"{family}: passes the probe, but {difference.__name__} is {found:.1g}"
        )
    return f"| {family} | {special} | {attention} | {' | '.join(cells)} |"


def built(config: Any) -> tuple[str, Any]:
    """Return a random model and its attention implementation: sdpa, or eager where that is not."""
    for attention in ("sdpa", "eager"):
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return attention, AutoModelForCausalLM.from_config(
                    config, attn_implementation=attention
                )
        except ValueError as error:
            if "does not support an attention implementation" not in str(error):
                raise
    raise SystemExit(f"{config.model_type} takes neither sdpa nor eager attention")


def ask(model: Any, key_bias: Any = None, packing: Any = None) -> None:
    """Refuse a layout, or ask the model about it; as training does."""
    strategies = {"made": SkipAlign(max_position=REACH)}
    given = {"key_bias": key_bias, "packing": packing, "longest": NUM_TOKENS}
    refuse_layout(model, strategies=strategies, **given)
    packed = packing.attention if packing else None
    require(probe(model, max_position=REACH, with_key_bias=key_bias is not None, packed=packed))


def verdict(question: Callable[[], None]) -> str:
    """Return `right`, or why it is refused, without what could be done instead."""
    try:
        question()
    except SkipalignError as error:
        reason = str(error).removeprefix("it: ").split(" - ")[0].split("; ")[0]
        return f"refused because {reason}"
    except (ValueError, RuntimeError) as error:
        return f"refused because transformers raises {type(error).__name__}"
    return "right"


# ------------------------------------------------------------------------------ a second way


def of_a_gap(model: Any) -> float:
    """Return how far a skipped row is from the long row whose gap no token sees."""
    half, ids = NUM_TOKENS // 2, drawn(NUM_TOKENS)
    skipped = torch.arange(NUM_TOKENS)
    skipped[half:] += GAP
    short = logits(model, ids, skipped, torch.ones(1, NUM_TOKENS, dtype=torch.long))
    unseen = torch.ones(1, NUM_TOKENS + GAP, dtype=torch.long)
    unseen[:, half : half + GAP] = 0
    filled = torch.cat([ids[:, :half], drawn(GAP), ids[:, half:]], 1)
    long = logits(model, filled, torch.arange(NUM_TOKENS + GAP), unseen)
    return far(short, torch.cat([long[:, :half], long[:, half + GAP :]], 1))


def of_a_weight(model: Any) -> float:
    """Return how far a key with a bias of log 2 is from one that stands there twice."""
    ids, positions = drawn(NUM_TOKENS), torch.arange(NUM_TOKENS)
    lowest = torch.finfo(torch.float32).min
    unseen = torch.ones(NUM_TOKENS, NUM_TOKENS).triu(1).bool()
    bias = math.log(2) * (positions == WEIGHED)
    biased = bias.expand(NUM_TOKENS, -1).masked_fill(unseen, lowest)
    once = logits(model, ids, positions, biased[None, None])
    twice = torch.tensor([*range(WEIGHED + 1), *range(WEIGHED, NUM_TOKENS)])
    mask = torch.zeros(len(twice), len(twice)).masked_fill(unseen[twice][:, twice], lowest)
    found = logits(model, ids[:, twice], positions[twice], mask[None, None])
    return far(once, torch.cat([found[:, : WEIGHED + 1], found[:, WEIGHED + 2 :]], 1))


def drawn(length: int) -> Tensor:
    """Return one row of token ids."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, SIZES["vocab_size"], (1, length), generator=generator)


def logits(model: Any, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Return the logits of one row."""
    inputs = {"input_ids": ids, "position_ids": positions[None], "attention_mask": mask}
    with torch.no_grad():
        return model.eval()(**inputs, use_cache=False).logits


def far(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, as a share of the largest logit."""
    return float((one - other).abs().max() / one.abs().max())


# ------------------------------------------------------------------------------ the page

HEAD = f"""# What works with which model

Made by `python benchmarks/model_table.py` with transformers {transformers.__version__}, from random
models of four narrow layers, one for each family; real weights were not loaded. Positions reach
{REACH:,}; layers that slide look back 512 tokens (gpt-oss 128), where nothing else is said.

- **Positions**: samples may skip, one in a row, padded. *right*: the start-up probe passes, and a
  skipped row has the logits of the long row whose gap is unseen.
- **Key bias**: the float mask that carries it. *right*: the probe passes, and a bias of log 2 on a
  key does what the key standing there twice does.
- **Packs**: several samples in a row, each seeing itself alone. *right*: the probe passes.
- **Attention**: eager where transformers offers no sdpa for a family. Flash and flex attention need
  a GPU and are probed at the start of each run, as everything here is.

A layer that slides or attends in chunks is right as long as `max_position` stays within its window.
State-space, linear-attention and convolution layers pass over no gap: to them a skipped row is a
short one, and samples of a pack run into each other.

| family | what is special | attention | positions | key bias | packs |
|---|---|---|---|---|---|
"""


def page(rows: Sequence[str]) -> str:
    """Return the page."""
    return HEAD + "".join(f"{each}\n" for each in rows)


def made() -> dict[Path, str]:
    """Return the page by its path."""
    return {PAGE: page([row(*family) for family in FAMILIES])}


if __name__ == "__main__":
    pages.main(made, __doc__)
