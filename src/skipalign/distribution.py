"""Several processes that train one model: who writes, what is summed, which engine is in force.

The processes are those of `accelerate launch` or torchrun; transformers' TrainingArguments joins
them. What is agreed on here goes over a group of CPU tensors, so that it waits for no GPU and as
long as the first process needs.
"""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import TrainingArguments

from skipalign.errors import RecipeError, RunError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # preparing a large data set takes longer than a collective may
GUIDE = "docs/many-gpus.md"
ONE, DDP, FSDP, FSDP1, DEEPSPEED = "one process", "DDP", "FSDP2", "FSDP version 1", "DeepSpeed"
# Fields of accelerate's ParallelismConfig and why batches of ours do not go through them.
SPLITTING = {
    "cp_size": "context parallelism cuts rows between processes, which breaks masks and positions",
    "sp_size": "sequence parallelism cuts rows and takes every skip for a document border",
    "tp_size": "tensor parallelism feeds one batch to several processes, which counts it twice",
}


def num_processes() -> int:
    """Return how many processes train together."""
    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 1


def is_first() -> bool:
    """Tell whether this process is the one that writes."""
    return num_processes() == 1 or distributed.get_rank() == 0


def on_first(work: Callable[[], T]) -> T:
    """Do `work` in the first process while the others wait; return its result in all.

    Where it fails, the first process raises and the others end without a word.
    """
    if num_processes() == 1:
        return work()
    told: list[Any] = [False, None]
    if not is_first():
        distributed.broadcast_object_list(told, src=0, group=_group())
        if not told[0]:
            sys.exit(1)
        return told[1]
    try:
        told = [True, work()]
    finally:
        distributed.broadcast_object_list(told, src=0, group=_group())
    return told[1]


def summed(values: Sequence[float]) -> list[float]:
    """Return each value summed over all processes."""
    return _reduced(values, distributed.ReduceOp.SUM)


def largest(value: float) -> float:
    """Return the largest of all processes' values."""
    return _reduced([value], distributed.ReduceOp.MAX)[0]


def _reduced(values: Sequence[float], how: Any) -> list[float]:
    if num_processes() == 1:
        return list(values)
    tensor = torch.tensor(list(values), dtype=torch.float64)
    distributed.all_reduce(tensor, op=how, group=_group())
    return tensor.tolist()


@cache
def _group() -> Any:
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def part_here(parameter: torch.Tensor) -> torch.Tensor:
    """Return the part of a parameter that this process holds: all of it, or its shard."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter)  # ZeRO-3 leaves the parameter itself empty


def whole_weights(engine: Any) -> dict[str, Any] | None:
    """Gather weights that are in shards, in the first process; None where each holds them whole.

    Every process has to call it.
    """
    model = engine.model_wrapped
    if in_force(model) == FSDP:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(model, options=options)
    return engine.accelerator.get_state_dict(model) if _is_zero3(model) else None


# ------------------------------------------------------------------------------- the engine


def asked(args: TrainingArguments) -> str:
    """Return the engine that the launcher's config or the recipe asks for."""
    if args.deepspeed or _is_set("ACCELERATE_USE_DEEPSPEED"):
        return DEEPSPEED
    if args.fsdp:
        config: Any = args.fsdp_config
        return FSDP if int((config or {}).get("version", 2)) == 2 else FSDP1
    if _is_set("ACCELERATE_USE_FSDP"):
        return FSDP if os.environ.get("FSDP_VERSION", "1") == "2" else FSDP1
    return DDP if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ONE


def engine_checkpoints() -> bool:
    """Tell whether the launcher's config lets FSDP compute layers again in the backward pass."""
    return _is_set("ACCELERATE_USE_FSDP") and _is_set("FSDP_ACTIVATION_CHECKPOINTING")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def in_force(model: Any) -> str:
    """Return the engine that a prepared model really trains with."""
    if isinstance(model, DataParallel):
        return "nn.DataParallel"
    if isinstance(model, DistributedDataParallel):
        return DDP
    if type(model).__name__ == "DeepSpeedEngine":
        return DEEPSPEED
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return FSDP
    return FSDP1 if type(model).__name__ == "FullyShardedDataParallel" else ONE


def require_engine(args: TrainingArguments, model: Any) -> None:
    """Refuse to train with another engine than the one asked for.

    Args:
        args: of the run.
        model: as the Trainer prepared it.

    Raises:
        RunError: they differ, or the weights could not be saved in the end.
    """
    wanted, found = asked(args), in_force(model)
    if wanted != found:
        raise RunError(
            f"{wanted} is asked for and {found} is in force, on {args.device.type} with "
            f"{num_processes()} process(es): nothing was trained - {_cure(wanted, args)}; see "
            f"{GUIDE}"
        )
    if _is_zero3(model) and not model.zero_gather_16bit_weights_on_model_save():
        raise RunError(
            "ZeRO-3 without zero3_save_16bit_model: the trained weights could not be gathered - "
            "set it to true in accelerate's config (stage3_gather_16bit_weights_on_model_save in "
            "DeepSpeed's)"
        )


def _cure(wanted: str, args: TrainingArguments) -> str:
    if wanted in (FSDP, DEEPSPEED) and args.device.type == "cpu":
        return f"{wanted} needs GPUs here; launch with recipes/accelerate/ddp.yaml instead"
    if wanted == DDP:
        return "start it with accelerate launch and recipes/accelerate/ddp.yaml"
    return "start it with accelerate launch and the config in recipes/accelerate that you mean"


def require_whole(args: TrainingArguments, checkpoint: Path) -> None:
    """Refuse a checkpoint of the last step in shards: they load only into an engine that trains.

    Raises:
        RunError: names the way out.
    """
    if asked(args) in (FSDP, DEEPSPEED):
        raise RunError(
            f"{checkpoint}: all steps are done but model/ was not written, and these weights are "
            f"in shards; delete {checkpoint} and start again: the steps since the checkpoint "
            "before it are done anew"
        )


def _is_zero3(model: Any) -> bool:
    return in_force(model) == DEEPSPEED and model.zero_optimization_stage() == 3


def refuse_engine(args: TrainingArguments) -> None:
    """Refuse engines that cut rows, count them twice or were never proved.

    Raises:
        RecipeError: with the reason and what to use instead.
    """
    if args.n_gpu > 1:
        raise RecipeError(
            f"{args.n_gpu} GPUs are visible to one process, which transformers would train with "
            "nn.DataParallel: it cuts batches that hold rows of several samples - use accelerate "
            f"launch (see {GUIDE}), or show one GPU (CUDA_VISIBLE_DEVICES=0)"
        )
    if asked(args) == FSDP1:
        raise RecipeError(
            "FSDP version 1 is asked for; its flat weights are not checked or saved here - set "
            "fsdp_version: 2, as in recipes/accelerate/fsdp2.yaml"
        )
    config = args.parallelism_config
    for field, reason in SPLITTING.items():
        size = getattr(config, field, None) or int(
            os.environ.get(f"PARALLELISM_CONFIG_{field.upper()}", "1")
        )
        if size > 1:
            raise RecipeError(f"parallelism {field} is {size}: {reason} - set it to 1")
