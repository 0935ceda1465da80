"""Write the arms of docs/confirmation.md: python benchmarks/transfer_table.py [--check]

Made from benchmarks/results/transfer-tiny.json, which transfer.py writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pages

MARK = "arms"


def table(document: Mapping[str, Any]) -> str:
    """Return needle accuracy by arm at the ends of the lengths, and the last method less PoSE."""
    rows = {(row["arm"], row["method"], row["context_length"]): row for row in document["rows"]}
    pairs = {(row["arm"], row["method"], row["context_length"]): row for row in document["paired"]}
    methods = list(dict.fromkeys(method for _, method, _ in rows))
    lengths = sorted({length for _, _, length in rows})
    ends = [(method, length) for length in (lengths[0], lengths[-1]) for method in methods]
    heads = ["arm", *(f"{method}, {length:,}" for method, length in ends)]
    heads.append(f"{methods[-1]} less {document['reference']}, {lengths[-1]:,}")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for arm in document["arms"]:
        cells = [f"{rows[(arm, *end)]['mean']:.2f}" for end in ends]
        pair = pairs[arm, methods[-1], lengths[-1]]
        cells.append(f"{pair['difference']:+.2f} [{pair['low']:.2f}, {pair['high']:.2f}]")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def made() -> dict[Path, str]:
    """Return the document that has the table."""
    return pages.filled(MARK, lambda _: table(pages.result("transfer-tiny")))


if __name__ == "__main__":
    pages.main(made, __doc__)
