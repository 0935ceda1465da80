"""Adapters are trained, resumed, loaded with their RoPE, evaluated and merged, on a small base."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from skipalign.adapters import Adapter, Dora, Lora, QLora, RsLora
from skipalign.card import write_merged_card
from skipalign.errors import ModelError, RecipeError
from skipalign.evaluation.stretch import StretchSettings
from skipalign.example_file import ExampleFile
from skipalign.files import read_json, read_json_lines
from skipalign.key_bias import GapBias
from skipalign.model import load_model, load_tokenizer, merge
from skipalign.positions import Contiguous, SkipAlign
from skipalign.prepare import Source
from skipalign.recipe import load
from skipalign.resolved import Base, Training
from skipalign.rope import NoExtension, Ntk
from skipalign.study import evaluate, prepare
from skipalign.study import train as train_in_study
from skipalign.training import train
from test_study import TEXTS
from test_training import BLOCKS, make_base, make_data

REACH = 512
ROPE = Ntk(factor=8.0, temperature=1.2)
TRAINER = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {tied: make_base(root / f"tied-{tied}", tied=tied) for tied in (False, True)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, bases: dict[bool, Path]) -> ExampleFile:
    return make_data(tmp_path_factory.mktemp("data"), bases[True])


def fit(base: Path, data: ExampleFile, out: Path, adapter: Adapter, **changes: Any) -> Any:
    dtype = changes.pop("dtype", "float32")
    model = load_model(str(base), rope=ROPE, max_position=REACH, adapter=adapter, dtype=dtype)
    options = {"strategies": {"chats": SkipAlign(max_position=REACH, skip_fraction=1.0)}, **changes}
    trainer = {**TRAINER, **options.pop("trainer", {})}
    train(model, load_tokenizer(str(base)), data, out, trainer=trainer, **options)
    return model.eval()


def far_logits(model: Any, reach: int = REACH) -> torch.Tensor:
    ids = torch.arange(20)[None]
    positions = torch.linspace(0, reach - 1, 20).long()[None]
    with torch.no_grad():
        return model(ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits


@pytest.fixture(scope="module")
def trained(
    bases: dict[bool, Path], data: ExampleFile, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an adapter; its base is tied."""
    out = tmp_path_factory.mktemp("trained")
    fit(bases[True], data, out, Lora(r=4))
    return out / "model"


