"""A loss in parts equals the whole one, with its gradients, and no part has too many tokens."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from skipalign.chunked_loss import ChunkedHead, token_losses
from skipalign.encoding import IGNORE_INDEX
from skipalign.errors import ModelError, RecipeError
from skipalign.example_file import ExampleFile
from skipalign.files import read_json_lines
from skipalign.key_bias import GapBias
from skipalign.model import load_model, load_tokenizer
from skipalign.packing import Packing
from skipalign.positions import SkipAlign
from skipalign.training import _chunked_head, train
from test_training import make_base, make_data

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 97, (3, 20), generator=random)
    labels = torch.where(torch.rand(3, 20, generator=random) < 0.6, ids, IGNORE_INDEX)
    labels[1] = IGNORE_INDEX
    return ids, labels


def losses_and_gradients(model, head: ChunkedHead | None, weights: torch.Tensor):
    ids, labels = batch()
    model.zero_grad()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if head is None:
        losses = token_losses(model(**inputs).logits, labels)
    else:
        with head.in_parts(labels):
            losses = model(**inputs).logits
    (losses * weights).sum().backward()
    return losses.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens_at_once", [1, 5, 1000])
@pytest.mark.parametrize(
    # token_losses returns float32, as transformers' own loss does
    ("dtype", "tolerance"),
    [(torch.float64, 1e-6), (torch.float32, 2e-6)],
)
def test_a_loss_in_parts_is_the_whole_loss(
    tied: bool, tokens_at_once: int, dtype: torch.dtype, tolerance: float
):
    model = llama(tied).to(dtype)
    weights = torch.rand(3, 19, generator=torch.Generator().manual_seed(1))
    expected = losses_and_gradients(model, None, weights)
    found = losses_and_gradients(model, ChunkedHead(model, tokens_at_once), weights)
    assert torch.allclose(found[0], expected[0], atol=tolerance)
    assert (expected[0] > 0).sum() > 15
    for one, other in zip(found[1], expected[1], strict=True):
        assert torch.allclose(one, other, atol=10 * tolerance), (one - other).abs().max()


def test_logits_never_stand_whole_and_those_of_untrained_tokens_not_at_all():
    model = llama(tied=False)
    head = ChunkedHead(model, tokens_at_once=4)
    sizes: list[int] = []
    project = head.apply

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return project(hidden)

    head.apply = watched
    losses_and_gradients(model, head, torch.ones(3, 19))
    num_trained = int((batch()[1][:, 1:] != IGNORE_INDEX).sum())
    assert max(sizes) == 4
    assert sum(sizes) == 2 * num_trained, "once forward, once backward"


def test_the_head_is_back_afterwards_also_after_an_error():
    model = llama(tied=False)
    ids, labels = batch()
    expected = model(ids).logits
    head = ChunkedHead(model)
    with head.in_parts(labels):
        assert model(ids).logits.shape == (3, 19)
    assert torch.equal(model(ids).logits, expected)
    with pytest.raises(ZeroDivisionError), head.in_parts(labels):
        raise ZeroDivisionError
    assert "forward" not in vars(model.lm_head)
    with head.in_parts(labels), head.in_parts(labels):
        pass
    assert torch.equal(model(ids).logits, expected)


def test_a_batch_without_a_trained_token_has_losses_of_zero():
    head = ChunkedHead(llama(tied=False))
    losses = head.token_losses(torch.rand(2, 5, 32), torch.full((2, 5), IGNORE_INDEX))
    assert losses.tolist() == [[0.0] * 4] * 2


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    torch.manual_seed(0)
    sizes = {**SIZES, "head_dim": 16, "num_key_value_heads": 2, "initializer_range": 2.0}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=5.0))
    with pytest.raises(ModelError, match="Gemma2ForCausalLM changes its logits"):
        ChunkedHead(model)
    assert ChunkedHead(Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=None)))
    scaled = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0))
    with pytest.raises(ModelError, match="GraniteForCausalLM changes its logits"):
        ChunkedHead(scaled)
    model.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="no output embeddings"):
        ChunkedHead(model)


# -------------------------------------------------------------------------------- through train()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, base: Path) -> ExampleFile:
    return make_data(tmp_path_factory.mktemp("data"), base, rows=40, answers_differ=True)


STRATEGIES = {
    "chats": SkipAlign(max_position=512, skip_fraction=0.5, cuts_within=2, cut_at="token")
}
TRAINER = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "optim": "sgd",
    "learning_rate": 0.5,
}


def fit(base: Path, data: ExampleFile, out: Path, dtype: str = "float32", **options):
    model = load_model(str(base), dtype=dtype)
    options["trainer"] = {**TRAINER, **options.pop("trainer", {})}
    train(model, load_tokenizer(str(base)), data, out, strategies=STRATEGIES, **options)
    return [p.detach() for p in model.parameters()], read_json_lines(out / "loss.jsonl")


@pytest.mark.parametrize("loss", ["token", "sample"])
def test_a_run_with_a_chunked_loss_is_the_same_run(
    base: Path, data: ExampleFile, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("skipalign.chunked_loss.TOKENS_AT_ONCE", 7)
    packing = Packing(max_tokens=90, attention="block_diagonal", loss=loss)
    weights, lines = [], []
    for name in ("whole", "chunked"):
        found = fit(base, data, tmp_path / name, packing=packing, chunked_loss=name == "chunked")
        weights.append(found[0])
        lines.append(found[1])
    for one, other, before in zip(*weights, load_model(str(base)).parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=0)
        assert not torch.equal(one, before)
    for one, other in zip(*lines, strict=True):
        for name in ("loss", "loss_natural", "loss_skipped"):
            assert one[name] == pytest.approx(other[name], abs=1e-5)


def test_a_model_that_counts_no_tokens_itself_takes_a_chunked_loss(
    base: Path, data: ExampleFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    losses = [
        fit(base, data, tmp_path / str(chunked), chunked_loss=chunked)[1][0]["loss"]
        for chunked in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_half_precision_checkpointing_scale_bias_and_packs_go_together(
    base: Path, data: ExampleFile, tmp_path: Path, dtype: str
):
    """Autocast over float32 weights, or weights in bfloat16; both near the run in float32."""
    options = {
        "packing": Packing(max_tokens=90, attention="block_diagonal", loss="sample"),
        "key_bias": GapBias(),
        "logit_scale": "span",
    }
    half = {"bf16": dtype == "float32", "use_cpu": True, "activation_checkpointing": True}
    _, exact = fit(base, data, tmp_path / "exact", **options)
    _, whole = fit(base, data, tmp_path / "whole", dtype, **options, trainer=half)
    _, parts = fit(
        base, data, tmp_path / "parts", dtype, **options, trainer=half, chunked_loss=True
    )
    for one, other, right in zip(parts, whole, exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-3)
        assert one["loss"] == pytest.approx(right["loss"], abs=2e-2)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"label_smoothing_factor": 0.1}, r"trainer\.label_smoothing_factor is 0\.1"),
        ({"use_liger_kernel": True}, r"trainer\.use_liger_kernel is True: it computes"),
    ],
)
def test_what_a_chunked_loss_does_not_go_with_is_refused(
    base: Path,
    data: ExampleFile,
    tmp_path: Path,
    trainer: dict,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
):
    # Liger is not installed here; the refusal comes before it is used.
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", lambda *_: None)
    with pytest.raises(RecipeError, match=message):
        fit(base, data, tmp_path, trainer=trainer, chunked_loss=True)


def test_deepspeed_which_may_hold_no_weights_of_a_head_is_refused():
    args = SimpleNamespace(label_smoothing_factor=0.0, use_liger_kernel=False)
    engine: Any = SimpleNamespace(args=args, is_deepspeed_enabled=True)
    with pytest.raises(RecipeError, match=r"chunked_loss with DeepSpeed: .* use DDP or FSDP2"):
        _chunked_head(engine)
