"""Data files -> their digests: the files that a training began with, and no other.

A file is known by its sha256, so it may be moved or copied; data is made again only where a byte of
it changed, and a training goes on only with the data that it began with.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipalign.errors import DataError
from skipalign.files import read_json
from skipalign.progress import Progress, Silent
from skipalign.readers import data_files
from skipalign.rowcount import num_rows

_SILENT = Silent()
_LARGE = 256  # MiB of a file whose reading takes a while


@dataclass(frozen=True, slots=True)
class Files:
    """What a path held: a digest of each file; about how many rows, where that is known."""

    digests: tuple[tuple[str, str], ...]
    num_rows: int | None
    stamps: tuple[tuple[str, int, int], ...] = ()


def files_of(path: str, progress: Progress) -> Files:
    """Read every data file of a path once, and tell of large ones as it goes.

    Raises:
        DataError: there is no such file or folder, or nothing in it is data.
    """
    listed = data_files(path)
    if not listed:
        return Files(((path, "data set"),), None)
    stamps = _stamps(listed)
    digests: list[tuple[str, str]] = []
    rows: list[int | None] = []
    for file in listed:
        digest, lines, mebibytes = hashlib.sha256(), 0, file.stat().st_size >> 20
        last = b"\n"
        told = progress if mebibytes >= _LARGE else _SILENT
        with file.open("rb") as handle, told.bar(f"read {file.name}, MiB", mebibytes) as bar:
            while chunk := handle.read(2**20):
                digest.update(chunk)
                lines, last = lines + chunk.count(b"\n"), chunk
                bar.advance()
        rows.append(num_rows(file, lines + (not last.endswith(b"\n"))))
        # Names order the files of a folder; a lone file may be moved, but keeps its kind.
        name = file.name if Path(path).expanduser().is_dir() else file.suffix
        digests.append((name, digest.hexdigest()))
    known = [each for each in rows if each is not None]
    return Files(tuple(digests), sum(known) if len(known) == len(rows) else None, stamps)


def _stamps(files: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of each file."""
    found = ((file, file.stat()) for file in files)
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in found)


def require_unchanged(path: str, files: Files) -> None:
    """Refuse files that changed while they were read.

    Raises:
        DataError: size or time of change of a file is another, or a file came or went.
    """
    if files.stamps and _stamps(data_files(path)) != files.stamps:
        raise DataError(
            f"{path}: changed while it was read; a file that stands still is required - "
            "start again when it is written"
        )


def digests_of(data_dir: str | Path) -> dict[str, Any]:
    """Return the digests of the files that prepared data was read from, by source.

    Raises:
        RunError: the folder holds no whole data.
    """
    manifest = read_json(Path(data_dir) / "manifest.json")
    return {source["name"]: source["files"] for source in manifest["sources"]}


def require_same_files(
    found: Mapping[str, Any], trained_on: Mapping[str, Any] | None, out: Path
) -> None:
    """Refuse files that are not those a training has begun with, before its data is touched.

    Args:
        found: digests by source.
        trained_on: those of the training in `out`, None where nothing is trained yet.
        out: its folder.

    Raises:
        DataError: names the sources that changed.
    """
    plain = json.loads(json.dumps(found))
    changed = [name for name, digests in (trained_on or {}).items() if plain.get(name) != digests]
    if changed:
        raise DataError(
            f"{out}: its training began with other data ({', '.join(changed)} changed since); put "
            "the old files back, or give this one a folder of its own (name=...)"
        )
