"""JSON -> rows: one object a line, or one array of objects, walked in bytes.

A broken element of an array costs itself alone: the next one is found by how elements open.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from skipalign import raw_row
from skipalign.raw_row import SPACE, TOO_LARGE, Place, Row, RowError, numbered_lines

_BLANK = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_TOKEN = re.compile(rb'\s++|[][{},:]|"(?:[^"\\\n]++|\\[^\n])*+(?:"|\\?\Z)|([-+.\w]++)')
_WORD = re.compile(rb"-?(\d[-+.\deE]*|Infinity)|true|false|null|NaN")


def line_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[Row]:
    """Yield every line that is not blank."""
    for number, data in numbered_lines(stream, limit):
        raw = data.removesuffix(b"\n").removesuffix(b"\r")
        if raw.strip(SPACE) or len(raw) > limit:
            yield Row(Place(file, number), raw)


def json_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[Row]:
    """Yield the elements of an array of JSON; the lines of a file that holds none."""
    array = _Array(stream, limit)
    if array.next_byte() != b"[":
        stream.seek(0)
        yield from line_rows(stream, file, limit)
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
        self.buffer += self.stream.read(max(raw_row.CHUNK, size))
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
