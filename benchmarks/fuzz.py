"""Coverage-guided fuzzing of the readers of conversations and of the recipe, with atheris.

    python benchmarks/fuzz.py [--seconds 600] [--targets rows recipe]

Promise: whatever the bytes, a file becomes conversations, rejections and one-line errors of
skipalign.errors, and a recipe reads as settings that write themselves as the same settings, or is
refused in one line; never another exception, and no input takes half a minute. The smallest inputs
that reach every edge are kept in tests/fuzz_corpus/, which a test runs through; an input that
breaks the promise is left in the working directory and ends the script with 1.
"""

import argparse
import hashlib
import importlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz_corpus"
RESULT = ROOT / "benchmarks" / "results" / "fuzz.json"
SEED = 20_405
LONGEST = 2048  # bytes of an input
MOST_BYTES = 128 * 1024  # of the corpus that is kept for a target
KINDS = ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz")
SMALL = 64  # max_row_bytes of every other input


# ------------------------------------------------------------------------------- the promise


def rows(data: bytes, folder: Path) -> str:
    """Read bytes as a file; the first says of what kind, and whether rows must be small.

    Returns:
        What became of it, in one line.

    Raises:
        AssertionError: an item or an error is not what it should be.
    """
    from skipalign.conversation import Conversation, read_conversations
    from skipalign.errors import DataError

    choice = data[0] if data else 0
    file = folder / KINDS[choice % len(KINDS)]
    file.unlink(missing_ok=True)  # some file systems flush a file that is written over
    file.write_bytes(data[1:])
    limit = SMALL if choice & 128 else 2**24
    found: list[str] = []
    good = 0
    try:
        for item in read_conversations(str(file), name="fuzz", max_row_bytes=limit):
            one_line(str(item) if not isinstance(item, Conversation) else item.id)
            good += isinstance(item, Conversation)
            found.append(getattr(item, "reason", "good"))
    except DataError as error:
        one_line(str(error))
        assert not good, "a source with good rows was refused"
        return str(error).replace(f"{folder}/", "")
    assert good, "no row is good and nothing was said"
    return ", ".join(found)


def recipe(data: bytes, folder: Path) -> str:
    """Read bytes as a recipe; what can be read is written and must read as the same.

    Returns:
        The methods of the recipe, or the error.

    Raises:
        AssertionError: the error is not one line, or the recipe does not read as itself.
    """
    from skipalign.errors import RecipeError
    from skipalign.recipe import load

    file = folder / "r.yaml"
    file.unlink(missing_ok=True)
    file.write_bytes(data)
    try:
        read = load(file)
    except RecipeError as error:
        one_line(str(error))
        return str(error).replace(f"{folder}/", "")
    resolved = read.resolved()
    file.write_text(resolved, encoding="utf-8")
    assert load(file).resolved() == resolved, "it does not read as the same recipe"
    return f"a recipe of {', '.join(read.methods)}"


def one_line(text: str) -> None:
    """Raise unless text is one line that a log can hold."""
    assert "\n" not in text, text
    assert len(text) < 4000, text[:200]
    text.encode()


TARGETS: dict[str, Callable[[bytes, Path], str]] = {"rows": rows, "recipe": recipe}
ROOMS = {"rows": "conversation", "recipe": "recipe"}


# ------------------------------------------------------------------------------- the first inputs


