"""Trainings that one process and two do alike; run as a script by torch.distributed.run."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Generator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainingArguments

from skipalign.batch import Collator
from skipalign.checkpoints import Counts
from skipalign.chunked_loss import ChunkedHead
from skipalign.distribution import FSDP, in_force, is_first, on_first, whole_weights
from skipalign.engine import Named, SkipTrainer
from skipalign.errors import RunError
from skipalign.example_file import ExampleFile
from skipalign.files import write_json
from skipalign.model import load_model, load_tokenizer, save_model
from skipalign.packing import Packing
from skipalign.positions import SkipAlign
from skipalign.probe import probe, require
from skipalign.rope import Ntk
from skipalign.visits import Visit
from test_training import fit

# Twelve steps are one epoch and a half of 64 samples.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"key_bias": None, "trainer": {"max_steps": 12, "save_steps": 4}},
    "biased packs": {
        "packing": Packing(max_tokens=80, attention="block_diagonal", loss="sample"),
        "logit_scale": 1.3,
        "trainer": {"max_steps": 4, "per_device_train_batch_size": 2},
    },
    "chunked loss": {"key_bias": None, "chunked_loss": True, "trainer": {"max_steps": 2}},
}
BATCH = ("input_ids", "labels", "position_ids", "attention_mask")
PLAIN = {"lr_scheduler_type": "constant", "use_cpu": True}


def train(base: Path, data: ExampleFile, out: Path, name: str, *, accumulation: int) -> None:
    given = deepcopy(VARIANTS[name])
    trainer = {**given.pop("trainer"), **PLAIN, "gradient_accumulation_steps": accumulation}
    outcome = fit(base, data, out / name, trainer=trainer, **given)
    if is_first():
        write_json(out / name / "outcome.json", {**vars(outcome), "seconds": 0})


@contextlib.contextmanager
def recorded(path: Path) -> Generator[None]:
    """While open, note the positions of each visit that this process makes."""
    drawn: dict[str, list[int]] = {}
    place = Collator.place

    def placed(self: Collator, visit: Visit) -> Any:
        found = place(self, visit)
        drawn[f"{visit.epoch} {visit.example.id}"] = found.position_ids.tolist()
        return found

    Collator.place = placed
    try:
        yield
    finally:
        Collator.place = place
        path.write_text(json.dumps(drawn))


def resume(base: Path, data: ExampleFile, out: Path) -> None:
    """Train, forget all after step 4, and train on."""
    whole = out / "plain"
    if is_first():
        shutil.copytree(whole, out / "resumed" / "plain")
        for gone in ("model", "checkpoints/checkpoint-8", "checkpoints/checkpoint-12"):
            shutil.rmtree(out / "resumed/plain" / gone)
    distributed.barrier()
    train(base, data, out / "resumed", "plain", accumulation=1)


def ask_for_fsdp(base: Path, data: ExampleFile, out: Path) -> str:
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    try:
        train(base, data, out / "refused", "plain", accumulation=1)
    except RunError as error:
        return str(error)
    finally:
        del os.environ["ACCELERATE_USE_FSDP"]
    return ""


def fail_on_first() -> str:
    def work() -> None:
        raise RunError("no data")

    try:
        on_first(work)
    except (RunError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def shard(base: Path, data: ExampleFile, out: Path) -> dict[str, Any]:
    """Drive probe, collator and both losses on a sharded model; compare with the whole one."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    whole: Any = load_model(str(base), rope=Ntk(factor=8.0), max_position=512)
    model: Any = deepcopy(whole)
    mesh = init_device_mesh("cpu", (size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    # As accelerate's config has it; by itself the outermost part stays whole after its pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    args = TrainingArguments(output_dir=str(out), use_cpu=True, report_to="none")
    engine = SkipTrainer(model=model, args=args)
    engine.counts = Counts()
    require(probe(model, max_position=512))
    strategies = {"chats": SkipAlign(max_position=512, skip_fraction=1.0)}
    collate = Named(Collator(strategies, seed=0, pad_token_id=0))
    batches = [collate([Visit(data[n], 0) for n in range(4 * r, 4 * r + 4)]) for r in range(size)]
    num_items = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    expected = []
    for batch in batches:
        tensors = {name: batch[name] for name in BATCH}
        expected.append(whole(**tensors, num_items_in_batch=num_items).loss)
    sum(expected).backward()
    losses, changes = [], []
    for head in (None, ChunkedHead(model, tokens_at_once=3)):
        engine.take_head(head)
        model.zero_grad()
        inputs = engine._prepare_inputs(dict(batches[rank]))
        loss = engine.compute_loss(model, inputs, num_items_in_batch=num_items)
        loss.backward()
        losses.append(float(loss.detach()) / size)  # DDP and FSDP take the mean of processes
        gradients = zip(model.parameters(), whole.parameters(), strict=True)
        changes += [float((a.grad.full_tensor() - b.grad).abs().max()) for a, b in gradients]
    gathered = whole_weights(engine)
    if rank == 0:
        save_model(model, load_tokenizer(str(base)), out / "sharded", gathered)
    engine.require_finite_weights()
    return {
        "engine": in_force(model),
        "losses": losses,
        "expected": float(expected[rank].detach()),
        "largest_gradient": max(float(each.grad.abs().max()) for each in whole.parameters()),
        "gradients_change": max(changes),
        "nan_found": nan_found(engine, rank),
        "tokens": engine.totals().tokens,
    }


def nan_found(engine: Any, rank: int) -> bool:
    """Tell whether a weight that is no number is found by the process that holds it."""
    assert in_force(engine.model) == FSDP
    if rank == 1:
        with torch.no_grad():
            engine.model.lm_head.weight.to_local()[-1, 0] = torch.nan
    try:
        engine.require_finite_weights()
    except RunError:
        return True
    return False


def main(base: Path, data: ExampleFile, out: Path) -> None:
    rank = int(os.environ["RANK"])
    for name in VARIANTS:
        with recorded(out / f"{name}-{rank}.json"):
            train(base, data, out, name, accumulation=1)
    resume(base, data, out)
    refusal = ask_for_fsdp(base, data, out)
    told = on_first(lambda: {"rank": rank})
    found = {"refusal": refusal, "told": told, "failure": fail_on_first()}
    found |= shard(base, data, out)
    (out / f"found-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    base, data, out = (Path(each) for each in sys.argv[1:])
    main(base, ExampleFile(data), out)
