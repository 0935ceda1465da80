"""Finished trials on disk, so that an evaluation that was killed goes on where it stopped."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skipalign.errors import RunError
from skipalign.files import json_text, named_by, whole_lines, write_text


class TrialLog:
    """Trials, one a line, after a first line that says what they were measured with.

    Args:
        path: the file; made where it is absent.
        header: plain data with `settings`; trials of another header are refused.
        key: the names of what tells one trial from another.
        overwrite: throw trials of another header away.

    Attributes:
        trials: those on disk, by the values of `key`.

    Raises:
        RunError: trials of another header, or a line that is not JSON.
    """

    def __init__(
        self, path: Path, header: dict[str, Any], key: Sequence[str], *, overwrite: bool
    ) -> None:
        self.path = path
        self.trials: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._key = tuple(key)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
        lines = self._read()
        if lines and lines[0].get("digest") != digest and not overwrite:
            raise RunError(
                f"{path}: holds trials that were measured with {_unlike(lines[0], header)}; "
                "evaluate into another folder, or overwrite it (--overwrite)"
            )
        if lines and lines[0].get("digest") == digest:
            self._take(lines[1:])
        else:
            write_text(path, json.dumps({"digest": digest, **header}) + "\n")

    def append(self, trials: Sequence[dict[str, Any]]) -> None:
        """Keep trials; a kill of this process from here on does not lose them."""
        with named_by(self.path), self.path.open("a", encoding="utf-8") as handle:
            handle.writelines(json_text(trial) + "\n" for trial in trials)
        self._take(trials)

    def _take(self, trials: Sequence[dict[str, Any]]) -> None:
        self.trials |= {tuple(trial[name] for name in self._key): trial for trial in trials}

    def _read(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for number, line in enumerate(whole_lines(self.path), start=1):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise RunError(
                    f"{self.path} line {number}: not JSON ({error}); delete the file and evaluate "
                    "again"
                ) from None
        return lines


def _unlike(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Name what differs between two headers."""
    names = [name for name in asked if name != "settings" and found.get(name) != asked[name]]
    old, new = found.get("settings") or {}, asked["settings"]
    names += sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    return f"other {', '.join(names)}"
