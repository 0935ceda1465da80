"""Write the tables of README and docs from results: python benchmarks/readme_tables.py [--check]

A table stands between <!-- NAME results --> and <!-- /NAME results --> and is made from
benchmarks/results/NAME.json, as `skipalign report RUN --json-out FILE` writes it. A part of it:
<!-- NAME results of normal, pose at 128, 4096 -->, methods in that order.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pages

MARK = r"(?P<name>[\w-]+) results(?: of (?P<methods>[\w., -]+?) at (?P<lengths>[\d, ]+))?"


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


def asked(mark: re.Match[str]) -> str:
    """Return the table that a mark asks for."""
    methods, lengths = (
        [each.strip() for each in (mark[part] or "").split(",") if each.strip()]
        for part in ("methods", "lengths")
    )
    return table(pages.result(mark["name"]), methods, [int(each) for each in lengths])


def made() -> dict[Path, str]:
    """Return every document that has such a table."""
    return pages.filled(MARK, asked)


if __name__ == "__main__":
    pages.main(made, __doc__)
