"""Make the pages and tables that nobody writes by hand: python benchmarks/pages.py [--check]

Each of SCRIPTS makes whole documents, or what stands between two marks of a document:
<!-- NAME --> and <!-- /NAME -->, of which the first may say more after the name. Its `made()`
returns every such document as it should be, and `python SCRIPT [--check]` runs it alone.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = (*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md")))
SCRIPTS = (
    "benchmarks/readme_tables.py",
    "benchmarks/results_table.py",
    "benchmarks/confirmation_bars.py",
    "benchmarks/transfer_table.py",
    "benchmarks/malformed_table.py",
    "benchmarks/model_table.py",
    "docs/commands.py",
    "docs/reference.py",
)


def result(name: str) -> dict[str, Any]:
    """Return what benchmarks/results holds under a name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def filled(mark: str, text_of: Callable[[re.Match[str]], str]) -> dict[Path, str]:
    """Return the documents that have a mark, with what follows it made anew.

    Args:
        mark: what the first comment says, as a pattern.
        text_of: makes the text from that comment.

    Raises:
        SystemExit: no document has it.
    """
    block = re.compile(rf"<!-- {mark} -->\n(?P<held>(?:(?!<!--).)*)(?=<!-- /)", re.DOTALL)

    def anew(found: re.Match[str]) -> str:
        return found[0].removesuffix(found["held"]) + text_of(found) + "\n"

    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    made = {path: block.sub(anew, text) for path, text in texts.items() if block.search(text)}
    if not made:
        raise SystemExit(
            f"README and docs have no <!-- {mark} --> with an end: put it where it was"
        )
    return made


def differing(documents: Mapping[Path, str]) -> dict[Path, str]:
    """Return those of the documents that are not yet so."""
    return {
        path: text
        for path, text in documents.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def write(documents: Mapping[Path, str], *, check: bool = False) -> None:
    """Write documents, or with `check` end with 1 and name those that would change."""
    changed = differing(documents)
    if check and changed:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in changed)
        raise SystemExit(f"not what python {sys.argv[0]} makes: {names}; run it")
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")


def arguments(told: str | None) -> argparse.ArgumentParser:
    """Return what every script takes; `told` is its docstring."""
    parser = argparse.ArgumentParser(description=(told or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where it would change")
    return parser


def main(made: Callable[[], Mapping[Path, str]], told: str | None) -> None:
    """Run a script that makes documents and does nothing else."""
    check = arguments(told).parse_args().check
    write(made(), check=check)


def remake(*, check: bool) -> int:
    """Run all scripts, also after one that failed; return 1 where one did."""
    flags = ["--check"] if check else []
    ended = [
        subprocess.run([sys.executable, script, *flags], cwd=ROOT, check=False).returncode
        for script in SCRIPTS
    ]
    return int(any(ended))


if __name__ == "__main__":
    sys.exit(remake(check=arguments(__doc__).parse_args().check))
