"""visible.py: foreign text steers nothing where it is shown."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipalign.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\x07b\rc", r"a\x07b\x0dc"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("\u200b\u2028\ufeff", r"\u200b\u2028\ufeff"),
        ("\x9b31m", r"\x9b31m"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
        ("plain ä 漢 🙂\n\tnext", "plain ä 漢 🙂\n\tnext"),
    ],
    ids=ascii,
)
def test_what_would_steer_a_terminal_is_written_out(text: str, shown: str):
    assert visible(text) == shown


def test_what_the_terminal_cannot_hold_is_written_out():
    assert visible("ä⟨🙂", "ascii") == r"\xe4\u27e8\U0001f642"
    assert visible("ä⟨", "latin-1") == "ä\\u27e8"
    assert visible("ä", "no-such-encoding") == r"\xe4"


@given(st.text(alphabet=st.characters()))
def test_nothing_shown_is_a_control_or_a_mark_of_direction(text: str):
    for character in visible(text):
        assert (
            character in "\n\t"
            or unicodedata.category(character)[0] != "C"
            or (unicodedata.category(character) in ("Cn", "Co"))
        )
