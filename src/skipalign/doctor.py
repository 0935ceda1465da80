"""What this machine has for skipalign, what is missing and how to get it.

Nothing is downloaded. The start-up probe runs on a tiny random Llama.
"""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from skipalign import __version__
from skipalign.progress import Progress, Silent, counted

if TYPE_CHECKING:
    from rich.console import Console

# Package: what it is for, and how to get it.
OPTIONAL = {
    "datasets": ("data sets of the Hugging Face hub", "pip install 'skipalign[hub]'"),
    "peft": ("LoRA and other adapters", "pip install peft"),
    "flash-attn": (
        "flash attention on NVIDIA GPUs",
        "pip install flash-attn --no-build-isolation (needs a GPU and its compiler)",
    ),
    "bitsandbytes": ("weights of 4 and 8 bits (QLoRA)", "pip install bitsandbytes"),
    "vllm": ("faster evaluation on a GPU", "pip install vllm"),
}
DTYPES = ("float32", "bfloat16", "float16")
PROBED = ("eager", "sdpa")
MAX_POSITION = 4096  # of the probe's positions
_SILENT = Silent()


def examine(progress: Progress = _SILENT) -> dict[str, Any]:
    """Return versions, devices, attention implementations, probes, and what is missing.

    `missing` holds {name, required, purpose, cure}; `ok` is whether nothing required is.
    """
    required = list(_required_packages())
    optional = [
        {"name": name, "version": _version(name), "purpose": purpose, "cure": cure}
        for name, (purpose, cure) in OPTIONAL.items()
    ]
    report: dict[str, Any] = {
        "skipalign": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "required": required,
        "optional": optional,
        "devices": [],
        "attention": [],
        "probes": [],
    }
    missing = [
        {"name": each["name"], "required": True, "purpose": each["problem"], "cure": each["cure"]}
        for each in required
        if each["problem"]
    ]
    if not missing:
        report |= {"devices": devices(), "attention": attention(), "probes": probes(progress)}
        missing += [_failed(each) for each in report["probes"] if not each["passed"]]
    missing += [
        {"name": each["name"], "required": False, "purpose": each["purpose"], "cure": each["cure"]}
        for each in optional
        if each["version"] is None
    ]
    return {"ok": not any(each["required"] for each in missing), **report, "missing": missing}


def _failed(probe: Mapping[str, Any]) -> dict[str, Any]:
    bias = " with a key bias" if probe["with_key_bias"] else ""
    return {
        "name": f"start-up probe, {probe['attn_implementation']}{bias}",
        "required": True,
        "purpose": probe["problem"],
        "cure": "pip install 'torch==2.13.0' 'transformers==5.23.0', with which it was tested",
    }


# ------------------------------------------------------------------------------- packages


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _required_packages() -> Iterator[dict[str, Any]]:
    """Yield each dependency with its version and what is wrong with it, or None."""
    for line in metadata.requires("skipalign") or ():
        if ";" in line:  # an extra, or for another Python
            continue
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        version = _version(name)
        problem = None
        if version is None:
            problem = "not installed"
        elif not _satisfies(line, version):
            problem = f"{version} is installed, {line} is required"
        yield {
            "name": name,
            "version": version,
            "problem": problem,
            "cure": f"pip install '{line}'",
        }


def _satisfies(requirement: str, version: str) -> bool:
    if find_spec("packaging") is None:  # a part of transformers' own dependencies
        return True
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(version, prereleases=True)


# ------------------------------------------------------------------------------- the machine


def devices() -> list[dict[str, Any]]:
    """Return the CPU and every GPU with the dtypes that a matrix product works in."""
    import psutil
    import torch

    found: list[dict[str, Any]] = [
        {
            "name": f"cpu: {platform.machine()}, {psutil.cpu_count()} cores, "
            f"{torch.get_num_threads()} threads",
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "dtypes": _dtypes("cpu"),
        }
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": f"cuda:{index}: {properties.name}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "dtypes": _dtypes(f"cuda:{index}"),
            }
        )
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "memory_gib": None, "dtypes": _dtypes("mps")})
    return found


def _dtypes(device: str) -> list[str]:
    import torch

    usable: list[str] = []
    for name in DTYPES:
        square = torch.ones(2, 2, device=device)
        try:
            _ = square.to(getattr(torch, name)) @ square.to(getattr(torch, name))
        except RuntimeError:
            continue
        usable.append(name)
    return usable


def attention() -> list[dict[str, Any]]:
    """Return each attention implementation, whether it is there, and what it is good for."""
    import torch
    from transformers.utils import import_utils

    on_gpu = torch.cuda.is_available()
    flash = bool(import_utils.is_flash_attn_2_available())
    flex = bool(import_utils.is_torch_flex_attn_available())
    return [
        {"name": "sdpa", "available": True, "note": "the default; takes a key bias"},
        {"name": "eager", "available": True, "note": "the plain one; takes a key bias"},
        {
            "name": "flex_attention",
            "available": flex,
            "note": "no key bias yet" if on_gpu else "evaluation only: training needs a GPU",
        },
        {
            "name": "flash_attention_2",
            "available": flash,
            "note": "takes no key bias" if flash else "needs flash-attn, see below",
        },
    ]


def probes(progress: Progress = _SILENT) -> list[dict[str, Any]]:
    """Run the start-up probe with and without a key bias on a tiny random Llama."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from skipalign.errors import VisibilityError
    from skipalign.probe import probe, require

    found: list[dict[str, Any]] = []
    for implementation in counted(progress, "start-up probe", PROBED):
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_POSITION,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        for with_key_bias in (False, True):
            verdict = probe(model, max_position=MAX_POSITION, with_key_bias=with_key_bias)
            problem = None
            try:
                require(verdict)
            except VisibilityError as error:
                problem = str(error)
            found.append({**verdict, "problem": problem})
    return found


# ------------------------------------------------------------------------------- the terminal


def show(report: Mapping[str, Any], console: "Console") -> None:
    """Print the report: a line for each thing, what is missing last."""
    from rich.text import Text

    def line(mark: str, words: str, style: str = "") -> None:
        console.print(Text(f"{mark:>8}  {words}"), style=style, highlight=False, overflow="fold")

    console.print(Text(f"skipalign {report['skipalign']}, Python {report['python']}"))
    console.print(Text(str(report["system"])), overflow="fold")
    for each in report["required"]:
        state = "ok" if not each["problem"] else "MISSING"
        line(state, f"{each['name']} {each['version'] or ''}".rstrip())
    for each in report["optional"]:
        line("ok" if each["version"] else "-", f"{each['name']} {each['version'] or ''}".rstrip())
    for each in report["devices"]:
        memory = f", {each['memory_gib']} GiB" if each["memory_gib"] else ""
        line("ok", f"{each['name']}{memory}: {', '.join(each['dtypes'])}")
    for each in report["attention"]:
        line("ok" if each["available"] else "-", f"{each['name']}: {each['note']}")
    for each in report["probes"]:
        bias = " with a key bias" if each["with_key_bias"] else ""
        state = "ok" if each["passed"] else "FAILED"
        line(state, f"start-up probe, {each['attn_implementation']}{bias}")
    _show_missing(report["missing"], console)


def _show_missing(missing: Sequence[Mapping[str, Any]], console: "Console") -> None:
    from rich.text import Text

    for each in sorted(missing, key=lambda one: not one["required"]):
        word = "required" if each["required"] else "optional"
        words = f"{word}: {each['name']} ({each['purpose']}): {each['cure']}"
        style = "bold red" if each["required"] else ""
        console.print(Text(words), style=style, highlight=False, overflow="fold")
