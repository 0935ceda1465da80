"""One training sample as a person reads it: who speaks, what is trained, where positions skip."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skipalign.encoding import Segment
from skipalign.positions import sample_rng
from skipalign.sample import Sample, figures, text_of
from skipalign.visible import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STYLES = {
    "system": "cyan",
    "user": "blue",
    "assistant": "green",
    "tool": "yellow",
    "document": "magenta",
}
NOTES = {
    "special_text": "special tokens in contents were written as ordinary text: {n}",
    "split_per_turn": "each answer of the row is a sample of its own: the template drops text of "
    "earlier turns",
    "answers_dropped": "answers of the row that could not be kept: {n}",
    "turns_over_limit": "early turns dropped, as there are more messages than are ever kept: {n}",
    "early_turns_dropped": "early turns dropped to fit max_tokens: {n}",
    "middle_cut": "the middle of the longest user message was cut to fit max_tokens",
    "document_pieces": "the document was cut into consecutive pieces of max_tokens: {n}",
    "message_left_out": "messages that the template does not render: {n}",
    "answer_not_marked": "answers that the template does not mark, so not trained: {n}",
    "no_end_of_turn": "answers after which the template puts no token to stop at: {n}",
    "merged_border": "answers whose first characters share a token with the header: {n}",
}
_WIDTH = 100  # columns at most
_HEAD, _TAIL = 100, 50  # tokens shown of a long message
_FIRST, _LAST = 9, 4  # messages shown of a long conversation
_EPOCHS_TRIED = 20


class _Marks(NamedTuple):
    """What says in characters what colour says elsewhere."""

    skip: str
    hidden: str
    trained: tuple[str, str]
    template: tuple[str, str]
    newline: str
    empty: str


_UNICODE = _Marks("⟨+{:,}⟩", "⟨… {} …⟩", ("⟦", "⟧"), ("‹", "›"), "⏎", "·")
_ASCII = _Marks("<+{:,}>", "<... {} ...>", ("[[", "]]"), ("{", "}"), "\\n", ".")


def show(
    sample: Sample, tokenizer: Any, console: "Console", *, method: str = "", full: bool = False
) -> None:
    """Print the sample: its text, a ruler of its positions, a table of its segments, its notes.

    Args:
        sample: what `draw_sample` returned.
        tokenizer: that made its tokens.
        console: where to; without colour, marks say what colour would.
        method: its name in the recipe.
        full: show long messages and long conversations whole.
    """
    drawing = _Drawing(sample, tokenizer, console, full)
    width = min(console.width, _WIDTH)
    for part in (
        drawing.title(method),
        *drawing.messages(),
        drawing.legend(),
        drawing.ruler(width),
        drawing.table(),
        *(f"note: {note}" for note in notes(sample)),
    ):
        console.print(part, width=width, highlight=False, markup=False, overflow="fold")


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens [start, stop) that look alike; `skip` is the number of positions left out before."""

    start: int
    stop: int
    is_template: bool
    is_trained: bool
    skip: int


