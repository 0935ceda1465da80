"""The run as a whole on a small random model: what it leaves, how it resumes, what it refuses."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skipalign import training
from skipalign.adapters import Lora
from skipalign.checkpoints import newest_checkpoint
from skipalign.errors import DataError, RecipeError, RunError, VisibilityError
from skipalign.example_file import ExampleFile
from skipalign.files import read_json, read_json_lines
from skipalign.key_bias import GapBias
from skipalign.model import load_model, load_tokenizer, save_model
from skipalign.packing import Packing
from skipalign.positions import Contiguous, PoSE, SkipAlign
from skipalign.prepare import Source, prepare
from skipalign.rope import Ntk
from skipalign.training import train

WORDS = [*"abcdefghijklmnopqrstuvwxyz", ".", "?"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TRAINER = {
    "max_steps": 12,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_steps": 5,
}


def make_base(folder: Path, dropout: float = 0.0, *, tied: bool = False) -> Path:
    special = ["<pad>", "<user>", "<assistant>", "<end>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=3,
    )
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


def make_data(
    folder: Path, base: Path, rows: int = 70, *, answers_differ: bool = False
) -> ExampleFile:
    path = folder / "chats.jsonl"
    lines: list[str] = []
    for row in range(rows):
        words = [WORDS[(row * 7 + index * (row % 5 + 1)) % 26] for index in range(10 + row % 23)]
        content = " ".join(words)
        answer = " ".join(reversed(words[: 1 + row % 8 if answers_differ else 4]))
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": chat}))
    path.write_text("\n".join(lines) + "\n")
    prepare([Source(path=str(path), name="chats")], load_tokenizer(str(base)), folder)
    return ExampleFile(folder / "data")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), dropout=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, base: Path) -> ExampleFile:
    return make_data(tmp_path_factory.mktemp("data"), base)


def data_folder(data: ExampleFile) -> Path:
    _, (folder,) = data.__reduce__()
    return folder


def fit(base: Path, data: ExampleFile, out: Path, **changes: object):
    trainer = {**TRAINER, **changes.pop("trainer", {})}  # type: ignore[dict-item]
    options = {
        "strategies": {"chats": SkipAlign(max_position=512, skip_fraction=1.0)},
        "key_bias": GapBias(),
        **changes,
    }
    model = load_model(
        str(base),
        rope=Ntk(factor=8.0, temperature=1.2),
        max_position=512,
        adapter=options.pop("adapter", None),
    )
    return train(model, load_tokenizer(str(base)), data, out, trainer=trainer, **options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    (file,) = (out / "model").glob("*.safetensors")
    return load_file(file)


def config(out: Path) -> str:
    return (out / "model/config.json").read_text()


def test_a_run_leaves_a_folder_that_any_loader_runs(base: Path, data: ExampleFile, tmp_path: Path):
    outcome = fit(base, data, tmp_path)
    assert outcome.steps == 12
    assert not outcome.interrupted
    losses = read_json_lines(tmp_path / "loss.jsonl")
    assert [line["step"] for line in losses] == list(range(1, 13))
    assert losses[-1]["loss"] < losses[0]["loss"]
    verdict = read_json(tmp_path / "probe.json")
    assert verdict["passed"]
    assert verdict["with_key_bias"]
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert tokenizer.chat_template == TEMPLATE
    assert load_model(str(tmp_path / "model")).config.max_position_embeddings == 512


def test_the_loss_is_told_apart_by_natural_and_skipped_samples(
    base: Path, data: ExampleFile, tmp_path: Path
):
    strategies = {"chats": SkipAlign(max_position=512, skip_fraction=0.5)}
    fit(base, data, tmp_path, strategies=strategies, trainer={"max_steps": 2})
    for line in read_json_lines(tmp_path / "loss.jsonl"):
        low, high = sorted((line["loss_natural"], line["loss_skipped"]))
        assert low < line["loss"] < high


def test_a_watcher_that_is_not_installed_is_named(base: Path, data: ExampleFile, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"trainer\.report_to: .*wandb.*install"):
        fit(base, data, tmp_path, trainer={"report_to": "wandb"})


def test_tokens_are_counted_without_padding(base: Path, data: ExampleFile, tmp_path: Path):
    one_epoch = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 1}
    for bias in (None, GapBias()):
        out = tmp_path / str(bias is None)
        outcome = fit(base, data, out, key_bias=bias, trainer=one_epoch)
        assert outcome.tokens == int(data.lengths.sum())
        assert outcome.max_row_tokens == int(data.lengths.max())


def test_the_same_run_has_the_same_weights_and_another_seed_others(
    base: Path, data: ExampleFile, tmp_path: Path
):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        fit(base, data, tmp_path / name, seed=seed, trainer={"max_steps": 3})
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_without_skips_and_bias_training_differs(base: Path, data: ExampleFile, tmp_path: Path):
    fit(base, data, tmp_path / "bias", trainer={"max_steps": 2})
    fit(base, data, tmp_path / "none", key_bias=None, trainer={"max_steps": 2})
    fit(
        base,
        data,
        tmp_path / "pose",
        key_bias=None,
        strategies={"chats": PoSE(max_position=512)},
        trainer={"max_steps": 2},
    )
    found = [weights(tmp_path / name)["model.norm.weight"] for name in ("bias", "none", "pose")]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


CHATS = {"chats": Contiguous()}
CAUSAL = {
    "packing": Packing(max_tokens=96),
    "key_bias": None,
    "strategies": CHATS,
}
BLOCKS = {"packing": Packing(max_tokens=96, attention="block_diagonal", loss="sample")}


@pytest.mark.parametrize("options", [CAUSAL, BLOCKS], ids=["causal", "block_diagonal"])
def test_packed_runs_see_every_example_once_an_epoch(
    base: Path, data: ExampleFile, tmp_path: Path, options: dict
):
    one_epoch = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    outcome = fit(base, data, tmp_path, trainer=one_epoch, **options)
    tokens = int(data.lengths.sum())
    assert outcome.tokens == 2 * tokens
    assert outcome.num_sequences == 2 * len(data)
    assert 64 < outcome.max_row_tokens <= 96
    nearly_full = math.ceil(tokens / (0.9 * 96))
    assert outcome.steps <= 2 * math.ceil(nearly_full / 8), "a step holds 2 x 4 packs"
    losses = read_json_lines(tmp_path / "loss.jsonl")
    assert losses[-1]["loss"] < losses[0]["loss"]
    verdict = read_json(tmp_path / "probe.json")
    assert verdict["passed"]
    assert verdict["packed"] == options["packing"].attention


def test_the_loss_by_sample_is_not_that_by_token(base: Path, tmp_path: Path):
    data = make_data(tmp_path, base, answers_differ=True)
    losses: dict[str, float] = {}
    for loss in ("sample", "token"):
        packing = Packing(max_tokens=96, attention="block_diagonal", loss=loss)
        fit(base, data, tmp_path / loss, packing=packing, trainer={"max_steps": 1})
        losses[loss] = read_json_lines(tmp_path / loss / "loss.jsonl")[0]["loss"]
    assert losses["sample"] != losses["token"]


def test_training_counts_the_tokens_that_preparing_counted(base: Path, tmp_path: Path):
    """A document's first token has a label and no loss, whether it stands alone or in a pack."""
    texts = [" ".join(WORDS[: 5 + row % 9]) for row in range(8)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = Source(path=str(path), name="chats")
    counted = prepare([source], load_tokenizer(str(base)), tmp_path)["total"]["trained_tokens"]
    data = ExampleFile(tmp_path / "data")
    assert counted == sum(len(each.labels) - 1 for each in data)
    epoch = {"max_steps": -1, "num_train_epochs": 1}
    assert fit(base, data, tmp_path / "alone", trainer=epoch).trained_tokens == counted
    assert fit(base, data, tmp_path / "packed", trainer=epoch, **BLOCKS).trained_tokens == counted


def test_packing_changes_neither_what_is_trained_nor_the_saved_config(
    base: Path, data: ExampleFile, tmp_path: Path
):
    one_epoch = {"max_steps": -1, "num_train_epochs": 1}
    alone = fit(base, data, tmp_path / "alone", trainer=one_epoch)
    packed = fit(base, data, tmp_path / "packed", trainer=one_epoch, **BLOCKS)
    assert alone.num_sequences == packed.num_sequences == len(data)
    assert alone.trained_tokens == packed.trained_tokens
    assert config(tmp_path / "alone") == config(tmp_path / "packed")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_logit_scale_trains_another_model_with_the_same_config(
    base: Path, data: ExampleFile, tmp_path: Path, checkpointing: bool
):
    trainer = {"max_steps": 2, "activation_checkpointing": checkpointing}
    for name, scale in (("none", None), ("one", 1.0), ("half", 0.5), ("span", "span")):
        fit(base, data, tmp_path / name, logit_scale=scale, trainer=trainer)
    verdict = read_json(tmp_path / "span/probe.json")
    assert verdict["with_logit_scale"]
    assert {"the scale moves logits", "the scale is of all logits"} < {
        check["name"] for check in verdict["checks"]
    }
    norms = {n: weights(tmp_path / n)["model.norm.weight"] for n in ("none", "one", "half", "span")}
    assert torch.equal(norms["none"], norms["one"])
    assert not torch.equal(norms["one"], norms["half"])
    assert not torch.equal(norms["one"], norms["span"])
    assert config(tmp_path / "none") == config(tmp_path / "span")


def test_scale_and_packs_go_together(base: Path, data: ExampleFile, tmp_path: Path):
    outcome = fit(base, data, tmp_path, logit_scale="span", trainer={"max_steps": 2}, **BLOCKS)
    assert outcome.steps == 2
    verdict = read_json(tmp_path / "probe.json")
    assert verdict["passed"]
    assert len(verdict["checks"]) == 7


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_training as t
from skipalign import training
from skipalign.example_file import ExampleFile

class Stop(training._Watch):
    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == {step}:
            os.kill(os.getpid(), signal.{signal})

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step + 0.5 == {step}:
            os.kill(os.getpid(), signal.{signal})

training._Watch = Stop
outcome = t.fit(Path({base!r}), ExampleFile(Path({data!r})), Path({out!r}), seed=4)
print("interrupted", outcome.interrupted)
"""


def start_and_stop(base: Path, data: ExampleFile, out: Path, step: float, name: str) -> str:
    script = INTERRUPTED.format(
        tests=str(Path(__file__).parent),
        step=step,
        signal=name,
        base=str(base),
        data=str(data_folder(data)),
        out=str(out),
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    expected = -signal.SIGKILL if name == "SIGKILL" else 0
    assert done.returncode == expected, done.stderr[-2000:]
    return done.stdout


def stop_after(
    monkeypatch: pytest.MonkeyPatch, step: int, base: Path, data: ExampleFile, out: Path, **options
):
    """Leave a run as a kill in the middle of `step + 1` would: nothing is tidied up."""

    class Killed(BaseException):
        pass

    class Stop(training._Watch):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(training, "_Watch", Stop)
        with pytest.raises(Killed):
            fit(base, data, out, seed=4, **options)
    assert not (out / "model").exists()


@pytest.fixture(scope="module")
def whole(base: Path, data: ExampleFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = fit(base, data, out, seed=4)
    counted = [outcome.tokens, outcome.trained_tokens, outcome.max_row_tokens]
    (out / "counted.json").write_text(json.dumps(counted))
    torch.set_num_threads(before)
    return out


@pytest.fixture
def one_thread():
    """Sums of floats depend on the number of threads; runs to compare use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("step", "name"), [(7.5, "SIGKILL"), (7, "SIGINT")])
