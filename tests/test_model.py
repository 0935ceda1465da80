"""Loading, refusing, extending and saving checkpoints, on small random ones."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    SmolLM3Config,
)
from transformers.utils import logging

from made_progress import Telling
from skipalign import tiny
from skipalign.errors import ModelError
from skipalign.model import (
    extend,
    files_told,
    load_model,
    load_tokenizer,
    refuse_skips,
    save_model,
    weights_digest,
)
from skipalign.rope import Linear, Ntk, Yarn

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0, "a": 1}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "[UNK]")))


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    torch.manual_seed(0)
    save_model(LlamaForCausalLM(LlamaConfig(**SIZES)), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(20)[None]
    with torch.no_grad():
        return model(ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("rope", [Ntk(factor=8.0, temperature=1.45), Linear(factor=8.0), Yarn()])
def test_saved_model_says_its_rope_in_new_and_old_words(
    checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, rope: Ntk
):
    model = load_model(str(checkpoint), rope=rope, max_position=1024)
    save_model(model, tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == 1024
    new = config["rope_parameters"]
    assert config["rope_theta"] == new["rope_theta"]
    assert config["rope_scaling"]["rope_type"] == config["rope_scaling"]["type"] == new["rope_type"]
    assert config["rope_scaling"].get("attention_factor") == new.get("attention_factor")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), logits(again))
    assert not torch.equal(logits(model), logits(load_model(str(checkpoint))))


def test_plain_ntk_is_a_plain_theta_for_every_loader(
    checkpoint: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    model = load_model(str(checkpoint), rope=Ntk(factor=8.0))
    save_model(model, tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == pytest.approx(10_000 * 8 ** (16 / 14))
    assert "rope_scaling" not in config


def test_without_rope_argument_the_checkpoint_stays_as_it_is(checkpoint: Path):
    model = load_model(str(checkpoint), max_position=4096, skips=True)
    assert model.config.max_position_embeddings == 128


def test_llama3_rope_refuses_ntk_with_the_reason():
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    config = LlamaConfig(**{**SIZES, "max_position_embeddings": 1024}, rope_parameters=parameters)
    with pytest.raises(ModelError, match=r"llama-3: .*own RoPE is 'llama3'"):
        extend(config, Ntk(factor=2.0), None, where="llama-3")
    refuse_skips(config, 4096, where="llama-3")


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_batch_are_refused_for_skips(rope_type: str):
    config = LlamaConfig(**SIZES)
    config.rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ModelError, match=f"'{rope_type}' chooses its frequencies from the largest"):
        refuse_skips(config, 4096, where="x")


def test_sliding_windows_shorter_than_the_target_are_refused():
    config = MistralConfig(**SIZES, sliding_window=256)
    refuse_skips(config, 256, where="x")
    with pytest.raises(ModelError, match="256 tokens back"):
        refuse_skips(config, 257, where="x")


def test_chunks_shorter_than_the_target_are_refused():
    config = Llama4TextConfig(num_hidden_layers=4, attention_chunk_size=512)
    refuse_skips(config, 512, where="x")
    with pytest.raises(ModelError, match="512 tokens back"):
        refuse_skips(config, 513, where="x")


def test_a_temperature_that_follows_the_number_of_tokens_is_refused():
    config = Llama4TextConfig(num_hidden_layers=4, attention_chunk_size=512, floor_scale=256)
    refuse_skips(config, 256, where="x")
    with pytest.raises(ModelError, match=r"from 256 on \(floor_scale\)"):
        refuse_skips(config, 257, where="x")


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoXConfig(),  # a quarter of the dimensions of a head turn
        DeepseekV3Config(),  # queries and keys have a part without positions
        SmolLM3Config(),  # every fourth layer has no positions
    ],
    ids=lambda config: config.model_type,
)
def test_a_temperature_that_would_reach_a_part_of_the_logits_is_refused(config: PretrainedConfig):
    with pytest.raises(ModelError, match=r"temperature 1\.45: .* do not turn"):
        extend(config, Ntk(factor=2.0, temperature=1.45), None, where="x")
    extend(config, Ntk(factor=2.0), None, where="x")


def test_layers_that_keep_a_state_are_refused():
    config = Qwen3NextConfig(num_hidden_layers=4)
    with pytest.raises(ModelError, match="layers of kind linear_attention do not attend"):
        refuse_skips(config, 4096, where="x")


def test_models_without_one_rope_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2))
    save_model(gpt2, tokenizer, tmp_path / "gpt2")
    with pytest.raises(ModelError, match="gpt2 has no rotary position embedding"):
        load_model(str(tmp_path / "gpt2"), skips=True)
    with pytest.raises(ModelError, match="one RoPE per kind of layer"):
        refuse_skips(Gemma3TextConfig(), 4096, where="gemma-3")


def test_pickled_weights_are_never_read(checkpoint: Path):
    model = load_model(str(checkpoint))
    (checkpoint / "model.safetensors").unlink()
    torch.save(model.state_dict(), checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(checkpoint))


def test_code_of_a_checkpoint_is_never_run(checkpoint: Path):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    path.write_text(json.dumps(config))
    (checkpoint / "own.py").write_text(f"open({str(checkpoint / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="never run here"):
        load_model(str(checkpoint))
    assert not (checkpoint / "ran").exists()


def test_missing_parts_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot load its config"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match="cannot load its tokenizer"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match=r"\./gone: cannot load its tokenizer \(no such folder\)"):
        load_tokenizer("./gone")
    with pytest.raises(ModelError, match="dtype is 'int8'"):
        load_model(str(tmp_path), dtype="int8")


def test_an_embedded_base_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SKIPALIGN_CACHE", str(tmp_path))
    assert load_model("tiny").config.to_dict() == load_model(str(tiny.BASE)).config.to_dict()
    assert load_tokenizer("tiny-3").get_vocab() == load_tokenizer(str(tiny.BASE)).get_vocab()
    with pytest.raises(ModelError, match=r"tiny-3: is not made yet; python -m .* --seed 3"):
        load_model("tiny-3")
    shutil.copytree(tiny.BASE, tmp_path / "tiny-3")
    assert load_model("tiny-3").config.max_position_embeddings == 128


def test_the_digest_is_that_of_the_weights_alone(checkpoint: Path):
    file = checkpoint / "model.safetensors"
    expected = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    progress = Telling()
    assert weights_digest(str(checkpoint), progress) == expected
    (checkpoint / "README.md").write_text("new")
    assert weights_digest(str(checkpoint), progress) == expected
    assert len(progress.stages) == 1  # the second time it is known
    file.write_bytes(file.read_bytes() + b"x")
    assert weights_digest(str(checkpoint)) != expected
    assert weights_digest("some/model") is None


def test_loading_and_saving_are_told_in_place_of_transformers_own_bars(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    progress = Telling()
    logging.enable_progress_bar()
    try:
        model = load_model(str(checkpoint), progress=progress)
        with files_told(progress):
            model.save_pretrained(tmp_path / "saved")
    finally:
        logging.disable_progress_bar()
    assert [each.description for each in progress.stages] == [
        "loading weights",
        "writing model shards",
    ]
    assert all(each.is_whole and each.done for each in progress.stages)
    assert "%|" not in capfd.readouterr().err
