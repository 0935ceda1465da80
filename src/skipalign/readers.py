"""Files and data sets -> rows as found, each with its place; what they mean is not asked here.

JSON lines, JSON arrays and csv are read row by row by this room, so that a bad row costs itself
alone; parquet comes in batches, a Hugging Face data set as a stream. Memory holds a row, no file.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from skipalign.errors import DataError

TOO_LARGE = "over {} bytes (max_row_bytes); split the row or raise the limit"
ONE_OBJECT = "one JSON object a line (or, in a .json file, one array of objects) is required"


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


class RowError(Exception):
    """Why one row cannot be used: (reason, detail), as in Rejection."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as found: `value`, or else JSON in `raw`, cut somewhere past the limit if longer."""

    place: Place
    raw: bytes
    value: dict[str, Any] | None = None
    problem: RowError | None = None


# --- values and their words ----------------------------------------------------------------------


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} of the row is {raw[error.start]:#04x}, which is not UTF-8"
        raise RowError("not_utf8", f"{found}; save the file as UTF-8") from None


_MOST_VALUES = 2**19
_TOO_MANY = "{:,} or more values in a row of {:,} bytes; keep the conversation's columns alone"
_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|([\[{,])', re.DOTALL)


def parse_json(raw: bytes) -> object:
    """Return the value that JSON text holds; no key of an object may stand twice.

    Raises:
        RowError: it is not JSON in UTF-8, or holds more values than any conversation.
    """
    _require_few_values(raw)
    try:
        return json.loads(_decoded(raw), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at character {error.pos + 1}"
    except RecursionError:
        what = "nested too deeply"
    except ValueError as error:  # a number of more digits than Python reads
        what = str(error)
    raise RowError("not_json", f"not JSON ({what}); {ONE_OBJECT} - mend the row or remove it")


def _require_few_values(raw: bytes) -> None:
    # In memory a value of three bytes can take a hundred: the size of the text bounds nothing.
    most = _MOST_VALUES + len(raw) // 32
    if sum(raw.count(mark) for mark in (b"[", b"{", b",")) <= most:
        return
    marks = (found for found in _MARK.finditer(raw) if found[1])
    if next(islice(marks, most, None), None) is not None:
        raise RowError("too_many_values", _TOO_MANY.format(most, len(raw)))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON lets the last of two equal keys win, which would lose text without a word.
    value = dict(pairs)
    if len(value) < len(pairs):
        raise RowError("duplicate_key", f"a key stands twice among {shown_keys(pairs)}; remove one")
    return value


def shown_keys(pairs: Iterable[tuple[str, Any]]) -> str:
    """Return the first keys for an error message."""
    return ", ".join(shown(key) for key, _ in islice(pairs, 12)) or "none"


def shown(value: object) -> str:
    """Return a value for an error message, about 60 characters of it at most."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else repr(value[:60] if isinstance(value, str) else value)[:70]


# --- files and data sets -------------------------------------------------------------------------

_KIND = re.compile(r"\.(jsonl?|ndjson|csv)(\.gz)?$|\.parquet$", re.IGNORECASE)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.txt)(?<!\.gz)(:[\w.-]+)?")
_CHUNK = 2**16


def data_files(path: str) -> list[Path]:
    """Return the files that `path` means; none where it can only be a data set id.

    Raises:
        DataError: there is no such file or folder, it is empty or holds no data file.
    """
    try:
        local = Path(path).expanduser()
        if local.is_dir():
            seen = sorted(file for file in local.iterdir() if not file.name.startswith("."))
            files = [file for file in seen if _KIND.search(file.name) and file.is_file()]
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


def file_rows(path: Path, limit: int) -> Iterator[Row]:
    """Yield the rows of a file by its suffix; lines of JSON where it says nothing.

    Args:
        path: .json, .jsonl, .csv or .parquet, also with .gz behind it.
        limit: bytes of the longest row that is read.
    """
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
        what = " ".join(str(error).split())[:300]
        detail = f"the file cannot be read on after this ({what}); fetch it again"
        yield Row(place, b"", problem=RowError("unreadable", detail))


def _table_row(place: Place, value: dict[str, Any]) -> Row:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=lambda v: type(v).__name__)
    return Row(place, text.encode("utf-8", "backslashreplace"), value)


def _parquet_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(stream, buffer_size=_CHUNK).iter_batches(batch_size=1)
        for number, one in enumerate(batches, 1):
            place = Place(file, number, "row")
            if one.nbytes > limit:
                yield Row(place, b"", problem=RowError("too_large", TOO_LARGE.format(limit)))
                continue
            yield _parquet_row(place, one)
    except (pa.ArrowException, ValueError, LookupError) as error:  # names that are no text, say
        raise OSError(str(error)) from error


def _parquet_row(place: Place, one: Any) -> Row:
    try:
        if len(set(one.schema.names)) < len(one.schema.names):
            keys = shown_keys((name, None) for name in one.schema.names)
            raise RowError("duplicate_key", f"a column stands twice among {keys}; remove one")
        if (found := sum(map(_num_values, one.columns))) > _MOST_VALUES + one.nbytes // 32:
            raise RowError("too_many_values", _TOO_MANY.format(found, one.nbytes))
        return _table_row(place, one.to_pylist()[0])
    except UnicodeDecodeError:
        problem = RowError("not_utf8", "a text of the row is not UTF-8; mend it")
    except RowError as error:
        problem = error
    except (ValueError, OverflowError, LookupError) as error:  # a date that Python has not, say
        what = " ".join(str(error).split())[:200]
        problem = RowError("no_value", f"a value of the row cannot be held ({what}); remove it")
    return Row(place, b"", problem=problem)


def _num_values(column: Any) -> int:
    """Return how many values an Arrow array holds, those inside its values too."""
    import pyarrow.types as kinds

    inner: list[Any] = []
    if kinds.is_map(column.type):
        inner = [column.keys, column.items]
    elif kinds.is_struct(column.type):
        inner = column.flatten()
    elif kinds.is_nested(column.type):
        inner = [column.flatten()]
    return len(column) + sum(map(_num_values, inner))


def hub_rows(path: str, split: str) -> Iterator[Row]:
    """Yield the rows of a split of a data set of the hub, `NAME` or `NAME:CONFIG`, as they come.

    Raises:
        DataError: it is not there, or cannot be read on.
    """
    number = 0
    name, _, config = path.partition(":")
    try:
        import datasets

        # Of the newest revision, as the hub's own tools read it; no code of a data set is run.
        rows = datasets.load_dataset(  # nosec B615
            name, config or None, split=split, streaming=True
        )
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
_LINE = re.compile(rb"[^\n]*+\n|[^\n]++")
_MOST_COLUMNS = 2**14  # as in a spreadsheet
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


def _line_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[Row]:
    for number, data in _lines(stream, limit):
        raw = data.removesuffix(b"\n").removesuffix(b"\r")
        if raw.strip(_SPACE) or len(raw) > limit:
            yield Row(Place(file, number), raw)


def _csv_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[Row]:
    """Yield the records by RFC 4180; where a stray quote swallows rows, it costs its line alone."""
    lines = _Lines(_lines(stream, limit))
    try:
        columns = _columns(lines.header())
    except RowError as error:
        raise DataError(f"{file}: the header cannot be used: {error.args[1]}") from None
    while data := lines.following():
        if not data.strip(_SPACE):
            continue
        place, head, last = Place(file, lines.number), data, data
        record, is_open = bytearray(data), _leaves_open(data)
        while is_open and len(record) <= limit + 2 and (data := lines.following()):
            record += data
            last, is_open = data, is_open ^ _leaves_open(data)
        row = _csv_row(bytes(record), place, columns)
        damaged = is_open or (row.problem and row.problem.args[0] == "not_csv")
        rest = row.raw[len(head) :]
        if damaged and _are_rows(rest if is_open else rest[: -len(last)], columns):
            lines.put_back(rest)
            row, is_open = Row(place, head, problem=row.problem), False
        while is_open and (data := lines.following()):  # past the limit: pass over the rest
            is_open ^= _leaves_open(data)
        yield row


@dataclass(slots=True)
class _Lines:
    """Lines of which some are put back; `number` is that of the last one given out."""

    fresh: Iterator[tuple[int, bytes]]
    number: int = 0
    back: bytes = b""
    at: int = 0

    def header(self) -> bytes:
        while (data := self.following()) and not data.strip(_SPACE):
            pass
        return data

    def following(self) -> bytes:
        """Return the next line, b"" at the end."""
        if self.at == len(self.back):
            self.back, self.at = b"", 0
            self.number, data = next(self.fresh, (self.number, b""))
            return data
        stop = self.back.find(b"\n", self.at) + 1 or len(self.back)
        data, self.at = self.back[self.at : stop], stop
        self.number += 1
        return data

    def put_back(self, lines: bytes) -> None:
        """Give out again the last lines that were given out."""
        self.number -= lines.count(b"\n") + (lines[-1:] not in (b"", b"\n"))
        if self.back:  # they came from there
            self.at -= len(lines)
        else:
            self.back, self.at = lines, 0


def _leaves_open(line: bytes) -> bool:
    """Tell whether a quoted field that is closed before the line is open after it."""
    return line.count(b'"') % 2 == 1


def _are_rows(swallowed: bytes, columns: list[str]) -> bool:
    """Tell whether most of the first lines are records of their own."""
    place = Place("", 0)
    lines = [found[0] for found in islice(_LINE.finditer(swallowed), 1000)]
    rows = [line for line in lines if _csv_row(line, place, columns).problem is None]
    return not lines or (len(columns) > 1 and 2 * len(rows) > len(lines))


def _columns(header: bytes) -> list[str]:
    names, num_fields = _fields(header, _MOST_COLUMNS)
    if num_fields > _MOST_COLUMNS:
        raise RowError("wrong_columns", f"it has {num_fields:,} columns, over {_MOST_COLUMNS:,}")
    return [name.strip() for name in names]


def _csv_row(raw: bytes, place: Place, columns: list[str]) -> Row:
    try:
        fields, num_fields = _fields(raw, len(columns))
        if num_fields != len(columns):
            found = f"{num_fields} fields where the header has {len(columns)}"
            raise RowError("wrong_columns", f"{found}; put a field with a comma in quotes")
        return Row(place, raw, _object(list(zip(columns, fields, strict=True))))
    except RowError as error:
        return Row(place, raw, problem=error)


def _fields(raw: bytes, most: int) -> tuple[list[str], int]:
    """Return the first fields, `most` at most, and how many there are."""
    text, fields, at, end = _decoded(raw), list[str](), 0, ","
    num_fields = 0
    while end == ",":
        found = _FIELD.match(text, at)
        if found is None:
            what = f"a stray quote in the field at character {at + 1}"
            raise RowError("not_csv", f"{what}; quote the field and double each quote inside")
        quoted, plain, end = found.groups()
        num_fields += 1
        if num_fields <= most:
            fields.append(plain if quoted is None else quoted.replace('""', '"'))
        at = found.end()
    return fields, num_fields


_BLANK = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_TOKEN = re.compile(rb'\s++|[][{},:]|"(?:[^"\\\n]++|\\[^\n])*+(?:"|\\?\Z)|([-+.\w]++)')
_WORD = re.compile(rb"-?(\d[-+.\deE]*|Infinity)|true|false|null|NaN")


def _json_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[Row]:
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
        problem = RowError("cut_off", "the array is not closed; the file is cut - fetch it again")
        yield Row(Place(file, array.line), b"", problem=problem)


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

    def row(self, place: Place) -> Row:
        """Take the element at the front; a broken one ends where the next one opens."""
        try:
            size = self.scan()
            if self.buffer[0] != ord("[") or self.next_byte(size):
                return Row(place, self.take(size))
            reason, detail = "not_json", "a '[' that takes the array's own end; remove it"
        except RowError as error:
            reason, detail = error.args
        head = bytes(self.buffer[: min(2000, self.limit)])
        while not (self.opening and (found := self.opening.search(self.buffer))):
            self.take(max(0, len(self.buffer) - 1000))
            if not self.fill():
                self.take(1000)
                self.lost = True
                detail = f"{detail}; no later element can be told apart, so the rest is not read"
                return Row(place, head, problem=RowError(reason, detail))
        return Row(place, head[: len(self.take(found.end()))], problem=RowError(reason, detail))

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
            raise RowError("too_large", TOO_LARGE.format(self.limit))
        raise RowError("not_json", f"not JSON from byte {at + 1} on; mend the row or remove it")


def _opening(front: bytes) -> re.Pattern[bytes] | None:
    """Return how an element opens: by the first one's indentation, else by its first key."""
    start = re.match(rb'(?:\s*(\n[ \t]{0,200}))?\s*\{(\s*)("[^"\\]{1,300}")', front)
    if start is None:
        return None
    indent, gap, key = start.groups()
    if indent and (len(indent) > 1 or b"\n" not in gap):
        return re.compile(re.escape(indent) + rb'(?=\{\s{0,200}")')
    return re.compile(rb",\s{0,200}(?=\{\s{0,200}" + re.escape(key) + rb"\s{0,200}:)")
