"""claim.py: what a folder's training began with, and whether that is what is asked for now."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from made_training import training
from skipalign.claim import finished, holds_work, require_same_settings, trained_on, unlike
from skipalign.errors import RunError
from skipalign.files import write_json
from skipalign.key_bias import GapBias
from skipalign.progress import Silent


def test_a_training_that_knows_nothing_of_a_new_setting_had_its_default():
    one = training(key_bias=GapBias())
    known = json.loads(json.dumps(one.settings(), default=str))
    del known["key_bias"]["keep_answer_zero"], known["strategies"]["chats"]["name"]
    assert [told[:10] for told in unlike(known, one)] == ["strategies"]
    known["strategies"] = json.loads(json.dumps(one.settings()["strategies"]))
    assert unlike(known, one) == []
    other = replace(one, key_bias=GapBias(keep_answer_zero=True))
    assert [told[:8] for told in unlike(known, other)] == ["key_bias"]


def test_an_empty_folder_holds_nothing_and_a_checkpoint_is_work(tmp_path: Path):
    assert not holds_work(tmp_path)
    assert finished(training(key_bias=GapBias()), tmp_path, Silent()) is None
    write_json(tmp_path / "settings.json", {"schema_version": 1, "data": {"chats": ["x"]}})
    assert trained_on(tmp_path) is None
    (tmp_path / "checkpoints/checkpoint-2").mkdir(parents=True)
    assert holds_work(tmp_path)
    assert trained_on(tmp_path) == {"chats": ["x"]}


def test_results_whose_model_was_deleted_are_not_taken_for_those_of_other_settings(tmp_path: Path):
    one = training(key_bias=GapBias())
    write_json(tmp_path / "settings.json", json.loads(json.dumps(one.settings(), default=str)))
    (tmp_path / "evaluation/needle").mkdir(parents=True)
    require_same_settings(one, tmp_path)
    with pytest.raises(RunError, match=r"other settings \(seed: 0 there, 1 here\)"):
        require_same_settings(replace(one, seed=1), tmp_path)
