"""The arms of benchmarks/transfer.py: each changes one thing of the needle as it was trained."""

import json
from dataclasses import asdict
from pathlib import Path

from made_scripts import script

transfer = script("benchmarks/transfer.py")


def test_an_arm_changes_one_thing_and_no_other(tmp_path):
    texts = transfer.haystacks(tmp_path)
    trained = asdict(transfer.settings_of("as trained", texts))
    changed = {
        arm: {key for key, value in asdict(found).items() if value != trained[key]}
        for arm in transfer.ARMS
        for found in [transfer.settings_of(arm, texts)]
    }
    assert changed == {
        "as trained": set(),
        "another template": {"needle"},
        "a thousand names": {"keys"},
        "near keys": {"keys", "near_keys"},
        "repeated filler": {"haystack"},
        "legal filler": {"haystack"},
        "names in the filler": {"haystack"},
        "question first": {"question_first"},
        "two needles": {"num_needles", "max_new_tokens"},
        "two places": {"link"},
        "turned round": {"needle"},
    }


def test_the_table_has_a_row_for_each_arm():
    document = json.loads(transfer.RESULT.read_text(encoding="utf-8"))
    made = script("benchmarks/transfer_table.py").table(document)
    assert [line.split(" | ")[0] for line in made.splitlines()[2:]] == [
        f"| {arm}" for arm in transfer.ARMS
    ]


def test_the_filler_of_names_is_drawn_the_same_each_time_and_holds_values_alone(tmp_path):
    paths = [transfer.haystacks(tmp_path / folder)["names in the filler"] for folder in "ab"]
    one, other = (Path(path).read_text(encoding="utf-8") for path in paths)
    assert one == other
    words = set(one.replace(",", " ").replace(".", " ").split())
    assert len(words & set(transfer.VALUES)) == len(transfer.VALUES)
    assert not words & set(transfer.KEYS)
