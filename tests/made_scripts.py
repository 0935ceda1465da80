"""Scripts of benchmarks/ and docs/ as rooms, so that tests can call their functions."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@cache
def script(path: str) -> Any:
    """Return a script of the repository, `benchmarks/fuzz.py` say, as a room; nothing of it runs.

    While it loads, it finds the scripts beside it.
    """
    place = ROOT / path
    name = f"script_{place.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(place.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(place.parent))
    return module
