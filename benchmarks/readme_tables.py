"""Write the tables of README and docs from results: python benchmarks/readme_tables.py [--check]

A table stands between <!-- NAME results --> and <!-- /NAME results --> and is made from
benchmarks/results/NAME.json, as `skipalign report RUN --json-out FILE` writes it. A part of it:
<!-- NAME results of normal, pose at 128, 4096 -->, methods in that order.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(
    r"<!-- (?P<name>[\w-]+) results(?: of (?P<methods>[\w, -]+?) at (?P<lengths>[\d, ]+))? -->\n"
    r".*?<!-- /(?P=name) results -->",
    re.DOTALL,
)


def table(
    document: Mapping[str, Any], methods: Sequence[str] = (), lengths: Sequence[int] = ()
) -> str:
    """Return needle accuracy by method and context length, and perplexity where it is.

    Args:
        document: the results.
        methods: those to show, in their order; () shows all.
        lengths: those to show of the needle; () shows all.
    """
    rows: Sequence[Mapping[str, Any]] = document["rows"]
    window = document["training_window"]
    lengths = lengths or sorted({row["context_length"] for row in rows})
    cells = {(row["method"], row["context_length"]): row for row in rows}
    text = document["tasks"].get("perplexity", {"rows": []})["rows"]
    measured = {row["context_length"] for row in text}
    ends = sorted({min(measured), max(measured)}) if measured else []
    nats = {(row["method"], row["context_length"]): row for row in text}
    heads = [f"{tokens:,} ({tokens / window:.0f} x)" for tokens in lengths]
    heads += [f"prose at {tokens:,}, nats" for tokens in ends]
    lines = [f"| method | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for method in methods or dict.fromkeys(row["method"] for row in rows):
        shown = [cell(cells.get((method, tokens))) for tokens in lengths]
        shown += [cell(nats.get((method, tokens))) for tokens in ends]
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(lines)


def cell(row: Mapping[str, Any] | None) -> str:
    """Return mean and interval."""
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" if row else "-"


def filled(text: str) -> str:
    """Return a document with every table made anew."""

    def block(found: re.Match[str]) -> str:
        document = json.loads((RESULTS / f"{found['name']}.json").read_text(encoding="utf-8"))
        methods = [each.strip() for each in (found["methods"] or "").split(",") if each.strip()]
        lengths = [int(each) for each in (found["lengths"] or "").split(",") if each.strip()]
        opening = found[0].partition("\n")[0]
        made = table(document, methods, lengths)
        return f"{opening}\n{made}\n<!-- /{found['name']} results -->"

    return BLOCK.sub(block, text)


def main() -> None:
    """Rewrite the documents, or say which are not what the results are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="exit 1 where it would change something"
    )
    check = parser.parse_args().check
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    changed = {path: made for path, text in texts.items() if (made := filled(text)) != text}
    if check:
        names = ", ".join(path.name for path in changed)
        raise SystemExit(f"not what the results are: {names}" if changed else 0)
    for path, made in changed.items():
        path.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
