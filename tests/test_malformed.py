"""Each malformed input ends as the table says: no traceback, no hang, nothing lost in silence."""

import itertools

import pytest

from made_malformed import malformed
from made_scripts import script

malformed_table = script("benchmarks/malformed_table.py")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return malformed_table.rows()


def test_every_input_ends_as_it_is_written_down(rows: list[dict[str, str]]):
    wrong = [
        (found, wanted["outcome"])
        for found, wanted in zip(rows, malformed_table.kept(), strict=True)
        if found != wanted
    ]
    assert not wrong, "mend it, or benchmarks/malformed_table.py --outcomes where it is right"


def test_the_inputs_are_many_of_many_kinds_and_no_two_alike():
    made = list(malformed())
    assert len(made) >= 500
    assert len({each.kind for each in made}) >= 30
    assert len({(each.kind, each.name) for each in made}) == len(made)


def test_no_good_row_is_lost_beside_a_bad_line(rows: list[dict[str, str]]):
    """A bad row of JSON lines stands between two good ones, which are read whatever it holds."""
    kinds = {each.kind for each in malformed() if each.file == "a.jsonl"}
    whole_files = {"encodings", "line ends", "whole files", "rows over the limit", "gz"}
    beside = [row for row in rows if row["kind"] in kinds - whole_files]
    assert len(beside) > 400
    for row in beside:
        assert row["outcome"].startswith(("good 2", "good 3")), row


def test_what_takes_too_long_is_stopped():
    with pytest.raises(TimeoutError, match="took over"), malformed_table.at_most(0.01):
        any(n < 0 for n in itertools.count())
