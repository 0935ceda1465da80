"""What `init` found and chose -> the text of a recipe, with its reasons as comments."""

import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from skipalign import budget, recipe, tiny
from skipalign.readers import DATA_FILE
from skipalign.rope import NoExtension
from skipalign.survey import DataFacts, DeviceFacts, ModelFacts
from skipalign.visible import visible
from skipalign.yaml_tree import read_yaml

BYTES_A_WEIGHT = 16  # float32: the weight, its gradient, two moments of AdamW
SKIP_FRACTION = 0.75  # docs/ablation.md: a quarter that does not skip keeps what the model can do
COLUMNS = 98
_ADAPTERS = {
    "lora": "LoRA (pip install 'skipalign[peft]')",
    "qlora": "LoRA beside a base of four bits (pip install 'skipalign[qlora]')",
}
SMALL = 0.01  # a number below it is written with an exponent
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train: all weights or an adapter, rows of a pass, whether layers come twice."""

    adapter: str | None
    rows: int
    recomputes: bool


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the recipe says, before the reasons.

    Attributes:
        max_position: the range of positions to reach, exclusive.
        rope: type of the extension, or none.
        max_tokens: of a row.
        rows: of a step.
        steps: of the training.
        lengths: tokens of the needle's prompts.
        context_length: tokens of the stretch probe's prompts.
        way: how to train.
    """

    max_position: int
    rope: str
    max_tokens: int
    rows: int
    steps: int
    lengths: tuple[int, ...]
    context_length: int
    way: Way


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that was looked at, and what was chosen for it.

    Attributes:
        cuts: for each path, what becomes of its longer rows (see `Survey.at`).
        memory: bytes at the most by the plan; None where this kind of model is not counted.
        hours: of the GPU by the plan; None where it is not known.
        fits: whether the device has that memory.
    """

    model: ModelFacts
    data: Sequence[DataFacts]
    device: DeviceFacts
    choices: Choices
    cuts: Sequence[Mapping[str, int]] = field(default_factory=tuple)
    memory: int | None = None
    hours: float | None = None
    fits: bool = False

    @property
    def skips_needed(self) -> bool:
        """Whether the model's own window is shorter than what is to be reached."""
        return self.choices.max_position > self.model.window

    @property
    def good(self) -> int:
        """Rows that can be used."""
        return sum(each.good for each in self.data)


def commented(found: Found) -> str:
    """Return the recipe: a comment above each choice says why."""
    parts = (_base, _data, _positions, _training, _evaluation)
    lines = _head() + [line for part in parts for line in part(found)]
    return "\n".join(lines) + "\n"


def _why(*sentences: str) -> list[str]:
    """Return a comment, wrapped; foreign text in it can end no line."""
    text = " ".join(visible(" ".join(sentences)).split())
    return [f"# {line}" for line in textwrap.wrap(text, COLUMNS - 4, break_long_words=False)]


def _head() -> list[str]:
    return _why(
        "Written by skipalign init after looking at model and data; nothing in it was tuned.",
        "Any line may be changed: skipalign run --dry-run checks it.",
    )


def _base(found: Found) -> list[str]:
    model, way, device = found.model, found.choices.way, found.device
    half = way.adapter is not None and device.bf16
    dtype = "bfloat16" if half else "float32"
    held = "frozen weights may be bfloat16" if half else "weights that train are kept in float32"
    if device.on_gpu and not half:
        held += ", products are bfloat16 (trainer.bf16)" if device.bf16 else ""
    why = _why(
        f"{model.family}, {model.parameters:,} parameters, a window of {model.window:,} positions,",
        f"rope_type {model.rope_type}; {held}.",
        f"{model.attn_implementation}: what transformers takes for this model.",
    )
    fields = {"path": model.path, "dtype": dtype, "attn_implementation": model.attn_implementation}
    return [*why, f"base: {_flow(fields)}"]


def _data(found: Found) -> list[str]:
    lines = ["data:"]
    limit = found.choices.max_tokens
    for facts, name, cut in zip(found.data, _names(found.data), found.cuts, strict=True):
        lines += [f"  {line}" for line in _why(*_rows_found(facts), _cut(facts, cut, limit))]
        fields: dict[str, Any] = {"path": facts.path, "name": name, "max_tokens": limit}
        lines.append(f"  - {_flow(fields)}")
    return lines