def test_a_stopped_run_ends_with_the_same_weights_to_the_bit(
    base: Path, data: ExampleFile, tmp_path: Path, whole: Path, step: float, name: str
):
    """Step 7.5 is between the two batches of step 8; both lie in the middle of an epoch."""
    printed = start_and_stop(base, data, tmp_path, step, name)
    if name == "SIGINT":
        assert "interrupted True" in printed
    assert not (tmp_path / "model").exists()
    left = newest_checkpoint(tmp_path / "checkpoints")
    assert left is not None
    assert left.name == {"SIGKILL": "checkpoint-5", "SIGINT": "checkpoint-8"}[name]
    outcome = fit(base, data, tmp_path, seed=4)
    expected, found = weights(whole), weights(tmp_path)
    assert all(torch.equal(expected[part], found[part]) for part in expected)
    counted = json.loads((whole / "counted.json").read_text())
    assert [outcome.tokens, outcome.trained_tokens, outcome.max_row_tokens] == counted
    steps = [line["step"] for line in read_json_lines(tmp_path / "loss.jsonl")]
    assert steps == list(range(1, 13))


SCALED_PACKS = {
    **BLOCKS,
    "logit_scale": "span",
    "trainer": {"per_device_train_batch_size": 2, "save_steps": 5},
}


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_of_packs_ends_with_the_same_weights_to_the_bit(
    base: Path, data: ExampleFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed in its second epoch, whose packs are others than those of the first."""
    whole = fit(base, data, tmp_path / "whole", seed=4, **SCALED_PACKS)
    state = (tmp_path / "whole/checkpoints/checkpoint-10/trainer_state.json").read_text()
    assert 1 < json.loads(state)["epoch"] < 2
    stop_after(monkeypatch, 11, base, data, tmp_path / "stopped", **SCALED_PACKS)
    left = newest_checkpoint(tmp_path / "stopped/checkpoints")
    assert left is not None
    assert left.name == "checkpoint-10"
    resumed = fit(base, data, tmp_path / "stopped", seed=4, **SCALED_PACKS)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(expected[part], found[part]) for part in expected)
    assert replace(whole, seconds=0) == replace(resumed, seconds=0)


ADAPTED = {"adapter": Lora(r=4, dropout=0.1)}


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_of_an_adapter_ends_with_the_same_weights_to_the_bit(
    base: Path, data: ExampleFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit(base, data, tmp_path / "whole", seed=4, **ADAPTED)
    stop_after(monkeypatch, 8, base, data, tmp_path / "stopped", **ADAPTED)
    left = newest_checkpoint(tmp_path / "stopped/checkpoints")
    assert left is not None
    assert left.name == "checkpoint-5"
    assert not list(left.glob("*.bin"))
    fit(base, data, tmp_path / "stopped", seed=4, **ADAPTED)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert any("lora_A" in name for name in expected)
    assert all(torch.equal(expected[part], found[part]) for part in expected)


@pytest.mark.usefixtures("one_thread")
def test_a_broken_newest_checkpoint_is_passed_over(
    base: Path,
    data: ExampleFile,
    tmp_path: Path,
    whole: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    stop_after(monkeypatch, 11, base, data, tmp_path)
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "checkpoint-10"
    optimizer = newest / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-7])
    older = newest_checkpoint(tmp_path / "checkpoints")
    assert older is not None
    assert older.name == "checkpoint-5"
    assert "checkpoint-10 is broken and passed over: optimizer.pt has" in caplog.text
    fit(base, data, tmp_path, seed=4)
    expected, found = weights(whole), weights(tmp_path)
    assert all(torch.equal(expected[part], found[part]) for part in expected)


@pytest.mark.usefixtures("one_thread")
def test_a_run_stopped_after_its_last_step_does_no_step_more(
    base: Path, data: ExampleFile, tmp_path: Path, whole: Path
):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    outcome = fit(base, data, tmp_path, seed=4)
    assert outcome.steps == 12
    expected, found = weights(whole), weights(tmp_path)
    assert all(torch.equal(expected[part], found[part]) for part in expected)


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_kills_at_random_moments_never_lose_a_run(
    base: Path, data: ExampleFile, tmp_path: Path, whole: Path
):
    script = INTERRUPTED.format(
        tests=str(Path(__file__).parent),
        step=10**6,
        signal="SIGKILL",
        base=str(base),
        data=str(data_folder(data)),
        out=str(tmp_path),
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    chance, kills = np.random.default_rng(0), 0
    for wait in [1, *chance.uniform(2, 5, 12), *range(6, 18, 3)]:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Imports take some seconds, the run one or two: some kills fall before, some after.
        time.sleep(wait)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills, "even the first start ended before it was killed"
    fit(base, data, tmp_path, seed=4)
    expected, found = weights(whole), weights(tmp_path)
    assert all(torch.equal(expected[part], found[part]) for part in expected)


def test_key_bias_is_refused_where_it_is_not_known_to_arrive(
    base: Path, data: ExampleFile, tmp_path: Path
):
    model = load_model(str(base))
    model.config._attn_implementation = "paged|eager"
    with pytest.raises(VisibilityError, match=r"'gap' with attn_implementation 'paged\|eager'"):
        train(
            model,
            load_tokenizer(str(base)),
            data,
            tmp_path,
            strategies={"chats": PoSE(max_position=512)},
            key_bias=GapBias(),
        )


def test_options_that_packs_and_scales_do_not_take_are_refused(
    base: Path, data: ExampleFile, tmp_path: Path
):
    with pytest.raises(RecipeError, match="logit_scale is 'spam'"):
        fit(base, data, tmp_path, logit_scale="spam")
    with pytest.raises(RecipeError, match=r"label_smoothing_factor is 0\.1"):
        fit(base, data, tmp_path, trainer={"label_smoothing_factor": 0.1}, **BLOCKS)
    with pytest.raises(DataError, match=r"packing\.max_tokens is 30"):
        fit(base, data, tmp_path, packing=Packing(max_tokens=30, attention="block_diagonal"))


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_samples(
    base: Path, data: ExampleFile, tmp_path: Path
):
    trainer = {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 3, "save_steps": 1}
    with pytest.raises(RunError, match=r"is (nan|inf) at step 3, samples ") as stopped:
        fit(base, data, tmp_path, trainer=trainer)
    known = {data[row].id for row in range(len(data))}
    named = set(re.findall("[0-9a-f]{16,}", str(stopped.value).partition("samples ")[2])) & known
    assert len(named) in (4, 8), "of one batch, or of all batches of the step"
    assert str(stopped.value).endswith("checkpoint-2")
    assert not (tmp_path / "model").exists()
    kept = load_file(tmp_path / "checkpoints/checkpoint-2/model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())


def test_gradients_and_weights_that_are_no_numbers_are_neither_taken_nor_saved(
    base: Path, data: ExampleFile, tmp_path: Path
):
    model = load_model(str(base))
    weight = model.model.norm.weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = weight.detach().clone()
    options = {"strategies": CHATS, "trainer": {**TRAINER, "save_steps": 1}}
    with pytest.raises(RunError, match=r"norm of the gradient is (inf|nan) at step 1, samples"):
        train(model, load_tokenizer(str(base)), data, tmp_path, **options)
    assert torch.equal(model.model.norm.weight, before)
    assert newest_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("on_gpu", [False, True])
def test_memory_that_is_too_small_is_told_in_one_line_with_the_cure(
    base: Path, data: ExampleFile, tmp_path: Path, on_gpu: bool
):
    """Without a GPU its error is raised by hand; the CPU's comes from asking for too much."""

    def ask_for_too_much(*_: object) -> None:
        if on_gpu:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        torch.empty(2**55)

    def third_step(module: torch.nn.Module, args: object) -> None:
        calls.append(1)
        # Four batches are of two steps; the probe's passes come before them, without gradients.
        if torch.is_grad_enabled() and sum(calls) > 4:
            ask_for_too_much()

    calls: list[int] = []
    model = load_model(str(base))
    model.register_forward_pre_hook(
        lambda module, args: third_step(module, args) if torch.is_grad_enabled() else None
    )
    options = {"strategies": CHATS, "trainer": {**TRAINER, "save_steps": 1}}
    with pytest.raises(RunError, match=r"out of memory at step 3, with 4 x \d+ tokens") as stopped:
        train(model, load_tokenizer(str(base)), data, tmp_path, **options)
    message = str(stopped.value)
    assert "trainer.per_device_train_batch_size (4)" in message
    assert message.endswith("kept: " + str(tmp_path / "checkpoints/checkpoint-2"))
    assert "\n" not in message
