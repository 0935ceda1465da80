"""vllm_engine.py: refused without vLLM; what is asked of it and how its answers are read.

vLLM itself is not installed where these tests run: `StandIn` has the documented names and answers
with the tiny model.
"""

import importlib.util
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fixtures_server import tiny_generator
from skipalign import tiny
from skipalign.errors import ModelError
from skipalign.vllm_engine import VllmGenerator

PATH = str(tiny.BASE)


class StandIn:
    __version__ = "0.0"

    def __init__(self):
        self.engines = []

    def LLM(self, **given):  # noqa: N802 - vLLM's name
        self.engines.append(given)
        return self

    def SamplingParams(self, *, temperature, max_tokens, min_tokens, stop_token_ids):  # noqa: N802
        assert temperature == 0.0
        options = {"max_new_tokens": max_tokens, "min_new_tokens": min_tokens}
        return {**options, "more_stop_ids": stop_token_ids}

    def generate(self, prompts, params, *, use_tqdm):
        asked = [prompt["prompt_token_ids"] for prompt in prompts]
        found = tiny_generator().generate(asked, **params)
        stop = params["more_stop_ids"][0]  # vLLM's ids hold the token that ended them
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=(*each.ids, stop))])
            for each in found
        ]


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "")  # so that it is put back afterwards
    monkeypatch.delenv("VLLM_NO_USAGE_STATS")
    made = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", made)
    return made


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_how_to_get_it():
    with pytest.raises(ModelError, match=r"pip install 'skipalign\[vllm\]'"):
        VllmGenerator(PATH, tiny_generator().tokenizer, {})


def test_answers_end_before_any_stop_and_keep_their_order(vllm):
    tokenizer = tiny_generator().tokenizer
    prompts = [tokenizer(text)["input_ids"] for text in ("She saw the", "He went", "It was a")]
    (first, *_) = tiny_generator().generate(prompts, max_new_tokens=6)
    options = {"max_new_tokens": 6, "more_stop_ids": [first.ids[2]], "min_new_tokens": 1}
    generator = VllmGenerator(PATH, tokenizer, {"max_model_len": 64, "trust_remote_code": True})
    found = generator.generate([np.array(prompt) for prompt in prompts], **options)
    assert found == tiny_generator().generate(prompts, **options)
    assert found[0].ids == first.ids[:2]
    assert vllm.engines == [{"max_model_len": 64, "trust_remote_code": False, "model": PATH}]


def test_no_usage_statistics_are_sent(vllm):
    VllmGenerator(PATH, tiny_generator().tokenizer, {})
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_positions_are_refused(vllm):
    generator = VllmGenerator(PATH, tiny_generator().tokenizer, {})
    with pytest.raises(ModelError, match="positions are given, and vLLM takes none"):
        generator.generate([[5]], max_new_tokens=1, position_ids=[np.array([9])])


def test_identity_tells_engines_apart(vllm):
    tokenizer = tiny_generator().tokenizer
    one, same, other = (
        VllmGenerator(PATH, tokenizer, {"max_model_len": length}).identity
        for length in (64, 64, 65)
    )
    assert one == same != other
