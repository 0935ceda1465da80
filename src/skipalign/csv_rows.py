"""Csv -> rows by RFC 4180, read record by record so that a bad one costs itself alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from skipalign.errors import DataError
from skipalign.raw_row import SPACE, Place, Row, RowError, decoded, numbered_lines, object_of

_LINE = re.compile(rb"[^\n]*+\n|[^\n]++")
_MOST_COLUMNS = 2**14  # as in a spreadsheet
_FIELD = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^",\r\n]*+))(,|\r?\n?\Z)')


def csv_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[Row]:
    """Yield the records by RFC 4180; where a stray quote swallows rows, it costs its line alone.

    Raises:
        DataError: the header cannot be used.
    """
    lines = _Lines(numbered_lines(stream, limit))
    try:
        columns = _columns(lines.header())
    except RowError as error:
        raise DataError(f"{file}: the header cannot be used: {error.args[1]}") from None
    while data := lines.following():
        if not data.strip(SPACE):
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
        while (data := self.following()) and not data.strip(SPACE):
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
        return Row(place, raw, object_of(list(zip(columns, fields, strict=True))))
    except RowError as error:
        return Row(place, raw, problem=error)


def _fields(raw: bytes, most: int) -> tuple[list[str], int]:
    """Return the first fields, `most` at most, and how many there are."""
    text, fields, at, end = decoded(raw), list[str](), 0, ","
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
