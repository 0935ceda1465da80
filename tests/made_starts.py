"""Starts of the command line that cost no import: a process that has imported all forks each one.

    with Starter() as starter:
        start = starter.start("train", "own.yaml", cwd=folder)
        start.kill()
        print(start.end().code)

A fork is a process of its own: what kills it, or fills its memory, is as real as in any other.
torch has computed nothing in the process that forks, so that no thread of it is missed.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

LONGEST_SECONDS = 300  # a start that hangs is ended
IMPORTED = ("cli", "study", "report", "remote", "evaluation.tasks")


# A name space of its own needs no root where the system lets users have one.
MOUNTING = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNTING += ('mount -t tmpfs -o "size=$0m" tmpfs "$1" && shift && exec "$@"',)


def no_disks() -> str | None:
    """Return why no small disk can be made here, or None."""
    if shutil.which("unshare") is None:
        return "there is no unshare here, which lays a small disk over a folder"
    tried = subprocess.run([*MOUNTING, "1", "/mnt", "true"], capture_output=True, text=True)
    return f"no disk can be mounted here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Ended:
    """How a start ended, -9 after SIGKILL, and what it printed."""

    code: int
    out: str
    err: str


class Start:
    """A start under way."""

    def __init__(self, starter: "Starter", pid: int, prints: Path) -> None:
        self.pid = pid
        self._starter = starter
        self._prints = prints

    def kill(self, how: signal.Signals = signal.SIGKILL, *, after: float = 0.0) -> None:
        """Send a signal, some seconds from now; one that has ended takes no harm."""
        time.sleep(after)
        os.kill(self.pid, how)

    def end(self) -> Ended:
        """Wait for the end."""
        code = self._starter.ask({"wait": self.pid})
        out, err = (self._prints.with_suffix(name).read_text() for name in (".out", ".err"))
        return Ended(code, out, err)


class Starter:
    """The process that has imported all; use it in a `with`.

    Args:
        scratch: a folder for what starts print.
        disk: a folder over which a small disk is laid that this process and its forks alone see.
        megabytes: of that disk.
    """

    def __init__(self, scratch: Path, disk: Path | None = None, megabytes: int = 16) -> None:
        self._scratch = scratch
        self._number = 0
        words = [sys.executable, __file__]
        if disk is not None:
            words = [*MOUNTING, str(megabytes), str(disk), *words]
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, "1"), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def seen(self, path: Path) -> Path:
        """Return where this process finds what the forks see at `path`, on the small disk too."""
        return Path(f"/proc/{self._process.pid}/root") / path.relative_to("/")

    def make_read_only(self, path: Path) -> None:
        """Let forks read a folder and not write into it, root or not; it takes a name space."""
        assert self.ask({"read_only": str(path)}) == 0

    def ask(self, question: dict[str, Any]) -> int:
        """Ask the process; its answers are numbers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, *words: str, cwd: Path, more_memory: int | None = None) -> Start:
        """Start a command in a folder.

        Args:
            words: after `skipalign`.
            cwd: the folder.
            more_memory: MiB that it may have more than the process that forks it.
        """
        self._number += 1
        prints = self._scratch / f"start-{self._number}"
        for name in (".out", ".err"):
            prints.with_suffix(name).touch()  # a start may be killed before it opens them
        asked = {"words": words, "cwd": str(cwd), "prints": str(prints), "more": more_memory}
        return Start(self, self.ask(asked), prints)

    def run(self, *words: str, cwd: Path, **options: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.start(*words, cwd=cwd, **options).end()


def _become(asked: dict[str, Any]) -> NoReturn:
    """Run the command line in this process, the child of a fork, and end with it."""
    code = 70
    try:
        signal.alarm(LONGEST_SECONDS)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(asked["cwd"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        flags = os.O_WRONLY | os.O_TRUNC
        for number, name in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(asked["prints"] + name, flags), number)
        if asked["more"] is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + asked["more"] * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        from skipalign.cli import main

        main(asked["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as Python would: the traceback, then the end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    """Fork a start, or wait for one to end, as each line asks."""
    import importlib

    import matplotlib.figure  # noqa: F401 - what starts would import by and by
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    for room in IMPORTED:
        importlib.import_module(f"skipalign.{room}")
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif "read_only" in asked:
            path = asked["read_only"]
            words = (["mount", "--bind", path, path], ["mount", "-o", "remount,bind,ro", path])
            answer = max(subprocess.run(each).returncode for each in words)
        else:
            answer = os.fork() or _become(asked)
        print(answer, flush=True)


if __name__ == "__main__":
    _serve()
