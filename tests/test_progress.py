"""Bars go to stderr; silence is silent."""

import pytest

from skipalign.progress import Silent, Terminal


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
