"""Conversations -> tokenized examples on disk, every row accounted for.

    out/data/examples.arrow   the examples, an Arrow IPC file that is memory-mapped on reading
    out/data/changed.jsonl    one line per used row that was changed: split, shortened, neutralised
    out/data/manifest.json    what it was made from, as a fingerprint; written last
    out/rejected.jsonl        one line per rejected or dropped row, with its reason
    out/accounting.json       rows read = used + rejected + dropped, by source and in all

Data whose fingerprint is the one asked for is used again; without its manifest it is made anew.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from skipalign import __version__
from skipalign.conversation import (
    Conversation,
    Place,
    Rejection,
    check_options,
    read_conversations,
)
from skipalign.digests import Files, files_of, require_same_files, require_unchanged
from skipalign.encoding import IGNORE_INDEX, Encoded, Encoder, Example
from skipalign.errors import DataError, RecipeError, RunError
from skipalign.example_file import ExampleWriter, examples_path
from skipalign.files import json_text, read_json, write_json, written_aside
from skipalign.progress import Bar, Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SILENT = Silent()

_FORMAT = 2
"""Part of the fingerprint: raise it whenever the same row gives another example."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where conversations come from. `weight` mixes sources, in tokens; it changes no example."""

    path: str
    name: str
    shape: str | None = None
    weight: float | None = None
    max_tokens: int = 4096
    split: str = "train"
    strict: bool = False
    max_row_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        check_options(self.shape, self.max_row_bytes)
        if not 3 <= self.max_tokens < 2**31:
            raise RecipeError(f"max_tokens is {self.max_tokens}; it must be in 3 to {2**31 - 1:,}")


