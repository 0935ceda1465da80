"""Bars go to stderr; silence is silent."""

import pytest

from skipalign.progress import Labelled, Silent, Terminal


@pytest.mark.parametrize("progress", [Silent(), Terminal()])
def test_bars_never_write_to_stdout(progress, capsys: pytest.CaptureFixture[str]):
    with progress.bar("train", None) as bar:
        bar.set_total(3)
        bar.advance()
        bar.advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("train" in captured.err) == isinstance(progress, Terminal)
    if isinstance(progress, Terminal):
        assert "3/3" in captured.err


def test_a_label_stands_before_the_description(capsys: pytest.CaptureFixture[str]):
    with Labelled(Terminal(), "normal, seed 0:").bar("train", 2) as bar:
        bar.advance(2)
    assert "normal, seed 0: train" in capsys.readouterr().err
