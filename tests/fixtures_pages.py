"""The code and the commands that pages show: found in their Markdown, and run as a reader would.

```python [FILE]   run in one namespace per page, in a folder of the page's own; or written
                   to FILE
```yaml [FILE]     a recipe (a block with `base:`) is written to FILE, recipe.yaml if none is
                   named, and examined by `run --dry-run`; a part of one is laid over a whole
```json FILE       written to FILE
```sh              commands, run in order; so is an indented block that begins with one
```text [varies]   what the block before it prints; `...` stands for anything, and with
                   `varies` each number for any number
"""

import contextlib
import importlib.metadata
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from markdown_it import MarkdownIt

from skipalign.cli import cli, main

ROOT = Path(__file__).parents[1]
PROGRAMS = ("skipalign", "make", "pip", "accelerate", "python", "transformers", "export", "cat")
VENV = ".venv/bin/"
KINDS = ("python", "yaml", "json", "sh", "text")


@dataclass(frozen=True)
class Block:
    """A block of code, or a piece of code in a sentence (`info` is then "inline")."""

    page: str
    line: int
    info: str
    text: str

    @property
    def kind(self) -> str:
        if self.info == "indented":
            return "sh" if is_command(self.text) else "drawing"
        return self.info.partition(" ")[0]

    @property
    def name(self) -> str:
        """The file that a block is, or what is said of an output."""
        return self.info.partition(" ")[2]

    def __str__(self) -> str:
        return f"{self.page} line {self.line}"


def is_command(text: str) -> bool:
    first = text.split(maxsplit=1)[0]
    return first in PROGRAMS or first.startswith(VENV)


def blocks_of(page: str) -> list[Block]:
    """Return every block of code of a page, in order; nothing else is code in Markdown."""
    found: list[Block] = []
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "fence":
            found.append(Block(page, line, token.info.strip(), token.content))
        elif token.type == "code_block":
            found.append(Block(page, line, "indented", token.content))
    return found


def inline_of(page: str) -> Iterator[Block]:
    """Yield the commands of `skipalign` that stand in sentences and tables."""
    for token in MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        for child in token.children or ():
            if child.type == "code_inline" and re.match(r"skipalign [a-z]", child.content):
                yield Block(page, line, "inline", child.content)


