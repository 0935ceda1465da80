"""A bar for every stage that takes time: the rooms report to it, the command line draws it.

On a terminal it is a bar with the time left; elsewhere, as in the log of a job, a line now and
then. All of it goes to stderr.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TextIO, TypeVar

FIRST_LINE, LONGEST_PAUSE = 2.0, 300.0  # seconds: lines come at 2, 4, 8, ..., then every 5 minutes
_REMEMBERED = 1000  # reports that the pace is taken from: the latest say more than the first
_Item = TypeVar("_Item")


class Bar(Protocol):
    """One stage under way."""

    def advance(self, amount: int = 1) -> None:
        """Count what was done just now."""
        ...

    def already(self, amount: int) -> None:
        """Count what an earlier start did: it says nothing of the pace."""
        ...

    def set_total(self, total: int) -> None:
        """Say how many there are in all."""
        ...


class Progress(Protocol):
    """Where stages report how far they are."""

    def bar(self, description: str, total: int | None) -> AbstractContextManager[Bar]:
        """Begin a stage of `total` things, None where nobody knows; it ends with the block."""
        ...


class _SilentBar:
    def advance(self, amount: int = 1) -> None:
        pass

    def already(self, amount: int) -> None:
        pass

    def set_total(self, total: int) -> None:
        pass


class Silent:
    """Report to nobody: the default inside the library."""

    @contextmanager
    def bar(self, description: str, total: int | None) -> Generator[Bar]:  # noqa: ARG002
        """Begin a stage that nobody hears of."""
        yield _SilentBar()


@dataclass(frozen=True)
class Labelled:
    """Report to another, with a label before every description."""

    inner: Progress
    label: str

    def bar(self, description: str, total: int | None) -> AbstractContextManager[Bar]:
        """Begin a stage of the other, under the label."""
        return self.inner.bar(f"{self.label} {description}", total)


def counted(progress: Progress, description: str, items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield items, and count each as done when the next one is asked for."""
    total = len(items) if isinstance(items, Sized) else None
    with progress.bar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()


# ------------------------------------------------------------------------------- what is drawn


class Terminal:
    """Draw one bar a stage on stderr, with the time left; lines where stderr is no terminal."""

    @contextmanager
    def bar(self, description: str, total: int | None) -> Generator[Bar]:
        """Begin a stage and draw it."""
        drawn = _rich_bar if sys.stderr.isatty() else Lines().bar
        with drawn(_shown(description), total) as bar:
            yield bar


@contextmanager
def _rich_bar(description: str, total: int | None) -> Generator[Bar]:
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
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # What a library prints stays where it belongs: a bar must not carry stdout over to stderr.
    with RichProgress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
        task = progress.add_task(description, total=total)

        class _RichBar:
            def advance(self, amount: int = 1) -> None:
                progress.advance(task, amount)

            def already(self, amount: int) -> None:
                done = progress.tasks[0].completed + amount
                progress.reset(task, total=progress.tasks[0].total, completed=int(done))

            def set_total(self, total: int) -> None:
                progress.update(task, total=total)

        began = time.monotonic()
        try:
            yield _RichBar()
        finally:
            # What was over at once leaves no line behind.
            progress.live.transient = time.monotonic() - began < FIRST_LINE


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Write a line on stderr now and then, and one at the end of a stage that had any.

    Args:
        first: seconds until the first line; each pause is twice the one before.
        longest: seconds of a pause at the most.
        file: where to write, if not stderr.
    """

    first: float = FIRST_LINE
    longest: float = LONGEST_PAUSE
    file: TextIO | None = None

    @contextmanager
    def bar(self, description: str, total: int | None) -> Generator[Bar]:
        """Begin a stage, and say how far it is now and then."""
        pace = Pace(total)
        ended = threading.Event()
        talker = threading.Thread(target=self._talk, args=(description, pace, ended), daemon=True)
        talker.start()
        try:
            yield pace
        finally:
            ended.set()
            talker.join()
            if pace.seconds >= self.first:
                self._write(f"{description}: {pace.counted()}, took {clock(pace.seconds)}")

    def _talk(self, description: str, pace: "Pace", ended: threading.Event) -> None:
        pause = self.first
        while not ended.wait(pause):
            pause = min(2 * pause, self.longest)
            left = pace.left()
            rest = "" if left is None else f", about {clock(left)} left"
            self._write(f"{description}: {pace.counted()}, {clock(pace.seconds)} gone{rest}")

    def _write(self, line: str) -> None:
        print(line, file=self.file or sys.stderr, flush=True)


@dataclass
class Pace:
    """A bar that is not drawn: how much is done, and how long the rest will take.

    Args:
        total: how many there are in all, or None.
        now: a clock, in seconds.
    """

    total: int | None
    now: Callable[[], float] = time.monotonic
    done: int = 0
    _began: float = field(init=False)
    _reports: deque[tuple[float, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.now()
        self._reports = deque([(self._began, 0)], maxlen=_REMEMBERED)

    def advance(self, amount: int = 1) -> None:
        """Count what was done just now."""
        self.done += amount
        self._reports.append((self.now(), self.done))

    def already(self, amount: int) -> None:
        """Count what an earlier start did."""
        self.done += amount
        self._reports.clear()
        self._reports.append((self.now(), self.done))

    def set_total(self, total: int) -> None:
        """Say how many there are in all."""
        self.total = total

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return self.now() - self._began

    def left(self) -> float | None:
        """Return the seconds that the rest will take at the latest pace; None: nobody can know."""
        (since, before), (_, done) = self._reports[0], self._reports[-1]
        if self.total is None or done == before:
            return None
        return (self.now() - since) * max(0, self.total - done) / (done - before)

    def counted(self) -> str:
        """Return what is done of how many."""
        if not self.total:
            return f"{self.done:,} done" if self.done else "at work"
        return f"{self.done:,} of {self.total:,} ({self.done / self.total:.0%})"


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _shown(description: str) -> str:
    """Return names of data and models without what would steer a terminal."""
    return "".join(each if each.isprintable() else "\ufffd" for each in description)
