"""transformers_engine.py: greedy, the same alone and in a batch; no jump cuts attention."""

import logging
import warnings

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from fixtures_eval import tiny_llama, train_tokenizer
from skipalign.errors import ModelError
from skipalign.transformers_engine import TransformersGenerator

NEW = 6


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture
def generator(model, tokenizer):
    made = TransformersGenerator(model, tokenizer)
    made.stop_ids = frozenset()
    return made


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 600, size=length).tolist() for length in lengths]


def plain_greedy(model, ids, positions=None, num_new=NEW, visible=None):
    """No cache, no padding, a 4-D mask that says who sees whom: nothing is left to infer."""
    ids = list(ids)
    positions = list(range(len(ids))) if positions is None else [int(p) for p in positions]
    for _ in range(num_new):
        size = len(ids)
        seen = torch.ones(size, size, dtype=torch.bool).tril()
        if visible is not None:
            seen &= visible(size)
        mask = torch.zeros(1, 1, size, size, dtype=model.dtype).masked_fill(~seen, -1e30)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]),
                attention_mask=mask,
                position_ids=torch.tensor([positions]),
                use_cache=False,
            ).logits
        ids.append(int(logits[0, -1].argmax()))
        positions.append(positions[-1] + 1)
    return ids[-num_new:]


def shapes_of(model):
    """Record the shape and padding of every first forward pass."""
    seen = []

    def record(module, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        if ids.shape[1] > 1:
            seen.append((*ids.shape, int((mask == 0).sum())))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return seen


def test_answers_are_those_of_a_plain_greedy_loop(model, generator):
    prompts = prompts_of(30, 30, 7, 41)
    answers = generator.generate(prompts, max_new_tokens=NEW)
    assert [answer.ids for answer in answers] == [plain_greedy(model, ids) for ids in prompts]
    assert len({tuple(answer.ids) for answer in answers}) == 4


def test_answers_are_those_of_transformers_generate(model, generator):
    (prompt,) = prompts_of(25)
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
    (answer,) = generator.generate([prompt], max_new_tokens=NEW)
    assert answer.ids == expected[0, 25:].tolist()


def test_the_same_answer_alone_and_padded_in_a_batch(model, generator):
    prompts = prompts_of(44, 40, 42, 39, 43)
    alone = [generator.generate([prompt], max_new_tokens=NEW)[0] for prompt in prompts]
    seen = shapes_of(model)
    together = generator.generate(prompts, max_new_tokens=NEW)
    assert seen == [(5, 44, 4 + 2 + 5 + 1)]  # one batch, padded
    assert together == alone


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_jump_moves_logits_and_cuts_nothing(model, generator, attention):
    model.float().set_attn_implementation(attention)  # eager computes its softmax in float32
    prompts = prompts_of(40, 37, 40)
    jumps = [np.where(np.arange(len(p)) >= 25, 100, 0) + np.arange(len(p)) for p in prompts]
    answers = generator.generate(prompts, max_new_tokens=NEW, position_ids=jumps)
    for prompt, positions, answer in zip(prompts, jumps, answers, strict=True):
        assert answer.ids == plain_greedy(model, prompt, positions)
        assert answer.ids != plain_greedy(model, prompt)

        def same_side(size):
            side = torch.arange(size) >= 25
            return side[:, None] == side[None, :]

        assert answer.ids != plain_greedy(model, prompt, positions, visible=same_side)


def test_a_jump_is_not_cut_without_a_cache_in_the_config(model, generator):
    """`model.generate` drops a mask of ones, and then cuts where there is no cache."""
    model.config.use_cache = False
    model.generation_config.use_cache = False
    (prompt,) = prompts_of(40)
    positions = np.where(np.arange(40) >= 25, 100, 0) + np.arange(40)
    (answer,) = generator.generate([prompt], max_new_tokens=NEW, position_ids=[positions])
    assert answer.ids == plain_greedy(model, prompt, positions)


def test_batches_are_limited_by_tokens_and_waste_little_padding(model, generator):
    generator.batch_tokens = 400
    seen = shapes_of(model)
    lengths = [100] * 20 + [10, 11, 12, 60, 55, 57, 300, 500]
    prompts = prompts_of(*np.random.default_rng(1).permutation(lengths).tolist())
    answers = generator.generate(prompts, max_new_tokens=2)
    assert sum(rows for rows, _, _ in seen) == 28
    assert [shape for shape in seen if shape[1] == 100] == [(4, 100, 0)] * 5
    assert seen[0] == (1, 500, 0)  # longer than the limit: alone
    for rows, length, padding in seen[1:]:
        assert rows * length <= 400
        assert padding <= rows * length / 8
    assert answers == [generator.generate([p], max_new_tokens=2)[0] for p in prompts]


def test_positions_stay_with_their_prompt_when_sorted(model, generator):
    prompts = prompts_of(20, 60, 35)
    positions = [np.arange(len(p)) + 50 * index for index, p in enumerate(prompts)]
    positions = [np.where(np.arange(len(p)) > 9, p + 30, p) for p in positions]
    answers = generator.generate(prompts, max_new_tokens=NEW, position_ids=positions)
    expected = [plain_greedy(model, *pair) for pair in zip(prompts, positions, strict=True)]
    assert [answer.ids for answer in answers] == expected


def test_an_answer_goes_on_from_what_a_cache_holds(model, generator):
    from transformers import DynamicCache

    (prompt,) = prompts_of(40)
    cache = DynamicCache(config=model.config)
    expected, logits = generator.answer_from(cache, np.array(prompt[:30]), NEW)
    assert expected.ids == plain_greedy(model, prompt[:30])
    assert int(logits.argmax()) == expected.ids[0] != expected.ids[1]
    cache.crop(25 - cache.get_seq_length())
    seen = shapes_of(model)
    answer, logits = generator.answer_from(cache, np.array(prompt), NEW)
    assert seen == [(1, 15, 0)]
    assert answer.ids == plain_greedy(model, prompt)
    assert int(logits.argmax()) == answer.ids[0]
    assert cache.get_seq_length() == 40 + NEW - 1


def test_further_tokens_end_an_answer_but_not_before_its_least_length(model, generator):
    prompts = prompts_of(20, 20, 13)
    full = [plain_greedy(model, prompt) for prompt in prompts]
    stops = {full[0][2], full[1][0]}
    ended = [
        row[: next((place for place, token in enumerate(row) if token in stops), NEW)]
        for row in full
    ]
    answers = generator.generate(prompts, max_new_tokens=NEW, more_stop_ids=stops)
    assert [answer.ids for answer in answers] == ended
    assert ended[1] == []
    answers = generator.generate(prompts, max_new_tokens=NEW, more_stop_ids=stops, min_new_tokens=1)
    assert answers[0].ids == ended[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompts[1]])).logits[0, -1]
    logits[sorted(stops)] = -torch.inf
    assert answers[1].ids[0] == int(logits.argmax())
    answers = generator.generate(prompts, max_new_tokens=NEW)
    assert [answer.ids for answer in answers] == full  # nothing of it stays


