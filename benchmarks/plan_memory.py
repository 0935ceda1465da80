"""What `skipalign plan` says a step needs, beside the memory that it takes.

Promise: the peak of allocated tensors within 20%, at three sizes of 1 to 8 GB in total. Each model
has random weights and takes two steps in transformers' Trainer on the CPU; torch's profiler, which
sees every allocation, records the second. Resident memory is that of the whole process.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from skipalign.batch import Placed, pad
from skipalign.borders import fit_mask, mask_dtype
from skipalign.costs import Load, LowRank, Memory, memory
from skipalign.encoding import Example, Segment
from skipalign.origin import write_result
from skipalign.shapes import shape_of


@dataclass(frozen=True, kw_only=True)
class Case:
    """A random model and how it trains."""

    load: Load
    steps_of_rows: int = 1
    model_type: str = "llama"
    sizes: dict[str, Any] = field(default_factory=dict)


def sizes(hidden: int, layers: int, heads: int, vocab: int) -> dict[str, Any]:
    """Return the keys of a config with the proportions of Llama 3 and Qwen3."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4,
        "head_dim": hidden // heads,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }


CASES = {
    "38M, bf16 autocast, padded rows": Case(
        model_type="qwen3",
        sizes=sizes(512, 8, 8, 16_000),
        load=Load(rows=2, tokens=512, autocast=True, mask="padding"),
    ),
    "134M, float32, layers computed twice, two passes a step": Case(
        sizes=sizes(768, 12, 12, 32_000),
        steps_of_rows=2,
        load=Load(rows=1, tokens=1024, checkpointing=True, accumulates=True),
    ),
    "319M, bf16 autocast, key bias": Case(
        model_type="qwen3",
        sizes=sizes(1024, 20, 16, 32_000),
        load=Load(rows=1, tokens=768, autocast=True, mask="float"),
    ),
}


def planned(case: Case) -> Memory:
    """Return what the formulas say."""
    config = AutoConfig.for_model(case.model_type, **case.sizes)
    return memory(shape_of(config, where=case.model_type), case.load)


def measured(case: Case) -> int:
    """Return the largest sum of allocated bytes during the second step."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(case.model_type, **case.sizes)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if case.load.weight_bytes == 2:
        model = model.bfloat16()
    if case.load.adapter is not None:
        model = with_adapter(model, case.load.adapter)
    recorder = Recorder()
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=case.load.rows,
            gradient_accumulation_steps=case.steps_of_rows,
            max_steps=2,
            bf16=case.load.autocast,
            activation_checkpointing=case.load.checkpointing,
            optim=case.load.optimizer,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            use_cpu=True,
            disable_tqdm=True,
        )
        weights = next(model.parameters()).dtype
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=list(range(64)),  # type: ignore[arg-type]
            data_collator=lambda _: batch(case, weights),
            callbacks=[recorder],
        )
        recorder.trainer = trainer
        trainer.train()
    return recorder.peak


def with_adapter(model: Any, adapter: LowRank) -> Any:
    """Return the model with low-rank updates beside frozen weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=adapter.r, target_modules=list(adapter.targets))
    return get_peft_model(model, config)


def batch(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return rows as SkipAlign trains on them: with a skip, padded or biased as the case says."""
    load, rng = case.load, np.random.default_rng(0)
    shorter = 4 if load.mask == "padding" else 0
    rows = []
    for row in range(load.rows):
        length = load.tokens - shorter * (row > 0)
        ids = rng.integers(0, case.sizes["vocab_size"], length)
        positions = np.arange(length)
        positions[length // 2 :] += 1000
        segments = (Segment(0, length, "user", 0, length),)
        example = Example(ids, ids, segments, np.zeros(0, np.int64), str(row), "made")
        bias = np.ones(length, np.float32) if load.mask == "float" else None
        rows.append(Placed(example, positions, bias))
    found: dict[str, Any] = dict(pad(rows, 0))
    if load.mask == "float":
        added_to = mask_dtype("sdpa", dtype, torch.bfloat16 if load.autocast else None)
        found["attention_mask"] = fit_mask(found["attention_mask"], added_to)
    return found


class Recorder(TrainerCallback):
    """Records the second step; `peak` is what stood before it and the most that it added."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.profiler: Any = None
        self.peak = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step == 1:
            optimizer = self.trainer.optimizer
            held = [*self.trainer.model.parameters()]
            held += [value for each in optimizer.state.values() for value in each.values()]
            self.peak = sum(each.untyped_storage().nbytes() for each in held)
            self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.profiler is None:
            return
        self.profiler.stop()
        events = self.profiler.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        self.peak += int(np.cumsum([size for _, size in changes]).max())


def peak_resident() -> int:
    """Return the most bytes of memory that this process ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM; this benchmark runs on Linux")


def main() -> None:
    """Measure each case in a process of its own; print and keep what was planned and found."""
    if len(sys.argv) > 1:
        print(json.dumps([measured(CASES[sys.argv[1]]), peak_resident()]))
        return
    rows = []
    for name, case in CASES.items():
        done = subprocess.run(
            [sys.executable, __file__, name], check=True, stdout=subprocess.PIPE, text=True
        )
        found, resident = json.loads(done.stdout.splitlines()[-1])
        plan = planned(case)
        row = {"case": name, "planned": plan.peak, "measured": found, "resident": resident}
        row |= {"ratio": round(plan.peak / found, 3), "moment": plan.moment, "parts": plan.parts}
        rows.append(row)
        print(
            f"{name:56s} planned {plan.peak / 1e9:.2f} GB, measured {found / 1e9:.2f} GB, "
            f"ratio {row['ratio']:.3f}, resident {resident / 1e9:.2f} GB"
        )
    out = Path(__file__).parent / "results/plan-memory.json"
    moved = ("measured", "resident", "ratio")
    write_result(
        out, {"rows": rows}, seeds=[0], data={}, exact=("planned", "parts"), measured=moved
    )


if __name__ == "__main__":
    main()