def prepare(
    sources: Sequence[Source],
    tokenizer: "PreTrainedTokenizerBase",
    out: str | Path,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    trained_on: Mapping[str, Any] | None = None,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Read and encode all sources into `out`, unless it holds the same data already.

    Memory holds a few rows at a time. What a data set id of the hub holds is not part of the
    fingerprint: delete `out/data` to read it again.

    Args:
        sources: the conversations.
        tokenizer: of the base.
        out: the folder.
        template_kwargs: what the chat template takes.
        trained_on: what `digests.digests_of` returned of data that a training in `out` has read.
        progress: where to report.

    Returns:
        The accounting: {schema_version, sources: {name: {rows_read, used, rejected: {reason: n},
        dropped: {reason: n}, notes: {note: n}, examples, tokens, trained_tokens, longest}}, total}.
        trained_tokens are those that the loss reads; a sample's first token is never one.

    Raises:
        DataError: a source cannot be read, changes while it is read, or is not what a training has
            begun with; none of its rows can be used; no example at all.
        ModelError: the tokenizer cannot be used.
        RecipeError: a setting cannot be used, or two sources have one name.
    """
    out = Path(out)
    _require_names(sources)
    encoders = {
        limit: Encoder(tokenizer, max_tokens=limit, template_kwargs=template_kwargs)
        for limit in {source.max_tokens for source in sources}
    }
    files = {source.name: files_of(source.path, progress) for source in sources}
    require_same_files({name: each.digests for name, each in files.items()}, trained_on, out)
    manifest = _manifest(sources, files, tokenizer, encoders[sources[0].max_tokens])
    manifest["template_kwargs"] = dict(template_kwargs or {})
    manifest["fingerprint"] = _digest(manifest)
    if (found := _reusable(out, manifest["fingerprint"])) is not None:
        return found
    _clear(out)
    work = [(source, encoders[source.max_tokens], files[source.name]) for source in sources]
    accounting = _make(work, out, progress)
    for source in sources:
        require_unchanged(source.path, files[source.name])
    counts = {key: accounting["total"][key] for key in ("examples", "tokens")}
    size = examples_path(out / "data").stat().st_size
    shown = {source.name: source.path for source in sources}
    write_json(out / "data/manifest.json", {**manifest, **counts, "bytes": size, "paths": shown})
    return accounting


# --- making -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """What became of the rows of a source."""

    rows_read: int = 0
    used: int = 0
    rejected: Counter[str] = field(default_factory=Counter[str])
    dropped: Counter[str] = field(default_factory=Counter[str])
    notes: Counter[str] = field(default_factory=Counter[str])
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0

    def count(self, examples: Iterable[Example]) -> None:
        for example in examples:
            self.examples += 1
            self.tokens += len(example.input_ids)
            # The first label is never read: nothing precedes it that could predict it.
            self.trained_tokens += int(np.count_nonzero(example.labels[1:] != IGNORE_INDEX))
            self.longest = max(self.longest, len(example.input_ids))

    def add(self, other: "_Tally") -> None:
        for name in self.__slots__:
            mine, value = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, value) if name == "longest" else mine + value)

    def checked(self) -> dict[str, Any]:
        accounted = self.used + self.rejected.total() + self.dropped.total()
        assert self.rows_read == accounted, f"{self.rows_read} rows read, {accounted} accounted for"
        # Not asdict: it does not rebuild a Counter before Python 3.12.
        values = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: dict(v) if isinstance(v, Counter) else v for name, v in values}


class _Log:
    """A file of JSON lines about rows."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        aside = stack.enter_context(written_aside(path))
        self._file: TextIO = stack.enter_context(aside.open("w", encoding="utf-8"))

    def write(self, place: Place, source: Source, fields: dict[str, Any]) -> None:
        where: dict[str, Any] = {"file": place.file, "line": place.line, "source": source.name}
        if place.unit != "line":
            where["unit"] = place.unit
        if place.element is not None:
            where["element"] = place.element
        self._file.write(json_text({**where, **fields}) + "\n")


_Work = Sequence[tuple[Source, Encoder, Files]]


def _make(work: _Work, out: Path, progress: Progress) -> dict[str, Any]:
    tallies = {source.name: _Tally() for source, _, _ in work}
    problem: DataError | None = None
    with ExitStack() as kept:
        # The reasons stay readable where there is no data for them.
        rejected = _Log(kept, out / "rejected.jsonl")
        try:
            with ExitStack() as stack:
                writer = ExampleWriter(stack, examples_path(out / "data"), list(tallies))
                changed = _Log(stack, out / "data/changed.jsonl")
                for source, encoder, files in work:
                    clerk = _Clerk(source, encoder, tallies[source.name], writer, rejected, changed)
                    with progress.bar(f"prepare {source.name}", files.num_rows) as bar:
                        clerk.read(bar)
                writer.flush()
                _require_examples(tallies)
        except DataError as error:
            problem = error
    if problem is not None:
        raise problem
    total = _Tally()
    for tally in tallies.values():
        total.add(tally)
    counts = {name: tally.checked() for name, tally in tallies.items()}
    write_json(out / "accounting.json", {"sources": counts, "total": total.checked()})
    return read_json(out / "accounting.json")


@dataclass(frozen=True, slots=True)
class _Clerk:
    """Takes one source through the encoder and books every row."""

    source: Source
    encoder: Encoder
    tally: _Tally
    writer: ExampleWriter
    rejected: _Log
    changed: _Log

    def read(self, bar: Bar) -> None:
        source = self.source
        items = read_conversations(
            source.path,
            name=source.name,
            shape=source.shape,
            split=source.split,
            strict=source.strict,
            max_row_bytes=source.max_row_bytes,
        )
        for batch in _batches(items):
            good = [item for item in batch if isinstance(item, Conversation)]
            encoded = iter(self.encoder.encode_many(good))
            for item in batch:
                self.tally.rows_read += 1
                if isinstance(item, Rejection):
                    self.tally.rejected[item.reason] += 1
                    self._refuse(item.place, item.reason, item.detail, item.row)
                else:
                    self._book(item, next(encoded))
            bar.advance(len(batch))

    def _book(self, conversation: Conversation, encoded: Encoded) -> None:
        if encoded.dropped is not None:
            self.tally.dropped[encoded.dropped] += 1
            messages = [{"role": m.role, "content": m.content[:500]} for m in conversation.messages]
            row = json.dumps(messages, ensure_ascii=False)[:500]
            self._refuse(conversation.place, encoded.dropped, encoded.detail, row)
            return
        self.tally.used += 1
        self.tally.notes.update(encoded.notes)
        self.tally.count(encoded.examples)
        for example in encoded.examples:
            self.writer.write(example)
        if encoded.notes:
            fields = {"notes": encoded.notes, "detail": encoded.detail}
            self.changed.write(conversation.place, self.source, fields)

    def _refuse(self, place: Place, reason: str, detail: str, row: str) -> None:
        fields = {"reason": reason, "detail": detail, "row": row}
        self.rejected.write(place, self.source, fields)


def _batches(
    items: Iterable[Conversation | Rejection],
) -> Iterator[list[Conversation | Rejection]]:
    batch: list[Conversation | Rejection] = []
    characters = 0
    for item in items:
        batch.append(item)
        if isinstance(item, Conversation):
            characters += sum(len(message.content) for message in item.messages)
        if len(batch) >= 256 or characters >= 2**20:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _require_names(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise RecipeError(
            f"the sources are named {', '.join(map(repr, names)) or 'nothing'}; at least one is "
            "required, and every name once - rename them"
        )


def _require_examples(tallies: Mapping[str, _Tally]) -> None:
    if any(tally.examples for tally in tallies.values()):
        return
    reasons: Counter[str] = Counter()
    for tally in tallies.values():
        reasons += tally.rejected + tally.dropped
    counted = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
    rows = sum(tally.rows_read for tally in tallies.values())
    raise DataError(
        f"{', '.join(tallies)}: none of {rows} rows gave an example ({counted}); at least one is "
        "required - rejected.jsonl names each row and its reason"
    )


# --- what it was made from ----------------------------------------------------------------------


def _manifest(
    sources: Sequence[Source],
    files: Mapping[str, Files],
    tokenizer: "PreTrainedTokenizerBase",
    encoder: Encoder,
) -> dict[str, Any]:
    """Return all that the examples depend on: not where files lie, nor how sources are mixed."""
    known: Any = tokenizer
    spec = json.loads(known.backend_tokenizer.to_str())
    spec["truncation"] = spec["padding"] = None  # set by the last call, not by the tokenizer
    spec["named"] = {name: str(token) for name, token in known.special_tokens_map.items()}
    described: list[dict[str, Any]] = []
    for source in sources:
        fields = asdict(source)
        del fields["path"], fields["weight"]
        described.append({**fields, "files": files[source.name].digests})
    return {
        "version": __version__,
        "format": _FORMAT,
        "sources": described,
        "tokenizer_digest": _digest(spec),
        "template_name": encoder.template_name,
        "template_digest": _digest(encoder.template),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _reusable(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the accounting of the data in `out` where it is whole and was made from the same."""
    try:
        manifest = read_json(out / "data/manifest.json")
        accounting = read_json(out / "accounting.json")
        size = examples_path(out / "data").stat().st_size
    except (RunError, OSError):
        return None
    same = manifest.get("fingerprint") == fingerprint and manifest.get("bytes") == size
    return accounting if same and (out / "rejected.jsonl").exists() else None


def _clear(out: Path) -> None:
    """Take away the manifest, so that a kill leaves no data that looks whole, and old partials."""
    (out / "data/manifest.json").unlink(missing_ok=True)
    for folder in (out, out / "data"):
        for partial in folder.glob(".*.partial-*"):
            owner = partial.name.rpartition("-")[2]
            if owner.isdecimal() and not _alive(int(owner)):
                partial.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
