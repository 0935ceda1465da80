"""Files and data sets -> Conversation: one item for every row, good or bad, with its place.

JSON lines, JSON arrays and csv are read row by row by this room, so that a bad row costs itself
alone; parquet comes in batches, a Hugging Face data set as a stream. Memory holds a row, no file.
"""

import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from skipalign.errors import DataError, RecipeError

ROLES = ("system", "user", "assistant", "tool", "document")
"""Who speaks. A "document" is plain text, the only message of its row, with the loss on all."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is one of ROLES; `content` is the row's text, untouched."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row begins, counted from 1; `element` counts the elements of a JSON array as read."""

    file: str
    line: int
    unit: str = "line"
    element: int | None = None

    def __str__(self) -> str:
        element = "" if self.element is None else f" element {self.element}"
        return f"{self.file} {self.unit} {self.line}{element}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One good row. `id` is a digest of the source's name, the row's number and the row."""

    messages: tuple[Message, ...]
    place: Place
    source: str
    id: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """One bad row: `reason` to count by, `detail` for a person, `row` its first 500 characters."""

    place: Place
    reason: str
    detail: str
    row: str

    def __str__(self) -> str:
        return f"{self.place}: {self.detail}"


def read_conversations(
    path: str,
    *,
    name: str,
    shape: str | None = None,
    split: str = "train",
    strict: bool = False,
    max_row_bytes: int = 16 * 2**20,
) -> Iterator[Conversation | Rejection]:
    """Read a file, a folder or a Hugging Face data set; yield exactly one item for each row.

    A local path wins over a data set id. Blank lines are no rows. Where a damaged file cannot be
    read on, its rest is one Rejection.

    Args:
        path: .jsonl, .ndjson, .json, .csv (each also .gz) or .parquet; a folder (its files in
            sorted order); or a data set id, `owner/name[:config]` (extra `hub`, needs the network).
        name: the name of the source, part of every id.
        shape: one of SHAPES; None recognises it row by row from the keys.
        split: which split of a data set; files have none.
        strict: raise at the first bad row.
        max_row_bytes: a larger row is rejected by its size, without being parsed.

    Raises:
        RecipeError: `shape` is not one of SHAPES.
        DataError: nothing can be read at `path`; a bad row under `strict`; at the end, no good row.
    """
    if shape is not None and shape not in SHAPES:
        raise RecipeError(f"shape is {shape!r}; it must be one of {', '.join(SHAPES)}")
    files = [_file_rows(file, max_row_bytes) for file in _data_files(path)]
    rows = chain.from_iterable(files or [_hub_rows(path, split)])
    parse = partial(_conversation, name=name, shape=shape, limit=max_row_bytes)
    return _items(rows, parse, path, strict)


class _RowError(Exception):
    """Why one row cannot be used: (reason, detail), as in Rejection."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as found: `value`, or else JSON in `raw`, cut somewhere past the limit if longer."""

    place: Place
    raw: bytes
    value: dict[str, Any] | None = None
    problem: _RowError | None = None


def _items(
    rows: Iterable[_Row], parse: Callable[[int, _Row], Conversation], path: str, strict: bool
) -> Iterator[Conversation | Rejection]:
    first: Rejection | None = None
    good = number = 0
    for number, row in enumerate(rows, 1):
        try:
            conversation = parse(number, row)
        except _RowError as error:
            shown = row.raw[:2000].decode("utf-8", "backslashreplace")[:500]
            rejection = Rejection(row.place, *error.args, row=shown)
            if strict:
                raise DataError(str(rejection)) from None
            first = first or rejection
            yield rejection
        else:
            good += 1
            yield conversation
    if not good:
        found = f"none of its {number} rows can be used; the first is {first}"
        raise DataError(f"{path}: {found if first else 'holds no rows; a row is required'}")


_ROLE_NAMES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
    "function_call": "assistant",
}
# A conversation begins with system or user.
_NEXT = {"system": "user", "user": "assistant", "assistant": "user tool", "tool": "tool assistant"}
_TOO_LARGE = "over {} bytes (max_row_bytes); split the row or raise the limit"
_ONE_OBJECT = "one JSON object a line (or, in a .json file, one array of objects) is required"


