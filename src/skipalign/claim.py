"""What a folder's training began with, and whether that is what is asked for now.

settings.json says it: the settings, the digest of the base's weights, the digests of the data. A
folder never holds a mixture: what differs is refused before anything is touched.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from skipalign import tiny
from skipalign.digests import digests_of
from skipalign.errors import RunError
from skipalign.files import defaults, read_json, write_json
from skipalign.model import weights_digest
from skipalign.progress import Progress
from skipalign.resolved import Training


def folder_of(training: Training, run_dir: Path) -> Path:
    """Return the folder of a training: where it has begun, else the one it was given.

    A recipe's only training has the run folder itself, several have METHOD/seed-N each: one that
    has begun as the first kind stays there when `--seeds` makes it one of several, or the reverse.
    """
    given = run_dir / training.directory
    for folder in (run_dir / f"{training.method}/seed-{training.seed}", run_dir):
        path = folder / "settings.json"
        if holds_work(folder) and path.exists():
            found = read_json(path)
            if (found.get("method"), found.get("seed")) == (training.method, training.seed):
                return folder
    return given


def trained_on(out: Path) -> dict[str, Any] | None:
    """Return the digests of the data that a folder's training has begun with, None if none has."""
    path = out / "settings.json"
    return read_json(path).get("data") if holds_work(out) and path.exists() else None


def finished(training: Training, out: Path, progress: Progress) -> dict[str, Any] | None:
    """Return the training.json of a finished training, or None.

    Raises:
        RunError: the folder holds a training of other settings or from other weights.
    """
    if not holds_work(out):
        return None
    require_same_settings(training, out)
    if not (out / "training.json").exists() or not (out / "model/config.json").exists():
        return None
    place = tiny.base_place(training.base.path) or training.base.path
    _require_same_base(out, weights_digest(str(place), progress))
    return read_json(out / "training.json")


def require_same_settings(training: Training, out: Path) -> None:
    """Refuse a folder whose training has begun with other settings.

    Raises:
        RunError: names two of them.
    """
    path = out / "settings.json"
    if not holds_work(out) or not path.exists():
        return
    if differing := unlike(read_json(path), training):
        raise RunError(
            f"{out}: holds a training of other settings ({'; '.join(differing[:2])}); give the "
            "new one a folder of its own (name=...) or delete this one"
        )


def holds_work(out: Path) -> bool:
    """Whether a training has begun in the folder, or its results are still there."""
    made = any((out / name).exists() for name in ("model", "evaluation"))
    return made or any((out / "checkpoints").glob("checkpoint-*"))


def unlike(found: Mapping[str, Any], training: Training) -> list[str]:
    """Say in which settings a folder's training differs; what is absent there was its default."""
    new = json.loads(json.dumps(training.settings(), default=str))
    parts = ("key_bias", "packing", "adapter", "rope")
    old = dict(found) | {
        name: _with_defaults(found.get(name), getattr(training, name)) for name in parts
    }
    old["strategies"] = {
        name: _with_defaults(strategy, training.strategies.get(name))
        for name, strategy in found.get("strategies", {}).items()
    }
    return list(_differences({key: old.get(key) for key in new}, new))


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield what differs of two trees, as deep in them as both have parts."""
    if isinstance(old, dict) and isinstance(new, dict):
        both = cast(tuple[dict[str, Any], dict[str, Any]], (old, new))
        for key in both[0] | both[1]:
            inner = (each.get(key, "not set") for each in both)
            yield from _differences(*inner, place=f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place}: {old} there, {new} here"


def _with_defaults(found: Any, part: Any) -> Any:
    return found if not isinstance(found, dict) or part is None else defaults(part) | found


def claim(training: Training, out: Path, base: str, progress: Progress) -> str | None:
    """Write what the folder is for; return the digest of the base's weights, None for a hub id.

    Raises:
        RunError: the folder's training began from other weights.
    """
    base_digest = weights_digest(base, progress)
    if holds_work(out):
        _require_same_base(out, base_digest)
    settings = training.settings()
    text = json.dumps(settings, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    claimed = {"digest": digest, "base_digest": base_digest, **settings}
    if training.train:
        claimed["data"] = digests_of(out / "data")
    write_json(out / "settings.json", claimed)
    return base_digest


def _require_same_base(out: Path, base_digest: str | None) -> None:
    path = out / "settings.json"
    found = read_json(path).get("base_digest") if path.exists() else None
    if found and base_digest and found != base_digest:
        raise RunError(
            f"{out}: began from a base with the digest {found}, the one here now has "
            f"{base_digest}; put that base back, or give the run a folder of its own (name=...)"
        )
