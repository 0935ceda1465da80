"""Training steps at the size that people use, on one GPU: 1B and 7B shapes, random weights, bf16.

Per cell (shape, tokens of a row, attention, checkpointing, torch.compile): tokens per second, model
FLOPs utilisation, peak memory. Rows of 4,096 tokens are stepped three ways in turn: plainly by
transformers' Trainer, with skips, with skips and a key bias; the interval of a ratio is that of the
median over the rounds. Rows of 16,384 and 32,768 tokens are the full-length training that skips
stand for; their positions have no gaps, so there is nothing to bias.

The 1B shape trains all weights, float32 under bf16 autocast. The 7B shape trains LoRA beside a
frozen bf16 base, embedding and norms whole: all weights with AdamW would take 100 GB.

    python benchmarks/gpu.py                        # the GPU; what is measured is not repeated
    python benchmarks/gpu.py --only "7b 4096"       # cells whose name holds this
    python benchmarks/gpu.py --device cpu --shrink --out /tmp/try.json    # the same code, anywhere

Each cell has a process of its own, so that one that fails or does not fit takes no other with it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from chunked_loss import peak
from step import SIZES, median, plain_collator, stepper, visits
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from skipalign import layout
from skipalign.adapters import Lora, attach
from skipalign.batch import Collator
from skipalign.bias_attention import FLASH, FLEX, biased_keys
from skipalign.borders import takes_borders
from skipalign.budget import GPUS
from skipalign.checkpoints import Counts
from skipalign.costs import LINEARS, Load, LowRank, Mask, Shape, memory, token_flops
from skipalign.engine import Named, SkipTrainer
from skipalign.errors import SkipalignError, is_out_of_memory
from skipalign.files import read_json, write_json
from skipalign.key_bias import GapBias
from skipalign.origin import origin
from skipalign.positions import SkipAlign
from skipalign.shapes import read_architecture, shape_of
from skipalign.visits import Visit

HERE = Path(__file__).parent
ARCHITECTURES = {
    "1b": HERE / "architectures/llama-3.2-1b.json",
    "7b": HERE.parent / "recipes/architectures/llama-2-7b.json",
}
ADAPTERS = {"7b": Lora(r=16, alpha=32)}
SHORT, LONG = 4096, (16_384, 32_768)
ROWS = 2  # of SHORT tokens in a step; one of LONG
REACH = 65_536  # of the positions of short rows
ATTENTIONS = ("sdpa", *FLASH, FLEX)
PLAIN, SKIPS, BIASED = "plain Trainer", "skips", "skips, key bias"
WARM_UP, ROUNDS, FEWEST_ROUNDS, ENOUGH_SECONDS = 2, 12, 4, 120
SHRUNKEN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": SIZES["vocab_size"],
}
SHRUNK_BY = 64  # what tokens are divided by


@dataclass(frozen=True)
class Cell:
    """What is measured in one process."""

    model: str
    tokens: int
    attention: str
    checkpointing: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """As in the results."""
        words = (self.model, str(self.tokens), self.attention)
        return " ".join(
            [*words, *["checkpointing"] * self.checkpointing, *["compile"] * self.compiled]
        )

    @property
    def arms(self) -> tuple[str, ...]:
        """The ways to step that alternate."""
        return (PLAIN,) if self.tokens in LONG else (PLAIN, SKIPS, BIASED)


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: str = "cuda"
    shrink: bool = False
    rounds: int = ROUNDS

    def tokens(self, cell: Cell) -> int:
        """Return the tokens of a row."""
        return cell.tokens // SHRUNK_BY if self.shrink else cell.tokens

    def config(self, cell: Cell) -> Any:
        """Return the config of the model."""
        config = read_architecture(str(ARCHITECTURES[cell.model]))
        if self.shrink:
            config.update(SHRUNKEN)
        return config


def cells() -> list[Cell]:
    """Return all of them, those that most people ask about first."""
    plain = [Cell(m, t, a) for t, a, m in product((SHORT, *LONG), ATTENTIONS, ARCHITECTURES)]
    again = [replace(cell, checkpointing=True) for cell in plain]
    compiled = [replace(cell, compiled=True) for cell in plain if cell.tokens == SHORT]
    return plain + again + compiled


# ------------------------------------------------------------------------------- one cell


def lacking(cell: Cell) -> dict[str, Any] | None:
    """Say which package a cell would need that is not here."""
    here = {
        "flash_attention_2": is_flash_attn_2_available,
        "flash_attention_3": is_flash_attn_3_available,
    }.get(cell.attention)
    return None if here is None or here() else {"not_run": f"{cell.attention} is not installed"}


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Return the row of one cell, in this process."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        found: dict[str, Any] = outcome(lambda: _measured(cell, bench, folder, stack))
        return found


def outcome(work: Callable[[], Any]) -> Any:
    """Return what `work` found, or that memory was too small, or why it was refused."""
    try:
        return work()
    except SkipalignError as error:
        return {"refused": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"did_not_fit": str(error).strip().splitlines()[0]}


def _measured(cell: Cell, bench: Bench, folder: str, stack: ExitStack) -> dict[str, Any]:
    model, shape = made(cell, bench)
    ours, prepared = _prepared(cell, bench, model, folder)
    if cell.arms != (PLAIN,) and takes_borders(cell.attention):
        stack.enter_context(biased_keys(model))
    rows = visits([bench.tokens(cell)] * (1 if cell.tokens in LONG else ROWS))
    found = {arm: outcome(lambda: _warm(arm, ours, prepared, rows)) for arm in cell.arms}  # noqa: B023 - called at once
    steps = {arm: step for arm, step in found.items() if callable(step)}
    before = _num_graphs()
    timed = _rounds(steps, bench.rounds)
    after = _num_graphs()
    for arm, step in steps.items():
        found[arm] = _row(timed[arm], timed.get(PLAIN), rows, shape, cell)
        found[arm]["peak_bytes"] = _peak_bytes(ours, step)
        found[arm]["planned_bytes"] = memory(shape, _load(cell, bench, arm)).peak
    row: dict[str, Any] = {"rows": len(rows), "tokens": bench.tokens(cell), "arms": found}
    if cell.compiled:
        row |= {"graphs": after, "graphs_made_while_timed": after - before}
    return row


def _prepared(cell: Cell, bench: Bench, model: Any, folder: str) -> tuple[SkipTrainer, Any]:
    """Return our trainer, and the model as it would train it: cast, compiled, checkpointed."""
    args = TrainingArguments(
        output_dir=folder,
        use_cpu=bench.device == "cpu",
        bf16=True,
        torch_compile=cell.compiled,
        report_to="none",
        remove_unused_columns=False,
        per_device_train_batch_size=ROWS,
        disable_tqdm=True,
    )
    ours = SkipTrainer(model=model, args=args)
    ours.counts = Counts()
    if cell.checkpointing:
        model.activation_checkpointing_enable()
    return ours, ours.accelerator.prepare(model)


def _num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def made(cell: Cell, bench: Bench) -> tuple[Any, Shape]:
    """Return a random model on its device, with its adapter if it has one, and its numbers."""
    config, adapter = bench.config(cell), ADAPTERS.get(cell.model)
    torch.manual_seed(0)
    with torch.device(bench.device):
        model: Any = AutoModelForCausalLM.from_config(
            config,
            attn_implementation=cell.attention,
            dtype=torch.float32 if adapter is None else torch.bfloat16,
        )
    if adapter is not None:
        model = attach(model, adapter, base=cell.model, revision=None, seed=0)
    return model.train(), shape_of(config, where=cell.model)


class Drawn:
    """A collator that draws positions anew for every step, as training does."""

    def __init__(self, collator: Collator) -> None:
        self.inner = Named(collator)
        self.epoch = 0

    def __call__(self, rows: Sequence[Visit]) -> dict[str, Any]:
        self.epoch += 1
        return self.inner([Visit(row.example, self.epoch) for row in rows])


def _warm(arm: str, ours: SkipTrainer, prepared: Any, rows: list[Visit]) -> Callable[[], float]:
    """Return a way to step after its first steps, which compile and fill caches.

    Raises:
        SkipalignError: what a training of this kind is refused for.
    """
    step = _stepper(arm, ours, prepared, rows)
    try:
        for _ in range(WARM_UP):
            step()
    except (MemoryError, RuntimeError):
        ours.model.zero_grad()  # type: ignore[union-attr]
        raise
    return step


def _stepper(arm: str, ours: SkipTrainer, prepared: Any, rows: list[Visit]) -> Callable[[], float]:
    clock = _now if ours.args.device.type == "cuda" else time.perf_counter
    bias = GapBias() if arm == BIASED else None
    config: Any = ours.model.config  # type: ignore[union-attr]
    collator = Collator(
        {"a": SkipAlign(max_position=REACH, skip_fraction=1.0, cuts_within=6)},
        seed=0,
        pad_token_id=0,
        key_bias=bias,
        float_mask=not takes_borders(config._attn_implementation),
    )
    longest = len(rows[0].example.input_ids)
    layout.refuse_layout(ours.model, strategies=collator.strategies, key_bias=bias, longest=longest)
    layout.refuse_here(ours.model, ours.args, collator, None, longest)
    if arm != PLAIN:
        return stepper(ours, Drawn(collator), rows, model=prepared, clock=clock)
    plain = Trainer(model=ours.model, args=ours.args)
    ours.create_optimizer()
    plain.optimizer = ours.optimizer  # one state of AdamW for all ways to step
    return stepper(plain, plain_collator, rows, model=prepared, clock=clock)


def _now() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _rounds(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Step each way in turn, the first of a round being another one every time."""
    names = list(steps)
    timed: dict[str, list[float]] = {name: [] for name in names}
    began = time.monotonic()
    for number in range(rounds if names else 0):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            timed[name].append(steps[name]())
        if number + 1 >= FEWEST_ROUNDS and time.monotonic() - began > ENOUGH_SECONDS:
            break
    return {name: np.array(seconds) for name, seconds in timed.items()}


