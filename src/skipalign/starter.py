"""A model, data and a device -> choices, and the recipe that says them.

Each way of training that might fit is written as a recipe, read and planned; the first that fits
is kept. The recipe passes the checks of `run --dry-run`, or is never written.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import dropwhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from skipalign import budget, plan, recipe
from skipalign.commented import (
    BYTES_A_WEIGHT,
    Choices,
    Found,
    Way,
    asked,
    commented,
    counted,
    gib,
)
from skipalign.errors import RecipeError
from skipalign.evaluation.needle import NeedleSettings
from skipalign.evaluation.prompts import PromptMaker
from skipalign.model import load_tokenizer
from skipalign.positions import SkipAlign
from skipalign.progress import Progress, Silent
from skipalign.resolved import Training
from skipalign.rope import NoExtension
from skipalign.shapes import COUNTED
from skipalign.survey import (
    DataFacts,
    ModelFacts,
    Survey,
    look_at_device,
    look_at_model,
    refuse_model,
)

FACTOR, FURTHEST = 4, 131_072  # where nothing is asked: four windows, at most this
LEAST, MOST_TOKENS = 64, 4096  # of max_tokens
TOKENS_A_PASS, TOKENS_A_STEP, MOST_ROWS = 8192, 65_536, 32
LEAST_STEPS, MOST_STEPS, EPOCHS = 20, 500, 3
FEW_ROWS = 100
_SILENT = Silent()


def start(
    model: str,
    data: Sequence[str],
    *,
    max_position: int | None = None,
    gpu: str | None = None,
    seed: int = 0,
    progress: Progress = _SILENT,
) -> Found:
    """Look at model, data and device; choose what a recipe for them says.

    Args:
        model: folder, hub id or embedded base.
        data: files, folders, data set ids or embedded data.
        max_position: the range of positions to reach, exclusive; None is four windows.
        gpu: a name of budget.GPUS; None is what is found here.
        seed: draws the rows that are tokenised.
        progress: where to report.

    Raises:
        SkipalignError: what would stop a run of the recipe.
    """
    if max_position is not None and max_position < 2 * LEAST:
        raise RecipeError(
            f"max_position is {max_position:,}; it is the range of positions to reach, such as "
            f"32768, and must be {2 * LEAST} or more"
        )
    device, facts = look_at_device(gpu), look_at_model(model)
    reach = max_position or _reach(facts)
    SkipAlign(max_position=reach)  # refuses a range that no strategy has, before much is read
    refuse_model(model, reach)
    tokenizer = load_tokenizer(model)
    surveys = [Survey(each, tokenizer, seed=seed, progress=progress) for each in data]
    rows_found = [each.facts for each in surveys]
    max_tokens = _max_tokens(rows_found, min(facts.window, reach))
    rows = _rows(rows_found, max_tokens)
    at_once = min(rows, max(1, TOKENS_A_PASS // max_tokens))
    lengths, context_length = _prompts(facts, reach, max_tokens, tokenizer)
    chosen = Choices(
        max_position=reach,
        rope=_rope(facts, reach),
        max_tokens=max_tokens,
        rows=rows,
        steps=_steps(rows_found, rows),
        lengths=lengths,
        context_length=context_length,
        way=Way(adapter=None, rows=at_once, recomputes=False),
    )
    cuts = [each.at(max_tokens) for each in surveys]
    found = _fitting(Found(model=facts, data=rows_found, device=device, choices=chosen, cuts=cuts))
    plan.examine(_read(commented(found)))
    return found


def described(found: Found) -> dict[str, Any]:
    """Return all that was found and chosen, for machines."""
    pairs = zip(found.data, found.cuts, strict=True)
    return {
        "model": asdict(found.model),
        "data": [{**asdict(facts), "at_max_tokens": dict(cut)} for facts, cut in pairs],
        "device": asdict(found.device),
        "choices": asdict(found.choices),
        "skips_needed": found.skips_needed,
        "fits": found.fits,
        "planned_bytes": found.memory,
        "planned_gpu_hours": found.hours,
        "notes": list(notes(found)),
    }


# ------------------------------------------------------------------------------- the choices


def _reach(model: ModelFacts) -> int:
    """Return a range to reach: four windows, where RoPE can still be stretched."""
    if model.rope_type != "default":
        return model.window
    return max(model.window, min(FACTOR * model.window, FURTHEST))


def _rope(model: ModelFacts, reach: int) -> str:
    """Return the extension: none where none is needed, or where RoPE is stretched already."""
    stretched = model.rope_type != "default"
    return NoExtension.type if stretched or reach <= model.window else "ntk"


def _max_tokens(data: Sequence[DataFacts], most: int) -> int:
    """Return the power of two that holds nearly all samples whole, within the window."""
    wanted = max(each.quantiles["0.99"] for each in data)
    return min(2 ** math.ceil(math.log2(max(wanted, LEAST))), MOST_TOKENS, most)


def _rows(data: Sequence[DataFacts], max_tokens: int) -> int:
    """Return the rows of a step: some tens of thousands of tokens, and ten steps an epoch."""
    good = sum(each.good for each in data)
    return max(1, min(MOST_ROWS, TOKENS_A_STEP // max_tokens, max(4, good // 10)))


def _steps(data: Sequence[DataFacts], rows: int) -> int:
    good = sum(each.good for each in data)
    return min(MOST_STEPS, max(LEAST_STEPS, math.ceil(EPOCHS * good / rows)))


def _prompts(
    model: ModelFacts, reach: int, max_tokens: int, tokenizer: Any
) -> tuple[tuple[int, ...], int]:
    """Return lengths from within the window to the target, each half of the next; and a short one.

    Those are left out that hold no needle in the model's tokens; none is made that is longer than
    the first that does.
    """
    found = [reach]
    while found[-1] // 2 >= min(model.window, reach // 8):
        found.append(found[-1] // 2)
    settings = NeedleSettings(lengths=(reach,), **asked(model))
    maker = PromptMaker(tokenizer, settings)
    too_short = partial(_holds_no_needle, maker, settings)
    lengths = tuple(dropwhile(too_short, reversed(found)))
    short = reach if too_short(max_tokens) else max_tokens
    return lengths, min(short, *lengths[:1], reach)


def _holds_no_needle(maker: PromptMaker, settings: NeedleSettings, length: int) -> bool:
    rng = np.random.default_rng(0)
    try:
        maker.make(length, 0.5, settings.draw(rng, length), rng)
    except RecipeError:
        return True
    return False


# ------------------------------------------------------------------------------- what fits


def _fitting(found: Found) -> Found:
    """Return it with the first way of training that fits the device; the leanest if none does."""
    first = found.choices.way.rows
    ways = [(None, first, False), (None, 1, True), ("lora", first, False), ("lora", 1, True)]
    if found.device.on_gpu:
        ways.append(("qlora", 1, True))
    tried = found
    for adapter, rows, recomputes in ways:
        way = Way(adapter=adapter, rows=rows, recomputes=recomputes)
        tried = _planned(replace(found, choices=replace(found.choices, way=way)))
        if tried.fits:
            break
    return tried


def _planned(found: Found) -> Found:
    """Return it with the memory and the hours of the plan, and whether the device has them."""
    room = budget.USABLE * found.device.memory
    if found.model.family not in COUNTED:
        bytes_each = BYTES_A_WEIGHT if found.choices.way.adapter is None else 2
        # Half is left for activations, which are not counted for this kind of model.
        return replace(found, fits=bytes_each * found.model.parameters <= room / 2)
    gpu = found.device.gpu
    planned = budget.estimate(_read(commented(found)), gpu=gpu or next(iter(budget.GPUS)))
    costs = planned["methods"][-1]["as_asked"]
    memory = int(costs["memory"]["peak"])
    hours = costs["gpu_hours"] if gpu else None
    return replace(found, memory=memory, hours=hours, fits=memory <= room)


def _read(text: str) -> tuple[Training, ...]:
    """Return the trainings of a recipe that is not written yet."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return recipe.load(path).trainings()


