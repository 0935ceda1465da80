"""A row as found: its place, and its bytes or why it cannot be used; JSON text -> its value.

The readers of each format hand it on; what a row means is not asked here.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

CHUNK = 2**16  # bytes read at a time
SPACE = b" \t\r\n"
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

TOO_MANY = "{:,} or more values in a row of {:,} bytes; keep the conversation's columns alone"
_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|([\[{,])', re.DOTALL)


def decoded(raw: bytes) -> str:
    """Return the text that bytes of UTF-8 hold; raise RowError where they are none."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} of the row is {raw[error.start]:#04x}, which is not UTF-8"
        raise RowError("not_utf8", f"{found}; save the file as UTF-8") from None


def parse_json(raw: bytes) -> object:
    """Return the value that JSON text holds; no key of an object may stand twice.

    Raises:
        RowError: it is not JSON in UTF-8, or holds more values than any conversation.
    """
    _require_few_values(raw)
    try:
        return json.loads(decoded(raw), object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at character {error.pos + 1}"
    except RecursionError:
        what = "nested too deeply"
    except ValueError as error:  # a number of more digits than Python reads
        what = str(error)
    raise RowError("not_json", f"not JSON ({what}); {ONE_OBJECT} - mend the row or remove it")


def most_values(num_bytes: int) -> int:
    """Return how many values a row may hold.

    In memory a value of three bytes can take a hundred: the size of the text bounds nothing.
    """
    return 2**19 + num_bytes // 32


def _require_few_values(raw: bytes) -> None:
    most = most_values(len(raw))
    if sum(raw.count(mark) for mark in (b"[", b"{", b",")) <= most:
        return
    marks = (found for found in _MARK.finditer(raw) if found[1])
    if next(islice(marks, most, None), None) is not None:
        raise RowError("too_many_values", TOO_MANY.format(most, len(raw)))


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of these keys and values; raise RowError where a key stands twice.

    JSON lets the last of two equal keys win, which would lose text without a word.
    """
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


def numbered_lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number and its end; of a line over the limit only the beginning."""
    number = 0
    while data := stream.readline(limit + 5):  # 5: a byte order mark and \r\n
        number += 1
        tail = data
        while not tail.endswith(b"\n") and (tail := stream.readline(CHUNK)):
            pass
        yield number, data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