def commands_of(text: str) -> list[str]:
    """Return the commands of a block, each on one line, without comments."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = (re.sub(r"\s+#\s.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


# ------------------------------------------------------------------------------ read, not run


def parse(command: str) -> None:
    """Read a command to its last option, as the program does that it calls; nothing is run.

    Raises:
        AssertionError, click.ClickException: there is no such command, option or file.
    """
    words = shlex.split(command.removesuffix(" &"))
    program, arguments = words[0], words[1:]
    if program == f"{VENV}python":
        _python(arguments)
    elif program.startswith(VENV):
        tool = program.removeprefix(VENV).partition("/")[0]
        assert any(re.match(rf"{tool}\b", each) for each in requirements()), f"{tool} is not in dev"
        assert all((ROOT / each).is_file() for each in arguments if each.endswith(".py")), command
    else:
        _PARSERS[program](arguments)


def _skipalign(arguments: list[str]) -> None:
    words = [word.strip("[]") for word in arguments if word != "[KEY=VALUE]..."]
    words = ["needle" if word == "..." else word for word in words]  # of a task, whichever
    group = cli.make_context("skipalign", list(words))
    name, command, rest = cli.resolve_command(group, words)
    assert command is not None
    if not rest:  # a command that is only named
        return
    try:
        command.make_context(name, rest, parent=group)
    except click.BadParameter as error:
        if not any(repr(word) in str(error) for word in words if word.isupper()):
            raise  # no NAME that stands for one of several


def _accelerate(arguments: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch"
    read = launch_command_parser().parse_args(arguments[1:])
    assert (ROOT / read.config_file).is_file(), read.config_file
    assert read.module
    assert read.training_script == "skipalign"
    _skipalign(read.training_script_args)


def _pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for wanted in re.findall(r"skipalign\[([\w,-]+)\]", " ".join(arguments)):
        assert {*wanted.split(",")} <= {*project()["optional-dependencies"]}, wanted


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*arguments} <= {*targets}, arguments


def _python(arguments: list[str]) -> None:
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif arguments[0] == "-m":
        assert (ROOT / "src" / arguments[1].replace(".", "/")).with_suffix(".py").is_file()
    else:
        assert (ROOT / arguments[0]).is_file() or Path(arguments[0]).is_file(), arguments[0]


def _export(arguments: list[str]) -> None:
    assert re.fullmatch(r"[A-Z_]+=\S+", arguments[0]), arguments


def _transformers(arguments: list[str]) -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts").names
    assert "transformers" in scripts
    assert arguments[0] == "serve"


def _cat(arguments: list[str]) -> None:
    assert arguments


_PARSERS = {
    **{"skipalign": _skipalign, "accelerate": _accelerate, "pip": _pip, "make": _make},
    **{"python": _python, "export": _export, "transformers": _transformers, "cat": _cat},
}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[str]:
    return [each for extra in project()["optional-dependencies"].values() for each in extra]


# ----------------------------------------------------------------------------------------- run


@dataclass
class Reader:
    """Someone who does what a page says, in the folder that is the working directory.

    Args:
        changes: what is put in place of a text in code and recipes, as {old: new}.
        instead: by pattern of a command, what is appended to make it small; None where it is only
            parsed.
    """

    changes: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str | None] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    printed: str | None = None
    told: str = ""

    def do(self, block: Block) -> None:
        """Do what one block says; raises AssertionError where it does not hold."""
        assert block.kind in KINDS, f"{block}: no one knows what to do with {block.info!r}"
        assert not self.told or block.kind == "text", self.told
        getattr(self, f"_{block.kind}")(block)

    def _changed(self, text: str) -> str:
        for old, new in self.changes.items():
            text = text.replace(old, new)
        return text

    def _python(self, block: Block) -> None:
        if block.name:
            Path(block.name).write_text(block.text, encoding="utf-8")
            return
        out = io.StringIO()
        code = "\n" * block.line + self._changed(block.text)
        with contextlib.redirect_stdout(out):
            exec(compile(code, block.page, "exec"), self.names)
        self.printed, self.told = out.getvalue(), ""
        said = [line[2:] for line in block.text.splitlines() if line.startswith("# ")]
        if said:
            assert_same("\n".join(said), self.printed, where=str(block))

    def _yaml(self, block: Block) -> None:
        text = self._changed(block.text)
        path = Path(block.name or "recipe.yaml")
        if not re.search(r"^base:", text, re.MULTILINE):
            whole = "base: tiny\ndata: tiny\nstrategy: {name: skipalign, max_position: 4096}\n"
            given = re.findall(r"^(\w+):", text, re.MULTILINE)
            kept = [line for line in whole.splitlines() if line.split(":")[0] not in given]
            path, text = Path("part.yaml"), "\n".join([*kept, text])
        path.write_text(text, encoding="utf-8")
        self._skipalign(["run", str(path), "--dry-run", "--quiet"], fails=False)

    def _json(self, block: Block) -> None:
        assert block.name, f"{block}: say after `json` which file it is"
        for line in block.text.splitlines():
            json.loads(line)
        Path(block.name).write_text(block.text, encoding="utf-8")

    def _sh(self, block: Block) -> None:
        self.printed, self.told = "", ""
        for command in commands_of(block.text):
            more = next((m for each, m in self.instead.items() if re.match(each, command)), "")
            if more is None:
                parse(command)
                self.printed = None
                continue
            words = shlex.split(self._changed(f"{command} {more}"))
            if words[0] == "cat":
                self.printed = "".join(Path(each).read_text("utf-8") for each in words[1:])
            elif words[0] == "python":
                run = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
                assert run.returncode == 0, f"{block}: {run.stderr[-2000:]}"
                self.printed = run.stdout
            else:
                assert words[0] == "skipalign", f"{block}: {command} is not run; say why in a table"
                self._skipalign(words[1:], fails=None)
                self.printed = None if more else self.printed

    def _skipalign(self, words: list[str], *, fails: bool | None) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(words)
            except SystemExit as end:
                status = end.code
        self.printed, self.told = out.getvalue(), err.getvalue()
        if status and fails is None:  # the next block has to say so
            self.printed = self.told.splitlines()[-1]
            self.told = f"skipalign {shlex.join(words)}: {self.told[-2000:]}"
        else:
            assert not status, f"skipalign {shlex.join(words)}: {self.told[-3000:]}"
            self.told = ""

    def _text(self, block: Block) -> None:
        assert self.printed is not None, f"{block}: what is said to print it was not run as it is"
        shown, got = block.text, self.printed
        assert_same(shown, got, where=str(block), numbers=block.name != "varies")
        self.told = ""  # an error that the page shows


def assert_same(shown: str, got: str, *, where: str, numbers: bool = True) -> None:
    """Hold what is shown against what was printed, but for spaces at the ends of lines."""
    pattern = re.escape("\n".join(line.rstrip() for line in shown.strip("\n").splitlines()))
    pattern = pattern.replace(re.escape("..."), r"[\s\S]*")
    if not numbers:
        pattern = re.sub(r"\d(?:[\d,]|\\\.\d)*", r"[\\d,.]+", pattern)
        pattern = re.sub(r"(?:\\ )+", r" *", pattern)
    got = "\n".join(line.rstrip() for line in got.strip("\n").splitlines())
    assert re.fullmatch(pattern, got), f"{where} shows\n{shown}\nand what is printed is\n{got}"