# ------------------------------------------------------------------------------- what to know


def notes(found: Found) -> Iterator[str]:
    """Yield what is worth knowing before the first run."""
    reach, window = found.choices.max_position, found.model.window
    if not found.skips_needed:
        yield (
            f"skips are probably not needed: the window of {window:,} positions already holds "
            f"{reach:,} (docs/when-not.md); the recipe compares them with plain fine-tuning"
        )
    elif found.choices.rope == NoExtension.type:
        yield (
            f"the RoPE of {found.model.path} is {found.model.rope_type!r} and cannot be stretched "
            f"twice; positions beyond {window:,} keep its frequencies"
        )
    if not found.fits:
        need = "" if found.memory is None else f", which takes {gib(found.memory)} by the plan"
        yield (
            f"{found.device.name} has {gib(found.device.memory)}, too few for the leanest way"
            f"{need}; see docs/many-gpus.md, or choose a smaller model"
        )
    if not found.device.on_gpu:
        yield "no GPU is named or found, so this machine's memory decides; --gpu h100 plans for one"
    if not found.choices.lengths:
        yield "no prompt of these lengths holds a needle, so nothing is evaluated"
    for facts in found.data:
        yield from _about(facts)


def _about(facts: DataFacts) -> Iterator[str]:
    if facts.rejected:
        yield f"{facts.path}: rejected {counted(facts.rejected)}; {facts.first_rejection}"
    if facts.dropped:
        yield f"{facts.path}: of {facts.sampled} rows looked at, dropped {counted(facts.dropped)}"
    if facts.template != "tokenizer":
        yield "the tokenizer has no chat template; the plain one of skipalign stands in"
    told = {
        "split_per_turn": "rows become one sample for each answer, as the template needs",
        "no_end_of_turn": "answers have no token after them to stop at",
        "answer_not_marked": "answers are not marked by the template, and not trained",
        "message_left_out": "messages are not rendered by the template",
    }
    for note, words in told.items():
        if note in facts.notes:
            yield f"{facts.path}: {facts.notes[note]} {words} (of {facts.sampled} rows looked at)"
    if facts.good < FEW_ROWS:
        yield f"{facts.path}: {facts.good} rows are enough to see it run, not to teach a model"
