"""What other loaders read is what was trained, or it is said."""

import json
from pathlib import Path
from typing import Any

import pytest

import fixtures_eval
from made_progress import Telling
from skipalign.errors import ModelError
from skipalign.files import write_json
from skipalign.model import load_model, load_tokenizer, save_model
from skipalign.rope import Linear, NoExtension, Ntk, RopeExtension, Yarn
from skipalign.serving import verify_export
from skipalign.tiny import BASE


def made(folder: Path, rope: RopeExtension, name: str) -> Path:
    """Leave what a training of the tiny base with this RoPE leaves."""
    model = load_model(str(BASE), rope=rope, max_position=1024)
    save_model(model, load_tokenizer(str(BASE)), folder / "model")
    told: dict[str, Any] = {"rope": {"type": name, **vars(rope)}}
    told |= {"base": {"path": "tiny", "revision": None}}
    told["strategies"] = {"a": {"name": "skipalign", "max_position": 1024}}
    write_json(folder / "training.json", told)
    return folder / "model"


@pytest.mark.parametrize(
    "rope",
    [Ntk(), Yarn(), Yarn(temperature=1.2), Linear(), NoExtension()],
    ids=["ntk", "yarn", "temperature", "linear", "none"],
)
def test_a_saved_model_is_read_as_it_was_trained(tmp_path: Path, rope: RopeExtension):
    found = verify_export(str(made(tmp_path, rope, rope.type)))
    assert found["ok"]
    assert found["reference"] == "base and settings of the training"
    assert (found["tokens"], found["first_compared"]) == (1024, 512)
    assert found["loaders"]["transformers"]["largest_difference"] < 1e-4
    assert found["serve"][0] == f"vllm serve {tmp_path / 'model'} --max-model-len 1024"


@pytest.mark.parametrize("rope", [Ntk(), Yarn(), Linear()], ids=["ntk", "yarn", "linear"])
def test_a_copy_that_lost_its_rope_is_told(tmp_path: Path, rope: RopeExtension):
    model = made(tmp_path, rope, rope.type)
    config = json.loads((model / "config.json").read_text())
    plain = json.loads((BASE / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling", "rope_theta"):
        config.pop(key, None)
        if key in plain:
            config[key] = plain[key]
    (model / "config.json").write_text(json.dumps(config))
    found = verify_export(str(model), length=600)
    assert not found["ok"]
    assert found["loaders"]["transformers"]["largest_difference"] > 0.1


def test_a_folder_without_a_training_is_its_own_reference(tmp_path: Path):
    model = fixtures_eval.tiny_llama(vocab_size=2048).float()
    save_model(model, load_tokenizer(str(BASE)), tmp_path / "model")
    progress = Telling()
    found = verify_export(str(tmp_path / "model"), length=64, progress=progress)
    assert [(each.description, each.is_whole) for each in progress.stages] == [
        ("read 64 tokens", True)
    ]
    assert found["ok"]
    assert found["reference"] == "the folder"


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"length is 4096; .* takes 4 to 128 tokens"):
        verify_export(str(BASE), length=4096)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(BASE), "peft_type": "LORA"})
    )
    for name in ("config.json", "model.safetensors"):
        to = name.replace("model.", "adapter_model.")
        (tmp_path / to).write_bytes((BASE / name).read_bytes())
    with pytest.raises(ModelError, match=r"is an adapter.*skipalign merge"):
        verify_export(str(tmp_path))
