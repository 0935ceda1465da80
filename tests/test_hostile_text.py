"""Text that would steer a model or a terminal stays text, on every template and in the preview."""

import io
import json
import re
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from made_tokenizers import SHAPES, conversation, tokenizer
from skipalign.encoding import IGNORE_INDEX, Encoder
from skipalign.positions import Contiguous
from skipalign.prepare import Source
from skipalign.preview import show
from skipalign.sample import draw_sample

KINDS = ("byte_level", "metaspace")
HOSTILE = (
    *(
        "<script>alert(1)</script>",
        "<!--",
        "&lt;",
        "]]>",
        '" onload="x',
        "{{ 7 * 7 }}",
        "{% raw %}",
    ),
    *("\x1b[2J", "\x1b]0;t\x07", "\x9b31m", "\0", "\x7f", "\r", "\b\b"),
    *("\u202e", "\u2066", "\u2069", "\u200f", "\u200b", "\ufeff", "\u2028", "\U000e0041"),
    *("[INST]", "[/INST]", "<<SYS>>", "user\n", "assistant", "\nassistant\n", "[bold]", "Ａ", "ﷺ"),
)


@cache
def made(shape: str, kind: str, renamed: bool = False) -> tuple[PreTrainedTokenizerFast, Encoder]:
    fast = twin(shape, kind) if renamed else tokenizer(shape, kind)
    return fast, Encoder(fast, max_tokens=99_999, template_kwargs=SHAPES[shape].kwargs)


def control(fast: PreTrainedTokenizerFast) -> list[str]:
    return [token.content for token in fast.added_tokens_decoder.values() if token.special]


def renaming(shape: str, kind: str) -> dict[str, str]:
    """New texts for the special tokens, of characters that no test writes into a content."""
    names = sorted(control(tokenizer(shape, kind)), key=len, reverse=True)
    return {name: f"\uf000{chr(0xF001 + n)}\uf8ff" for n, name in enumerate(names)}


def twin(shape: str, kind: str) -> PreTrainedTokenizerFast:
    """The same tokenizer and template, the special tokens under other texts but the same ids."""
    fast = tokenizer(shape, kind)
    names = renaming(shape, kind)
    spec = json.loads(fast.backend_tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = spec["model"]["vocab"]
    if kind == "metaspace":  # its unknown token is a word of the vocabulary
        spec["model"]["unk_token"] = names["<unk>"]
        spec["model"]["vocab"] = {names.get(word, word): i for word, i in vocabulary.items()}
    backend = type(fast.backend_tokenizer).from_str(json.dumps(spec))
    named = {key: names[value] for key, value in fast.special_tokens_map.items() if value in names}
    extra = [names[name] for name in SHAPES[shape].special]
    other = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=extra, **named
    )
    text = fast.chat_template
    for name, new in names.items():
        text = text.replace(name, new)
    other.chat_template = text
    return other


def contents(shape: str, kind: str) -> st.SearchStrategy[str]:
    own = control(tokenizer(shape, kind))
    pieces = st.sampled_from([*own, *own, *HOSTILE]) | st.text(max_size=3)
    safe = st.lists(pieces, min_size=1, max_size=6).map("".join)
    reserved = re.compile("[\ufdd0-\ufdef\uf000-\uf8ff\ud800-\udfff]")
    return safe.map(lambda text: reserved.sub("", text)).filter(lambda text: text.strip())


def assert_plain(shape: str, kind: str, texts: list[str]) -> None:
    """A twin whose special tokens have other texts reads the same contents as plain text."""
    turns = [(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    if SHAPES[shape].system:
        turns.insert(0, ("system", texts[0]))
    fast, own = made(shape, kind)
    found = own.encode(conversation(*turns))
    plain = made(shape, kind, renamed=True)[1].encode(conversation(*turns))
    assert found.dropped == plain.dropped
    assert "special_text" not in plain.notes
    special = [i for i, token in fast.added_tokens_decoder.items() if token.special]
    for one, other in zip(found.examples, plain.examples, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.segments == other.segments
        for segment in one.segments:
            inside = one.input_ids[segment.content_start : segment.content_stop]
            steering = set(np.array(special)) - {fast.unk_token_id}
            assert not steering & set(inside.tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_special_tokens_in_contents_are_what_they_are_where_no_such_token_exists(
    shape: str, kind: str
):
    own = control(tokenizer(shape, kind))
    every = " ".join(own) + "".join(own) + "a".join(HOSTILE)
    assert_plain(shape, kind, [every, every, *own[:2]])


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from(list(SHAPES)), kind=st.sampled_from(KINDS), data=st.data())
def test_any_mixture_of_them_is_plain_text(shape: str, kind: str, data: st.DataObject):
    texts = data.draw(st.lists(contents(shape, kind), min_size=2, max_size=2))
    assert_plain(shape, kind, texts)


def test_the_twin_has_other_texts_and_the_same_ids():
    for shape in SHAPES:
        for kind in KINDS:
            fast, other = tokenizer(shape, kind), twin(shape, kind)
            names = renaming(shape, kind)
            assert names
            for name, new in names.items():
                assert fast.convert_tokens_to_ids(name) == other.convert_tokens_to_ids(new)
                assert other(name, add_special_tokens=False)["input_ids"] != [
                    fast.convert_tokens_to_ids(name)
                ]


@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from(["qwen25", "llama31", "gemma"]),
    data=st.data(),
    colour=st.booleans(),
    encoding=st.sampled_from(["utf-8", "ascii"]),
)
def test_no_control_character_of_the_data_reaches_the_terminal(
    tmp_path_factory: pytest.TempPathFactory,
    shape: str,
    data: st.DataObject,
    colour: bool,
    encoding: str,
):
    asked, answer = data.draw(contents(shape, "byte_level")), "\x1b[31mred \u202e\x07<b>"
    folder = tmp_path_factory.mktemp("preview")
    path = folder / "ch\x1bats\u202e.jsonl"
    path.write_text(json.dumps({"prompt": asked, "completion": answer}))
    fast = tokenizer(shape)
    sample = draw_sample([Source(str(path), "so\x1burce")], {"so\x1burce": Contiguous()}, fast)
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    system = "standard" if colour else None
    console = Console(file=file, width=80, force_terminal=colour, color_system=system)
    show(sample, fast, console, method="m\x1b", full=True)
    file.flush()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue().decode(encoding))
    assert {each for each in shown if unicodedata.category(each) in ("Cc", "Cf", "Cs")} <= {"\n"}
    assert "\\x1b[31mred" in shown.replace("\n", "")
    assert (sample.example.labels != IGNORE_INDEX).any()


def test_colour_codes_alone_steer_the_terminal(tmp_path: Path):
    """What the test above takes away are the codes of colours; the data's own are written out."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "\x1b[31mq", "completion": "\x1b[31ma"}))
    fast = tokenizer("qwen25")
    sample = draw_sample([Source(str(path), "s")], {"s": Contiguous()}, fast)
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard")
    show(sample, fast, console)
    assert "\x1b[31m" not in file.getvalue()
    assert file.getvalue().count("\\x1b[31m") == 2