@pytest.fixture
def adapter_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("adapter", "tied"), [(Lora(r=4), True), (Dora(r=4), False)], ids=["lora-tied", "dora"]
)
def test_an_adapter_is_trained_loaded_and_merged_without_a_change_of_its_logits(
    bases: dict[bool, Path], data: ExampleFile, tmp_path: Path, adapter: Adapter, tied: bool
):
    model = fit(bases[tied], data, tmp_path, adapter, key_bias=GapBias())
    expected = far_logits(model)
    losses = read_json_lines(tmp_path / "loss.jsonl")
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert read_json(tmp_path / "probe.json")["passed"]

    saved = load_file(tmp_path / "model/adapter_model.safetensors")
    whole = {name.removeprefix("base_model.model.") for name in saved if "lora" not in name}
    names = {"embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"}
    assert {name.split(".")[-2] for name in whole} == names | ({"lm_head"} if tied else set())

    loaded = load_model(str(tmp_path / "model"))
    assert loaded.config.max_position_embeddings == REACH
    assert torch.equal(far_logits(loaded), expected)

    found = merge(str(tmp_path / "model"), tmp_path / "plain")
    assert found["change"] < 1e-5 < found["largest"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.allclose(far_logits(plain), expected, atol=1e-5)
    assert not torch.allclose(far_logits(load_model(str(bases[tied]))), expected, atol=1e-2)
    assert plain.config.max_position_embeddings == REACH
    assert plain.config.rope_parameters["attention_factor"] == pytest.approx(1.2**0.5)
    shared = plain.lm_head.weight is plain.get_input_embeddings().weight
    stored = load_file(tmp_path / "plain/model.safetensors")
    assert shared is tied
    assert ("lm_head.weight" not in stored) is tied
    assert not [name for name in stored if "lora" in name]
    # Embedding and norms were trained, not only the update.
    before = load_file(bases[tied] / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert not torch.equal(stored[name], before[name])


def test_a_base_in_four_bits_trains_an_adapter_of_the_base_in_full(
    bases: dict[bool, Path], data: ExampleFile, tmp_path: Path
):
    pytest.importorskip("bitsandbytes", reason="needs pip install 'skipalign[qlora]'")
    model = fit(bases[False], data, tmp_path, QLora(r=4))
    layer = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.dtype == torch.uint8
    losses = read_json_lines(tmp_path / "loss.jsonl")
    assert losses[-1]["loss"] < losses[0]["loss"]
    loaded = load_model(str(tmp_path / "model"))
    expected = far_logits(loaded)
    assert "quantization_config" not in json.loads((tmp_path / "model/config.json").read_text())
    # In training mode: the kernel for single rows on CPUs takes no layers as small as these.
    close = (far_logits(model.train()) - expected).abs().max() / expected.abs().max()
    assert 0 < close < 0.2, "what four bits cost, and no more"
    merge(str(tmp_path / "model"), tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.allclose(far_logits(plain), expected, atol=1e-5)


def test_packs_biases_scales_and_checkpointing_reach_the_wrapped_model(
    bases: dict[bool, Path], data: ExampleFile, tmp_path: Path
):
    adapter = RsLora(r=4, target_modules=("q_proj", "v_proj"), modules_to_save=())
    model = fit(
        bases[False],
        data,
        tmp_path,
        adapter,
        dtype="bfloat16",
        key_bias=GapBias(),
        logit_scale="span",
        packing=BLOCKS["packing"],
        trainer={"max_steps": 2, "activation_checkpointing": True},
    )
    verdict = read_json(tmp_path / "probe.json")
    assert verdict["passed"]
    assert {"the skip moves logits", "the scale is of all logits"} < {
        check["name"] for check in verdict["checks"]
    }
    saved = load_file(tmp_path / "model/adapter_model.safetensors")
    assert {name.split(".")[-3] for name in saved} == {"q_proj", "v_proj"}
    assert json.loads((tmp_path / "model/adapter_config.json").read_text())["use_rslora"]
    updates = [value for name, value in saved.items() if "lora_B" in name]
    assert all(bool(value.any()) for value in updates), "B starts at zero: it was not trained"
    frozen = load_file(bases[False] / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.get_base_model().model.norm.weight.float(), frozen)


def test_first_values_depend_on_the_seed_alone(bases: dict[bool, Path]):
    def first(seed: int) -> torch.Tensor:
        model = load_model(str(bases[False]), adapter=Lora(r=4), seed=seed)
        return next(value for name, value in model.named_parameters() if "lora_A" in name)

    state = torch.random.get_rng_state()
    one = first(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(one, first(1))
    assert not torch.equal(one, first(2))


def test_a_study_trains_evaluates_and_merges_an_adapter(bases: dict[bool, Path], tmp_path: Path):
    chats = tmp_path / "chats.jsonl"
    ask = {"role": "user", "content": "a x d . a ?"}
    row = json.dumps({"messages": [ask, {"role": "assistant", "content": "d"}]})
    chats.write_text("".join(row.replace("x", letter) + "\n" for letter in "efghijklmnop"))
    (tmp_path / "hay.txt").write_text("g h i j k l . " * 40)
    stretch = StretchSettings(
        distances=(64, 256),
        context_length=32,
        trials=2,
        haystack=str(tmp_path / "hay.txt"),
        **TEXTS,
    )
    training = Training(
        method="lora",
        seed=0,
        directory="",
        base=Base(path=str(bases[True])),
        sources=(Source(path=str(chats), name="chats"),),
        strategies={"chats": SkipAlign(max_position=REACH)},
        rope=Ntk(factor=8.0),
        adapter=Lora(r=4),
        trainer={**TRAINER, "max_steps": 1},
        tasks={"stretch": stretch},
    )
    out = tmp_path / "run"
    prepare([training], out)
    document = train_in_study(training, out)
    assert document["adapter"]["type"] == "lora"
    assert train_in_study(training, out) == document
    evaluate(training, out)
    assert read_json(out / "evaluation/stretch/stretch.json")["cells"]
    card = (out / "model/README.md").read_text()
    assert "library_name: peft" in card
    assert "skipalign merge" in card
    assert "adapter.r | 4" in card
    merge(str(out / "model"), tmp_path / "plain")
    write_merged_card(tmp_path / "plain", str(out / "model"))
    plain = (tmp_path / "plain/README.md").read_text()
    assert "library_name: transformers" in plain
    assert "skipalign merge" not in plain
    assert "adapter.r | 4" in plain
    with pytest.raises(ModelError, match="is there already"):
        merge(str(out / "model"), tmp_path / "plain")


# ----------------------------------------------------------------------------------- refusals


def without(path: Path, *keys: str) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in keys}))


def test_an_adapter_is_not_loaded_without_its_rope(adapter_dir: Path):
    without(adapter_dir / "config.json", "rope_parameters")
    with pytest.raises(ModelError, match="an adapter without rope_parameters of the base"):
        load_model(str(adapter_dir))
    (adapter_dir / "config.json").unlink()
    with pytest.raises(ModelError, match="rope_parameters and max_position_embeddings"):
        load_model(str(adapter_dir))


def test_other_loaders_do_not_take_the_folder_for_a_model(adapter_dir: Path):
    """transformers puts an adapter without a config on the base's own RoPE, and says nothing."""
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(adapter_dir)


def test_an_adapter_is_no_base_to_train_on(adapter_dir: Path):
    for options in ({"rope": NoExtension()}, {"adapter": Lora()}):
        with pytest.raises(ModelError, match="skipalign merge"):
            load_model(str(adapter_dir), **options)


def test_a_base_that_is_gone_or_another_is_named(
    adapter_dir: Path, bases: dict[bool, Path], tmp_path: Path
):
    path = adapter_dir / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["base_model_name_or_path"] == str(bases[True].resolve())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match="gone: cannot load its model"):
        load_model(str(adapter_dir))
    assert load_model(str(adapter_dir), base=str(bases[True])).config.vocab_size
    with pytest.raises(ModelError, match="no adapter_config"):
        merge(str(bases[True]), tmp_path / "out")


