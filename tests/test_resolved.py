"""resolved.py: what decides the weights, as JSON, and what does not."""

import json
from dataclasses import replace

from made_training import training
from skipalign.evaluation.needle import NeedleSettings
from skipalign.key_bias import GapBias
from skipalign.positions import Contiguous, SkipAlign


def test_settings_are_all_that_decides_the_weights_and_nothing_else():
    one = training()
    same = replace(one, directory="elsewhere", tasks={"needle": NeedleSettings(lengths=(9999,))})
    assert json.dumps(same.settings(), default=str) == json.dumps(one.settings(), default=str)
    for change in ({"seed": 1}, {"key_bias": GapBias()}, {"logit_scale": 2.0}, {"train": False}):
        assert replace(one, **change).settings() != one.settings(), change


def test_strategies_that_do_not_skip_have_no_range():
    one = training()
    assert one.max_position == 512
    both = {"chats": Contiguous(), "long": SkipAlign(max_position=64)}
    assert replace(one, strategies=both).max_position == 64
    assert replace(one, strategies={"chats": Contiguous()}).max_position == 0