def first_inputs(target: str) -> list[bytes]:
    """Return good inputs for the fuzzer to change, and the malformed ones of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    from made_malformed import malformed

    bad = [each for each in malformed() if len(each.data) < LONGEST]
    if target == "recipe":
        good = [file.read_bytes() for file in sorted((ROOT / "recipes").glob("*.yaml"))]
        good += [each.data for each in bad if each.file.endswith(".yaml")]
        return [data for data in good if len(data) <= LONGEST]
    known = [each for each in bad if each.file in KINDS]
    return good_rows() + [bytes([KINDS.index(each.file)]) + each.data for each in known]


def good_rows() -> list[bytes]:
    """Return a file of each kind, and of arrays and csv two."""
    import gzip
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    good = [
        {"messages": chat},
        {"conversations": turns, "system": "s"},
        {"instruction": "i", "input": "", "output": "o"},
        {"prompt": "p", "completion": "c"},
        {"text": "t"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in good).encode()
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(good[3:]), table, compression="none")
    files = {
        "a.jsonl": [lines],
        "a.json": [json.dumps(good).encode(), json.dumps(good, indent=1).encode(), lines],
        "a.csv": [b'prompt,completion\np,c\n"p ""x""\n,",c\n', b'text\nt\n"t\n"\n'],
        "a.parquet": [table.getvalue()],
        "a.jsonl.gz": [gzip.compress(lines, mtime=0)],
    }
    return [bytes([KINDS.index(kind)]) + data for kind, each in files.items() for data in each]


# ------------------------------------------------------------------------------- the fuzzer


def fuzz(target: str, arguments: list[str]) -> None:
    """Run one target in this process until libFuzzer ends it; `arguments` are its whole argv."""
    import atheris

    with atheris.instrument_imports(include=["skipalign", "yaml"]):
        importlib.import_module(f"skipalign.{ROOMS[target]}")
    folder = Path(tempfile.mkdtemp(prefix="skipalign-fuzz-"))

    def one(data: bytes) -> None:
        TARGETS[target](data, folder)

    one(first_inputs(target)[0])  # what is imported late counts for no input's time
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def run(target: str, seconds: int, crashes: Path) -> dict[str, Any]:
    """Fuzz one target in a process of its own and return the figures.

    Args:
        target: one of TARGETS.
        seconds: how long.
        crashes: where inputs that break the promise are left.
    """
    from skipalign.origin import commit

    with tempfile.TemporaryDirectory() as name:
        grown, least = Path(name) / "grown", Path(name) / "least"
        for folder in (grown, least):
            folder.mkdir()
        for data in [*first_inputs(target), *kept(target)]:
            (grown / hashlib.sha1(data).hexdigest()).write_bytes(data)
        limits = [f"-seed={SEED}", f"-max_len={LONGEST}", "-timeout=30", "-rss_limit_mb=4096"]
        limits.append(f"-artifact_prefix={crashes}/{target}-")
        began = time.monotonic()
        said = child(target, [str(grown), *limits, f"-max_total_time={seconds}"])
        wall = time.monotonic() - began
        if list(crashes.glob(f"{target}-*")):
            print(said[-3000:], file=sys.stderr)
        merged = child(target, ["-merge=1", str(least), str(grown), *limits])
        keep(target, sorted(least.iterdir(), key=lambda file: file.stat().st_size))
    state = re.findall(r"^#(\d+)\s.*? cov: (\d+) ft: (\d+)", said, re.MULTILINE)
    num, edges, features = map(int, state[-1]) if state else (0, 0, 0)
    executed = re.search(r"number_of_executed_units:\s*(\d+)", said)
    return {
        "target": target,
        "commit": commit(),
        "seconds": round(wall),
        "executions": int(executed[1]) if executed else num,
        "edges": edges,
        "features": features,
        "corpus_files": len(kept(target)),
        "corpus_bytes": sum(map(len, kept(target))),
        "corpus_found": int(next(iter(re.findall(r"(\d+) new files with", merged)), 0)),
        "crashes": len(list(crashes.glob(f"{target}-*"))),
    }


def before() -> list[dict[str, Any]]:
    """Return the figures of the last run."""
    return json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []


def child(target: str, arguments: list[str]) -> str:
    """Run this script as the fuzzer of a target; return what libFuzzer says."""
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "fuzz"  # merging starts itself again by its first argument
        words = shlex.join([sys.executable, __file__, "--fuzz", target, str(program)])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o700)
        command = [str(program), *arguments, "-print_final_stats=1"]
        done = subprocess.run(command, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def kept(target: str) -> list[bytes]:
    """Return the corpus of a target."""
    text = CORPUS / f"{target}.jsonl"
    if not text.exists():
        return []
    lines = text.read_text(encoding="ascii").splitlines()
    return [json.loads(line).encode("latin-1") for line in lines]


def keep(target: str, files: list[Path]) -> None:
    """Write the smallest inputs, up to MOST_BYTES of them, as one JSON string a line."""
    lines: list[str] = []
    size = 0
    for file in files:
        lines.append(json.dumps(file.read_bytes().decode("latin-1")))
        size += len(lines[-1]) + 1
        if size > MOST_BYTES:
            lines.pop()
            break
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{target}.jsonl").write_text("".join(f"{line}\n" for line in lines), "ascii")


def main() -> None:
    """Fuzz every target, keep corpus and figures, end with 1 where the promise was broken."""
    if "--fuzz" in sys.argv:
        return fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--no-result", action="store_true", help="write no figures")
    given = parser.parse_args()
    crashes = Path("fuzz-crashes")
    crashes.mkdir(exist_ok=True)
    figures: list[dict[str, Any]] = []
    for target in given.targets:
        figures.append(run(target, given.seconds // len(given.targets), crashes))
        print(json.dumps(figures[-1], indent=1))
        if not given.no_result:
            write(figures)
    if any(crashes.iterdir()):
        sys.exit(f"inputs that break the promise lie in {crashes}/")
    crashes.rmdir()
    return None


def write(figures: Sequence[dict[str, Any]]) -> None:
    """Write the figures; those of a target that was not fuzzed now stay."""
    from skipalign.origin import sha256_of_files, write_result

    fresh = [row["target"] for row in figures]
    others = [row for row in before() if row["target"] not in fresh]
    rows = sorted([*others, *figures], key=lambda row: list(TARGETS).index(row["target"]))
    names = ("seconds", "executions", "edges", "features", "corpus_found", "crashes")
    write_result(
        RESULT,
        {
            "schema_version": 1,
            "atheris": metadata.version("atheris"),
            "longest_input": LONGEST,
            "rows": rows,
        },
        seeds=[SEED],
        data=sha256_of_files([CORPUS]),
        exact=(),
        measured=(*names, "corpus_files", "corpus_bytes"),
    )


if __name__ == "__main__":
    main()
