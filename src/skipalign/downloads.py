"""Rows -> a link that holds them as a csv file, so that one page carries its data with it."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote


def csv_link(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a data: link to a csv file; '' for none.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    if not rows:
        return ""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _harmless(value) for key, value in row.items()})
    return "data:text/csv;charset=utf-8," + quote(
        file.getvalue(), safe=",:;/[]", errors="backslashreplace"
    )


def _harmless(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return f"{value:.6g}" if isinstance(value, float) else value
