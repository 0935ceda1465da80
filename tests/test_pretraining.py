"""The law of the tiny bases: what rows ask, when an attempt is given up, that it is remade."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from skipalign.errors import ModelError
from skipalign.tiny import pretraining
from skipalign.tiny.pretraining import RowMaker, cosine, pretrain

KEYS, VALUES = np.arange(10, 50), np.arange(50, 90)
WINDOW = 64


def rows(seed: int = 0) -> RowMaker:
    rng = np.random.default_rng(seed)
    conversation = np.arange(1, 41), np.arange(40) >= 30
    return RowMaker(np.arange(500) % 97, (KEYS, VALUES), [conversation], WINDOW, rng)


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
    )


def test_a_name_that_is_named_again_is_the_one_before_the_last():
    ids, weights = rows().naming(5, 32)
    assert ids.shape == weights.shape == (5, 32)
    for last in np.flatnonzero(weights[0] > 1):
        assert (ids[:, last] == ids[:, last - 2]).all()
        assert last % 3 == 2


def test_lists_come_again_in_another_order_and_only_their_values_weigh():
    ids, weights = rows().lists(6, 32)
    for row, weight in zip(ids, weights, strict=True):
        first, again = (part.reshape(-1, 2) for part in (row[:16], row[16:]))
        assert len(set(first[:, 0])) == 8, "keys are unlike, or an answer would not be one"
        assert {tuple(pair) for pair in first} == {tuple(pair) for pair in again}
        assert set(np.flatnonzero(weight > 1)) == set(range(17, 32, 2))
    assert any((row[:16] != row[16:]).any() for row in ids)


def test_rows_of_the_last_stage_fill_the_window_and_weigh_answers():
    maker = rows()
    ids, weights = maker.reading()
    assert ids.shape == (pretraining.TOKENS_PER_STEP // WINDOW, WINDOW)
    talks = [place for place, row in enumerate(ids) if (row[:40] == np.arange(1, 41)).all()]
    assert 0.4 < len(talks) / len(ids) < 0.8
    assert (weights[talks][:, 30:40] == 4).all()
    assert (weights[talks][:, :30] == 1).all()


def quick(monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
    given = {"CHECK_EVERY": 1, "FORMED": 0.0, "READING_STEPS": 2, "TOKENS_PER_STEP": 256, **more}
    for name, value in given.items():
        monkeypatch.setattr(pretraining, name, value)


def test_it_is_remade_to_the_bit_and_unlike_for_another_seed(monkeypatch: pytest.MonkeyPatch):
    quick(monkeypatch)
    one, two = (pretrain(config(), rows(), seed=3).state_dict() for _ in range(2))
    other = pretrain(config(), rows(), seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_an_attempt_that_does_not_come_to_retrieve_is_given_up(monkeypatch: pytest.MonkeyPatch):
    quick(monkeypatch, FORMED=2.0, HOPELESS=(2, 1.1), MAX_ATTEMPTS=3)
    made: list[object] = []
    learner = pretraining.Learner
    monkeypatch.setattr(
        pretraining, "Learner", lambda *given, **more: made.append(1) or learner(*given, **more)
    )
    with pytest.raises(ModelError, match=r"tiny-5: none of 3 attempts .* take another seed"):
        pretrain(config(), rows(), seed=5, name="tiny-5")
    assert len(made) == 3


def test_retrieval_is_the_share_of_values_in_the_second_half():
    class Knows(pretraining.Learner):
        """Predicts the token after the same token earlier in the row."""

        def _logits(self, ids: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*ids.shape, 100)
            for row, tokens in enumerate(ids.tolist()):
                for place, token in enumerate(tokens):
                    if token in tokens[:place]:
                        logits[row, place, tokens[tokens.index(token) + 1]] = 1
            return logits

    ids, _ = rows().lists(4, 32)
    assert Knows(config(), seed=0).retrieves(ids) == 1
    assert pretraining.Learner(config(), seed=0).retrieves(ids) < 0.2


def test_the_rate_falls_from_its_peak_to_three_hundredths():
    assert cosine(0, 100) == pytest.approx(1)
    assert cosine(50, 100) == pytest.approx(0.515)
    assert cosine(100, 100) == pytest.approx(0.03)
