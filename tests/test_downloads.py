"""downloads.py: the data of a picture, as a file within the page."""

import csv
import io
from urllib.parse import unquote

from skipalign.downloads import csv_link


def test_csv_link_holds_the_rows_and_no_formula():
    rows = [{"method": '=cmd|"x",\n', "mean": 1 / 3, "n": 4}, {"method": "é", "mean": 1.0, "n": 5}]
    link = csv_link(rows)
    head, _, body = link.partition(",")
    assert head == "data:text/csv;charset=utf-8"
    found = list(csv.DictReader(io.StringIO(unquote(body), newline="")))
    assert [row["method"] for row in found] == ["'" + rows[0]["method"], "é"]
    assert [row["mean"] for row in found] == ["0.333333", "1"]
    assert csv_link([]) == ""
