"""The files of published benchmarks, and their prompts word for word."""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from skipalign import rowcount
from skipalign.errors import DataError

Row = dict[str, Any]


@cache
def published_prompts() -> dict[str, Any]:
    """Return the benchmarks' own prompts; their licences are in NOTICE."""
    text = resources.files("skipalign.evaluation") / "suites_data" / "prompts.json"
    return json.loads(text.read_text(encoding="utf-8"))


def read_rows(path: Path, limit: int | None = None) -> Iterator[Row]:
    """Yield the rows of a .json (a list), .jsonl or .parquet file, at most `limit`.

    Raises:
        DataError: the file cannot be read, or a row is no mapping.
    """
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    for number, row in enumerate(rows, start=1):
        if limit is not None and number > limit:
            return
        if not isinstance(row, dict):
            raise DataError(f"{path} row {number}: is {type(row).__name__}, it must be a mapping")
        yield cast(Row, row)


def num_rows(paths: Iterable[Path], limit: int | None = None) -> int:
    """Return how many rows `read_rows` yields of files, for a bar; rows themselves are not read."""
    return sum(min(_num_rows(path), limit or sys.maxsize) for path in paths)


def _num_rows(path: Path) -> int:
    if path.suffix == ".parquet":
        return rowcount.num_rows(path) or 0  # none: said by whoever reads it
    with path.open("rb") as handle:
        is_list = handle.read(1) == b"["
    return sum(1 for _ in read_rows(path)) if is_list else rowcount.newlines(path)


def _json_rows(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as handle:
            is_list = handle.read(1) == "["
            handle.seek(0)
            if is_list:
                yield from _json(handle.read(), f"{path}")
                return
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield _json(line, f"{path} line {number}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); give the file as published") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}); give the file as published") from None


def _parquet_rows(path: Path) -> Iterator[Any]:
    from pyarrow import ArrowInvalid, parquet

    try:
        for batch in cast(Any, parquet.ParquetFile(path)).iter_batches(batch_size=16):
            yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise DataError(f"{path}: not parquet ({error}); give the file as published") from None


def field_of(row: Row, name: str, place: str) -> Any:
    """Return a field of a row.

    Raises:
        DataError: there is no such field.
    """
    if row.get(name) is None:
        raise DataError(f"{place}: has no {name!r}, only {', '.join(row)}; give the published file")
    return row[name]


def sha256_of(paths: Iterable[Path]) -> str:
    """Return one digest of the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while part := handle.read(1 << 20):
                digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()
