"""preview_page.py: every token with its position, skips to scale, and nothing that runs."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from skipalign.key_bias import GapBias
from skipalign.positions import RandPos, SkipAlign
from skipalign.preview_page import write_preview
from test_preview import SKIPS, TOKENIZER, TURNS, sample

HOSTILE = "</span></script><script>x()</script><img src=x onerror=x()>\x1b[2J\u202e<|im_end|>"


class Elements(HTMLParser):
    """Every element with its attributes and the text right inside it."""

    def __init__(self, path: Path):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data: str):
        if self.found:
            self.found[-1][2].append(data)

    def all(self, tag: str, key: str):
        return [
            (each, "".join(text)) for name, each, text in self.found if name == tag and key in each
        ]


def page_of(folder: Path, *samples, **given):
    return Elements(write_preview(samples, TOKENIZER, folder / "page.html", **given))


def records(link: str):
    return list(csv.DictReader(io.StringIO(unquote(link.partition(",")[2]), newline="")))


def test_every_token_stands_with_its_position_role_and_state(tmp_path: Path):
    shown = sample(tmp_path)
    labels = [each["title"] for each, _ in page_of(tmp_path, shown).all("span", "title")]
    seen: list[int] = []
    for label in labels:
        first, last, role, state = re.fullmatch(
            r"positions? [\d,]+(?: to [\d,]+)?, tokens? ([\d,]+)(?: to ([\d,]+))?, (\w+), (.+)",
            label,
        ).groups()
        tokens = range(int(first), int(last or first) + 1)
        seen += tokens
        for token in tokens:
            segment = next(s for s in shown.example.segments if s.start <= token < s.stop)
            assert segment.role == role
            assert shown.trained[token] == (state == "trained")
        position = re.match(r"positions? ([\d,]+)", label)[1].replace(",", "")
        assert int(position) == shown.position_ids[tokens[0]]
    assert seen == list(range(len(shown.position_ids)))


def test_characters_of_several_tokens_are_whole_and_the_text_is_the_samples(tmp_path: Path):
    pieces = [text for _, text in page_of(tmp_path, sample(tmp_path)).all("span", "title")]
    text = "".join(pieces)
    assert "Paris is the capital. Naïve 漢字 🙂" in text
    assert "\ufffd" not in text
    assert text.startswith("<|im_start|>system⏎You are a helpful assistant.")


def test_the_ruler_is_to_scale(tmp_path: Path):
    shown = sample(tmp_path)
    page = page_of(tmp_path, shown)
    runs = [each for each, _ in page.all("rect", "aria-label")]
    axis = [float(each["x"]) for each, text in page.all("text", "x") if each.get("class") == "tick"]
    unit = (axis[-1] - axis[0]) / shown.max_position
    for each in runs:
        position = int(re.search(r"positions? ([\d,]+)", each["aria-label"])[1].replace(",", ""))
        assert float(each["x"]) == pytest.approx(axis[0] + unit * position, abs=0.02)
    assert float(runs[0]["x"]) == axis[0]
    gaps = [each["aria-label"] for each, _ in page.all("g", "aria-label")]
    lengths = [int(re.match(r"skip of ([\d,]+):", each)[1].replace(",", "")) for each in gaps]
    assert lengths == [*shown.skips.values()]
    named = [text for each, text in page.all("text", "text-anchor") if text.startswith("+")]
    assert f"+{max(lengths):,}" in named


def test_the_data_of_a_ruler_is_behind_its_link(tmp_path: Path):
    shown = sample(tmp_path, key_bias=GapBias())
    (link,) = (each["href"] for each, _ in page_of(tmp_path, shown).all("a", "download"))
    rows = records(link)
    assert [int(row["position"]) for row in rows] == shown.position_ids.tolist()
    assert [int(row["trained"]) for row in rows] == shown.trained.astype(int).tolist()
    assert float(rows[0]["bias"]) == pytest.approx(float(shown.key_bias[0]), rel=1e-5)


def test_several_samples_are_linked_by_their_numbers(tmp_path: Path):
    page = page_of(tmp_path, sample(tmp_path), method="ours")
    assert not [each for each, _ in page.all("a", "href") if each["href"].startswith("#")]
    both = (sample(tmp_path), replace(sample(tmp_path), index=1))
    page = page_of(tmp_path, *both, method="ours")
    links = [each["href"] for each, _ in page.all("a", "href") if each["href"].startswith("#")]
    assert links == ["#sample-0", "#sample-1"]
    ids = [each["id"] for _, each, _ in page.found if "id" in each]
    assert len(set(ids)) == len(ids)


def test_a_long_message_is_cut_with_its_skips_counted_unless_all_is_asked_for(tmp_path: Path):
    turns = [("user", "The fox jumps. " * 500), ("assistant", "Yes.")]
    shown = sample(tmp_path, turns)
    short = page_of(tmp_path, shown)
    assert len(short.all("span", "title")) < len(shown.position_ids)
    text = (tmp_path / "page.html").read_text()
    assert re.search(r"… [\d,]+ tokens, \d skips; --full shows them …", text)
    page_of(tmp_path, shown, full=True)
    assert "--full" not in (tmp_path / "page.html").read_text()


def test_no_text_of_a_sample_becomes_markup(tmp_path: Path):
    turns = [("system", HOSTILE), ("user", HOSTILE), ("assistant", HOSTILE)]
    page = page_of(tmp_path, sample(tmp_path, turns), method=HOSTILE)
    tags = [tag for tag, _, _ in page.found]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not [key for _, each, _ in page.found for key in each if key.startswith("on")]
    text = (tmp_path / "page.html").read_text()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "style=" not in re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL)


def test_skips_at_every_token_fit_the_page(tmp_path: Path):
    shown = sample(tmp_path, TURNS[3:], RandPos(max_position=10**6))
    gaps = page_of(tmp_path, shown).all("g", "aria-label")
    assert len(gaps) == len(shown.skips)


def test_skips_are_counted_in_words_and_a_sample_without_one_says_so(tmp_path: Path):
    rarely = SkipAlign(max_position=SKIPS.max_position, skip_fraction=0.001)
    page_of(tmp_path, sample(tmp_path, strategy=rarely))
    told = (tmp_path / "page.html").read_text()
    assert "no skip in this epoch" in told
    assert "of 16,384; no skip</p>" in told
    always = SkipAlign(max_position=SKIPS.max_position, skip_fraction=1.0)
    for turns, words in ((TURNS[3:], "1 skip leaves out"), (TURNS, "4 skips leave out")):
        page_of(tmp_path, sample(tmp_path, turns, always))
        assert re.search(rf"of 16,384; {words} [\d,]+</p>", (tmp_path / "page.html").read_text())
