"""Tokens know their characters, and no control token comes from data."""

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizer

from made_tokenizers import tokenizer
from skipalign.errors import ModelError
from skipalign.tokens import DataTokenizer, DropError

TEXT = "<|im_start|>user\nthe <|im_end|> fox<|im_end|>\n"


@pytest.fixture
def fast():
    return tokenizer("chatml")


def spans(text: str, *parts: str) -> list[tuple[int, int]]:
    return [(text.index(part), text.index(part) + len(part)) for part in parts]


def test_tokens_are_in_order_and_cover_the_text(fast):
    (tokens,) = DataTokenizer(fast).tokenize(["the fox ☃ 答案"])
    assert (np.diff(tokens.starts) >= 0).all()
    assert (np.diff(tokens.stops) >= 0).all()
    assert (tokens.starts[0], tokens.stops[-1]) == (0, 12)
    assert tokens.first_from(0) == 0
    assert tokens.first_from(12) == len(tokens)


def test_white_space_has_its_place_also_where_the_tokenizer_trims_offsets(fast):
    fast.backend_tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False)
    trimmed = fast(" the", return_offsets_mapping=True)["offset_mapping"]
    assert trimmed[0][0] == 1
    assert DataTokenizer(fast).tokenize([" the"])[0].starts[0] == 0
    assert fast(" the", return_offsets_mapping=True)["offset_mapping"] == trimmed


def test_nothing_to_tokenise_is_nothing(fast):
    assert DataTokenizer(fast).tokenize([]) == []
    assert len(DataTokenizer(fast).tokenize([""])[0]) == 0


def test_control_tokens_outside_data_stay(fast):
    texts = DataTokenizer(fast)
    (raw,) = texts.tokenize([TEXT])
    same = texts.as_data(TEXT, spans(TEXT, "the"), raw)
    assert same.ids is raw.ids
    assert same.special == 0
    assert fast.convert_ids_to_tokens(raw.ids[same.control].tolist()) == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    ]


def test_control_tokens_inside_data_become_text(fast):
    texts = DataTokenizer(fast)
    (raw,) = texts.tokenize([TEXT])
    found = texts.as_data(TEXT, spans(TEXT, "the <|im_end|> fox"), raw)
    assert fast.decode(found.ids) == TEXT
    assert fast.convert_ids_to_tokens(found.ids[found.control].tolist()) == [
        "<|im_start|>",
        "<|im_end|>",
    ]
    assert found.special == 1
    assert [TEXT[a:b] for a, b in zip(found.starts, found.stops, strict=True)] == [
        fast.decode([i]) for i in found.ids
    ]


@pytest.mark.parametrize("part", ["the <|im", "m_end|> fox", "im_", "<", ">\n"])
def test_a_control_token_that_only_touches_data_becomes_text(fast, part):
    texts = DataTokenizer(fast)
    text = "the <|im_end|> fox\n<|im_end|>\n"
    (raw,) = texts.tokenize([text])
    start = text.index(part)
    assert texts.as_data(text, [(start, start + len(part))], raw).special == 1


def test_a_neighbour_of_data_is_not_touched(fast):
    texts = DataTokenizer(fast)
    text = "a<|im_end|>b"
    (raw,) = texts.tokenize([text])
    assert texts.as_data(text, [(0, 1), (11, 12), (3, 3)], raw).special == 0


def test_a_control_token_that_the_vocabulary_makes_from_text_is_refused(fast):
    word = next(token for token in sorted(fast.get_vocab()) if token.isalpha() and len(token) > 2)
    fast.add_special_tokens({"additional_special_tokens": [word]})
    texts = DataTokenizer(fast)
    text = f"!{word}!"
    (raw,) = texts.tokenize([text])
    assert fast.convert_tokens_to_ids(word) in raw.ids
    with pytest.raises(DropError, match=word):
        texts.as_data(text, [(0, len(text))], raw)


def test_padding_of_the_tokenizer_does_not_reach_the_tokens(fast):
    fast.pad_token = "<|endoftext|>"
    fast(["a", "a b c"], padding="max_length", max_length=30, truncation=True)
    (tokens,) = DataTokenizer(fast).tokenize(["the fox " * 30])
    assert len(tokens) > 30
    texts = DataTokenizer(fast)
    text = "<|im_end|>" + "the fox " * 30
    found = texts.as_data(text, [(0, len(text))], texts.tokenize([text])[0])
    assert fast.decode(found.ids) == text


class Slow(PreTrainedTokenizer):
    vocab_size = 1

    def get_vocab(self):
        return {"a": 0}


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(ModelError, match=r"no character offsets.*tokenizer\.json"):
        DataTokenizer(Slow())
