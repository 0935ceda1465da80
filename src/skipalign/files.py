"""Write files so that a kill leaves the old one or the new one, never half of one."""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from skipalign.errors import RunError

SCHEMA_VERSION = 1


@contextmanager
def written_aside(path: str | Path) -> Generator[Path]:
    """Yield a sibling path to write to; rename it to `path` when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step, as UTF-8."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    """Write `value` to `path` in one step, with its `schema_version` first."""
    document = {"schema_version": SCHEMA_VERSION, **value}
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Raises:
        RunError: the file is absent, is not JSON, or has another schema version.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; run the command that makes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not JSON ({error}); delete it and run the command again") from None
    found = value.get("schema_version") if isinstance(value, dict) else None
    if found != SCHEMA_VERSION:
        raise RunError(
            f"{path}: schema_version is {found!r}, this version reads {SCHEMA_VERSION}; "
            "make it again with this version"
        )
    return value


def append_json_line(path: str | Path, value: dict[str, Any]) -> None:
    """Append one line of JSON; a kill can leave half a line, which readers pass over."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as handle:
        handle.write((json.dumps(value, ensure_ascii=False) + "\n").encode())


def whole_lines(path: str | Path) -> list[bytes]:
    """Return the lines of a file that is appended to; half a last one is taken off the file.

    A kill leaves half a line, and what is appended next would go on in it. An absent file has no
    lines.
    """
    path = Path(path)
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
    return whole.splitlines()


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read what `append_json_line` wrote; an absent file has no lines, half a last line is none."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def defaults(settings: Any) -> dict[str, Any]:
    """Return the defaults of a settings dataclass, or of one of its kind, as JSON reads them.

    What was stored before a setting existed was made with what is its default now:
    `defaults(settings) | stored`.
    """
    known = {each.name: each.default for each in fields(settings) if each.default is not MISSING}
    return json.loads(json.dumps(known))
