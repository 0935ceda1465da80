"""The few exceptions that a user can meet.

Each message says what was found (value and place), what is required, and what to do. The command
line prints it as one line and exits with status 1.
"""

from collections.abc import Sequence
from difflib import get_close_matches


class SkipalignError(Exception):
    """A problem that the user can fix."""


class RecipeError(SkipalignError, ValueError):
    """A recipe or an option that cannot be used as it stands."""


class DataError(SkipalignError, ValueError):
    """A data file or a row that cannot be read."""


class ModelError(SkipalignError, ValueError):
    """A checkpoint or tokenizer that cannot be used for what was asked."""


class VisibilityError(SkipalignError, RuntimeError):
    """A batch or a model that would cut attention at a skip or mix samples."""


class RunError(SkipalignError, RuntimeError):
    """A run folder that does not hold what the command needs."""


class BackendError(SkipalignError, RuntimeError):
    """A server that does not answer, or answers that it will not."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory from other faults, whoever raises it.

    torch has an error of its own on a GPU and a plain RuntimeError on a CPU; it is not imported
    for this.
    """
    named = "OutOfMemoryError" in (kind.__name__ for kind in type(error).__mro__)
    return named or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def did_you_mean(found: str, known: Sequence[str]) -> str:
    """Return a question with the nearest of `known`, or nothing where none is near."""
    nearest = get_close_matches(found, known, n=1)
    return f"did you mean {nearest[0]!r}? " if nearest else ""
