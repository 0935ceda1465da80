"""reuse.py: every shared beginning is computed once, and no answer changes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config

from fixtures_eval import tiny_llama, train_tokenizer
from skipalign import reuse
from skipalign.errors import ModelError
from skipalign.transformers_engine import TransformersGenerator

NEW = 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture
def generator(tokenizer):
    made = TransformersGenerator(tiny_llama(), tokenizer)
    made.stop_ids = frozenset()
    return made


def branching_prompts():
    """A text, three needles in it at two places, each cut at several lengths; two are the same."""
    rng = np.random.default_rng(0)
    text = rng.integers(5, 600, size=90)
    prompts = []
    for place, needle in ((20, [7, 8]), (20, [7, 9]), (55, [10, 11])):
        whole = np.concatenate([text[:place], needle, text[place:]])
        prompts += [np.concatenate([whole[:stop], [30, 31]]) for stop in (60, 75, 92)]
    prompts += [prompts[0], text[:70]]
    return [prompts[index].tolist() for index in rng.permutation(len(prompts))]


def test_answers_are_those_of_every_prompt_alone_and_each_beginning_is_computed_once(generator):
    prompts = branching_prompts()
    computed = []
    generator.model.register_forward_pre_hook(
        lambda _, __, given: computed.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    found = list(reuse.answers(generator, prompts, max_new_tokens=NEW))
    beginnings = {tuple(ids[:stop]) for ids in prompts for stop in range(1, len(ids) + 1)}
    # The last token of a prompt that comes twice is read again: it has the logits.
    assert sum(each.num_computed for each in found) == len(beginnings) + 1
    assert sum(computed) == len(beginnings) + 1 + len(prompts) * (NEW - 1)
    assert sorted(each.index for each in found) == list(range(len(prompts)))
    expected = generator.generate(prompts, max_new_tokens=NEW)
    assert [each.completion for each in sorted(found, key=lambda each: each.index)] == expected
    assert len({tuple(answer.ids) for answer in expected}) > 5
    assert all(each.check is None for each in found)


def test_long_extensions_are_read_in_chunks(generator, monkeypatch):
    prompts = branching_prompts()
    expected = generator.generate(prompts, max_new_tokens=NEW)
    monkeypatch.setattr("skipalign.transformers_engine._TOKENS_ON_CACHE", 4)
    sizes = []
    generator.model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    for each in reuse.answers(generator, prompts, max_new_tokens=NEW):
        assert each.completion == expected[each.index]
    assert max(sizes[1:]) == 4
    assert sizes[0] > 50  # what is read from the start needs no mask


def test_checked_prompts_are_computed_the_plain_way_as_well(generator):
    prompts = branching_prompts()
    found = list(reuse.answers(generator, prompts, max_new_tokens=NEW, checked=(2, 5)))
    assert {each.index for each in found if each.check} == {2, 5}
    for each in found:
        if each.check:
            assert each.check.answer == each.completion.text
            assert 0 <= each.check.logit_difference < 1e-9  # float64


def test_a_check_sees_a_cache_that_is_wrong(generator, monkeypatch):
    prompts = branching_prompts()
    monkeypatch.setattr("skipalign.reuse._num_alike", lambda one, _: min(40, len(one)))
    found = reuse.answers(generator, prompts, max_new_tokens=NEW, checked=range(len(prompts)))
    wrong = [each for each in found if each.check.answer != each.completion.text]
    assert len(wrong) > 5
    assert all(each.check.logit_difference > 1e-3 for each in wrong)


def test_an_answer_ends_where_it_would_alone(generator):
    prompts = branching_prompts()
    full = generator.generate(prompts, max_new_tokens=NEW)
    generator.stop_ids = frozenset({full[3].ids[2]})
    for each in reuse.answers(generator, prompts, max_new_tokens=NEW):
        assert [each.completion] == generator.generate([prompts[each.index]], max_new_tokens=NEW)


def test_between_answers_the_callers_gradients_and_modes_are_untouched(generator):
    generator.model.train()
    for _ in reuse.answers(generator, branching_prompts(), max_new_tokens=1):
        assert torch.is_grad_enabled()
        assert generator.model.training


def test_a_prompt_that_does_not_fit_is_an_error(generator):
    def out_of_memory(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    generator.model.register_forward_pre_hook(out_of_memory)
    with pytest.raises(ModelError, match=r"94 tokens does not fit .* shorten it"):
        list(reuse.answers(generator, branching_prompts()[:1], max_new_tokens=NEW))


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
}


def refused(config, tokenizer):
    model = AutoModelForCausalLM.from_config(config)
    return reuse.refusal(TransformersGenerator(model, tokenizer))


def test_reuse_is_refused_where_it_is_not_exact(tokenizer):
    assert refused(Qwen2Config(**SMALL), tokenizer) is None
    assert refused(MistralConfig(**SMALL, sliding_window=None), tokenizer) is None
    assert "DynamicSlidingWindowLayer" in refused(
        MistralConfig(**SMALL, sliding_window=16), tokenizer
    )
    mixed = Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    assert "DynamicSlidingWindowLayer" in refused(mixed, tokenizer)
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "'dynamic' chooses its frequencies" in refused(
        Qwen2Config(**SMALL, rope_parameters=dynamic), tokenizer
    )
    assert reuse.refusal(SimpleNamespace()) == "SimpleNamespace has no cache that can be cropped"
