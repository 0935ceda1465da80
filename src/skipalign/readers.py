"""Files and data sets -> rows as found, each with its place; what they mean is not asked here.

JSON and csv are read row by row (`json_rows`, `csv_rows`), so that a bad row costs itself alone;
parquet comes in batches, a Hugging Face data set as a stream. Memory holds a row, no file.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from skipalign.csv_rows import csv_rows
from skipalign.errors import DataError
from skipalign.json_rows import json_rows, line_rows
from skipalign.raw_row import (
    CHUNK,
    TOO_LARGE,
    TOO_MANY,
    Place,
    Row,
    RowError,
    most_values,
    shown_keys,
)

DATA_FILE = re.compile(r"\.(jsonl?|ndjson|csv)(\.gz)?$|\.parquet$", re.IGNORECASE)
"""How the name of a file ends that can be read."""
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.txt)(?<!\.gz)(:[\w.-]+)?")


def data_files(path: str) -> list[Path]:
    """Return the files that `path` means; none where it can only be a data set id.

    Raises:
        DataError: there is no such file or folder, it is empty or holds no data file.
    """
    try:
        local = Path(path).expanduser()
        if local.is_dir():
            seen = sorted(file for file in local.iterdir() if not file.name.startswith("."))
            files = [file for file in seen if DATA_FILE.search(file.name) and file.is_file()]
        elif local.exists():
            files = [local] if DATA_FILE.search(local.name) and local.is_file() else []
        elif _HUB_ID.fullmatch(path) and not DATA_FILE.search(path):
            return []
        else:
            raise DataError(
                f"{path}: no such file or folder (nor an id, owner/name); check the path"
            )
        if files and not any(file.stat().st_size for file in files):
            raise DataError(f"{path}: empty; a file with one conversation a row is required")
    except (OSError, RuntimeError) as error:  # RuntimeError: ~nobody has no home
        raise DataError(f"{path}: cannot be opened ({error}); check the path") from None
    if not files:
        known = ".jsonl, .ndjson, .json, .csv (each also .gz) or .parquet"
        raise DataError(f"{path}: holds no data file; a name that ends in {known} is required")
    return files


def file_rows(path: Path, limit: int) -> Iterator[Row]:
    """Yield the rows of a file by its suffix; lines of JSON where it says nothing.

    Args:
        path: .json, .jsonl, .csv or .parquet, also with .gz behind it.
        limit: bytes of the longest row that is read.
    """
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    reader = {"json": json_rows, "csv": csv_rows, "parquet": _parquet_rows}.get(kind, line_rows)
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    place = Place(str(path), 1)
    try:
        with cast(BinaryIO, opener(path, "rb")) as stream:
            for row in reader(stream, str(path), limit):
                place = row.place
                yield row
    except (OSError, EOFError, zlib.error) as error:
        what = " ".join(str(error).split())[:300]
        detail = f"the file cannot be read on after this ({what}); fetch it again"
        yield Row(place, b"", problem=RowError("unreadable", detail))


def _table_row(place: Place, value: dict[str, Any]) -> Row:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=lambda v: type(v).__name__)
    return Row(place, text.encode("utf-8", "backslashreplace"), value)


def _parquet_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(stream, buffer_size=CHUNK).iter_batches(batch_size=1)
        for number, one in enumerate(batches, 1):
            place = Place(file, number, "row")
            if one.nbytes > limit:
                yield Row(place, b"", problem=RowError("too_large", TOO_LARGE.format(limit)))
                continue
            yield _parquet_row(place, one)
    except (pa.ArrowException, ValueError, LookupError) as error:  # names that are no text, say
        raise OSError(str(error)) from error


def _parquet_row(place: Place, one: Any) -> Row:
    try:
        if len(set(one.schema.names)) < len(one.schema.names):
            keys = shown_keys((name, None) for name in one.schema.names)
            raise RowError("duplicate_key", f"a column stands twice among {keys}; remove one")
        if (found := sum(map(_num_values, one.columns))) > most_values(one.nbytes):
            raise RowError("too_many_values", TOO_MANY.format(found, one.nbytes))
        return _table_row(place, one.to_pylist()[0])
    except UnicodeDecodeError:
        problem = RowError("not_utf8", "a text of the row is not UTF-8; mend it")
    except RowError as error:
        problem = error
    except (ValueError, OverflowError, LookupError) as error:  # a date that Python has not, say
        what = " ".join(str(error).split())[:200]
        problem = RowError("no_value", f"a value of the row cannot be held ({what}); remove it")
    return Row(place, b"", problem=problem)


def _num_values(column: Any) -> int:
    """Return how many values an Arrow array holds, those inside its values too."""
    import pyarrow.types as kinds

    inner: list[Any] = []
    if kinds.is_map(column.type):
        inner = [column.keys, column.items]
    elif kinds.is_struct(column.type):
        inner = column.flatten()
    elif kinds.is_nested(column.type):
        inner = [column.flatten()]
    return len(column) + sum(map(_num_values, inner))


def hub_rows(path: str, split: str) -> Iterator[Row]:
    """Yield the rows of a split of a data set of the hub, `NAME` or `NAME:CONFIG`, as they come.

    Raises:
        DataError: it is not there, or cannot be read on.
    """
    number = 0
    name, _, config = path.partition(":")
    try:
        import datasets

        # Of the newest revision, as the hub's own tools read it; no code of a data set is run.
        rows = datasets.load_dataset(  # nosec B615
            name, config or None, split=split, streaming=True
        )
        for number, value in enumerate(rows, 1):
            yield _table_row(Place(path, number, "row"), dict(value))
    except Exception as error:  # what a hub client raises is no closed list; its words are kept
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(
            f"{path}: no such file or folder, no Hugging Face data set that can be read past row "
            f"{number} of split {split!r} ({what}) - check the path or name, the split and the "
            "network, and that datasets is there: pip install 'skipalign[hub]'"
        ) from error
