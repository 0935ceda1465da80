"""Files with one row near or over the largest that is read, each next to small good ones."""

import json
from collections.abc import Callable

MB = 2**20
LONGEST = 16 * MB - 100  # just under max_row_bytes
GOOD = b'{"text":"small"}'


def lines(row: bytes) -> bytes:
    return b"\n".join([GOOD, row, GOOD, b""])


def array(row: bytes) -> bytes:
    return b"[" + b",\n".join([GOOD, row, GOOD]) + b"]"


def text(content: bytes) -> bytes:
    return b'{"text":"' + content + b'"}'


def beside(*values: bytes) -> bytes:
    """A row of text with as many of the values beside it as fit."""
    unit = b",".join(values) + b","
    return b'{"text":"a","x":[' + (unit * (LONGEST // len(unit) - 5)).rstrip(b",") + b"]}"


def turns(number: int) -> bytes:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": "q"} for n in range(number)]
    return json.dumps({"messages": messages}).encode()


def csv(cell: bytes, header: bytes = b"text") -> bytes:
    return header + b'\nsmall\n"' + cell + b'"\nsmall\n'


# name -> (its bytes, bytes of its longest row, what becomes of the rows)
HUGE: dict[str, tuple[Callable[[], bytes], int, dict[str, int]]] = {
    "50 MB.jsonl": (lambda: lines(text(b"x" * 50 * MB)), 50 * MB, {"good": 2, "too_large": 1}),
    "50 MB.json": (lambda: array(text(b"x" * 50 * MB)), 50 * MB, {"good": 2, "too_large": 1}),
    "50 MB.csv": (lambda: csv(b"x" * 50 * MB), 50 * MB, {"good": 2, "too_large": 1}),
    "turns.jsonl": (lambda: turns(100_000), 4 * MB, {"good": 1}),
    "turns.json": (lambda: array(turns(100_000)), 4 * MB, {"good": 3}),
    "text.jsonl": (lambda: lines(text(b"x" * (LONGEST - 20))), LONGEST, {"good": 3}),
    "emoji.jsonl": (
        lambda: lines(text("🙂".encode() + b"x" * (LONGEST - 20))),
        LONGEST,
        {"good": 3},
    ),
    "emoji.json": (
        lambda: array(text("🙂".encode() + b"x" * (LONGEST - 20))),
        LONGEST,
        {"good": 3},
    ),
    **{
        f"{name}.jsonl": (
            lambda unit=unit: lines(beside(unit)),
            LONGEST,
            {"good": 2, "too_many_values": 1},
        )
        for name, unit in {
            "lists": b"[]",
            "objects": b"{}",
            "keys": b'{"a":0}',
            "numbers": b"999",
            "strings": b'"ab"',
            "characters": '"漢"'.encode(),
        }.items()
    },
    "line ends.csv": (lambda: csv(b"x\n" * (LONGEST // 2)), LONGEST, {"good": 3}),
    "blank lines.csv": (lambda: csv(b"\n" * LONGEST), LONGEST, {"good": 2, "empty_message": 1}),
    "fields.csv": (
        lambda: b"prompt,completion\nq,a\n" + b"a," * (LONGEST // 2) + b"\nq,a\n",
        LONGEST,
        {"good": 2, "wrong_columns": 1},
    ),
    "open.csv": (
        lambda: b'prompt,completion\nq,a\n"' + b"x\n" * (LONGEST // 2) + b"\nq,a\n",
        LONGEST,
        {"good": 1, "not_csv": 1},
    ),
}
