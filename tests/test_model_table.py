"""The page of models is what its script finds, and the script finds what the probe does not see."""

from pathlib import Path

import pytest

from made_scripts import script
from skipalign.model import refuse_skips

ROOT = Path(__file__).parents[1]
TABLE = script("benchmarks/model_table.py")
QUICK = ("Llama 3.1", "Qwen3", "Gemma 2, within its window", "Llama 4", "DeepSeek V3", "Falcon RW")


def row_of(family: str) -> str:
    return next(TABLE.row(*each) for each in TABLE.FAMILIES if each[0] == family)


@pytest.mark.parametrize("family", QUICK)
def test_a_row_of_the_page_is_what_the_probe_finds(family: str):
    lines = (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    assert row_of(family) in lines


def test_the_page_has_a_row_for_each_family():
    lines = (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    families = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert families[1:] == [each[0] for each in TABLE.FAMILIES]


@pytest.mark.parametrize("family", ["Qwen3-Next", "Llama 4", "Mistral 7B v0.1"])
def test_what_is_refused_by_the_config_is_what_the_second_way_finds(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    """Were they not refused, the script would stop: the probe alone passes them."""
    monkeypatch.setattr(TABLE, "refuse_skips", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="passes the probe, but of_a_gap is"):
        row_of(family)
    assert TABLE.refuse_skips is not refuse_skips
