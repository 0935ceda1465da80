"""Rows -> Conversation: one item for every row, good or bad, with its place.

readers.py finds the rows in files and data sets; this room knows the shapes of a conversation and
says what is wrong with a row that has none of them.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any, cast

from skipalign.errors import DataError, RecipeError
from skipalign.raw_row import ONE_OBJECT, TOO_LARGE, Row, RowError, parse_json, shown, shown_keys
from skipalign.raw_row import Place as Place
from skipalign.readers import data_files, file_rows, hub_rows

ROLES = ("system", "user", "assistant", "tool", "document")
"""Who speaks. A "document" is plain text, the only message of its row, with the loss on all."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is one of ROLES; `content` is the row's text, untouched."""

    role: str
    content: str


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
        RecipeError: `shape` is not one of SHAPES, or `max_row_bytes` not in 1 to 2,147,483,647.
        DataError: nothing can be read at `path`; a bad row under `strict`; at the end, no good row.
    """
    check_options(shape, max_row_bytes)
    files = [file_rows(file, max_row_bytes) for file in data_files(path)]
    rows = chain.from_iterable(files or [hub_rows(path, split)])
    parse = partial(_conversation, name=name, shape=shape, limit=max_row_bytes)
    return _items(rows, parse, path, strict)


def check_options(shape: str | None, max_row_bytes: int) -> None:
    """Accept what `read_conversations` can read with.

    Raises:
        RecipeError: it cannot.
    """
    if shape is not None and shape not in SHAPES:
        raise RecipeError(f"shape is {shape[:80]!r}; it must be one of {', '.join(SHAPES)}")
    if not 1 <= max_row_bytes < 2**31:
        raise RecipeError(f"max_row_bytes is {max_row_bytes}; it must be in 1 to {2**31 - 1:,}")


def _items(
    rows: Iterable[Row], parse: Callable[[int, Row], Conversation], path: str, strict: bool
) -> Iterator[Conversation | Rejection]:
    first: Rejection | None = None
    good = number = 0
    for number, row in enumerate(rows, 1):
        try:
            conversation = parse(number, row)
        except RowError as error:
            front = row.raw[:2000].decode("utf-8", "backslashreplace")[:500]
            rejection = Rejection(row.place, *error.args, row=front)
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


def _conversation(number: int, row: Row, name: str, shape: str | None, limit: int) -> Conversation:
    large = RowError("too_large", TOO_LARGE.format(limit)) if len(row.raw) > limit else None
    if problem := large or row.problem:
        raise problem
    value = parse_json(row.raw) if row.value is None else row.value
    if not isinstance(value, dict):
        raise RowError("not_object", f"the row is {shown(value)}; {ONE_OBJECT}")
    columns = cast(dict[str, Any], value)
    messages = SHAPES[shape or _recognise(columns)](columns)
    lead: list[Message] = []
    if columns.get("system") and messages and messages[0].role not in ("system", "document"):
        lead = [Message("system", _text(columns["system"], "'system'"))]
    _check([*lead, *messages], 1 - len(lead))
    digest = blake2b(json.dumps([name, number]).encode() + row.raw, digest_size=16)
    return Conversation((*lead, *messages), row.place, name, digest.hexdigest())


def _turns(row: dict[str, Any], key: str, role: str = "") -> list[Message]:
    """Read a list of messages; where a `role` is given, a string is the one message."""
    value = _column(row, key)
    if role and isinstance(value, str):
        return [Message(role, value)]
    if isinstance(value, str):  # csv has no other way to hold a list
        value = parse_json(value.encode("utf-8", "surrogatepass"))
    if not isinstance(value, list):
        raise RowError("no_messages", f"{key!r} is {shown(value)}; a list is required")
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
    raise RowError("unknown_shape", f"its keys are {shown_keys(row.items())}; {rule}")


def _column(row: dict[str, Any], key: str) -> Any:
    if row.get(key) is None:
        found = f"{key!r} is missing or null (the keys are {shown_keys(row.items())})"
        raise RowError("missing_key", f"{found}; it must have a value - fill or rename it")
    return row[key]


def _turn(value: object, what: str) -> Message:
    if not isinstance(value, dict):
        raise RowError("no_messages", f"{what} is {shown(value)}; an object is required")
    turn = cast(dict[str, Any], value)
    role = turn.get("from") if turn.get("role") is None else turn["role"]
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if not isinstance(role, str) or role not in _ROLE_NAMES:
        known = "system, user (human), assistant (gpt) or tool (function, observation)"
        raise RowError("wrong_role", f"{what} has the role {shown(role)}; it must be {known}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise RowError("tool_calls", f"{what} calls a tool outside its content; write it inside")
    return Message(_ROLE_NAMES[role], _text(content, f"the content of {what}"))


def _text(value: object, what: str) -> str:
    """Return the string, or the joined parts of a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError("content_not_text", f"{what} is {shown(value)}; it must be a string")
    texts: list[str] = []
    for part in cast(list[object], value):
        fields: dict[str, Any] = cast(Any, part) if isinstance(part, dict) else {"type": part}
        if fields.get("type") != "text" or not isinstance(fields.get("text"), str):
            found = f"{what} has a part of type {shown(fields.get('type'))}"
            raise RowError("content_not_text", f"{found}; only text parts can be read - remove it")
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
            raise RowError(reason, f"{what}, the {role!r}, is empty; fill it or remove the row")
        try:
            message.content.encode()
        except UnicodeEncodeError as error:
            found = f"{what} has {message.content[error.start]!r} at character {error.start + 1}"
            raise RowError("lone_surrogate", f"{found}, half of a pair; mend the escape") from None
        before = role
    if not any(message.role in ("assistant", "document") for message in messages):
        none = f"none of its {len(messages)} messages is an 'assistant'"
        raise RowError("no_answer", f"{none}; add an answer")


def _wrong_order(before: str, role: str, what: str) -> RowError:
    if role == "system":
        return RowError("system_not_first", f"{what} is a late 'system'; move it to the front")
    if role == before:
        found = f"{what} is a second {role!r} in a row"
        return RowError(f"two_{role}s", f"{found}; roles must alternate - merge the two messages")
    found = f"{what} has the role {role!r}" + (f" after {before!r}" if before else "")
    rule = "the order is user, assistant, user, ...; a tool stands between two of the assistant"
    return RowError("wrong_order", f"{found}; {rule} - add what is missing")
