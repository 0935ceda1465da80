"""TRL's own trainers, as installed, with our positions: what their models get to see."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl", reason="needs TRL: pip install 'skipalign[trl]'")
datasets = pytest.importorskip("datasets")

from skipalign.encoding import IGNORE_INDEX  # noqa: E402
from skipalign.errors import ModelError, RecipeError, VisibilityError  # noqa: E402
from skipalign.example_file import ExampleFile  # noqa: E402
from skipalign.files import read_json, read_json_lines  # noqa: E402
from skipalign.integrations.trl import (  # noqa: E402
    SkipDPOTrainer,
    SkipSFTTrainer,
    _refuse_shards,
)
from skipalign.model import load_model, load_tokenizer  # noqa: E402
from skipalign.positions import SkipAlign  # noqa: E402
from skipalign.prepare import Source, prepare  # noqa: E402
from skipalign.rope import Ntk  # noqa: E402
from skipalign.rows import SkipAlignCollator, row_of  # noqa: E402
from skipalign.training import train  # noqa: E402
from test_training import make_base  # noqa: E402

SKIPS = SkipAlign(max_position=512, skip_fraction=1.0, cuts_within=2, cut_at="token")
STEPS = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_steps": 4,
}
# What TRL takes that our trainer owns; checkpointing of activations is on in TRL by itself.
TRL = {**STEPS, "seed": 3, "bf16": False, "use_cpu": True, "report_to": "none"}
Batches = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def rows() -> Any:
    """Return 24 conversations of two turns, whose lengths and answers differ."""
    letters = "abcdefghijklmnopqrstuvwxyz"

    def turn(row: int) -> list[dict[str, str]]:
        asked = " ".join(letters[(row * 7 + n) % 26] for n in range(4 + row % 9))
        return [
            {"role": "user", "content": asked + " . " + asked},
            {"role": "assistant", "content": asked[: 1 + 2 * (row % 3)]},
        ]

    return datasets.Dataset.from_list([{"messages": turn(n) + turn(n + 5)} for n in range(24)])


@pytest.fixture(scope="module")
def pairs() -> Any:
    letters = "abcdefgh"
    return datasets.Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": " ".join(letters[n:] + letters)}],
                "chosen": [{"role": "assistant", "content": "z"}],
                "rejected": [{"role": "assistant", "content": " ".join(letters[: n + 1])}],
            }
            for n in range(8)
        ]
    )


@pytest.fixture(scope="module")
def model(base: str) -> Callable[[], Any]:
    return lambda: load_model(base, rope=Ntk(factor=8.0), max_position=512)


def watched(model: Any, *, learning: bool = True) -> Batches:
    """Return a list that fills with what the layers of a model get, in training or without."""
    batches: Batches = []

    def keep(_: Any, __: Any, given: dict[str, Any]) -> None:
        if torch.is_grad_enabled() == learning:
            names = ("input_ids", "position_ids", "attention_mask")
            batches.append({name: given[name].clone() for name in names})

    model.model.register_forward_pre_hook(keep, with_kwargs=True)
    return batches


def sft(model: Any, base: str, rows: Any, out: Path, **changes: Any) -> SkipSFTTrainer:
    extra = {name: changes.pop(name) for name in ("eval_dataset", "strategy") if name in changes}
    return SkipSFTTrainer(
        model,
        trl.SFTConfig(str(out), **{**TRL, **changes}),
        train_dataset=rows,
        processing_class=load_tokenizer(base),
        **{"strategy": SKIPS, **extra},
    )


def same(found: Batches, expected: Batches) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(one[name], other[name])
        for one, other in zip(found, expected, strict=True)
        for name in one
    )


# ------------------------------------------------------------------------------ SFT


@pytest.fixture(scope="module")
def ours(
    model: Callable[[], Any], base: str, rows: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Batches, list[float]]:
    """Train by ourselves on the same rows, read from a file; return batches and losses."""
    folder = tmp_path_factory.mktemp("ours")
    rows.to_parquet(folder / "rows.parquet")
    tokenizer = load_tokenizer(base)
    prepare([Source(path=str(folder / "rows.parquet"), name="train")], tokenizer, folder)
    trained = model()
    batches = watched(trained)
    examples = ExampleFile(folder / "data")
    train(trained, tokenizer, examples, folder, strategies={"train": SKIPS}, trainer=STEPS, seed=3)
    return batches, [line["loss"] for line in read_json_lines(folder / "loss.jsonl")]


@pytest.fixture(scope="module")
def theirs(
    model: Callable[[], Any], base: str, rows: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SkipSFTTrainer, Batches]:
    """Train by TRL; two epochs of three steps of two batches."""
    trained = model()
    batches = watched(trained)
    trainer = sft(trained, base, rows, tmp_path_factory.mktemp("trl"))
    trainer.train()
    return trainer, batches


def test_trl_sees_the_batches_of_our_own_trainer_in_their_order(ours: Any, theirs: Any):
    batches, losses = ours
    trainer, found = theirs
    assert len(batches) == 12
    assert same(found, batches)
    by_ids: dict[str, set[str]] = {}
    for batch in found:
        for ids, positions, mask in zip(*batch.values(), strict=True):
            drawn = by_ids.setdefault(str(ids[mask == 1].tolist()), set())
            drawn.add(str(positions[mask == 1].tolist()))
    assert len(by_ids) == 24
    assert all(len(drawn) == 2 for drawn in by_ids.values()), "each epoch draws anew"
    found_losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert found_losses == pytest.approx(losses, rel=1e-4)


def test_inside_trls_batches_each_token_sees_all_before_it_and_nothing_else(theirs: Any):
    trainer, batches = theirs
    layers = trainer.model.model.train()
    batch = max(batches, key=lambda each: int((each["attention_mask"] == 0).sum()))
    mask, positions = batch["attention_mask"], batch["position_ids"]
    assert (mask == 0).any()
    skipping = 0
    for row in range(len(mask)):
        token = 2
        skipping += int((positions[row, token:][mask[row, token:] == 1].diff() > 1).any())
        seen = changed(layers, batch, row, token)
        expected = torch.zeros_like(mask, dtype=torch.bool)
        expected[row, token:] = mask[row, token:] == 1
        # What padding sees is nobody's: it is never seen and never trained.
        assert torch.equal(seen & (mask == 1), expected)
    assert skipping == 4
    unmasked = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    assert not changed(layers, unmasked, 0, 0)[0].all(), "the mask is what keeps skips whole"


def changed(layers: Any, batch: dict[str, Any], row: int, token: int) -> torch.Tensor:
    """Tell which tokens another token `token` of `row` changes, as TRL runs the layers."""
    other = batch["input_ids"].clone()
    other[row, token] = (other[row, token] + 7) % 30
    with torch.no_grad():
        before, after = (
            layers(**{**batch, "input_ids": ids}, use_cache=False).last_hidden_state
            for ids in (batch["input_ids"], other)
        )
    return (before - after).abs().amax(dim=-1) > 1e-6


@pytest.mark.long
def test_a_stopped_run_goes_on_with_the_same_positions(
    model: Callable[[], Any], base: str, rows: Any, theirs: Any
):
    whole, batches = theirs
    trained = model()
    found = watched(trained)
    trainer = sft(trained, base, rows, Path(whole.args.output_dir))
    trainer.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-4"))
    assert same(found, batches[8:])


def test_the_loss_is_on_answers_alone_with_a_template_without_markers(
    model: Callable[[], Any], base: str, rows: Any, tmp_path: Path
):
    options = {"assistant_only_loss": True}
    tokenizer, args = load_tokenizer(base), trl.SFTConfig(str(tmp_path), **TRL, **options)
    with pytest.raises(ValueError, match="template"):  # TRL by itself
        trl.SFTTrainer(model(), args, train_dataset=rows, processing_class=tokenizer)
    trainer = sft(model(), base, rows, tmp_path, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    texts = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert torch.equal(labels[labels != IGNORE_INDEX], ids[labels != IGNORE_INDEX])
        texts.append(trainer.processing_class.decode(labels[labels != IGNORE_INDEX]))
    answers = {
        "".join(f"{turn['content'].strip()} <end> " for turn in chat[1::2]).strip()
        for chat in rows["messages"]
    }
    assert set(texts) <= answers


def test_nothing_is_lost_silently_and_no_answer_is_cut(
    base: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("CI", raising=False)  # TRL sends no telemetry there
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: pytest.fail("sent"))
    chats = [
        [("user", "a " * 30), ("assistant", "b c d")],
        [("user", "a"), ("user", "b")],
        [("user", "a"), ("assistant", "e " * 30)],
    ]
    listed = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    rows = datasets.Dataset.from_list([{"messages": chat} for chat in listed])
    narrow = load_model(base)
    trainer = sft(narrow, base, rows, tmp_path, max_length=16)
    assert "2 of 3 rows are not used" in caplog.text
    assert "max_position 512, and the model's window is 64" in caplog.text
    folder = tmp_path / "skipalign/train"
    total = read_json(folder / "accounting.json")["total"]
    assert (total["rejected"], total["dropped"]) == ({"two_users": 1}, {"too_long": 1})
    refused = [json.loads(line) for line in (folder / "rejected.jsonl").open()]
    assert [each["line"] for each in refused] == [2, 3]
    (sample,) = trainer.train_dataset.examples
    assert len(sample.input_ids) <= 16
    assert trainer.processing_class.decode(sample.labels[-4:]) == "b c d <end>"


def test_evaluation_has_natural_positions(
    model: Callable[[], Any], base: str, rows: Any, tmp_path: Path
):
    trained = model()
    batches = watched(trained, learning=False)
    held_out = {"one": rows.select(range(4)), "two": rows.select(range(8, 16))}
    trainer = sft(trained, base, rows, tmp_path, eval_dataset=held_out)
    assert {"eval_one_loss", "eval_two_loss"} <= trainer.evaluate().keys()
    trainer.evaluate(rows.select(range(3)))
    assert sum(len(batch["input_ids"]) for batch in batches) == 4 + 8 + 3
    for batch in batches:
        for positions, mask in zip(batch["position_ids"], batch["attention_mask"], strict=True):
            assert positions[mask == 1].tolist() == list(range(int(mask.sum())))


EACH_STEP = {
    **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
    **{"max_steps": 2, "per_device_eval_batch_size": 2, "load_best_model_at_end": True},
}


@pytest.mark.parametrize("named", [False, True])
def test_it_evaluates_while_it_trains_and_keeps_the_best(
    model: Callable[[], Any], base: str, rows: Any, tmp_path: Path, named: bool
):
    held_out = rows.select(range(4))
    options = {"metric_for_best_model": "eval_one_loss"} if named else {}
    trainer = sft(
        *(model(), base, rows, tmp_path),
        eval_dataset={"one": held_out} if named else held_out,
        **EACH_STEP,
        **options,
    )
    trainer.train()
    name = "eval_one_loss" if named else "eval_loss"
    assert len([line for line in trainer.state.log_history if name in line]) == 2
    assert trainer.state.best_model_checkpoint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True}, r"packing is True: a packed row keeps no borders.*leave packing out"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing is True"),
        ({"padding_free": True, "max_length": None}, "without one attention is cut at skips"),
        ({"eval_packing": True}, "eval_packing is True"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of is 8"),
        ({"chat_template_path": "x.jinja"}, "set tokenizer.chat_template"),
        ({"eos_token": "<end>"}, "set tokenizer.eos_token"),
    ],
)
def test_what_would_take_borders_mask_or_positions_away_is_refused(
    base: str, rows: Any, tmp_path: Path, options: dict[str, Any], message: str
):
    with pytest.raises(RecipeError, match=message):
        sft(None, base, rows, tmp_path, **options)


def test_other_collators_formatters_streams_and_unread_columns_are_refused(
    base: str, rows: Any, tmp_path: Path
):
    args = trl.SFTConfig(str(tmp_path), **TRL)
    for option in ("data_collator", "formatting_func"):
        with pytest.raises(RecipeError, match=f"leave {option} out"):
            SkipSFTTrainer(None, args, train_dataset=rows, strategy=SKIPS, **{option: len})
    with pytest.raises(RecipeError, match=r"IterableDataset; a datasets\.Dataset is required"):
        sft(None, base, rows.to_iterable_dataset(), tmp_path)
    with pytest.raises(RecipeError, match="has the column 'tools'"):
        sft(None, base, rows.add_column("tools", ["[]"] * len(rows)), tmp_path)


def test_virtual_tokens_and_sharded_sequences_are_refused(base: str, rows: Any, tmp_path: Path):
    peft = pytest.importorskip("peft")
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    args = trl.SFTConfig(str(tmp_path), **TRL)
    with pytest.raises(RecipeError, match="peft_config learns virtual tokens"):
        SkipSFTTrainer(None, args, train_dataset=rows, strategy=SKIPS, peft_config=prompt)
    wrapped = peft.get_peft_model(load_model(base), prompt)
    with pytest.raises(ModelError, match="the model's adapter learns virtual tokens"):
        sft(wrapped, base, rows, tmp_path)
    for how in ("cp_enabled", "sp_enabled"):
        config = {"cp_enabled": False, "sp_enabled": False, how: True}
        accelerator = SimpleNamespace(parallelism_config=SimpleNamespace(**config))
        with pytest.raises(RecipeError, match="drops the attention mask and cuts at skips"):
            _refuse_shards(SimpleNamespace(accelerator=accelerator))  # type: ignore[arg-type]


def test_a_model_that_loses_the_mask_is_stopped_before_step_1(
    model: Callable[[], Any], base: str, rows: Any, tmp_path: Path
):
    trained = model()
    trained.model.register_forward_pre_hook(
        lambda _, __, given: ((), {**given, "attention_mask": None, "use_cache": False}),
        with_kwargs=True,
    )
    trainer = sft(trained, base, rows, tmp_path)
    with pytest.raises(VisibilityError, match="attention is cut at the skip"):
        trainer.train()
    assert not read_json(tmp_path / "probe.json")["passed"]
    assert trainer.state.global_step == 0


@pytest.mark.long
def test_trl_itself_trains_on_rows_that_bring_all_columns(
    model: Callable[[], Any], base: str, rows: Any, ours: Any, theirs: Any, tmp_path: Path
):
    examples = theirs[0].train_dataset.examples
    prepared = datasets.Dataset.from_list([row_of(example) for example in examples])
    collator = SkipAlignCollator(SKIPS, pad_token_id=0, seed=3)
    kept = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    trained = model()
    batches = watched(trained)
    trl.SFTTrainer(
        trained,
        trl.SFTConfig(str(tmp_path), **TRL, **kept),
        train_dataset=prepared,
        processing_class=load_tokenizer(base),
        data_collator=collator,
        callbacks=[collator],
    ).train()

    def drawn(batches: Batches) -> list[list[tuple[list[int], list[int]]]]:
        rows = [
            (ids[mask == 1].tolist(), positions[mask == 1].tolist())
            for batch in batches
            for ids, positions, mask in zip(*batch.values(), strict=True)
        ]
        return [sorted(rows[:24]), sorted(rows[24:])]

    assert drawn(batches) == drawn(ours[0]), "the same positions in each epoch, in another order"


# ------------------------------------------------------------------------------ DPO


def dpo(model: Any, base: str, pairs: Any, out: Path, **changes: Any) -> SkipDPOTrainer:
    extra = {name: changes.pop(name) for name in ("eval_dataset", "ref_model") if name in changes}
    options = {**TRL, "max_steps": 4, "gradient_accumulation_steps": 1, "max_length": 64}
    return SkipDPOTrainer(
        model,
        args=trl.DPOConfig(str(out), **{**options, **changes}),
        train_dataset=pairs,
        processing_class=load_tokenizer(base),
        strategy=SKIPS,
        **extra,
    )


def test_dpo_evaluates_while_it_trains(
    model: Callable[[], Any], base: str, pairs: Any, tmp_path: Path
):
    held_out = pairs.select(range(2))
    extra = {"ref_model": model(), "eval_dataset": held_out}
    trainer = dpo(model(), base, pairs, tmp_path, **extra, **EACH_STEP)
    trainer.train()
    assert len([line for line in trainer.state.log_history if "eval_loss" in line]) == 2


def test_dpo_compares_answers_at_the_same_positions(
    model: Callable[[], Any], base: str, pairs: Any, tmp_path: Path
):
    trained, reference = model(), model()
    batches, referred = watched(trained), watched(reference, learning=False)
    held_out = pairs.select(range(2))
    trainer = dpo(
        trained, base, pairs, tmp_path, ref_model=reference, eval_dataset=held_out, max_steps=4
    )
    trainer.train()
    assert len(batches) == 4, "two epochs of two batches"
    assert same(referred, batches), "the reference sees the same"
    drawn: dict[str, set[str]] = {}
    for batch in batches:
        ids, positions, mask = batch["input_ids"], batch["position_ids"], batch["attention_mask"]
        for number in range(4):
            chosen, rejected = number, number + 4
            shared = int((mask[chosen] * mask[rejected]).sum())
            prompt = int((ids[chosen] != ids[rejected])[:shared].long().argmax())
            assert prompt > 5
            assert torch.equal(positions[chosen, :shared], positions[rejected, :shared])
            pair = drawn.setdefault(str(ids[rejected][mask[rejected] == 1].tolist()), set())
            pair.add(str(positions[rejected][mask[rejected] == 1].tolist()))
        row = int((mask.sum(dim=1) < mask.shape[1]).nonzero()[0])
        seen = changed(trainer.model.model.train(), batch, row, 1) & (mask == 1)
        expected = torch.zeros_like(seen)
        expected[row, 1:] = mask[row, 1:] == 1
        assert torch.equal(seen, expected)
    assert len(drawn) == 8
    assert all(len(positions) == 2 for positions in drawn.values()), "each epoch draws anew"
    margins = [line["rewards/margins"] for line in trainer.state.log_history if "loss" in line]
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert margins[-1] > 0.05
    referred.clear()
    assert "eval_loss" in trainer.evaluate()
    natural = list(range(referred[0]["position_ids"].shape[1]))
    assert natural in referred[0]["position_ids"].tolist()
    assert read_json(tmp_path / "probe.json")["passed"]


def test_dpo_refuses_a_reference_of_other_positions(
    model: Callable[[], Any], base: str, pairs: Any, tmp_path: Path
):
    with pytest.raises(RecipeError, match="give ref_model="):
        dpo(model(), base, pairs, tmp_path)
    with pytest.raises(RecipeError, match="the reference has to see the same ones"):
        dpo(None, base, pairs, tmp_path, precompute_ref_log_probs=True)