def _row(
    seconds: np.ndarray, plain: np.ndarray | None, rows: list[Visit], shape: Shape, cell: Cell
) -> dict[str, Any]:
    tokens = sum(len(row.example.input_ids) for row in rows)
    rate = tokens / float(np.median(seconds))
    low, high = np.quantile(seconds, [0.025, 0.975])
    peak_flops = gpu_flops()
    flops = token_flops(shape, len(rows[0].example.input_ids), _low_rank(cell))
    return {
        "tokens_per_second": round(rate, 1),
        "mfu": round(rate * flops / peak_flops, 4) if peak_flops else None,
        "step_seconds": {
            "median": round(float(np.median(seconds)), 5),
            "low": round(float(low), 5),
            "high": round(float(high), 5),
        },
        "to_plain": None if plain is None else median(seconds / plain),
        "rounds": len(seconds),
    }


def gpu_flops() -> float | None:
    """Return the bf16 operations a second of the GPU here, None where there is none we know."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower().replace(" ", "")
    return next((gpu.bf16 for key, gpu in GPUS.items() if key in name), None)


def _peak_bytes(ours: SkipTrainer, step: Callable[[], float]) -> int:
    """Return the most bytes that stood in tensors during one step, weights and all."""
    if ours.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return int(torch.cuda.max_memory_allocated())
    held = [*ours.model.parameters()]  # type: ignore[union-attr]
    held += [each for state in ours.optimizer.state.values() for each in state.values()]
    return sum(each.untyped_storage().nbytes() for each in held) + peak(step)


def _low_rank(cell: Cell) -> LowRank | None:
    adapter = ADAPTERS.get(cell.model)
    return adapter and LowRank(r=adapter.r, targets=LINEARS, embeddings=1, norms=True)


def _load(cell: Cell, bench: Bench, arm: str) -> Load:
    """Return the step as `skipalign plan` counts it."""
    mask: Mask = "float" if arm == BIASED and not takes_borders(cell.attention) else "none"
    return Load(
        rows=1 if cell.tokens in LONG else ROWS,
        tokens=bench.tokens(cell),
        weight_bytes=2 if cell.model in ADAPTERS else 4,
        autocast=True,
        checkpointing=cell.checkpointing,
        mask=mask,
        adapter=_low_rank(cell),
    )


# ------------------------------------------------------------------------------- all cells


def found_here() -> dict[str, Any]:
    """Return what figures come from: commit, packages, GPU and its driver."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = None
    measured = ("tokens_per_second", "mfu", "step_seconds", "to_plain", "peak_bytes")
    return {
        **origin(seeds=[0], exact=("planned_bytes",), measured=measured, data={}),
        "driver": driver,
    }


