"""What README, guides and recipes show is run; no block of code is passed over.

Which kinds of block there are, and how each is run, stands in fixtures_pages.py. Here are the
exceptions, each with its reason, and the walk of a newcomer, command by command.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
import pytest

from fixtures_pages import (
    KINDS,
    ROOT,
    Block,
    Reader,
    assert_same,
    blocks_of,
    commands_of,
    inline_of,
    parse,
)
from made_scripts import script
from skipalign.tiny import BASE

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"))
)
WALK = "docs/your-own-data.md"
GUIDES = [
    f"docs/{name}.md"
    for name in (
        *("your-own-data", "your-own-model", "range-and-share", "reading-the-report"),
        *("many-gpus", "trl", "adding-a-strategy", "adding-a-task"),
    )
]
# Pages that train and ask models; the others take a second or two together.
LONG = {
    *("docs/your-own-model.md", "docs/range-and-share.md", "docs/reading-the-report.md"),
    *("docs/trl.md", "docs/many-gpus.md", "docs/adding-a-strategy.md"),
}

# What is put in place of a text before a block is run, and why it cannot be run as it is.
_SMALL = 'use_cpu=True, bf16=False, max_steps=1, report_to="none", save_strategy="no"'
CHANGES: dict[str, str] = {
    # Models of the hub, and names that stand for the reader's own: the base of the package.
    "Qwen/Qwen3-0.6B-Base": "tiny",
    "meta-llama/Llama-2-7b-hf": str(BASE),
    "evaluate MODEL": "evaluate tiny",
    "--data FOLDER": "--data benchmark",
    "Ntk(factor=16.0)": "Ntk(factor=512.0)",  # from its window of 128 tokens
    # No GPU.
    "bf16: true": "bf16: false",
    '"runs/trl", max_length=4096': f'"runs/trl", max_length=4096, {_SMALL}',
    '"runs/dpo", max_length=4096': f'"runs/dpo", max_length=4096, {_SMALL}',
    '"runs/packed", packing=True': f'"runs/packed", packing=True, {_SMALL}',
    '"runs/trainer", remove': f'"runs/trainer", {_SMALL}, remove',
}
_ASK = "--depths 1 --trials 1"
_STEPS = "trainer.max_steps=2 trainer.gradient_accumulation_steps=1"
_CELLS = "evaluation.needle.lengths=[128] evaluation.needle.depths=1 evaluation.needle.trials=1"
# What a command is given besides, so that it takes seconds; its output is then not compared.
SMALLER: dict[str, str] = {
    r"skipalign compare recipes/(?!tiny)[a-z-]+-tiny.yaml": "--dry-run",
    r"skipalign run recipe.yaml$": f"{_STEPS} {_CELLS}",
    r"skipalign compare recipe.yaml$": f"{_STEPS} {_CELLS} seeds=[0] "
    "evaluation.perplexity.documents=2",
    r"skipalign train recipe.yaml name=try": _STEPS,
    r"skipalign train recipe.yaml name=lora": _STEPS,
    r"skipalign verify-export runs/recipe/model": "--length 256",
    r"skipalign evaluate (Qwen/\S+|MODEL) --task needle": f"--lengths 128 {_ASK}",
    # The tiny base's own window; the files are a few rows of the benchmark.
    r"skipalign evaluate MODEL --task longbench": "max_prompt_tokens=100 --out longbench",
}
# What is read to its last option and not run, with the reason.
PARSED: dict[str, str] = {
    r"make [\w-]+$": "runs this test, or needs the network or a GPU; its target is in the Makefile",
    r"\.venv/bin/": "the tools of the virtual environment; CI runs them",
    r"pip install": "needs the network; the extras are those of pyproject.toml",
    r"accelerate launch": "needs several GPUs; test_distribution.py launches two processes",
    r"export [A-Z_]+=": "a variable of the shell",
    r"transformers serve": "does not end; test_remote.py starts one",
    r"skipalign evaluate .*--backend http": "needs a server; test_remote.py runs one",
    r"skipalign evaluate .*--backend vllm": "needs a GPU and vLLM",
}
# The pages on which SMALLER does not hold: what they show is what their commands print.
AS_IT_STANDS = {"docs/reading-the-report.md"}
# Pages that are made by a script, which a test holds them against.
MADE = {"docs/commands.md": "usage lines of all commands; test_commands_page.py"}
# Blocks that nothing can run, by their first word, with what keeps them true.
TEXTS: dict[str, str] = {
    "src/skipalign/": "the tree; test_architecture.py holds it against the files",
    "@misc{wu2024skipalign,": "how to cite the paper",
    "tokens": "a drawing; below",
    "b_i": "the formula of a key bias; test_key_bias.py holds it",
}

ALL = [block for page in PAGES for block in blocks_of(page)]


def is_text(block: Block) -> bool:
    return block.kind not in KINDS and block.text.split()[0] in TEXTS


def is_error(block: Block) -> bool:
    """Whether a block shows what is said to a command that fails."""
    return block.text.lower().startswith("error:")


def chats() -> str:
    """Return the ten lines of the walk."""
    return next(block.text for block in blocks_of(WALK) if block.name == "chats.jsonl")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a page says that its reader has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("chats.jsonl", "conversations.jsonl"):
        Path(name).write_text(chats(), encoding="utf-8")
    turns = [json.loads(line)["messages"] for line in chats().splitlines()]
    pairs = [
        {"prompt": turn[:1], "chosen": turn[1:], "rejected": [{**turn[1], "content": "No one."}]}
        for turn in turns
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    shutil.copytree(BASE, "my-model")
    shutil.copytree(ROOT / "recipes", "recipes")
    shutil.copytree(ROOT / "tests/predictions", "FOLDER")
    shutil.copytree(ROOT / "tests/longbench_rows", "benchmark")
    return tmp_path


# ------------------------------------------------------------------------------ every block


def test_no_block_is_passed_over():
    unknown = [f"{b}: {b.info!r}" for b in ALL if b.kind not in KINDS and not is_text(b)]
    assert not unknown, f"{unknown}: name the kind after ```; fixtures_pages.py lists them"
    assert {"python", "yaml", "sh", "json", "text"} <= {block.kind for block in ALL}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_can_be_read_to_its_last_option(page: str, folder: Path):
    blocks = blocks_of(page)
    for block, after in zip_longest(blocks, blocks[1:]):
        if block.name and block.kind == "python":
            Path(block.name).write_text(block.text)
        fails = after is not None and is_error(after)
        for command in commands_of(block.text) if block.kind == "sh" and not fails else ():
            parse(command)
    for block in inline_of(page):
        # A sentence may speak of an option alone.
        with suppress(click.MissingParameter, click.BadOptionUsage):
            parse(block.text)


def shown_in(comments: str) -> Iterator[str]:
    """Yield the commands in backticks, and those on lines of their own."""
    comments = re.sub(r"\\\n#? *", "", comments)  # a command that goes on in the next line
    text = re.sub(r"\n *#? *", " ", comments)
    yield from re.findall(r"`((?:skipalign|accelerate) [^`]+)`", text)
    for line in re.findall(
        r"^#? {2,}((?:skipalign|accelerate|python) .*)$", comments, re.MULTILINE
    ):
        yield from line.partition(" #")[0].split(" && ")


def test_every_command_in_comments_of_recipes_and_examples_can_be_read():
    found: list[str] = []
    for path in (*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "examples").glob("*.py")):
        found += shown_in(path.read_text(encoding="utf-8"))
    for command in found:
        parse(command)
    assert {command.split()[0] for command in found} == {"skipalign", "accelerate", "python"}


def test_every_exception_is_needed():
    commands = [line for block in ALL if block.kind == "sh" for line in commands_of(block.text)]
    for pattern in (*SMALLER, *PARSED):
        assert any(re.match(pattern, command) for command in commands), pattern
    text = "\n".join(block.text for block in ALL)
    for old in CHANGES:
        assert old in text, old
    first = {block.text.split()[0] for block in ALL}
    assert {*TEXTS} <= first


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(each, marks=[pytest.mark.long] if each in LONG else [])
        for each in PAGES
        # The walk is done below, by other processes; the Chinese README has README's code.
        if each not in (WALK, "README.zh-CN.md", *MADE)
    ],
)
def test_a_page_runs(page: str, folder: Path):
    smaller = {} if page in AS_IT_STANDS else SMALLER
    reader = Reader(changes=CHANGES, instead={**dict.fromkeys(PARSED), **smaller})
    for block in blocks_of(page):
        if not is_text(block):
            reader.do(block)
    assert not reader.told, reader.told


def test_a_drawing_moves_tokens_and_keeps_their_order():
    drawings = [block for block in ALL if block.text.split()[0] == "tokens"]
    assert drawings
    for block in drawings:
        for line in block.text.splitlines():
            name, *cells = line.replace("|", " ").split()
            if name in ("contiguous", "skip", "positions"):
                ids = [int(cell) for cell in cells]
                assert len(ids) == 8, block
                assert ids == sorted({*ids}), block


# ------------------------------------------------------------------------------ the guides


def test_every_page_is_in_the_index_and_every_link_leads_somewhere():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for path in ROOT.glob("docs/*.md"):
        listed = path.name == "README.md" or f"]({path.name})" in index
        assert listed, f"docs/{path.name}: give it a line in docs/README.md"
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", GUIDES)
def test_guides_have_one_form(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert [head for head in heads if head != "What was measured"] == [
        *("What you get", "Steps", "What can go wrong", "Where next")
    ]
    assert len(text.splitlines()) <= 220, "one page"


def test_figures_of_guides_are_those_of_the_results():
    tables = script("benchmarks/readme_tables.py")
    found = 0
    for page in GUIDES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, block in re.findall(r"<!-- ([\w-]+) results.* -->\n((?:\|.*\n)+)", text):
            document = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
            whole, shown = cells_of(tables.table(document)), cells_of(block)
            assert shown.items() <= whole.items(), f"{page}: {shown.items() - whole.items()}"
            found += len(shown)
    assert found > 20


def cells_of(table: str) -> dict[tuple[str, str], str]:
    head, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]
    return {(row[0], name): cell for row in rows for name, cell in zip(head, row, strict=True)}


# -------------------------------------------------------------------------------- the walk


def literally(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does that finds this environment's programs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env: dict[str, Any] = {**os.environ, "PATH": path, "COLUMNS": "80"}
    env.pop("PYTHONPATH", None)
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.long
def test_a_first_time_reader_gets_from_ten_lines_to_a_model_in_an_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    started, done = time.monotonic(), subprocess.CompletedProcess[str]("", 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = used.ru_utime + used.ru_stime
    for block in blocks_of(WALK):
        if block.kind == "sh":
            for command in commands_of(block.text):
                begun = time.monotonic()
                done = literally(command, tmp_path)
                with capsys.disabled():
                    print(f"\n  {time.monotonic() - begun:5.1f} s  {command}", end="")
        elif block.kind == "text":
            said = done.stdout or done.stderr.splitlines()[-1]
            assert (done.returncode != 0) == is_error(block), done.stderr[-2000:]
            assert_same(block.text, said, where=str(block), numbers=block.name != "varies")
        else:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, computing = time.monotonic() - started, used.ru_utime + used.ru_stime - before
    with capsys.disabled():
        print(f"\n  {seconds:5.1f} s  together, {computing:.1f} s of processor time")
    assert len(chats().splitlines()) == 10
    run = tmp_path / "runs/recipe"
    for name in ("model/model.safetensors", "model/config.json", "model/README.md", "report.html"):
        assert (run / name).stat().st_size > 500, name
    assert "chats.jsonl" in (run / "model/README.md").read_text(encoding="utf-8")
