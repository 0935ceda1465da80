"""Checkpoints that are whole or absent, and what they keep beside the Trainer's own state.

A checkpoint is written aside and renamed; a manifest of its files' sizes, written last, says that
it is whole.
"""

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from skipalign.errors import RunError
from skipalign.files import keep_json_lines, read_json, write_json

MANIFEST = "skipalign_checkpoint.json"
_log = logging.getLogger(__name__)


@dataclass
class Counts:
    """What was fed to the model, kept in checkpoints so that a resumed run goes on.

    While a run trains each process counts its own, the first one beginning with what was before.
    """

    num_sequences: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    max_row_tokens: int = 0
    num_processes: int = 1
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds of training."""
        return time.monotonic() - self.started


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; a broken one is passed over with a warning."""
    found = sorted(
        (path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()),
        key=lambda path: int(path.name[11:]),
    )
    for path in reversed(found):
        fault = _fault(path)
        if fault is None:
            return path
        _log.warning("%s is broken and passed over: %s", path, fault)
    return None


def seal(folder: Path, counts: Counts) -> None:
    """Write the manifest of a checkpoint whose files are all there."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    kept = {name: value for name, value in asdict(counts).items() if name != "started"}
    document = {"sizes": sizes, "counts": kept, "spent": counts.spent}
    write_json(folder / MANIFEST, document)


def counts_at(checkpoint: Path | None) -> Counts:
    """Return what had been counted when `checkpoint` was written."""
    if checkpoint is None:
        return Counts()
    found = read_json(checkpoint / MANIFEST)
    counts = Counts(**found["counts"])
    counts.started -= found["spent"]
    return counts


def _fault(folder: Path) -> str | None:
    """Return what a checkpoint lacks, or None for a whole one."""
    try:
        sizes: dict[str, int] = read_json(folder / MANIFEST)["sizes"]
    except RunError as error:
        return str(error)
    except KeyError:
        return f"{MANIFEST} has no sizes"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes of {size:,}"
    return None


def keep_losses_until(path: Path, checkpoint: Path | None) -> None:
    """Drop the losses of steps that a resumed run will do again."""
    last_step = int(checkpoint.name[11:]) if checkpoint else 0
    keep_json_lines(path, lambda line: line["step"] <= last_step)