def test_an_answer_ends_before_any_stop_id(model, tokenizer):
    (prompt,) = prompts_of(20)
    full = plain_greedy(model, prompt, num_new=8)
    place = next(i for i in range(2, 8) if full[i] not in full[:i])
    model.generation_config.eos_token_id = [3, full[place]]
    generator = TransformersGenerator(model, tokenizer)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    (answer,) = generator.generate([prompt], max_new_tokens=50)
    assert answer.ids == full[:place]
    assert answer.text == tokenizer.decode(full[:place], skip_special_tokens=True)
    assert len(calls) == place + 1  # and nothing is computed after it


def test_rows_that_stop_early_do_not_change_the_others(model, tokenizer):
    prompts = prompts_of(20, 20)
    full = [plain_greedy(model, prompt, num_new=8) for prompt in prompts]
    assert full[0][1] not in full[1]
    model.generation_config.eos_token_id = full[0][1]
    generator = TransformersGenerator(model, tokenizer)
    generator.stop_ids = frozenset({full[0][1]})
    answers = generator.generate(prompts, max_new_tokens=8)
    assert [answer.ids for answer in answers] == [full[0][: full[0].index(full[0][1])], full[1]]


def test_a_batch_that_does_not_fit_is_halved(model, generator):
    prompts = prompts_of(*[30] * 9)
    expected = generator.generate(prompts, max_new_tokens=NEW)
    sizes = []

    def out_of_memory(module, args, kwargs):
        rows = len(kwargs["input_ids"])
        sizes.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    assert generator.generate(prompts, max_new_tokens=NEW) == expected
    assert sizes[:3] == [9, 4, 2]
    assert max(sizes[3:]) == 2  # what did not fit once is not tried again


def test_a_batch_that_outgrows_memory_while_it_answers_is_halved(model, generator):
    prompts = prompts_of(30, 31, 32, 30)
    expected = [generator.generate([prompt], max_new_tokens=NEW)[0] for prompt in prompts]
    seen = []

    def out_of_memory(module, args, kwargs):
        rows, cache = len(kwargs["input_ids"]), kwargs["past_key_values"]
        seen.append((rows, cache.get_seq_length()))
        if rows * cache.get_seq_length() > 3 * 33:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    assert generator.generate(prompts, max_new_tokens=NEW) == expected
    assert seen[:3] == [(4, 0), (4, 32), (2, 0)]