def _rows_found(facts: DataFacts) -> Iterable[str]:
    read = f"{facts.rows:,} rows" if facts.whole else f"The first {facts.rows:,} rows"
    several = f"{facts.multi_turn} of {facts.sampled} looked at have several turns"
    yield f"{read} of the shape {facts.shape}; {several}."
    if facts.rejected:
        yield f"Rejected: {counted(facts.rejected)}; skipalign prepare names each."
    middle, most = facts.quantiles["0.5"], facts.quantiles["0.95"]
    yield f"Samples have {middle:,} tokens at the median, {most:,} at 95%,"
    yield f"{facts.longest:,} at most;"


def _cut(facts: DataFacts, cut: Mapping[str, int], limit: int) -> str:
    """Say what the choice of max_tokens does to rows."""
    if not cut["longer"]:
        return f"{limit:,} hold all of them."
    return (
        f"{cut['longer']} of {facts.sampled} are longer than {limit:,}: {cut['shortened']} "
        f"shortened (early turns go first), {cut['dropped']} dropped."
    )


def _positions(found: Found) -> list[str]:
    model, chosen = found.model, found.choices
    reach, window = chosen.max_position, model.window
    if not found.skips_needed:
        why = _why(
            f"The window of {window:,} positions already holds the {reach:,} asked for: plain",
            "fine-tuning may be all that is needed (docs/when-not.md), so both are trained and",
            "compared. Drop skipalign if normal is as good.",
        )
        return [
            *why,
            "methods:",
            "  normal: {strategy: contiguous}",
            f"  skipalign: {{strategy: {_flow(_strategy(reach))}}}",
        ]
    if chosen.rope == NoExtension.type:
        stretch = _why(
            f"RoPE of this model is stretched already ({model.rope_type}) and cannot be twice, so",
            f"positions from {window:,} on are as its frequencies have them.",
        )
    else:
        stretch = _why(
            f"Positions from {window:,} on are new to the model: a larger rope_theta (NTK) slows",
            f"its RoPE by {reach:,} / {window:,} = {reach / window:g}; any loader reads that.",
        )
    why = _why(
        f"Rows of {chosen.max_tokens:,} tokens get positions up to {reach:,}: three samples in",
        "four skip at the borders of their messages, the fourth keeps what the model can do.",
    )
    return [*stretch, f"rope: {chosen.rope}", *why, f"strategy: {_flow(_strategy(reach))}"]


def _strategy(reach: int) -> dict[str, Any]:
    return {"name": "skipalign", "max_position": reach, "skip_fraction": SKIP_FRACTION}


