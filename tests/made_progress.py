"""A progress that keeps what stages tell it."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Told:
    """What one stage told: how many in all, how many done now and by an earlier start."""

    description: str
    total: int | None
    done: int = 0
    before: int = 0

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def already(self, amount: int) -> None:
        self.before += amount

    def set_total(self, total: int) -> None:
        self.total = total

    @property
    def is_whole(self) -> bool:
        """Whether it counted to the total it told."""
        return self.total == self.done + self.before


class Telling:
    """Keeps every stage in `stages`, in the order they began."""

    def __init__(self) -> None:
        self.stages: list[Told] = []

    @contextmanager
    def bar(self, description: str, total: int | None) -> Generator[Told]:
        self.stages.append(Told(description, total))
        yield self.stages[-1]
