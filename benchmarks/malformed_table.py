"""Write docs/malformed.md: what becomes of malformed inputs, by kind, and the outcome of each.

    python benchmarks/malformed_table.py [--outcomes] [--check]

The inputs are made by tests/made_malformed.py; tests/malformed.jsonl holds the outcome of each, one
line an input, and the page is made from it. `--outcomes` reads every input again and writes that
file as well. Tests hold it, so this is for outcomes that have changed as they should.
"""

import hashlib
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pages

sys.path.insert(0, str(pages.ROOT / "tests"))

from made_malformed import Malformed, malformed
from skipalign.conversation import Conversation, read_conversations
from skipalign.errors import RecipeError, SkipalignError
from skipalign.recipe import load

WHAT = {"rows": "files of conversations", "recipe": "recipes"}

OUTCOMES = pages.ROOT / "tests/malformed.jsonl"
PAGE = pages.ROOT / "docs/malformed.md"
MOST_SECONDS = 10  # of one input


def outcome(given: Malformed, folder: Path) -> str:
    """Return what becomes of an input: counts by reason and the first message, or the error."""
    file = folder / given.file
    file.unlink(missing_ok=True)  # some file systems flush a file that is written over
    file.write_bytes(given.data)
    with at_most(MOST_SECONDS):
        read = read_recipe if given.file.endswith(".yaml") else read_rows
        found = read(file, given.options)
    found = found.replace(f"{folder}/", "")
    assert "\n" not in found, found
    assert len(found) < 1000, found
    found.encode()
    return found


def read_rows(file: Path, options: Sequence[Any]) -> str:
    counts: Counter[str] = Counter()
    first = ""
    limit = options[0] if options else 16 * 2**20
    try:
        for item in read_conversations(str(file), name="x", max_row_bytes=limit):
            if isinstance(item, Conversation):
                counts["good"] += 1
            else:
                counts[item.reason] += 1
                first = first or str(item)
    except SkipalignError as error:
        return f"refused: {error}"
    counted = ", ".join(f"{reason} {n}" for reason, n in counts.items())
    return f"{counted}: {first}" if first else counted


def read_recipe(file: Path, options: Sequence[Any]) -> str:
    try:
        recipe = load(file, options)
        recipe.resolved()
        return f"a recipe of {', '.join(recipe.methods)}"
    except RecipeError as error:
        return f"refused: {error}"


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer; code that never returns to Python is not met."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def rows() -> list[dict[str, str]]:
    """Return every input with the digest of its bytes and its outcome."""
    found: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for given in malformed():
            digest = hashlib.sha256(given.data).hexdigest()[:16]
            ended = outcome(given, Path(folder))
            found.append(
                {"kind": given.kind, "name": given.name, "sha256": digest, "outcome": ended}
            )
    return found


def fuzzed() -> list[str]:
    """Return what was looked for by coverage, besides."""
    told = [
        f"{row['executions']:,} {WHAT[row['target']]} in {row['seconds']} s, "
        f"{row['crashes'] or 'no'} crash"
        for row in pages.result("fuzz")["rows"]
    ]
    return [
        f"`python benchmarks/fuzz.py` looks for more by coverage, with atheris: {'; '.join(told)}",
        "([fuzz.json](../benchmarks/results/fuzz.json)). `tests/test_fuzz.py` reads the smallest",
        "inputs that reach every edge again; they are kept in `tests/fuzz_corpus/`.",
        "",
    ]


def page(found: Sequence[dict[str, str]]) -> str:
    """Return the page: inputs by kind, how they end, one message of each kind."""
    kinds = dict.fromkeys(row["kind"] for row in found)
    lines = [
        "# Malformed input",
        "",
        f"{len(found):,} malformed inputs of {len(kinds)} kinds, and what becomes of them. Each is",
        "read in the default test suite and ends as this page was made from: no traceback, none",
        f"over {MOST_SECONDS} seconds. `tests/made_malformed.py` makes the inputs,",
        "`tests/malformed.jsonl` holds the outcome of every one, and this page is written by",
        "`python benchmarks/malformed_table.py`.",
        "",
        "- **kept**: all that could be read is used. Many inputs look odd and are harmless: an",
        "  unknown column, a control character inside a text, a recipe value that is allowed.",
        "- **in part**: good rows are used, each bad row is rejected with its reason and its line.",
        "- **refused**: one error of one line, exit status 1.",
        "",
        *fuzzed(),
        "| kind | inputs | kept | in part | refused | one of them says |",
        "|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        of_kind = [row["outcome"] for row in found if row["kind"] == kind]
        ends = Counter(map(end_of, of_kind))
        said = next((each for each in of_kind if end_of(each) != "kept"), of_kind[0])
        cells = [kind, len(of_kind), *(ends[end] or "" for end in ("kept", "in part", "refused"))]
        lines.append(f"| {' | '.join(map(str, cells))} | {cell(said)} |")
    return "\n".join([*lines, ""])


def end_of(ended: str) -> str:
    """Return which of the three ways an outcome is."""
    if ended.startswith("refused: "):
        return "refused"
    return "in part" if ": " in ended else "kept"


def cell(message: str) -> str:
    """Return a message for a table, as code."""
    words = message.removeprefix("refused: ").replace("|", "\\|").replace("`", "'")
    return f"`{words[:160]}{'...' if len(words) > 160 else ''}`"


def kept() -> list[dict[str, str]]:
    """Return the outcomes that are written down."""
    return [json.loads(line) for line in OUTCOMES.read_text(encoding="ascii").splitlines()]


def made() -> dict[Path, str]:
    """Return the page of the outcomes that are written down."""
    return {PAGE: page(kept())}


def main() -> None:
    """Write the page, or the outcomes and the page, or say that they would change."""
    parser = pages.arguments(__doc__)
    parser.add_argument("--outcomes", action="store_true", help="read every input again")
    given = parser.parse_args()
    documents = made()
    if given.outcomes:
        found = rows()
        lines = "".join(json.dumps(row) + "\n" for row in found)
        documents = {OUTCOMES: lines, PAGE: page(found)}
    pages.write(documents, check=given.check)


if __name__ == "__main__":
    main()