def _training(found: Found) -> list[str]:
    chosen, way, device = found.choices, found.choices.way, found.device
    lines: list[str] = []
    if way.adapter is not None:
        lines += _why(f"{_ADAPTERS[way.adapter]}, as more does not fit:", _fit_of(found))
        lines.append(f"adapter: {_flow({'type': way.adapter, 'r': 16, 'alpha': 32})}")
    else:
        lines += _why("All weights train:", _fit_of(found))
    good = found.good
    epochs = chosen.steps * chosen.rows / good
    seen = f"{epochs:.1f} times" if epochs >= 0.1 else "in part"
    lines += _why(
        f"{chosen.steps} steps of {chosen.rows} rows see the {good:,} rows {seen}; the learning",
        "rate is a starting point.",
    )
    keys: dict[str, Any] = {"max_steps": chosen.steps, "per_device_train_batch_size": way.rows}
    if (passes := math.ceil(chosen.rows / way.rows)) > 1:
        keys["gradient_accumulation_steps"] = passes
    keys |= {"learning_rate": _learning_rate(found), "warmup_steps": max(1, chosen.steps // 20)}
    keys["save_steps"] = max(10, chosen.steps // 5)
    if device.bf16:
        keys["bf16"] = True
    if way.recomputes:
        keys["activation_checkpointing"] = True
    return [*lines, "trainer:", *(f"  {key}: {_scalar(value)}" for key, value in keys.items())]


def _learning_rate(found: Found) -> float:
    """Return a starting point; of the embedded base the demo's, in proportion to a step's tokens.

    Source: Goyal et al. 2017 (arXiv 1706.02677), section 2.1, the linear scaling rule.
    """
    if tiny.embedded(found.model.path) is not None:
        (demo, *_) = recipe.load("tiny").trainings()
        tokens = int(demo.trainer["per_device_train_batch_size"]) * demo.sources[0].max_tokens
        share = found.choices.rows * found.choices.max_tokens / tokens
        return float(f"{demo.trainer['learning_rate'] * min(1.0, share):.1g}")
    return 1e-5 if found.choices.way.adapter is None else 1e-4


def _fit_of(found: Found) -> str:
    """Say what the plan found of memory and time."""
    there = f"the {gib(found.device.memory)} of {found.device.name}"
    if found.memory is None:
        need = gib(BYTES_A_WEIGHT * found.model.parameters)
        return (
            f"in float32 they take {need}, activations aside, of {there}; this kind of model is "
            "not counted more closely."
        )
    time = "" if found.hours is None else f", {found.hours:.2g} GPU hours"
    word = "of" if found.fits else "which is more than"
    return f"{gib(found.memory)} by skipalign plan, {word} {there}{time}."


def _evaluation(found: Found) -> list[str]:
    lengths = found.choices.lengths
    if not lengths:
        return []
    words = {
        key: "tiny" if key in ("keys", "values") else value
        for key, value in asked(found.model).items()
    }
    needle: dict[str, Any] = {"lengths": list(lengths), "depths": 5, "trials": 4, **words}
    lines = _why("A needle in prompts up to the target, 20 of each length; more trials, narrower")
    lines[-1] += " intervals."
    lines += ["evaluation:", *_task("needle", needle)]
    context_length = found.choices.context_length
    distances = [length for length in lengths if length > context_length]
    if distances:
        stretch = {"distances": distances, "context_length": context_length, **words}
        lines += [
            f"  {line}" for line in _why("Positions alone: short prompts, far questions; cheap.")
        ]
        lines += _task("stretch", stretch)
    return lines


def _task(name: str, fields: Mapping[str, Any]) -> list[str]:
    line = f"  {name}: {_flow(fields)}"
    if len(line) <= COLUMNS:
        return [line]
    return [f"  {name}:", *(f"    {key}: {_scalar(value)}" for key, value in fields.items())]


def asked(model: ModelFacts) -> dict[str, Any]:
    """Return how needles are asked of an embedded base, which knows no other sentences."""
    if tiny.embedded(model.path) is None:
        return {}
    needle = recipe.load("tiny").tasks["needle"]
    names = ("distractors", "needle", "question", "separator", "max_new_tokens", "keys", "values")
    return {name: getattr(needle, name) for name in names}


def _names(data: Sequence[DataFacts]) -> list[str]:
    """Return a name for each path, no two alike."""
    names: list[str] = []
    for facts in data:
        stem = DATA_FILE.sub("", Path(facts.path).name) or "data"
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.") or "data"
        numbered = (f"{stem}-{number}" for number in count(2))
        names.append(next(each for each in chain([stem], numbered) if each not in names))
    return names


def _flow(fields: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in fields.items()) + "}"


def _scalar(value: Any) -> str:
    """Return a value as YAML; text that YAML could read otherwise stands in quotes."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_scalar(each) for each in value) + "]"
    if isinstance(value, float):
        return f"{value:.1e}".replace("e-0", "e-") if value < SMALL else f"{value:g}"
    is_text = isinstance(value, str) and _PLAIN.fullmatch(value)
    if is_text and read_yaml(value.encode(), "a value") == value:
        return value
    return json.dumps(value)


def counted(reasons: Mapping[str, int]) -> str:
    """Return reasons with their numbers, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{reason} {number:,}" for reason, number in ordered)


def gib(size: float) -> str:
    """Return bytes as people read them."""
    return f"{size / budget.GIB:.3g} GiB" if size >= budget.GIB else f"{size / 2**20:.3g} MiB"
