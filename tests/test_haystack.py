"""haystack.py: prose from files, every one and in order."""

import pytest

from fixtures_eval import prose, train_tokenizer, write_haystack
from skipalign.errors import DataError
from skipalign.evaluation.haystack import read_haystack, tokenized
from skipalign.tokens import DataTokenizer


@pytest.fixture
def haystack(tmp_path):
    return write_haystack(tmp_path, 20)


def test_the_haystack_is_every_text_file_in_sorted_order(haystack):
    text = read_haystack(haystack)
    first, second = (" ".join(prose(20, seed=seed).split()) for seed in (2, 1))
    assert text == f"{first} {second}"
    assert read_haystack(f"{haystack}/b.txt") == second


def test_the_built_in_prose_is_long_enough_to_be_prose():
    words = read_haystack(None).split()
    assert len(words) > 5000


def test_without_spaces_white_space_stays_within_latin_text_alone(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("他说：\n“走吧。”\n\u3000\u3000她用 GPT 4 \n turbo 写信。", encoding="utf-8")
    assert read_haystack(str(path), spaced=False) == "他说：“走吧。”她用GPT 4 turbo写信。"
    assert read_haystack(str(path)) == "他说： “走吧。” 她用 GPT 4 turbo 写信。"


def test_chinese_sentences_end_at_their_marks():
    tokens_of = DataTokenizer(train_tokenizer())
    text = "天冷了。“走吧！”她说：“真的吗？！”《信》已寄出……他们回家。"
    haystack = tokenized(text, lambda text: tokens_of.tokenize([text])[0], "")
    expected = ("天冷了。", "“走吧！”", "她说：“真的吗？！”", "《信》已寄出……他们回家。")
    assert haystack.sentences == expected
    assert "".join(haystack.sentences) == text
    starts = [text.index(sentence) for sentence in expected]
    whole = tokens_of.tokenize([text])[0]
    assert [int(whole.starts[border]) for border in haystack.borders] == starts
    # A character is three tokens, of which the first alone begins it.
    for kept in range(1, len(haystack.ids) + 1):
        found = haystack.whole_tokens(0, kept, 3)
        assert kept - 3 < found <= kept
        assert "�" not in tokens_of.exact.decode(haystack.ids[:found])
    assert haystack.whole_tokens(0, 5, 1) == 5  # 3 would be whole


def test_haystacks_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_haystack(str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"holds no \*\.txt"):
        read_haystack(str(tmp_path))
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no text"):
        read_haystack(str(tmp_path))
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8"):
        read_haystack(str(tmp_path))
