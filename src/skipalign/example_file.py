"""Examples on disk: an Arrow IPC file that is memory-mapped on reading."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from skipalign.conversation import ROLES
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import RunError
from skipalign.files import read_json, written_aside

_MAX_WAITING = 4096


def examples_path(data_dir: Path) -> Path:
    """Return where the examples of prepared data lie."""
    return data_dir / "examples.arrow"


class ExampleFile(Sequence[Example]):
    """The examples of a run, memory-mapped: opening costs little, reading one its own bytes.

    It can be sent to another process, which maps the file itself.

    Attributes:
        lengths: tokens of each example.
        sources: for each example the index of its source in `source_names`.

    Raises:
        RunError: the folder holds no whole data.
    """

    lengths: Int[np.ndarray, " N"]
    sources: Int[np.ndarray, " N"]
    source_names: tuple[str, ...]

    def __init__(self, data_dir: str | Path) -> None:
        self._data_dir = Path(data_dir)
        manifest = read_json(self._data_dir / "manifest.json")
        path = examples_path(self._data_dir)
        if not path.exists() or path.stat().st_size != manifest["bytes"]:
            raise RunError(
                f"{path}: is missing or is not the file that its manifest describes; delete the "
                "folder and run `skipalign prepare` again"
            )
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = reader.schema.metadata
        self._roles: list[str] = json.loads(metadata[b"roles"])
        self.source_names = tuple(json.loads(metadata[b"sources"]))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._firsts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        lengths = [np.diff(batch["input_ids"].offsets.to_numpy()) for batch in self._batches]
        self.lengths = np.concatenate(lengths).astype(np.int64)
        self.sources = np.concatenate([batch["source"].to_numpy() for batch in self._batches])

    def __reduce__(self) -> tuple[type["ExampleFile"], tuple[Path]]:
        return ExampleFile, (self._data_dir,)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        batch, row = self._batches[number], index - int(self._firsts[number])
        ids, edges, segments, breaks = (
            _row_of(batch[name], row) for name in ("input_ids", "trained", "segments", "breaks")
        )
        labels = np.full_like(ids, IGNORE_INDEX)
        for start, stop in edges.reshape(-1, 2):
            labels[start:stop] = ids[start:stop]
        blocks = tuple(
            Segment(start, stop, self._roles[role], content_start, content_stop)
            for start, stop, role, content_start, content_stop in segments.reshape(-1, 5).tolist()
        )
        source = self.source_names[batch["source"][row].as_py()]
        return Example(ids, labels, blocks, breaks, batch["id"][row].as_py(), source)


def _row_of(column: Any, row: int) -> Int[np.ndarray, " N"]:
    start, stop = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    # A copy: torch warns of arrays that it cannot write to.
    return column.values[start:stop].to_numpy().copy()


class ExampleWriter:
    """Writes examples in record batches, so that memory holds about a million tokens."""

    def __init__(self, stack: ExitStack, path: Path, source_names: Sequence[str]) -> None:
        numbers = pa.list_(pa.int32())
        columns = dict.fromkeys(("input_ids", "trained", "segments", "breaks"), numbers)
        schema = pa.schema({**columns, "id": pa.string(), "source": pa.int32()})
        metadata = {"roles": json.dumps(ROLES), "sources": json.dumps(list(source_names))}
        self._schema = schema.with_metadata(metadata)
        aside = stack.enter_context(written_aside(path))
        sink = stack.enter_context(pa.OSFile(str(aside), "wb"))
        self._writer = stack.enter_context(pa.ipc.new_file(sink, self._schema))
        self._source_names = list(source_names)
        self._waiting: list[Example] = []
        self._tokens = 0

    def write(self, example: Example) -> None:
        """Take an example; it is on disk after `flush` at the latest."""
        self._waiting.append(example)
        self._tokens += len(example.input_ids)
        if self._tokens >= 2**20 or len(self._waiting) >= _MAX_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write the examples that wait."""
        if not self._waiting:
            return
        rows = self._waiting
        columns = [
            _lists([example.input_ids for example in rows]),
            _lists([_trained_edges(example.labels) for example in rows]),
            _lists([_segment_numbers(example.segments) for example in rows]),
            _lists([example.breaks for example in rows]),
            pa.array([example.id for example in rows], pa.string()),
            pa.array([self._source_names.index(example.source) for example in rows], pa.int32()),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._waiting, self._tokens = [], 0


def _lists(rows: Sequence[Int[np.ndarray, " N"]]) -> Any:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    values = np.concatenate(rows).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _trained_edges(labels: Int[np.ndarray, " T"]) -> Int[np.ndarray, " N"]:
    """Return start, stop, start, stop, ... of the trained runs; labels there are the ids."""
    return np.flatnonzero(np.diff(labels != IGNORE_INDEX, prepend=False, append=False))


def _segment_numbers(segments: Sequence[Segment]) -> Int[np.ndarray, " N"]:
    rows = [
        (s.start, s.stop, ROLES.index(s.role), s.content_start, s.content_stop) for s in segments
    ]
    return np.array(rows, np.int32).ravel()
