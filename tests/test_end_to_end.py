"""`skipalign run` on real conversations with a real tokenizer and a random Llama of 5 million."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skipalign.files import read_json, read_json_lines
from skipalign.model import load_model, save_model

DATA = Path(__file__).parents[1].parent / "shared/data"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} with real conversations is not here"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(DATA / "tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"),
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    assert 4.5e6 < sum(p.numel() for p in model.parameters()) < 5.5e6
    save_model(model, tokenizer, folder)
    return folder


def write_recipe(folder: Path, base: Path, data: Path, steps: int = 50) -> Path:
    path = folder / "own.yaml"
    path.write_text(
        f"base: {base}\n"
        f"data: {{path: {data}, name: chats, max_tokens: 1024}}\n"
        "rope: {type: ntk, factor: 16}\n"
        "strategy: {name: skipalign, max_position: 16384}\n"
        f"trainer: {{max_steps: {steps}, per_device_train_batch_size: 2, save_steps: 10}}\n"
        "evaluation:\n"
        "  needle: {lengths: [512, 1024], depths: 2, trials: 1, max_new_tokens: 4}\n"
    )
    return path


def command(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "skipalign", *words],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("file", "rows"),
    [("openassistant_messages.jsonl", 400), ("gpteacher_roleplay_simple.json", 1923)],
)
def test_real_conversations_train_and_every_row_is_accounted_for(
    base: Path, tmp_path: Path, file: str, rows: int
):
    recipe = write_recipe(tmp_path, base, DATA / "instructions" / file)
    process = command("run", str(recipe), cwd=tmp_path)
    printed, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    assert "report.html" in printed.splitlines()[-1] or "report.html" in printed
    out = tmp_path / "runs/own"
    accounting = read_json(out / "accounting.json")
    for counts in (*accounting["sources"].values(), accounting["total"]):
        rejected, dropped = sum(counts["rejected"].values()), sum(counts["dropped"].values())
        assert counts["rows_read"] == rows
        assert counts["rows_read"] == counts["used"] + rejected + dropped
    assert accounting["total"]["used"] > 0.95 * rows
    lost = len(read_json_lines(out / "rejected.jsonl"))
    assert lost == rows - accounting["total"]["used"]
    losses = [line["loss"] for line in read_json_lines(out / "loss.jsonl")]
    assert read_json(out / "training.json")["steps"] == 50
    assert losses[-1] < losses[0]
    assert read_json(out / "probe.json")["passed"]
    assert load_model(str(out / "model")).config.max_position_embeddings == 16384


def test_a_run_killed_at_any_moment_is_finished_by_starting_it_again(base: Path, tmp_path: Path):
    recipe = write_recipe(
        tmp_path, base, DATA / "instructions/openassistant_messages.jsonl", steps=20
    )
    kills = 0
    for wait in (2, 3, 4, 5, 6, 7, 8, 10, 14):
        process = command("run", str(recipe), cwd=tmp_path)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        for path in (tmp_path / "runs/own").rglob("*.json"):
            if "checkpoints" not in path.parts and ".model.partial" not in path.parts:
                json.loads(path.read_text())
    assert kills, "even the first start ended before it was killed"
    process = command("run", str(recipe), cwd=tmp_path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    out = tmp_path / "runs/own"
    assert read_json(out / "training.json")["steps"] == 20
    assert (out / "report.html").exists()
    assert load_model(str(out / "model"))