class _Drawing:
    def __init__(self, sample: Sample, tokenizer: Any, console: "Console", full: bool) -> None:
        self.sample = sample
        self.tokenizer = tokenizer
        self.full = full
        self.in_colour = console.color_system is not None and not console.no_color
        self.encoding = console.encoding
        self.marks = _UNICODE if self.encoding.lower().startswith("utf") else _ASCII

    def shown(self, text: str) -> str:
        return visible(text, self.encoding)

    def title(self, method: str) -> "Text":
        from rich.text import Text

        sample = self.sample
        first = f"sample {sample.index:,} of {sample.example.source} ({sample.place})"
        named = f"{method}, " if method else ""
        seen = f"{named}seed {sample.seed}, epoch {sample.epoch}"
        last = int(sample.position_ids[-1])
        counts = (
            f"{len(sample.position_ids):,} tokens, {sample.trained.sum():,} trained\n"
            f"positions {int(sample.position_ids[0]):,} to {last:,} of {sample.max_position:,}"
        )
        text = Text()
        text.append(self.shown(first), style="bold")
        return text.append(self.shown(f"\n{seen}: {counts}\n"))

    def messages(self) -> "Iterator[Text]":
        """Yield every message as text, the middle of a long conversation as one line."""
        from rich.text import Text

        segments = self.sample.example.segments
        hidden = slice(0, 0)
        if not self.full and len(segments) > _FIRST + _LAST:
            hidden = slice(_FIRST, len(segments) - _LAST)
        for segment in segments[: hidden.start] if hidden.stop else segments:
            yield self._message(segment)
        if not hidden.stop:
            return
        start, stop = segments[hidden.start].start, segments[hidden.stop - 1].stop
        num = hidden.stop - hidden.start
        yield Text(self._hidden(start, stop, f"{num:,} messages, ") + "\n", style="dim")
        for segment in segments[hidden.stop :]:
            yield self._message(segment)

    def _message(self, segment: Segment) -> "Text":
        from rich.text import Text

        style = STYLES.get(segment.role, "")
        text = Text()
        text.append(f"{self.shown(segment.role)}\n", style=f"bold {style}")
        first, last = segment.start + _HEAD, segment.stop - _TAIL
        if self.full or last - first < _TAIL:
            return text.append_text(self._tokens(segment, segment.start, segment.stop)).append("\n")
        text.append_text(self._tokens(segment, segment.start, first))
        text.append(f"\n{self._hidden(first, last)}\n", style="dim")
        return text.append_text(self._tokens(segment, last, segment.stop)).append("\n")

    def _hidden(self, start: int, stop: int, what: str = "") -> str:
        num_skips = sum(start <= token < stop for token in self.sample.skips)
        skips = f", {num_skips:,} skips" if num_skips else ""
        return self.marks.hidden.format(f"{what}{stop - start:,} tokens{skips}; --full shows them")

    def _tokens(self, segment: Segment, start: int, stop: int) -> "Text":
        from rich.text import Text

        style = STYLES.get(segment.role, "")
        text = Text(end="")
        spans = list(self._spans(segment, start, stop))
        for before, span, after in zip([None, *spans], spans, [*spans[1:], None], strict=False):
            if span.skip:
                text.append(self.marks.skip.format(span.skip), style="bold reverse")
            words = text_of(self.tokenizer, self.sample.example.input_ids, span.start, span.stop)
            words = self.shown(words)
            if span.is_template:
                words = words.replace("\n", self.marks.newline)
            look = f"{style} dim" if span.is_template else style
            if span.is_trained:
                look = f"{style} bold underline"
            if not self.in_colour:
                words = self._marked(words, before, span, after)
            text.append(words, style=look)
        return text

    def _marked(
        self, words: str, before: "_Span | None", span: "_Span", after: "_Span | None"
    ) -> str:
        """Return the words between marks; trained spans that follow each other share theirs."""
        if span.is_template:
            words = self.marks.template[0] + words + self.marks.template[1]
        if span.is_trained and not (before and before.is_trained):
            words = self.marks.trained[0] + words
        if span.is_trained and not (after and after.is_trained):
            words += self.marks.trained[1]
        return words

    def _spans(self, segment: Segment, start: int, stop: int) -> Iterator[_Span]:
        trained, skips = self.sample.trained, self.sample.skips
        changes = np.flatnonzero(np.diff(trained[start:stop].astype(np.int8))) + start + 1
        edges = {start, stop, segment.content_start, segment.content_stop}
        edges |= {int(change) for change in changes} | skips.keys()
        inside = sorted(edge for edge in edges if start <= edge <= stop)
        for first, last in pairwise(inside):
            is_template = not segment.content_start <= first < segment.content_stop
            yield _Span(first, last, is_template, bool(trained[first]), skips.get(first, 0))

    def legend(self) -> "Text":
        from rich.text import Text

        marks = self.marks
        skip = (marks.skip.format(7), "positions left out before a token")
        if self.in_colour:
            words = (("trained", "bold underline"), ("template", "dim"))
            text = Text.assemble(*(part for word in words for part in (word, "  ")))
        else:
            trained, template = (
                ("{0[0]}{1}{0[1]}").format(*pair)
                for pair in (
                    (marks.trained, "trained"),
                    (marks.template, "template"),
                )
            )
            text = Text(f"{trained}  {template}  ")
        return text.append(skip[0], style="bold reverse").append(f" {skip[1]}")

    def ruler(self, width: int) -> "Text":
        """Return where the segments lie in [0, max_position): a letter for each role."""
        from rich.text import Text

        sample = self.sample
        right = f" {sample.max_position:,}"
        num_cells = max(10, width - len(right) - 2)
        # The role with the most tokens in a cell is the one that is shown.
        cells = sample.position_ids * num_cells // sample.max_position
        roles = list(dict.fromkeys(segment.role for segment in sample.example.segments))
        counts = np.zeros((num_cells, len(roles)), np.int64)
        for segment in sample.example.segments:
            inside = cells[segment.start : segment.stop]
            counts[:, roles.index(segment.role)] += np.bincount(inside, minlength=num_cells)
        text = Text("0 ", no_wrap=True)
        for cell in counts:
            if not cell.any():
                text.append(self.marks.empty, style="dim")
                continue
            role = roles[int(cell.argmax())]
            text.append(role[0].upper(), style=f"bold {STYLES.get(role, '')}")
        text.append(right)
        letters = ", ".join(f"{role[0].upper()} {role}" for role in roles)
        return text.append(f"\n  {letters}, {self.marks.empty} no token\n", style="dim")

    def table(self) -> "Table":
        """Return a row for each segment."""
        from rich.table import Table
        from rich.text import Text

        segments = self.sample.example.segments
        rows = [figures(self.sample, segment) for segment in segments]
        within = any(row["num_skips_within"] for row in rows)
        drawn = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        drawn.add_column("role", no_wrap=True)
        heads = ["tokens", "positions", "skip\nbefore", *(["skips\nin it"] if within else [])]
        heads += ["trained", *(["key bias"] if self.sample.key_bias is not None else [])]
        for head in heads:
            drawn.add_column(head, justify="right", no_wrap=True)
        for number, row in enumerate(rows):
            if (
                not self.full
                and _FIRST <= number < len(rows) - _LAST
                and len(rows) > _FIRST + _LAST
            ):
                if number == _FIRST:
                    drawn.add_row(f"{len(rows) - _FIRST - _LAST:,} more")
                continue
            cells = [f"{row['start']:,}-{row['stop']:,}"]
            cells.append(f"{row['first_position']:,}-{row['last_position']:,}")
            cells.append(_count(row["skip_before"]))
            cells += [_count(row["num_skips_within"])] if within else []
            cells.append(_count(row["num_trained_tokens"]))
            if row["key_bias"]:
                cells.append(_interval(*row["key_bias"]))
            style = STYLES.get(row["role"], "")
            drawn.add_row(Text(self.shown(row["role"]), style=style), *cells)
        return drawn


def notes(sample: Sample) -> list[str]:
    """Return what must be known of a sample besides its text, in sentences."""
    found: list[str] = []
    fraction = getattr(sample.strategy, "skip_fraction", 0.0)
    if not sample.skips and fraction:
        found.append(f"no skip in this epoch (skip_fraction {fraction}); {_where_it_skips(sample)}")
    found += [NOTES.get(name, name + ": {n}").format(n=n) for name, n in sample.notes.items()]
    if sample.num_skipped_rows:
        found.append(
            f"rows before this one that were rejected or dropped: {sample.num_skipped_rows:,}; "
            "`skipalign prepare` says why"
        )
    return found


def _where_it_skips(sample: Sample) -> str:
    """Say in which epoch the sample skips; positions are drawn as training will."""
    for epoch in range(_EPOCHS_TRIED):
        rng = sample_rng(sample.seed, epoch, sample.example.id)
        if (np.diff(sample.strategy.positions(sample.example, rng)) > 1).any():
            return f"try --epoch {epoch}"
    return f"it has none in epochs 0 to {_EPOCHS_TRIED - 1}; look at another (--index)"


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _interval(low: float, high: float) -> str:
    return f"{low:.2f}" if low == high else f"{low:.2f}-{high:.2f}"