def test_pickled_and_other_adapters_are_refused(adapter_dir: Path):
    path = adapter_dir / "adapter_config.json"
    config = json.loads(path.read_text())
    torch.save(load_file(adapter_dir / "adapter_model.safetensors"), adapter_dir / "a.bin")
    (adapter_dir / "a.bin").rename(adapter_dir / "adapter_model.bin")
    (adapter_dir / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors"):
        load_model(str(adapter_dir))
    path.write_text(json.dumps({**config, "peft_type": "PREFIX_TUNING"}))
    with pytest.raises(ModelError, match="'PREFIX_TUNING'"):
        load_model(str(adapter_dir))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Lora(target_modules=("q_prj",)), "target_modules names 'q_prj', which is no module"),
        (Lora(modules_to_save=("embed",)), "modules_to_save names 'embed', which is no module"),
        (Lora(modules_to_save=("lm_head",)), "'lm_head', whose weight is that of both embed_tok"),
        (Lora(target_modules=("embed_tokens",)), "'embed_tokens', whose weight is that of both"),
    ],
)
def test_names_that_fit_no_module_or_one_of_two_tied_are_refused(
    bases: dict[bool, Path], adapter: Adapter, message: str
):
    with pytest.raises(ModelError, match=message):
        load_model(str(bases[True]), adapter=adapter)


def test_what_is_not_installed_is_named(
    bases: dict[bool, Path], trained: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"pip install 'skipalign\[qlora\]'"):
        load_model(str(bases[True]), adapter=QLora())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'skipalign\[peft\]'"):
        load_model(str(bases[True]), adapter=Lora())


@pytest.mark.parametrize(
    ("values", "message"),
    [({"r": 0}, "r is 0"), ({"dropout": 1.0}, "dropout is 1"), ({"target_modules": ()}, "empty")],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        Lora(**values)


RECIPE = """
base: tiny
data: tiny
strategy: contiguous
trainer: {max_steps: 1}
adapter: {type: dora, r: 8}
methods:
  full: {adapter: null}
  dora: {}
  small: {adapter: {r: 2, modules_to_save: []}}
  lora: {adapter: lora}
"""


def test_a_recipe_gives_each_method_its_adapter(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = load(path)
    found = {each.method: each.adapter for each in recipe.trainings()}
    assert found == {
        "full": None,
        "dora": Dora(r=8),
        "small": Dora(r=2, modules_to_save=()),
        "lora": Lora(),
    }
    again = tmp_path / "again.yaml"
    again.write_text(recipe.resolved())
    assert {each.method: each.adapter for each in load(again).trainings()} == found
    path.write_text("base: tiny\ndata: tiny\nstrategy: contiguous\nadapter: qlora\n")
    (alone,) = load(path).trainings()
    assert alone.adapter == QLora()
    assert alone.method == "normal-qlora"


@pytest.mark.parametrize("name", ["prefix_tuning", "p-tuning", "{type: prompt_tuning, r: 4}"])
def test_virtual_tokens_are_refused_with_the_reason(tmp_path: Path, name: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"base: tiny\ndata: tiny\nstrategy: contiguous\nadapter: {name}\n")
    with pytest.raises(RecipeError, match=r"adapter: .*learns virtual tokens.*position"):
        load(path)
    path.write_text("base: tiny\ndata: tiny\nstrategy: contiguous\nadapter: lara\n")
    with pytest.raises(RecipeError, match="did you mean 'lora'"):
        load(path)
    assert Contiguous


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_a_model_with_virtual_tokens_is_not_trained(
    bases: dict[bool, Path], data: ExampleFile, tmp_path: Path, kind: str
):
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(load_model(str(bases[False])), config)
    options = {"strategies": {"chats": SkipAlign(max_position=64)}, "trainer": TRAINER}
    with pytest.raises(ModelError, match="the model's adapter learns virtual tokens"):
        train(model, load_tokenizer(str(bases[False])), data, tmp_path, **options)
    assert not (tmp_path / "probe.json").exists()
