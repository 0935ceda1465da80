"""The pages in a headless Chromium: nothing foreign runs, all can be read, reached and compared.

The markup is tested without a browser in test_report.py, test_markup.py and test_preview_page.py.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import test_preview
from made_browser import CHROMIUM, MISSING, Browser
from made_hostile import HOSTILE, poison
from made_runs import METHODS, make_ablation, make_run, make_study
from skipalign.evaluation.longbench_score import score_folder
from skipalign.files import write_json
from skipalign.preview_page import write_preview
from skipalign.report import write_report
from skipalign.visible import visible

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

PHONE, DESKTOP, PAPER = 390, 1280, 690
OWNED = "owned"

# Every text that is shown, with its contrast to what lies behind it and its size in pixels.
READ = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const contrast = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim();
    const one = texts.currentNode.parentElement;
    if (!text || one.closest("script, style, title, desc")) continue;
    if (!one.getClientRects().length) continue;
    const style = getComputedStyle(one);
    const svg = one.closest("svg text");
    const scale = svg ? Math.abs(svg.getScreenCTM().a || svg.getScreenCTM().b) : 1;
    const colour = parse(svg ? style.fill : style.color);
    const size = parseFloat(style.fontSize) * scale;
    found.push([text.slice(0, 40), contrast(colour, behind(one)), size]);
  }
  return found;
})()"""