def test_one_prompt_that_does_not_fit_is_an_error(model, generator):
    def out_of_memory(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(out_of_memory)
    with pytest.raises(ModelError, match=r"30 tokens does not fit .* shorten it"):
        generator.generate(prompts_of(30, 30, 30), max_new_tokens=NEW)


def test_modes_gradients_and_the_tokenizer_are_left_as_they_were(model, generator, tokenizer):
    model.train()
    model.model.layers[0].eval()  # a part that its owner has frozen
    modes = [module.training for module in model.modules()]
    side, calls = tokenizer.padding_side, []
    model.register_forward_pre_hook(
        lambda *_: calls.append((model.training, torch.is_grad_enabled()))
    )
    generator.generate(prompts_of(10, 12), max_new_tokens=2)
    with pytest.raises(ModelError):
        generator.generate([[]], max_new_tokens=2)
    assert set(calls) == {(False, False)}
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert tokenizer.padding_side == side


def test_sampling_settings_of_the_checkpoint_change_nothing_and_nothing_is_logged(
    model, generator, caplog
):
    prompts = prompts_of(100)  # beyond max_position_embeddings, which is what we measure
    expected = [plain_greedy(model, ids) for ids in prompts]
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.3, top_p=0.5, repetition_penalty=5.0, max_length=10
    )
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answers = generator.generate(prompts, max_new_tokens=NEW)
    finally:
        logger.removeHandler(caplog.handler)
    assert [answer.ids for answer in answers] == expected
    assert caplog.records == []


@pytest.mark.parametrize(
    ("prompts", "positions", "message"),
    [
        ([[5, 6], []], None, r"prompt 1 has 0 tokens"),
        ([[5, 600]], None, r"token ids 5 to 600, the model knows 0 to 599"),
        ([[5, -1]], None, r"token ids -1 to 5"),
        ([[5, 6]], [np.arange(3)], r"2 tokens and 3 position_ids"),
        ([[5, 6], [7]], [np.arange(2)], r"1 arrays of position_ids for 2 prompts"),
    ],
)
def test_prompts_that_cannot_be_asked(generator, prompts, positions, message):
    with pytest.raises(ModelError, match=message):
        generator.generate(prompts, max_new_tokens=1, position_ids=positions)


def test_logits_that_are_not_numbers_are_an_error(model, generator):
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"not numbers \(NaN\) after 5 tokens"):
        generator.generate(prompts_of(5), max_new_tokens=1)


def plain_log_likelihoods(model, ids, start):
    """One text, no padding, no cache, all logits at once."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    told = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return told[start - 1 :].numpy()


@pytest.mark.parametrize("logits_at_once", [None, 600 * 5 * 7, 1])
def test_log_likelihoods_are_those_of_one_plain_forward_pass(
    model, generator, monkeypatch, logits_at_once
):
    """In a padded batch, in one pass or in chunks over a cache; logits stay within their limit."""
    if logits_at_once:
        monkeypatch.setattr("skipalign.transformers_engine._LOGITS_AT_ONCE", logits_at_once)
    shapes = []
    model.register_forward_hook(lambda *call: shapes.append(tuple(call[2].logits.shape)))
    texts = prompts_of(44, 40, 42, 39, 43)
    starts = [1, 39, 20, 5, 43 - 7]
    found = generator.log_likelihoods(texts, starts)
    per_pass = {None: 43, 600 * 5 * 7: 7, 1: 1}[logits_at_once]
    assert shapes[0] == (5, per_pass, 600)
    assert sum(shape[1] for shape in shapes) == 43
    for text, start, row in zip(texts, starts, found, strict=True):
        assert len(row) == len(text) - start
        np.testing.assert_allclose(row, plain_log_likelihoods(model, text, start), rtol=1e-9)


def test_texts_that_do_not_fit_together_are_scored_in_halves(model, generator):
    texts = prompts_of(*[30] * 9)
    expected = generator.log_likelihoods(texts, [10] * 9)

    def out_of_memory(module, args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    np.testing.assert_allclose(generator.log_likelihoods(texts, [10] * 9), expected, rtol=1e-9)


@pytest.mark.parametrize("start", [0, -1, 9])
def test_a_text_is_scored_from_its_second_token_at_the_earliest(generator, start):
    with pytest.raises(ModelError, match=rf"text 1 has 9 tokens .* from token {start} on"):
        generator.log_likelihoods(prompts_of(9, 9), [1, start])


def test_log_likelihoods_that_are_not_numbers_are_an_error(model, generator):
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"not numbers \(NaN\)"):
        generator.log_likelihoods(prompts_of(5), [2])


def test_no_prompts_and_no_tokens(generator):
    assert generator.log_likelihoods([], []) == []
    assert generator.generate([], max_new_tokens=3) == []
    (answer,) = generator.generate(prompts_of(5), max_new_tokens=0)
    assert (answer.ids, answer.text) == ([], "")


def test_identity_tells_checkpoints_apart(model, tokenizer):
    first = TransformersGenerator(model, tokenizer).identity
    assert TransformersGenerator(tiny_llama(), tokenizer).identity == first
    model.config.rope_parameters["rope_theta"] = 5e5
    assert TransformersGenerator(model, tokenizer).identity != first
    other = tiny_llama()
    other.model.layers[1].self_attn.k_proj.weight.data *= 1.001
    assert TransformersGenerator(other, tokenizer).identity != first