def kept(out: Path, bench: Bench) -> dict[str, Any]:
    """Return the results that are there, to be extended.

    Raises:
        SystemExit: they are of another machine or another size, and would stand beside these.
    """
    here = found_here()
    if not out.exists():
        return {"shrunken": bench.shrink, "cells": {}, "environment": here}
    found = read_json(out)
    for name in ("gpus", "driver", "packages"):
        there = found["environment"][name]
        if there != here[name]:
            raise SystemExit(
                f"{out}: measured with {name} {there}, here is {here[name]}; figures of both in "
                "one table would mislead - give another file by --out"
            )
    if found["shrunken"] != bench.shrink:
        raise SystemExit(f"{out}: shrunken is {found['shrunken']}; give another file by --out")
    return {**found, "environment": here}


def in_a_process(cell: Cell, bench: Bench, seconds: float) -> dict[str, Any]:
    """Measure a cell in a process of its own; a failure is a row too, tried again next time."""
    command = [sys.executable, __file__, "--cell", json.dumps(astuple(cell))]
    command += ["--device", bench.device, "--rounds", str(bench.rounds)]
    command += ["--shrink"] * bench.shrink
    one_gpu = {"CUDA_VISIBLE_DEVICES": "0", **os.environ}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=seconds, env=one_gpu
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {seconds:.0f} s"}
    if done.returncode:
        return {"failed": f"ended with {done.returncode}; what it said stands above"}
    return json.loads(done.stdout.splitlines()[-1])


def lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield a table of all that was measured, and what was refused, did not fit or failed."""
    yield f"{'cell':42s} {'step':16s} {'tokens/s':>9s} {'MFU':>6s} {'GiB':>6s}  to plain"
    for name, row in results["cells"].items():
        for arm, found in row.get("arms", {"": row}).items():
            if "tokens_per_second" not in found:
                told = next(key for key in found if key != "commit")
                yield f"{name:42s} {arm:16s} {told.replace('_', ' ')}: {found[told]}"
                continue
            mfu = "-" if found["mfu"] is None else f"{found['mfu']:.1%}"
            ratio = found["to_plain"]
            shown = "-" if ratio is None else "{ratio:.3f} [{low:.3f}, {high:.3f}]".format(**ratio)
            yield (
                f"{name:42s} {arm:16s} {found['tokens_per_second']:9,.0f} {mfu:>6s} "
                f"{found['peak_bytes'] / 2**30:6.2f}  {shown}"
            )


def main() -> None:
    """Measure what is not measured yet; print and keep."""
    given = _arguments()
    bench = Bench(given.device, given.shrink, given.rounds)
    if given.cell:
        print(json.dumps(measure(Cell(*json.loads(given.cell)), bench)))
        return
    if bench.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --device cpu --shrink runs the same code at a small size")
    results = kept(given.out, bench)
    ends = time.monotonic() + 60 * given.minutes
    asked = [cell for cell in cells() if given.only in cell.name]
    left = [cell for cell in asked if not is_done(results["cells"].get(cell.name))]
    for number, cell in enumerate(left):
        if time.monotonic() > ends:
            print(f"time is up; {len(left) - number} cells are left, run it again", file=sys.stderr)
            break
        print(f"{number + 1} of {len(left)}: {cell.name}", file=sys.stderr, flush=True)
        row = lacking(cell) or in_a_process(cell, bench, max(60.0, ends - time.monotonic()))
        results["cells"][cell.name] = {**row, "commit": results["environment"]["commit"]}
        write_json(given.out, results)
    print("\n".join(lines(results)))


def is_done(row: dict[str, Any] | None) -> bool:
    """Tell whether a cell need not be tried again: failures and missing packages may pass."""
    return row is not None and not {"failed", "not_run"} & row.keys()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results/gpu-bench.json")
    parser.add_argument("--minutes", type=float, default=60, help="begin no cell after so many")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shrink", action="store_true", help="a model of 0.2 million weights")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
