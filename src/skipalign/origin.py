"""Where a figure comes from: commit, command, packages, hardware, seeds, data, and what repeats.

Every file of results carries this as its `environment`, written here alone.
"""

import hashlib
import os
import platform
import shutil
import subprocess  # nosec B404 # git alone is asked, with fixed words
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from skipalign.distribution import num_processes
from skipalign.files import write_json

PACKAGES = (
    *("skipalign", "torch", "transformers", "accelerate", "tokenizers", "numpy", "safetensors"),
    *("peft", "trl", "vllm", "flash-attn", "bitsandbytes", "deepspeed", "lm-eval", "jieba"),
)
NOT_RECORDED = "not recorded"
CHANGED = " with changes"
TO_THE_BIT = "to the bit, with these packages and threads on this kind of CPU"
WITHIN_TOLERANCE = "within its interval: a GPU adds in an order of its own"
MEASURED = "measured: another run gives another figure"
# What decides figures, seen from the top of the repository.
_CODE = (":/src", ":/recipes", ":/benchmarks", ":(top,exclude)benchmarks/results")


def environment() -> dict[str, Any]:
    """Return commit, command, versions and machine: what a rerun needs besides the recipe."""
    return {
        "commit": commit(),
        "command": command(),
        "python": platform.python_version(),
        "packages": _versions(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "num_processes": num_processes(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def origin(
    *,
    seeds: Iterable[int],
    exact: Sequence[str],
    measured: Sequence[str],
    data: Mapping[str, str],
) -> dict[str, Any]:
    """Return the whole block.

    Args:
        seeds: all that anything was drawn from.
        exact: the fields that come out the same again; on a GPU they do so within tolerance.
        measured: the fields that do not: times, and what the rest of the machine moves.
        data: sha256 by file name; empty where the figures rest on no file.
    """
    found = environment()
    kinds = exactness(exact, measured, on_gpu=bool(found["gpus"]))
    return {**found, "seeds": sorted(set(seeds)), "data": dict(data), "exact": kinds}


def exactness(exact: Sequence[str], measured: Sequence[str], *, on_gpu: bool) -> dict[str, str]:
    """Return for each field what another run on the same machine gives."""
    again = WITHIN_TOLERANCE if on_gpu else TO_THE_BIT
    return {**dict.fromkeys(exact, again), **dict.fromkeys(measured, MEASURED)}


def write_result(path: str | Path, document: Mapping[str, Any], **block: Any) -> None:
    """Write figures with their `environment`, which is `origin(**block)`."""
    write_json(path, {**document, "environment": origin(**block)})


def sha256_of_files(paths: Iterable[str | Path]) -> dict[str, str]:
    """Return the sha256 of each file by its name; of a folder, those of its files."""
    found: dict[str, str] = {}
    for path in map(Path, paths):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as handle:
                    found[file.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


@cache
def commit() -> str:
    """Return the commit of the code that runs.

    Returns:
        its 40 digits, followed by `CHANGED` where files that git tracks differ from it;
        `NOT_RECORDED` where the package is installed and no checkout.
    """
    # A package that lies in someone else's repository (its .venv) is not tracked there.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return NOT_RECORDED
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)
    if head is None or changed is None:
        return NOT_RECORDED
    return head + (CHANGED if changed else "")


def _git(*words: str) -> str | None:
    """Return what git says of the folder of this package, None where it says nothing of it."""
    program = shutil.which("git")
    if program is None:
        return None
    command = [program, "-C", str(Path(__file__).parent), *words]
    done = subprocess.run(  # noqa: S603 # nosec B603 # no text of a user or a file
        command, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def command() -> str:
    """Return the command that runs, as one would type it again; `NOT_RECORDED` of other scripts."""
    program, words = Path(sys.argv[0]), sys.argv[1:]
    as_module = (program.parent.name, program.name) == ("skipalign", "__main__.py")
    if as_module or program.name == "skipalign":
        return " ".join(("skipalign", *words))
    if program.parent.name == "benchmarks":
        return " ".join((f"python benchmarks/{program.name}", *words))
    return NOT_RECORDED


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    """Return the name of the processor; sums depend on its kind to the last bit."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or NOT_RECORDED