def _conversation(number: int, row: _Row, name: str, shape: str | None, limit: int) -> Conversation:
    large = _RowError("too_large", _TOO_LARGE.format(limit)) if len(row.raw) > limit else None
    if problem := large or row.problem:
        raise problem
    value = _json(row.raw) if row.value is None else row.value
    if not isinstance(value, dict):
        raise _RowError("not_object", f"the row is {_shown(value)}; {_ONE_OBJECT}")
    columns = cast(dict[str, Any], value)
    messages = SHAPES[shape or _recognise(columns)](columns)
    lead: list[Message] = []
    if columns.get("system") and messages and messages[0].role not in ("system", "document"):
        lead = [Message("system", _text(columns["system"], "'system'"))]
    _check([*lead, *messages], 1 - len(lead))
    digest = blake2b(json.dumps([name, number]).encode() + row.raw, digest_size=16)
    return Conversation((*lead, *messages), row.place, name, digest.hexdigest())


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} of the row is {raw[error.start]:#04x}, which is not UTF-8"
        raise _RowError("not_utf8", f"{found}; save the file as UTF-8") from None


def _json(raw: bytes) -> object:
    try:
        return json.loads(_decoded(raw), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        what = str(error)
    raise _RowError("not_json", f"not JSON ({what}); {_ONE_OBJECT} - mend the row or remove it")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON lets the last of two equal keys win, which would lose text without a word.
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _RowError("duplicate_key", f"a key stands twice among {_keys(pairs)}; remove one")
    return value


def _turns(row: dict[str, Any], key: str, role: str = "") -> list[Message]:
    """Read a list of messages; where a `role` is given, a string is the one message."""
    value = _column(row, key)
    if role and isinstance(value, str):
        return [Message(role, value)]
    if isinstance(value, str):  # csv has no other way to hold a list
        value = _json(value.encode("utf-8", "surrogatepass"))
    if not isinstance(value, list):
        raise _RowError("no_messages", f"{key!r} is {_shown(value)}; a list is required")
    turns = enumerate(cast(list[object], value), 1)
    return [_turn(turn, f"message {n}" + (f" of {key!r}" if role else "")) for n, turn in turns]


def _alpaca(row: dict[str, Any]) -> list[Message]:
    question = _text(_column(row, "instruction"), "'instruction'")
    given = "" if row.get("input") is None else _text(row["input"], "'input'")
    asked = "\n\n".join(text for text in (question, given) if text.strip())
    key = "output" if row.get("response") is None else "response"
    return [Message("user", asked), Message("assistant", _text(_column(row, key), repr(key)))]


SHAPES: dict[str, Callable[[dict[str, Any]], list[Message]]] = {
    "messages": lambda row: _turns(row, "messages"),
    "sharegpt": lambda row: _turns(row, "conversations"),
    "alpaca": _alpaca,
    "prompt_completion": lambda row: (
        _turns(row, "prompt", "user") + _turns(row, "completion", "assistant")
    ),
    "text": lambda row: [Message("document", _text(_column(row, "text"), "'text'"))],
}
# The first of these keys that a row has decides: a chat may also bring its rendering as `text`.
_KEYS = ("messages", "conversations", "instruction", "completion", "text")


def _recognise(row: dict[str, Any]) -> str:
    for key, shape in zip(_KEYS, SHAPES, strict=True):
        if row.get(key) is not None:
            return shape
    rule = f"one of {', '.join(_KEYS)} is required - rename or flatten the columns"
    raise _RowError("unknown_shape", f"its keys are {_keys(row.items())}; {rule}")


def _column(row: dict[str, Any], key: str) -> Any:
    if row.get(key) is None:
        found = f"{key!r} is missing or null (the keys are {_keys(row.items())})"
        raise _RowError("missing_key", f"{found}; it must have a value - fill or rename it")
    return row[key]


def _keys(pairs: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(_shown(key) for key, _ in islice(pairs, 12)) or "none"


def _turn(value: object, what: str) -> Message:
    if not isinstance(value, dict):
        raise _RowError("no_messages", f"{what} is {_shown(value)}; an object is required")
    turn = cast(dict[str, Any], value)
    role = turn.get("from") if turn.get("role") is None else turn["role"]
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if not isinstance(role, str) or role not in _ROLE_NAMES:
        known = "system, user (human), assistant (gpt) or tool (function, observation)"
        raise _RowError("wrong_role", f"{what} has the role {_shown(role)}; it must be {known}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise _RowError("tool_calls", f"{what} calls a tool outside its content; write it inside")
    return Message(_ROLE_NAMES[role], _text(content, f"the content of {what}"))


def _text(value: object, what: str) -> str:
    """Return the string, or the joined parts of a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _RowError("content_not_text", f"{what} is {_shown(value)}; it must be a string")
    texts: list[str] = []
    for part in cast(list[object], value):
        fields: dict[str, Any] = cast(Any, part) if isinstance(part, dict) else {"type": part}
        if fields.get("type") != "text" or not isinstance(fields.get("text"), str):
            found = f"{what} has a part of type {_shown(fields.get('type'))}"
            raise _RowError("content_not_text", f"{found}; only text parts can be read - remove it")
        texts.append(fields["text"])
    return "".join(texts)


def _check(messages: list[Message], first: int) -> None:
    """Raise unless roles alternate, questions and answers have text, and all of it is Unicode."""
    before = ""
    for number, message in enumerate(messages, first):
        what, role = f"message {number}", message.role
        if role != "document" and role not in _NEXT.get(before, "system user").split():
            raise _wrong_order(before, role, what)
        if role not in ("system", "tool") and not message.content.strip():
            reason = "empty_answer" if role == "assistant" else "empty_message"
            raise _RowError(reason, f"{what}, the {role!r}, is empty; fill it or remove the row")
        try:
            message.content.encode()
        except UnicodeEncodeError as error:
            found = f"{what} has {message.content[error.start]!r} at character {error.start + 1}"
            raise _RowError("lone_surrogate", f"{found}, half of a pair; mend the escape") from None
        before = role
    if not any(message.role in ("assistant", "document") for message in messages):
        none = f"none of its {len(messages)} messages is an 'assistant'"
        raise _RowError("no_answer", f"{none}; add an answer")


def _wrong_order(before: str, role: str, what: str) -> _RowError:
    if role == "system":
        return _RowError("system_not_first", f"{what} is a late 'system'; move it to the front")
    if role == before:
        found = f"{what} is a second {role!r} in a row"
        return _RowError(f"two_{role}s", f"{found}; roles must alternate - merge the two messages")
    found = f"{what} has the role {role!r}" + (f" after {before!r}" if before else "")
    rule = "the order is user, assistant, user, ...; a tool stands between two of the assistant"
    return _RowError("wrong_order", f"{found}; {rule} - add what is missing")


def _shown(value: object) -> str:
    """Return a value for an error message, about 60 characters of it at most."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else repr(value[:60] if isinstance(value, str) else value)[:70]


# --- files and data sets -> rows -----------------------------------------------------------------

_KIND = re.compile(r"\.(jsonl?|ndjson|csv)(\.gz)?$|\.parquet$", re.IGNORECASE)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.txt)(?<!\.gz)(:[\w.-]+)?")
_CHUNK = 2**16


def _data_files(path: str) -> list[Path]:
    """Return the files that `path` means; none where it can only be a data set id."""
    try:
        local = Path(path).expanduser()
        if local.is_dir():
            shown = sorted(file for file in local.iterdir() if not file.name.startswith("."))
            files = [file for file in shown if _KIND.search(file.name) and file.is_file()]
        elif local.exists():
            files = [local] if _KIND.search(local.name) and local.is_file() else []
        elif _HUB_ID.fullmatch(path) and not _KIND.search(path):
            return []
        else:
            raise DataError(
                f"{path}: no such file or folder (nor an id, owner/name); check the path"
            )
        if files and not any(file.stat().st_size for file in files):
            raise DataError(f"{path}: empty; a file with one conversation a row is required")
    except (OSError, RuntimeError) as error:  # RuntimeError: ~nobody has no home
        raise DataError(f"{path}: cannot be opened ({error}); check the path") from None
    if not files:
        known = ".jsonl, .ndjson, .json, .csv (each also .gz) or .parquet"
        raise DataError(f"{path}: holds no data file; a name that ends in {known} is required")
    return files


def _file_rows(path: Path, limit: int) -> Iterator[_Row]:
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    reader = {"json": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}.get(kind, _line_rows)
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    place = Place(str(path), 1)
    try:
        with cast(BinaryIO, opener(path, "rb")) as stream:
            for row in reader(stream, str(path), limit):
                place = row.place
                yield row
    except (OSError, EOFError, zlib.error) as error:
        detail = f"the file cannot be read on after this ({error}); fetch it again"
        yield _Row(place, b"", problem=_RowError("unreadable", detail))


def _table_row(place: Place, value: dict[str, Any]) -> _Row:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=lambda v: type(v).__name__)
    return _Row(place, text.encode("utf-8", "backslashreplace"), value)


def _parquet_rows(stream: BinaryIO, file: str, _: int) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(stream, buffer_size=_CHUNK).iter_batches(batch_size=16)
        slices = (batch.slice(at, 1) for batch in batches for at in range(batch.num_rows))
        for number, one in enumerate(slices, 1):
            try:
                yield _table_row(Place(file, number, "row"), one.to_pylist()[0])
            except UnicodeDecodeError:
                problem = _RowError("not_utf8", "a text of the row is not UTF-8; mend it")
                yield _Row(Place(file, number, "row"), b"", problem=problem)
    except pa.ArrowException as error:
        raise OSError(" ".join(str(error).split())) from error


def _hub_rows(path: str, split: str) -> Iterator[_Row]:
    number = 0
    name, _, config = path.partition(":")
    try:
        import datasets

        rows = datasets.load_dataset(name, config or None, split=split, streaming=True)
        for number, value in enumerate(rows, 1):
            yield _table_row(Place(path, number, "row"), dict(value))
    except Exception as error:  # what a hub client raises is no closed list; its words are kept
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(
            f"{path}: no such file or folder, no Hugging Face data set that can be read past row "
            f"{number} of split {split!r} ({what}) - check the path or name, the split and the "
            "network, and that datasets is there: pip install 'skipalign[hub]'"
        ) from error


_SPACE = b" \t\r\n"
_FIELD = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^",\r\n]*+))(,|\r?\n?\Z)')


def _lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number and its end; of a line over the limit only the beginning."""
    number = 0
    while data := stream.readline(limit + 5):  # 5: a byte order mark and \r\n
        number += 1
        tail = data
        while not tail.endswith(b"\n") and (tail := stream.readline(_CHUNK)):
            pass
        yield number, data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data


def _line_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[_Row]:
    for number, data in _lines(stream, limit):
        raw = data.removesuffix(b"\n").removesuffix(b"\r")
        if raw.strip(_SPACE) or len(raw) > limit:
            yield _Row(Place(file, number), raw)


def _csv_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[_Row]:
    """Yield the records by RFC 4180; where a stray quote swallows rows, it costs its line alone."""
    lines, waiting = _lines(stream, limit), deque[tuple[int, bytes]]()
    header = next((data for _, data in lines if data.strip(_SPACE)), b"")
    try:
        columns = [name.strip() for name in _fields(header)]
    except _RowError as error:
        raise DataError(f"{file}: the header cannot be used: {error.args[1]}") from None

    def following() -> tuple[int, bytes] | None:
        return waiting.popleft() if waiting else next(lines, None)

    while line := following():
        if not line[1].strip(_SPACE):
            continue
        record, size, is_open = [line], len(line[1]), line[1].count(b'"') % 2 == 1
        while is_open and size <= limit + 2 and (line := following()):
            record.append(line)
            size, is_open = size + len(line[1]), is_open ^ (line[1].count(b'"') % 2 == 1)
        row = _csv_row(record, file, columns)
        damaged = is_open or (row.problem and row.problem.args[0] == "not_csv")
        if damaged and _are_rows(record[1:] if is_open else record[1:-1], columns):
            waiting.extendleft(reversed(record[1:]))
            row, is_open = _Row(row.place, record[0][1], problem=row.problem), False
        while is_open and (line := following()):  # past the limit: pass over the rest
            is_open ^= line[1].count(b'"') % 2 == 1
        yield row


def _are_rows(swallowed: list[tuple[int, bytes]], columns: list[str]) -> bool:
    rows = [line for line in swallowed if _csv_row([line], "", columns).problem is None]
    return not swallowed or (len(columns) > 1 and 2 * len(rows) > len(swallowed))


def _csv_row(record: list[tuple[int, bytes]], file: str, columns: list[str]) -> _Row:
    place, raw = Place(file, record[0][0]), b"".join(data for _, data in record)
    try:
        fields = _fields(raw)
        if len(fields) != len(columns):
            found = f"{len(fields)} fields where the header has {len(columns)}"
            raise _RowError("wrong_columns", f"{found}; put a field with a comma in quotes")
        return _Row(place, raw, _object(list(zip(columns, fields, strict=True))))
    except _RowError as error:
        return _Row(place, raw, problem=error)


def _fields(raw: bytes) -> list[str]:
    text, fields, at, end = _decoded(raw), list[str](), 0, ","
    while end == ",":
        found = _FIELD.match(text, at)
        if found is None:
            what = f"a stray quote in the field at character {at + 1}"
            raise _RowError("not_csv", f"{what}; quote the field and double each quote inside")
        quoted, plain, end = found.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        at = found.end()
    return fields


_BLANK = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_TOKEN = re.compile(rb'\s++|[][{},:]|"(?:[^"\\\n]++|\\[^\n])*+(?:"|\\?\Z)|([-+.\w]++)')
_WORD = re.compile(rb"-?(\d[-+.\deE]*|Infinity)|true|false|null|NaN")


def _json_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[_Row]:
    array = _Array(stream, limit)
    if array.next_byte() != b"[":
        stream.seek(0)
        yield from _line_rows(stream, file, limit)
        return
    array.take(1)
    array.opening = _opening(bytes(array.buffer[:2000]))
    number = 0
    while byte := array.next_byte():
        if byte == b"]" and not array.next_byte(1):
            return
        number += 1
        yield array.row(Place(file, array.line, element=number))
        while array.next_byte() == b",":
            array.take(1)
    if not array.lost:
        problem = _RowError("cut_off", "the array is not closed; the file is cut - fetch it again")
        yield _Row(Place(file, array.line), b"", problem=problem)


@dataclass(slots=True)
class _Array:
    """An array walked in bytes, so that a broken element does not hide the ones after it."""

    stream: BinaryIO
    limit: int
    buffer: bytearray = field(default_factory=bytearray)
    line: int = 1
    lost: bool = False
    opening: re.Pattern[bytes] | None = None

    def fill(self) -> bool:
        size = len(self.buffer)
        self.buffer += self.stream.read(max(_CHUNK, size))
        return len(self.buffer) > size

    def take(self, size: int) -> bytes:
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        self.line += taken.count(b"\n")
        return taken

    def next_byte(self, after: int = 0) -> bytes:
        """Return the byte behind `after` bytes and white space, b"" at the end of the file."""
        while True:
            blank = _BLANK.match(self.buffer, after)
            end = blank.end() if blank else after
            if after == 0:
                end -= len(self.take(end))
            if end < len(self.buffer) or not self.fill():
                return bytes(self.buffer[end : end + 1])

    def row(self, place: Place) -> _Row:
        """Take the element at the front; a broken one ends where the next one opens."""
        try:
            size = self.scan()
            if self.buffer[0] != ord("[") or self.next_byte(size):
                return _Row(place, self.take(size))
            reason, detail = "not_json", "a '[' that takes the array's own end; remove it"
        except _RowError as error:
            reason, detail = error.args
        head = bytes(self.buffer[: min(2000, self.limit)])
        while not (self.opening and (found := self.opening.search(self.buffer))):
            self.take(max(0, len(self.buffer) - 1000))
            if not self.fill():
                self.take(1000)
                self.lost = True
                detail = f"{detail}; no later element can be told apart, so the rest is not read"
                return _Row(place, head, problem=_RowError(reason, detail))
        return _Row(place, head[: len(self.take(found.end()))], problem=_RowError(reason, detail))

    def scan(self) -> int:
        """Return the size of the value at the front; raise where it has no end within the limit."""
        closers: list[int] = []
        at = 0
        while at <= self.limit:
            token = _TOKEN.match(self.buffer, at)
            end = token.end() if token else at
            if end == len(self.buffer) and len(self.buffer) <= self.limit and self.fill():
                continue
            if token is None or (token[1] and not _WORD.fullmatch(token[1])):
                break
            byte = self.buffer[at]
            if byte in b"{[":
                closers.append(byte + 2)  # in ASCII each closing bracket is its opening one + 2
            elif byte in b"]}" and (not closers or closers.pop() != byte):
                break
            at = end
            if len(closers) > 100 or (not closers and byte in b",:"):
                break
            if not closers:
                return at
        if at > self.limit:
            raise _RowError("too_large", _TOO_LARGE.format(self.limit))
        raise _RowError("not_json", f"not JSON from byte {at + 1} on; mend the row or remove it")


def _opening(front: bytes) -> re.Pattern[bytes] | None:
    """Return how an element opens: by the first one's indentation, else by its first key."""
    start = re.match(rb'(?:\s*(\n[ \t]{0,200}))?\s*\{(\s*)("[^"\\]{1,300}")', front)
    if start is None:
        return None
    indent, gap, key = start.groups()
    if indent and (len(indent) > 1 or b"\n" not in gap):
        return re.compile(re.escape(indent) + rb'(?=\{\s{0,200}")')
    return re.compile(rb",\s{0,200}(?=\{\s{0,200}" + re.escape(key) + rb"\s{0,200}:)")
