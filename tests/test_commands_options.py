"""Options that several commands share: what they take and what they refuse."""

import click
import pytest

from skipalign.commands.options import OVERRIDES, names, numbers


@click.command()
@OVERRIDES
@click.option("--sizes", callback=numbers(int))
@click.option("--only", callback=names)
def show(**given: object) -> dict[str, object]:
    return given


def read(*words: str) -> dict[str, object]:
    return show.main(list(words), standalone_mode=False)


def test_lists_are_parted_at_commas():
    found = read("--sizes", "1,20", "--only", "a, b")
    assert found == {"overrides": (), "sizes": (1, 20), "only": ("a", "b")}
    assert read() == {"overrides": (), "sizes": None, "only": None}


@pytest.mark.parametrize(
    ("words", "part"),
    [(("--sizes", "1,x"), "numbers with commas"), (("trainer",), "'trainer' is no KEY=VALUE")],
)
def test_what_is_no_list_and_no_pair_is_refused(words: tuple[str, ...], part: str):
    with pytest.raises(click.BadParameter, match=part):
        read(*words)
