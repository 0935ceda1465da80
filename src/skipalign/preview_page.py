"""Training samples as one HTML page: every token with its position, every skip drawn to scale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from skipalign.downloads import csv_link
from skipalign.encoding import Segment
from skipalign.figures import CHARACTER, reach_axis
from skipalign.files import write_text
from skipalign.markup import render
from skipalign.preview import STYLES, notes
from skipalign.sample import Sample, figures, text_of

# In units of the ruler's view box.
_WIDTH, _LEFT, _TOP, _LANE = 760.0, 78.0, 30.0, 24.0
_RIGHT = _WIDTH - 34
_THINNEST = 1.5
_HEAD, _TAIL = 1000, 300  # tokens shown of a long message
_LONGEST_PIECE = 8  # tokens that may share one character


@dataclass(frozen=True, slots=True)
class _Block:
    """Tokens [start, stop) of one segment, at consecutive positions, all trained or none."""

    start: int
    stop: int
    segment: Segment
    is_trained: bool


def write_preview(
    samples: Sequence[Sample],
    tokenizer: Any,
    path: str | Path,
    *,
    method: str = "",
    full: bool = False,
) -> Path:
    """Write samples as a page that opens from disk; return where it is.

    Args:
        samples: what `draw_sample` returned.
        tokenizer: that made their tokens.
        path: of the page.
        method: its name in the recipe.
        full: show long messages whole.
    """
    shown = [_sample(each, tokenizer, full=full) for each in samples]
    values = {
        "title": f"{samples[0].example.source}: {_numbers(samples)}",
        "method": method,
        "roles": {role: place for place, role in enumerate(STYLES)},
        "samples": shown,
    }
    page = render("preview.html.jinja", values, style="preview.css", scripts=("walk.js",))
    write_text(Path(path), page)
    return Path(path)


def _numbers(samples: Sequence[Sample]) -> str:
    first, last = samples[0].index, samples[-1].index
    return f"sample {first:,}" if first == last else f"samples {first:,} to {last:,}"


def _sample(sample: Sample, tokenizer: Any, *, full: bool) -> dict[str, Any]:
    blocks = list(_blocks(sample))
    first, last = int(sample.position_ids[0]), int(sample.position_ids[-1])
    rows = [figures(sample, segment) for segment in sample.example.segments]
    return {
        "index": sample.index,
        "source": sample.example.source,
        "place": str(sample.place),
        "seen": f"seed {sample.seed}, epoch {sample.epoch}",
        "counts": f"{len(sample.position_ids):,} tokens, {sample.trained.sum():,} trained; "
        f"positions {first:,} to {last:,} of {sample.max_position:,}; {_skips_in_words(sample)}",
        "ruler": _ruler(sample, blocks),
        "messages": [_message(sample, tokenizer, each, full) for each in sample.example.segments],
        "rows": rows,
        "within": any(row["num_skips_within"] for row in rows),
        "biased": sample.key_bias is not None,
        "notes": notes(sample),
        "csv": csv_link(list(_tokens(sample, tokenizer))),
    }


def _skips_in_words(sample: Sample) -> str:
    left_out = sum(sample.skips.values())
    if len(sample.skips) < 2:
        return f"1 skip leaves out {left_out:,}" if sample.skips else "no skip"
    return f"{len(sample.skips):,} skips leave out {left_out:,}"


def _blocks(sample: Sample) -> Iterator[_Block]:
    trained, skips = sample.trained, sample.skips
    for segment in sample.example.segments:
        inside = trained[segment.start : segment.stop].astype(np.int8)
        changes = {int(each) + segment.start + 1 for each in np.flatnonzero(np.diff(inside))}
        jumps = {token for token in skips if segment.start < token < segment.stop}
        edges = sorted({segment.start, segment.stop, *changes, *jumps})
        for start, stop in pairwise(edges):
            yield _Block(start, stop, segment, bool(trained[start]))


# ----------------------------------------------------------------------------------- the ruler


def _ruler(sample: Sample, blocks: Sequence[_Block]) -> dict[str, Any]:
    """Lay out positions [0, max_position): a lane for each role, the skips above them."""
    axis = reach_axis("position", sample.max_position)
    roles = list(dict.fromkeys(segment.role for segment in sample.example.segments))
    lanes = {role: _TOP + _LANE * place for place, role in enumerate(roles)}
    bottom = _TOP + _LANE * len(roles)

    def across(position: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * axis.share(position), 2)

    runs: list[dict[str, Any]] = []
    for each in blocks:
        first, last = (int(sample.position_ids[token]) for token in (each.start, each.stop - 1))
        left, right = across(first), across(last + 1)
        state = "trained" if each.is_trained else "not trained"
        runs.append(
            {
                "x": left,
                "y": lanes[each.segment.role] + (3 if each.is_trained else 8),
                "width": max(_THINNEST, round(right - left, 2)),
                "height": _LANE - (6 if each.is_trained else 16),
                "role": each.segment.role,
                "is_trained": each.is_trained,
                "label": f"{each.segment.role}, {state}: {_span('position', first, last)}, "
                f"{_span('token', each.start, each.stop - 1)}",
            }
        )
    return {
        "width": _WIDTH,
        "height": bottom + 24,
        "left": _LEFT,
        "right": _RIGHT,
        "top": _TOP,
        "bottom": bottom,
        "lanes": [{"role": role, "y": y + _LANE / 2 + 4} for role, y in lanes.items()],
        "runs": runs,
        "gaps": [_gap(sample, token, length, across) for token, length in sample.skips.items()],
        "ticks": [(across(value), text) for value, text in axis.ticks],
    }


def _gap(sample: Sample, token: int, length: int, across: Any) -> dict[str, Any]:
    stop = int(sample.position_ids[token])
    left, right = across(stop - length), across(stop)
    text = f"+{length:,}"
    return {
        "left": left,
        "right": right,
        "middle": round((left + right) / 2, 2),
        "text": text if right - left > CHARACTER * len(text) + 4 else "",
        "label": f"skip of {length:,}: {_span('position', stop - length, stop - 1)} left out "
        f"before token {token:,}",
    }


def _span(what: str, first: int, last: int) -> str:
    return f"{what} {first:,}" if first == last else f"{what}s {first:,} to {last:,}"


# ------------------------------------------------------------------------------------ the text


def _message(sample: Sample, tokenizer: Any, segment: Segment, full: bool) -> dict[str, Any]:
    first, last = segment.start + _HEAD, segment.stop - _TAIL
    hidden = "" if full or last - first < _TAIL else _hidden(sample, first, last)
    shown = [(segment.start, segment.stop)]
    if hidden:
        shown = [(segment.start, first), (last, segment.stop)]
    parts = [list(_pieces(sample, tokenizer, segment, *span)) for span in shown]
    return {"role": segment.role, "parts": parts, "hidden": hidden}


def _hidden(sample: Sample, start: int, stop: int) -> str:
    num_skips = sum(start <= token < stop for token in sample.skips)
    return f"… {stop - start:,} tokens, {num_skips:,} skips; --full shows them …"


def _pieces(
    sample: Sample, tokenizer: Any, segment: Segment, start: int, stop: int
) -> Iterator[dict[str, Any]]:
    """Yield tokens as text; tokens that share one character stand together."""
    trained, skips = sample.trained, sample.skips
    first = start
    for token in range(start, stop):
        text = text_of(tokenizer, sample.example.input_ids, first, token + 1)
        end = token + 1
        is_border = end == stop or end in skips or trained[token] != trained[min(end, stop - 1)]
        is_border |= end in (segment.content_start, segment.content_stop)
        if text.endswith("\ufffd") and not is_border and end - first < _LONGEST_PIECE:
            continue
        positions = [int(sample.position_ids[each]) for each in (first, token)]
        is_template = not segment.content_start <= first < segment.content_stop
        yield {
            "text": text.replace("\n", "⏎") if is_template else text,
            "label": f"{_span('position', *positions)}, {_span('token', first, token)}, "
            f"{segment.role}, {'trained' if trained[first] else 'not trained'}",
            "is_trained": bool(trained[first]),
            "is_template": is_template,
            "skip": f"+{skips[first]:,}" if first in skips else "",
        }
        first = end


def _tokens(sample: Sample, tokenizer: Any) -> Iterator[dict[str, Any]]:
    trained = sample.trained
    for segment in sample.example.segments:
        for token in range(segment.start, segment.stop):
            yield {
                "token": token,
                "input_id": int(sample.example.input_ids[token]),
                "position": int(sample.position_ids[token]),
                "role": segment.role,
                "trained": int(trained[token]),
                **({} if sample.key_bias is None else {"bias": float(sample.key_bias[token])}),
                "text": text_of(tokenizer, sample.example.input_ids, token, token + 1),
            }
