"""A training written out as a data set: the positions of our own trainer, in its order."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from skipalign.batch import Batch
from skipalign.errors import DataError, RecipeError
from skipalign.example_file import ExampleFile
from skipalign.export import export
from skipalign.key_bias import GapBias
from skipalign.model import load_model, load_tokenizer
from skipalign.packing import Packing
from skipalign.positions import SkipAlign
from skipalign.prepare import Source
from skipalign.resolved import Base, Training
from skipalign.rope import Ntk
from skipalign.rows import SkipAlignCollator
from skipalign.training import train
from test_training import TRAINER, make_base, make_data

Seen = list[dict[str, torch.Tensor]]
SKIPS = SkipAlign(max_position=512, skip_fraction=0.9)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, base: Path) -> ExampleFile:
    return make_data(tmp_path_factory.mktemp("data"), base, rows=24)


@pytest.fixture(scope="module")
def training(base: Path) -> Training:
    return Training(
        method="skipalign",
        seed=5,
        directory="",
        base=Base(path=str(base)),
        sources=(Source(path="chats.jsonl", name="chats"),),
        strategies={"chats": SKIPS},
        rope=Ntk(factor=8.0),
        trainer={**TRAINER, "gradient_accumulation_steps": 1},
    )


@pytest.fixture(scope="module")
def trained(
    training: Training, data: ExampleFile, tmp_path_factory: pytest.TempPathFactory
) -> Seen:
    """Return what the model sees in two epochs of our own trainer."""
    model = load_model(training.base.path, rope=training.rope, max_position=512)
    seen: Seen = []

    def keep(_: Any, __: Any, given: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            seen.append(given)

    model.register_forward_pre_hook(keep, with_kwargs=True)
    tokenizer = load_tokenizer(training.base.path)
    options = {"strategies": training.strategies, "trainer": training.trainer, "seed": 5}
    train(model, tokenizer, data, tmp_path_factory.mktemp("run"), **options)
    return seen


def batches_of(rows: Any) -> list[Batch]:
    collator = SkipAlignCollator(pad_token_id=0)
    listed = [rows[n] for n in range(len(rows))]
    return [collator(listed[start : start + 4]) for start in range(0, len(listed), 4)]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_its_rows_make_the_batches_of_our_own_trainer(
    training: Training, data: ExampleFile, trained: Seen, tmp_path: Path, suffix: str
):
    out = tmp_path / f"out/data.{suffix}"
    made = export(training, data, out, num_epochs=2)
    kind = {"jsonl": "json"}.get(suffix, suffix)
    rows = datasets.load_dataset(
        kind, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == made["rows"] == 48
    assert made["tokens"] == sum(map(len, rows["input_ids"]))
    assert set(map(tuple, rows["attention_mask"])) == {(1,) * n for n in set(data.lengths)}
    assert list(rows["epoch"]) == [0] * 24 + [1] * 24
    assert made["max_position"] == max(ids[-1] for ids in rows["position_ids"]) + 1 <= 512
    found = batches_of(rows)

    assert len(trained) == len(found) == 12
    for ours, exported in zip(trained, found, strict=True):
        for name, tensor in exported.items():
            assert torch.equal(tensor, ours[name]), name


def test_the_readme_says_what_a_trainer_must_do(
    training: Training, data: ExampleFile, tmp_path: Path
):
    export(training, data, tmp_path / "d.parquet")
    text = (tmp_path / "README.md").read_text()
    assert "24 rows" in text
    assert re.search(r"eager, sdpa or flex attention \| pass `attention_mask`", text)
    assert '"max_position": 512' in text
    assert '"seed": 5' in text
    assert {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")} >= {
        "input_ids, labels",
        "position_ids",
        "borders, roles",
    }
    export(training, data, tmp_path / "d.jsonl")
    assert 'load_dataset("json", data_files="d.jsonl")' in (tmp_path / "README.md").read_text()


def test_what_no_data_set_can_carry_is_refused(
    training: Training, data: ExampleFile, tmp_path: Path
):
    out = tmp_path / "d.jsonl"
    for name, value in (
        ("key_bias", GapBias()),
        ("logit_scale", 0.5),
        ("packing", Packing(max_tokens=100)),
    ):
        with pytest.raises(RecipeError, match=f"{name} acts inside.*export a method without it"):
            export(replace(training, **{name: value}), data, out)
    with pytest.raises(RecipeError, match=r"suffix is '\.csv'; it must be \.jsonl or \.parquet"):
        export(training, data, tmp_path / "d.csv")
    with pytest.raises(RecipeError, match="0 epochs"):
        export(training, data, out, num_epochs=0)
    assert not list(tmp_path.iterdir())


def test_a_readme_of_somebody_else_is_left_alone(
    training: Training, data: ExampleFile, tmp_path: Path
):
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(DataError, match="give the data set a folder of its own"):
        export(training, data, tmp_path / "d.jsonl")
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert not (tmp_path / "d.jsonl").exists()
