"""A bar for every stage that takes time: the rooms report to it, the command line draws it."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


class Bar(Protocol):
    """One stage under way."""

    def advance(self, amount: int = 1) -> None: ...

    def set_total(self, total: int) -> None: ...


class Progress(Protocol):
    """Where stages report how far they are."""

    def bar(self, description: str, total: int | None) -> AbstractContextManager[Bar]: ...


class _SilentBar:
    def advance(self, amount: int = 1) -> None:
        pass

    def set_total(self, total: int) -> None:
        pass


class Silent:
    """Report to nobody: the default inside the library."""

    @contextmanager
    def bar(self, description: str, total: int | None) -> Generator[Bar]:  # noqa: ARG002
        yield _SilentBar()


@dataclass(frozen=True)
class Labelled:
    """Report to another, with a label before every description."""

    inner: Progress
    label: str

    def bar(self, description: str, total: int | None) -> AbstractContextManager[Bar]:
        return self.inner.bar(f"{self.label} {description}", total)


class Terminal:
    """Draw one bar a stage on stderr, with the time left, by rich."""

    @contextmanager
    def bar(self, description: str, total: int | None) -> Generator[Bar]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(description, total=total)

            class _RichBar:
                def advance(self, amount: int = 1) -> None:
                    progress.advance(task, amount)

                def set_total(self, total: int) -> None:
                    progress.update(task, total=total)

            yield _RichBar()