# Labels of drawings that reach out of them, or stand upon each other.
LABELS = """(() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg[viewBox]")) {
    const box = svg.viewBox.baseVal;
    const name = svg.getAttribute("aria-label")?.slice(0, 60);
    const shown = [...svg.querySelectorAll("text")].filter((text) => text.getClientRects().length);
    const boxes = shown.map((text) => [text, text.getBoundingClientRect()]);
    const frame = svg.getBoundingClientRect();
    for (const [text, at] of boxes) {
      const out = at.left < frame.left - 1 || at.right > frame.right + 1
        || at.top < frame.top - 3 || at.bottom > frame.bottom + 3;
      if (out) found.push(["out", text.textContent, name]);
    }
    for (const [n, [text, a]] of boxes.entries()) for (const [other, b] of boxes.slice(n + 1)) {
      const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (over > 1.5 && down > 0.35 * Math.min(a.height, b.height))
        found.push(["upon", text.textContent, other.textContent, name]);
    }
  }
  return found;
})()"""
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a page by its name, made where it is first asked for."""
    folder = tmp_path_factory.mktemp("pages")

    def samples() -> Path:
        chats = (test_preview.TURNS, test_preview.TURNS[1:] * 3)
        drawn = [test_preview.sample(folder, turns) for turns in chats]
        drawn = [replace(each, index=place) for place, each in enumerate(drawn)]
        return write_preview(drawn, test_preview.TOKENIZER, folder / "samples.html")

    def study() -> Path:
        """Many methods, two of them with a benchmark."""
        run = make_study(folder / "study", seeds=(0,))
        scored = score_folder(Path(__file__).parent / "predictions")
        for method in ("normal", "pose"):
            path = run / f"{method}/seed-0/evaluation/longbench/longbench.json"
            write_json(path, {**scored, "cells": []})
        return write_report([run])

    made = {
        "run": lambda: write_report([make_run(folder / "run", seeds=(0,))]),
        "study": study,
        "ablation": lambda: write_report([make_ablation(folder / "ablation", seeds=(0,))]),
        "samples": samples,
    }
    return cache(lambda name: made[name]())


# --------------------------------------------------------------------------------- hostile text


def owned(browser: Browser) -> list[str]:
    """What foreign script, links and styles would have left behind."""
    found = browser.complaints()
    found += [OWNED] if browser.run("document.title") == OWNED else []
    found += browser.run(
        "[...document.querySelectorAll('img, iframe, object, embed, [style], [href^=javascript]')]"
        ".map((each) => each.outerHTML)"
    )
    display = browser.run("getComputedStyle(document.body).display")
    return found + ([] if display == "block" else [display])


def test_hostile_text_in_every_field_of_a_run_runs_nothing(browser: Browser, tmp_path: Path):
    folder = poison(make_run(tmp_path / "tiny", seeds=(0,)))
    path = write_report([folder], tmp_path / "page.html")
    browser.open(path)
    assert not owned(browser)
    # The page's own script did run, and the text is there as text.
    assert browser.run("document.querySelectorAll('th button').length") > 10
    text = browser.run("document.body.textContent")
    assert text.count(visible(HOSTILE)) > 100
    assert "onerror=document.title='owned'" in browser.run(
        "document.querySelector('h1').textContent"
    )


def test_hostile_text_in_samples_runs_nothing(browser: Browser, tmp_path: Path):
    text = HOSTILE.replace("\ud800", "")
    turns = [(role, text) for role in ("system", "user", "assistant")]
    shown = replace(test_preview.sample(tmp_path, turns), place=HOSTILE)
    path = write_preview([shown], test_preview.TOKENIZER, tmp_path / "page.html", method=HOSTILE)
    browser.open(path)
    assert not owned(browser)
    assert "document.title='owned'" in browser.run("document.body.textContent")
    assert browser.run("document.querySelectorAll('[tabindex=\"-1\"]').length") > 10


def test_the_policy_stops_what_an_escape_had_missed(browser: Browser, pages, tmp_path: Path):
    text = pages("run").read_text(encoding="utf-8")
    attack = (
        f"<script>document.title='{OWNED}'</script><p style='color:red' id=styled>x</p>"
        f"<img src=x onerror=\"document.title='{OWNED}'\"><iframe src=data:text/html,x></iframe>"
        f"<a id=link href=\"javascript:document.title='{OWNED}'\">x</a>"
        "<style>#styled{display:none}</style>"
    )
    path = tmp_path / "attacked.html"
    path.write_text(text.replace("<main>", "<main>" + attack), encoding="utf-8")
    browser.open(path)
    browser.run("document.getElementById('link').click()")
    assert browser.run("document.title") != OWNED
    look = "getComputedStyle(document.getElementById('styled'))"
    assert browser.run(f"{look}.display") == "block"
    assert browser.run(f"{look}.color") != "rgb(255, 0, 0)"
    blocked = " ".join(browser.complaints())
    assert blocked.count("Content Security Policy") >= 5


# ------------------------------------------------------------------------------------ the eye


def check_the_eye(browser: Browser, page: Path, *, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.run(WIDE) <= 0, "the page is wider than the window"
    texts = browser.run(READ)
    assert len(texts) > 40
    assert not [each for each in texts if each[1] < 4.5], "contrast"
    assert not [each for each in texts if each[2] < 10], "size"
    assert not browser.run(LABELS)
    dark_paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128"
    assert browser.run(dark_paper) == dark


@pytest.mark.parametrize("page", ["run", "samples"])
def test_pages_fit_a_phone_in_the_dark_and_can_be_read(browser: Browser, pages, page):
    check_the_eye(browser, pages(page), width=PHONE, dark=True)


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, PHONE, 768, DESKTOP, 1920])
@pytest.mark.parametrize("page", ["run", "study", "ablation", "samples"])
def test_every_page_fits_and_can_be_read_in_every_width_and_theme(
    browser: Browser, pages, page, width, dark
):
    check_the_eye(browser, pages(page), width=width, dark=dark)


@pytest.mark.long
@pytest.mark.parametrize("page", ["study", "samples"])
def test_on_paper_nothing_is_cut_off_or_dark(browser: Browser, pages, page):
    browser.open(pages(page), width=PAPER, dark=True, media="print")
    cut = browser.run(
        "[...document.querySelectorAll('table, svg, pre')].map((each) => [each.tagName, "
        "(each.closest('[aria-label]') || each).getAttribute('aria-label'), "
        f"each.getBoundingClientRect().right]).filter((each) => each[2] > {PAPER})"
    )
    assert not cut
    assert browser.run("getComputedStyle(document.body).color") == "rgb(29, 27, 24)"
    folded = "[...document.querySelectorAll('main details > :not(summary)')]"
    assert browser.run(f"{folded}.filter((each) => !each.checkVisibility()).length") == 0


# ------------------------------------------------------------------------------------ the keys


def test_a_table_is_sorted_by_keys_alone(browser: Browser, pages):
    browser.open(pages("run"))
    browser.run("document.querySelector('#needle thead th:nth-child(4) button').focus()")
    column = (
        "[...document.querySelectorAll('#needle table tbody')][0]"
        ".querySelectorAll('td:nth-child(4)')"
    )
    values = f"[...{column}].map((each) => Number(each.dataset.value))"
    head = "document.querySelector('#needle thead th:nth-child(4)').getAttribute('aria-sort')"
    assert browser.run(head) is None
    browser.press("Enter")
    assert browser.run(head) == "descending"
    assert browser.run(values) == sorted(browser.run(values), reverse=True)
    browser.press(" ")
    assert browser.run(head) == "ascending"
    assert browser.run(values) == sorted(browser.run(values))
    sorted_columns = "document.querySelectorAll('#needle table:first-of-type [aria-sort]').length"
    assert browser.run(sorted_columns) == 1


@pytest.mark.long
def test_columns_of_times_and_large_numbers_sort_as_numbers(browser: Browser, pages):
    browser.open(pages("study"))
    head = "[...document.querySelectorAll('#cost table thead th')]"
    for text in ("training time", "tokens per row"):
        place = browser.run(f"{head}.findIndex((each) => each.textContent === {text!r})")
        browser.run(f"{head}[{place}].querySelector('button').click()")
        cells = browser.run(
            "[...document.querySelector('#cost tbody').rows]"
            f".map((row) => row.cells[{place}].textContent)"
        )
        known = [each for each in cells if each != "–"]
        assert cells == known + ["–"] * (len(cells) - len(known)), "absent ones come last"
        numbers = [float(re.match(r"[\d.,]+", each)[0].replace(",", "")) for each in known]
        assert numbers == sorted(numbers, reverse=True)
        assert len(known) < len(cells)


def test_arrow_keys_walk_a_map_and_say_each_cell(browser: Browser, pages):
    browser.open(pages("run"))
    stops = "document.querySelectorAll('#maps td[tabindex=\"0\"]').length"
    assert browser.run(stops) == len(METHODS), "one stop of the Tab key for each map"
    browser.run("document.querySelector('#maps td').focus()")
    label = "document.activeElement.getAttribute('aria-label')"
    told = "document.querySelector('.told')"
    first = browser.run(label)
    assert first.startswith("normal, 128 tokens, depth 0%")
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    assert browser.run(label).startswith("normal, 256 tokens, depth 25%: 0.")
    assert browser.run(f"{told}.textContent") == browser.run(label)
    assert browser.run(f"{told}.checkVisibility()")
    assert browser.run(stops) == len(METHODS)
    browser.press("Escape")
    assert not browser.run(f"{told}.checkVisibility()")
    browser.press("ArrowLeft")
    browser.press("ArrowUp")
    assert browser.run(label) == first
    browser.press("ArrowUp")
    assert browser.run(label) == first, "nothing lies above the first row"


def test_arrow_keys_walk_the_tokens_of_a_sample(browser: Browser, pages):
    browser.open(pages("samples"))
    browser.run("document.querySelector('.tokens [title]').focus()")
    for _ in range(2):
        browser.press("ArrowRight")
    assert browser.run("document.querySelector('.told').textContent") == (
        "position 2, token 2, system, not trained"
    )
    browser.run("document.querySelector('.ruler [tabindex=\"0\"]').focus()")
    assert "skip of" in browser.run("document.querySelector('.told').textContent")


def test_a_screen_reader_hears_each_cell_of_a_map_whole(browser: Browser, pages):
    browser.open(pages("run"))
    node = browser.ask("DOM.getDocument")["root"]["nodeId"]
    named = browser.ask("DOM.querySelector", nodeId=node, selector="#maps table")["nodeId"]
    found = browser.ask("Accessibility.queryAXTree", nodeId=named, role="gridcell")["nodes"]
    names = [each["name"]["value"] for each in found]
    assert len(names) == 6 * 5
    assert all(re.fullmatch(r"normal, [\d,]+ tokens, depth \d+%: .*trials", name) for name in names)
    grids = browser.ask("Accessibility.queryAXTree", nodeId=node, role="grid")["nodes"]
    assert all("accuracy by context length" in each["name"]["value"] for each in grids)


@pytest.mark.long
def test_every_stop_of_the_tab_key_has_a_name_and_none_jumps_the_queue(browser: Browser, pages):
    browser.open(pages("run"))
    assert (
        browser.run(
            'document.querySelectorAll(\'[tabindex]:not([tabindex="0"]):not([tabindex="-1"])\').length'
        )
        == 0
    )
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Skip to the results"
    browser.press("Enter")
    assert browser.run("location.hash") == "#needle"
    node = browser.ask("DOM.getDocument")["root"]["nodeId"]
    tree = browser.ask("Accessibility.queryAXTree", nodeId=node)["nodes"]
    stops = [
        each
        for each in tree
        if any(p["name"] == "focusable" and p["value"]["value"] for p in each.get("properties", ()))
        and each["role"]["value"] != "RootWebArea"
    ]
    assert len(stops) > 50
    assert not [each["role"]["value"] for each in stops if not each["name"]["value"].strip()]


# --------------------------------------------------------------------------------- comparing


SHOWN = """[...new Set([...document.querySelectorAll('[data-m]')]
  .filter((each) => !each.classList.contains('out')).map((each) => each.dataset.m))]"""


@pytest.mark.long
def test_chosen_methods_alone_are_shown_everywhere(browser: Browser, pages):
    browser.open(pages("study"))
    browser.run("document.querySelector('#choose summary').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('#choose details').open")
    browser.press("Tab")
    browser.write("SKIPALIGN")
    browser.press("Tab")
    browser.press("Enter")
    assert browser.run("document.activeElement.textContent") == "Only those listed"
    chosen = browser.run(
        "[...document.querySelectorAll('#choose li:not([hidden])')].map(e => e.textContent.trim())"
    )
    assert all("skipalign" in name for name in chosen)
    names = browser.run(
        "[...document.querySelectorAll('#needle table')[0].tBodies[0].rows]"
        ".filter((row) => row.checkVisibility()).map((row) => row.cells[0].textContent)"
    )
    assert names == chosen
    assert len(browser.run(SHOWN)) == len(chosen) == 5
    assert browser.run("document.querySelector('#choose output').textContent") == "(5 of 20 shown)"
    lines = "[...document.querySelectorAll('.pair svg:first-of-type .series')]"
    seen = browser.run(
        f"{lines}.filter(e => e.getClientRects().length).map(e => e.getAttribute('stroke'))"
    )
    assert len(set(seen)) == 5, "few lines have a colour each"
    assert not browser.run(LABELS)
    browser.run("document.querySelector('#choose button[value=all]').click()")
    assert len(browser.run(SHOWN)) == 20


@pytest.mark.long
def test_lines_too_many_to_name_have_names_once_few_are_chosen(browser: Browser, tmp_path: Path):
    folders = [
        shutil.copytree(run, tmp_path / f"run-{n:02}")
        for run in [make_run(tmp_path / "made", methods=("normal", "skipalign"), seeds=(0,))]
        for n in range(20)
    ]
    browser.open(write_report(folders, tmp_path / "page.html"))
    labels = "[...document.querySelectorAll('.pair .label')]"
    names = f"{labels}.filter((each) => each.getClientRects().length).length"
    assert browser.run(names) == 0
    browser.run(
        "(() => { const i = document.querySelector('#choose [type=search]'); i.value = 'run-07';"
        "i.dispatchEvent(new Event('input', {bubbles: true}));"
        "document.querySelector('#choose [value=listed]').click(); })()"
    )
    assert browser.run(names) == 2 * 2
    assert not browser.run(LABELS)


# ------------------------------------------------------------------------------------ many runs


@pytest.mark.long
def test_a_hundred_runs_make_one_page_that_opens(browser: Browser, tmp_path: Path):
    made = {name: make_run(tmp_path / name, methods=(name,), seeds=(0,)) for name in METHODS}
    kinds = list(made.values())
    folders = [shutil.copytree(kinds[n % 3], tmp_path / f"run-{n:03}") for n in range(100)]
    path = write_report(folders, tmp_path / "page.html")
    assert path.stat().st_size < 6_000_000
    for width in (PHONE, DESKTOP):
        browser.open(path, width=width)
        assert not browser.complaints()
        assert browser.run(WIDE) <= 0
    assert browser.run("document.querySelectorAll('*').length") < 80_000
    assert (
        browser.run("document.querySelectorAll('#needle table')[0].tBodies[0].rows.length") == 100
    )
    assert browser.run("document.title").startswith("100 runs, run-000 to run-099")
    assert len(browser.run(SHOWN)) == 100
