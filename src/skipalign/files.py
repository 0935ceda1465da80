"""Write files so that a kill leaves the old one or the new one, never half of one.

And keep two processes from writing into one folder.
"""

import errno
import gzip
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from skipalign.errors import RunError

if sys.platform != "win32":
    import fcntl

SCHEMA_VERSION = 1
LOCK = ".lock"
_OS_ERROR = re.compile(r"os error (\d+)")  # as libraries in Rust say it: safetensors, tokenizers
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE_BYTES = 2**18
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_log = logging.getLogger(__name__)


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Refuse to work in a folder in which another process works.

    The system lets go of the lock when a process ends, however it ends.

    Raises:
        RunError: names that process.
    """
    if sys.platform == "win32":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise RunError(
                f"{folder}: {holder} works in it; wait for its end, or give this one a folder of "
                "its own (name=..., --runs-dir or --out)"
            ) from None
        except OSError as error:  # some network file systems have no locks
            _log.warning("%s cannot be locked (%s): start no second run in it", folder, error)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} of {platform.node()}")
        handle.flush()
        yield


@contextmanager
def named_by(path: str | Path) -> Generator[None]:
    """Name the file where a full disk ends a write: the error of a handle has no name."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_WRITING or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def disk_faults_of(folder: Path) -> Generator[None]:
    """Raise the OSError that is behind the errors of libraries that write into `folder`.

    safetensors and tokenizers tell its number in an error of their own. torch says that a position
    in the file is not the one it expected: whether the disk is full, the disk is asked.
    """
    try:
        with named_by(folder):
            yield
    except OSError:
        raise
    except Exception as error:
        if (found := _OS_ERROR.search(str(error))) is not None:
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(folder)) from error
        if folder.is_dir():
            _write_some(folder)
        raise


def _write_some(folder: Path) -> None:
    probe = folder / ".room"
    with named_by(folder):
        try:
            with probe.open("wb") as handle:
                handle.write(bytes(_PROBE_BYTES))
                handle.flush()
                os.fsync(handle.fileno())
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def written_aside(path: str | Path) -> Generator[Path]:
    """Yield a sibling path to write to; rename it to `path` when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with named_by(path):
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


def write_gzip(path: str | Path, text: str) -> None:
    """Write UTF-8 text compressed, whole or not at all, the same bytes every time."""
    with written_aside(path) as aside:
        aside.write_bytes(gzip.compress(text.encode(), mtime=0))


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    """Write `value` to `path` in one step, with its `schema_version` first."""
    document = {"schema_version": SCHEMA_VERSION, **value}
    write_text(path, json_text(document, indent=1) + "\n")


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


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return JSON that UTF-8 can hold: readable, but for half characters, which stay escaped.

    A model's or server's answer may end in the middle of a character that UTF-16 holds in two.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return json.dumps(value, indent=indent) if HALF_CHARACTER.search(text) else text


def append_json_line(path: str | Path, value: dict[str, Any]) -> None:
    """Append one line of JSON; a kill can leave half a line, which readers pass over."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with named_by(path), path.open("ab") as handle:
        handle.write((json_text(value) + "\n").encode())


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


def keep_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the other lines of what `append_json_line` wrote, in one step."""
    kept = [line for line in read_json_lines(path) if keep(line)]
    if kept:
        write_text(path, "".join(json_text(line) + "\n" for line in kept))
    else:
        path.unlink(missing_ok=True)


def defaults(settings: Any) -> dict[str, Any]:
    """Return the defaults of a settings dataclass, or of one of its kind, as JSON reads them.

    What was stored before a setting existed was made with what is its default now:
    `defaults(settings) | stored`.
    """
    known = {each.name: each.default for each in fields(settings) if each.default is not MISSING}
    return json.loads(json.dumps(known))
