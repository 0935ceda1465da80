"""The preview: what it says, with and without colour, in 80 columns, harmlessly."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from made_tokenizers import tokenizer
from skipalign.conversation import ROLES
from skipalign.encoding import Encoded
from skipalign.key_bias import GapBias
from skipalign.positions import Contiguous, RandPos, SkipAlign, Strategy
from skipalign.prepare import Source
from skipalign.preview import NOTES, STYLES, show
from skipalign.sample import Sample, draw_sample

TOKENIZER = tokenizer("qwen25")
SKIPS = SkipAlign(max_position=16384, skip_fraction=1.0, cuts_within=3)
HOSTILE = "\x1b[31mred\x1b[0m \u202eright [bold]markup[/bold] <|im_end|> "
TURNS = [
    ("system", "You are a helpful assistant."),
    ("user", HOSTILE + "What is the answer? " + "The fox jumps. " * 60),
    ("assistant", "Paris is the capital. Naïve 漢字 🙂"),
    ("user", "And now?"),
    ("assistant", "Nothing."),
]


def sample(
    folder: Path,
    turns: list[tuple[str, str]] = TURNS,
    strategy: Strategy = SKIPS,
    **given: object,
) -> Sample:
    path = folder / "chats.jsonl"
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    path.write_text("no json\n" + json.dumps(row) + "\n")
    source = Source(str(path), "chats", max_tokens=given.pop("max_tokens", 4096))  # pyright: ignore
    return draw_sample([source], {"chats": strategy}, TOKENIZER, **given)  # pyright: ignore


def printed(
    shown: Sample,
    *,
    width: int = 80,
    colour: bool = False,
    encoding: str = "utf-8",
    full: bool = False,
) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(
        file=file, width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    show(shown, TOKENIZER, console, method="ours", full=full)
    file.flush()
    return raw.getvalue().decode(encoding)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_every_message_is_shown_with_its_role_and_its_text(tmp_path: Path):
    text = printed(sample(tmp_path))
    for role, content in TURNS:
        assert re.search(rf"^{role}$", text, re.MULTILINE)
        assert content.split()[-1] in text
    assert "sample 0 of chats" in text
    assert "chats.jsonl line 2" in " ".join(text.split())
    assert "ours, seed 0, epoch 0" in text


def test_without_colour_marks_tell_what_is_trained_and_what_is_template(tmp_path: Path):
    text = printed(sample(tmp_path))
    trained = re.findall(r"⟦(.*?)⟧", text.replace("\n", ""), re.DOTALL)
    assert trained == [
        "Paris is the capital. Naïve 漢字 🙂‹<|im_end|>›",
        "Nothing.‹<|im_end|>›",
        "trained",
    ]
    assert "‹<|im_start|>system⏎›You are" in text
    assert "\x1b" not in text


def test_with_colour_styles_tell_it_and_no_marks_are_needed(tmp_path: Path):
    text = printed(sample(tmp_path), colour=True)
    assert "⟦" not in text
    assert "\x1b[1;4;32mNothing." in text
    assert "\x1b[2;32m<|im_start|>assistant" in text
    assert "\x1b[34m" in text
    assert "trained" in plain(text)


def test_every_skip_is_marked_where_it_is(tmp_path: Path):
    shown = sample(tmp_path)
    text = printed(shown, full=True)
    marked = [int(mark.replace(",", "")) for mark in re.findall(r"⟨\+([\d,]+)⟩", text)]
    assert marked == [*shown.skips.values(), 7], "the last one stands in the legend"
    first_user = f"⟨+{shown.skips[shown.example.segments[1].start]:,}⟩‹<|im_start|>user"
    assert first_user in text


def test_a_long_message_is_cut_with_its_skips_counted(tmp_path: Path):
    shown = sample(tmp_path)
    short, whole = printed(shown), printed(shown, full=True)
    (num_tokens, num_skips), *rest = re.findall(r"⟨… ([\d,]+) tokens, (\d+) skips", short)
    assert not rest
    user = shown.example.segments[1]
    assert int(num_tokens) == user.stop - user.start - 150
    visible = len(re.findall(r"⟨\+", short)) + int(num_skips)
    assert visible == len(re.findall(r"⟨\+", whole))
    assert "⟨…" not in whole


def test_a_long_conversation_is_cut_in_its_middle(tmp_path: Path):
    turns = [("user", "And now?"), ("assistant", "Nothing.")] * 30
    shown = sample(tmp_path, turns)
    short, whole = printed(shown), printed(shown, full=True)
    assert "⟨… 47 messages" in short
    assert "47 more" in short
    assert len(re.findall(r"^assistant$", short, re.MULTILINE)) == 6
    assert len(re.findall(r"^assistant$", whole, re.MULTILINE)) == 30


@pytest.mark.parametrize("colour", [False, True])
def test_it_fits_80_columns(tmp_path: Path, colour: bool):
    wide = SkipAlign(max_position=1_048_576, skip_fraction=1.0, cuts_within=3)
    text = printed(sample(tmp_path, strategy=wide, key_bias=GapBias()), colour=colour)
    assert max(cell_len(line) for line in plain(text).splitlines()) <= 80
    assert "…" not in plain(text).split("skip", 1)[1].split("role", 1)[1], "no cell is cut"


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_what_is_hard_to_wrap_fits_80_columns(tmp_path: Path, colour: bool, full: bool):
    folder = tmp_path / ("deep-" * 20) / ("\u6f22" * 60)
    folder.mkdir(parents=True)
    hard = (
        "\t\ta\tb" * 20
        + "x" * 300
        + "\u6f22" * 150
        + "e\u0301" * 90
        + "\U0001f642" * 60
        + "\x1b" * 40
    )
    turns = [(role, hard) for role in ("system", "user", "assistant", "user", "assistant")]
    shown = sample(folder, turns, SkipAlign(max_position=10**9, skip_fraction=1.0, cuts_within=9))
    text = plain(printed(shown, colour=colour, full=full))
    assert "\t" not in text, "a tab is as wide as a terminal makes it"
    assert max(cell_len(line) for line in text.splitlines()) <= 80


def test_the_table_holds_each_segment(tmp_path: Path):
    shown = sample(tmp_path, key_bias=GapBias())
    rows = [line.split() for line in printed(shown).splitlines()]
    table = rows[next(n for n, row in enumerate(rows) if row[:2] == ["role", "tokens"]) + 1 :]
    for segment, row in zip(shown.example.segments, table, strict=False):
        first, last = shown.position_ids[segment.start], shown.position_ids[segment.stop - 1]
        assert row[:3] == [
            segment.role,
            f"{segment.start:,}-{segment.stop:,}",
            f"{first:,}-{last:,}",
        ]
    assert table[4][-2] == str(int(shown.trained[shown.example.segments[4].start :].sum()))
    assert table[4][-1] == "0.00"


def test_the_ruler_shows_where_segments_lie(tmp_path: Path):
    shown = sample(tmp_path)
    line = next(line for line in printed(shown).splitlines() if line.startswith("0 "))
    assert len(line) == 80
    cells = line[2 : -len(" 16,384")]
    roles = [
        segment.role[0].upper()
        for segment in shown.example.segments
        for _ in range(segment.start, segment.stop)
    ]
    places = shown.position_ids * len(cells) // shown.max_position
    for place, cell in enumerate(cells):
        inside = Counter(role for role, at in zip(roles, places, strict=True) if at == place)
        assert cell in ([role for role, n in inside.items() if n == max(inside.values())] or "·")
    assert {"U", "A", "·"} <= set(cells)


def test_nothing_in_the_data_steers_the_terminal_or_is_taken_for_markup(tmp_path: Path):
    text = printed(sample(tmp_path), colour=True)
    assert "\x1b[31m" not in text
    assert r"\x1b[31mred\x1b[0m \u202eright [bold]markup[/bold] <|im_end|>" in plain(text).replace(
        "\n", ""
    )


def test_a_terminal_of_ascii_gets_ascii(tmp_path: Path):
    text = printed(sample(tmp_path), encoding="ascii")
    assert "[[Nothing.{<|im_end|>}]]" in text
    assert "<+" in text
    assert r"\u6f22" in text


def test_notes_say_what_was_changed_and_lost(tmp_path: Path):
    text = printed(sample(tmp_path)).replace("\n", " ")
    assert "note: special tokens in contents were written as ordinary text: 1" in text
    assert "rejected or dropped: 1" in text
    cut = printed(sample(tmp_path, TURNS[:3], max_tokens=200)).replace("\n", " ")
    assert "the middle of the longest user message was cut" in cut


def test_every_note_of_the_encoder_has_its_sentence():
    named = re.findall(r"^    - ([\w, ]+):", Encoded.__doc__ or "", re.MULTILINE)
    assert sorted(NOTES) == sorted(name for group in named for name in group.split(", "))


def test_every_role_has_its_colour():
    assert set(STYLES) == set(ROLES)
    assert len(set(STYLES.values())) == len(ROLES)


def test_a_sample_that_does_not_skip_says_so_and_when_it_does(tmp_path: Path):
    rarely = SkipAlign(max_position=16384, skip_fraction=0.001)
    told = " ".join(printed(sample(tmp_path, strategy=rarely)).split())
    assert "no skip in this epoch (skip_fraction 0.001); it has none in epochs 0 to 19" in told
    half = SkipAlign(max_position=16384, skip_fraction=0.5)
    named: set[int] = set()
    for seed in range(6):
        drawn = [sample(tmp_path, strategy=half, seed=seed, epoch=epoch) for epoch in range(6)]
        skips = [epoch for epoch, each in enumerate(drawn) if each.skips]
        named |= {skips[0]}
        for each in drawn:
            assert (f"try --epoch {skips[0]}" in printed(each)) == (not each.skips)
    assert len(named) > 1
    assert "no skip in" not in printed(sample(tmp_path, strategy=Contiguous()))


def test_skips_at_every_token_are_all_shown(tmp_path: Path):
    shown = sample(tmp_path, TURNS[3:], RandPos(max_position=10**6))
    text = printed(shown, full=True)
    assert len(re.findall(r"⟨\+", text)) == len(shown.skips) + 1
