"""`trainer: {torch_compile: true}`: what is skipped changes no graph, and the losses stay."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from skipalign import tiny
from skipalign.example_file import ExampleFile
from skipalign.files import read_json_lines
from skipalign.key_bias import GapBias
from skipalign.model import load_model, load_tokenizer
from skipalign.positions import SkipAlign
from skipalign.prepare import Source, prepare
from skipalign.training import train

STEPS = 7


class Graphs(TrainerCallback):
    """Counts the graphs that were compiled until the end of each step."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ExampleFile:
    folder = tmp_path_factory.mktemp("data")
    words = ["The", "bird", "sat", "on", "the", "wall", "and", "nobody", "came", "to", "look"]
    turns = [
        [("user", " ".join(words[: 4 + row % 9])), ("assistant", " ".join(words[-2 - row % 3 :]))]
        for row in range(40)
    ]
    rows = [
        json.dumps({"messages": [{"role": role, "content": text} for role, text in 2 * turn]})
        for turn in turns
    ]
    (folder / "chats.jsonl").write_text("\n".join(rows))
    source = Source(path=str(folder / "chats.jsonl"), name="chats", max_tokens=128)
    prepare([source], load_tokenizer(str(tiny.BASE)), folder)
    return ExampleFile(folder / "data")


def fit(data: ExampleFile, out: Path, given: dict[str, Any], **trainer: Any):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = Graphs()
    strategy = SkipAlign(max_position=4096, skip_fraction=0.75, cuts_within=4)
    train(
        load_model(str(tiny.BASE), skips=True, max_position=4096),
        load_tokenizer(str(tiny.BASE)),
        data,
        out,
        strategies={"chats": strategy},
        **given,
        trainer={
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            **trainer,
        },
        watchers=[lambda _: graphs],
    )
    return [line["loss"] for line in read_json_lines(out / "loss.jsonl")], graphs.found


@pytest.mark.long
@pytest.mark.parametrize(
    "given",
    [{}, {"key_bias": GapBias()}, {"chunked_loss": True}],
    ids=["no bias", "key bias", "chunked loss"],
)
def test_skips_compile_nothing_anew(
    data: ExampleFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
):
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")  # transformers sets them; this puts them back
    plain, none = fit(data, tmp_path / "plain", given)
    compiled, graphs = fit(data, tmp_path / "compiled", given, torch_compile_backend="aot_eager")
    assert none == [0] * STEPS
    assert compiled == pytest.approx(plain, abs=1e-5)
    # The probe's pass, the first step, and one for rows of any width; then none, though each step
    # skips elsewhere and its rows are of another length. A loss in parts is not compiled.
    assert graphs[2:] == [3] * (STEPS - 2)
