"""How many rows a data file has, for the time that is left: found without reading the rows."""

import gzip
import zlib
from pathlib import Path
from typing import Any, cast

_CHUNK = 2**20
_BY_LINE = (".jsonl", ".ndjson", ".csv")


def num_rows(file: Path, lines: int | None = None) -> int | None:
    """Return about how many rows a file has: exactly in parquet, else at most one a line.

    Args:
        file: .jsonl, .ndjson or .csv (each also .gz) or .parquet.
        lines: its line ends, where they are counted already.

    Returns:
        None for a JSON array, whose rows lines do not tell, and for what cannot be read.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    kind = suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]
    try:
        if kind == [".parquet"]:
            from pyarrow import parquet

            return int(cast(Any, parquet.ParquetFile(file)).metadata.num_rows)
        if not set(kind) & set(_BY_LINE):
            return None
        if lines is None or suffixes[-1] == ".gz":
            lines = newlines(file)
    except (OSError, ValueError, EOFError, zlib.error):  # said by whoever reads it
        return None
    return max(lines - (kind == [".csv"]), 1)


def newlines(file: Path) -> int:
    """Return the lines of a file, gzip or plain; memory holds a part of it."""
    is_gzip = file.suffix.lower() == ".gz"
    with gzip.open(file) if is_gzip else file.open("rb") as stream:
        count, last = 0, b"\n"
        while chunk := stream.read(_CHUNK):
            count, last = count + chunk.count(b"\n"), chunk[-1:]
    return count + (last != b"\n")
