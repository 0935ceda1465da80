"""report.py: the page that anyone can open, the terminal's table, the model card."""

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from made_hostile import HOSTILE, poison
from made_runs import (
    LENGTHS,
    METHODS,
    STUDY,
    make_ablation,
    make_run,
    make_study,
    make_training,
    write_needle,
    write_stretch,
)
from skipalign.errors import RunError
from skipalign.evaluation.longbench_score import score_folder
from skipalign.files import read_json, write_json
from skipalign.report import (
    add_results_to_cards,
    study_document,
    table,
    terminal_table,
    terminal_tables,
    write_report,
    write_study_document,
)
from skipalign.visible import visible


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, path):
        super().__init__()
        self.found = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "tiny")


# ------------------------------------------------------------------------------------ the page


def test_page_goes_into_the_run_or_where_it_is_asked_to(run, tmp_path):
    assert write_report([run]) == run / "report.html"
    assert write_report([run], tmp_path / "a/page.html") == tmp_path / "a/page.html"
    assert write_report([run], tmp_path / "new") == tmp_path / "new/report.html"
    with pytest.raises(RunError, match="no run folder given"):
        write_report([])


def test_page_is_whole_in_itself(run):
    elements = Elements(write_report([run]))
    links = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("href", "src", "action", "data", "poster", "srcset")
    ]
    assert len(links) > 15
    assert all(link.startswith(("#", "data:text/csv")) for link in links)
    assert not re.search(r"url\(|@import|https?://", (run / "report.html").read_text())
    targets = {attributes.get("id") for _, attributes in elements.found}
    assert {link[1:] for link in links if link.startswith("#")} <= targets


def test_equal_runs_give_equal_pages(run):
    first = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == first


def test_page_says_what_the_two_tasks_show(run):
    text = " ".join(Elements(write_report([run])).text.split())
    assert "the stretch probe shows position failure alone" in text
    assert "the needle shows it together with what more text does" in text


def test_pictures_and_cells_are_labelled_for_those_who_do_not_see_them(run):
    elements = Elements(write_report([run]))
    plots = elements.all("svg")
    assert len(plots) == 2 + 3 + 3
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    cells = [each for each in elements.all("td") if "aria-label" in each]
    assert len(cells) == 3 * 6 * 5
    assert all("tokens, depth" in cell["aria-label"] for cell in cells)
    assert elements.all("html")[0]["lang"] == "en"


def test_differences_are_taken_against_the_method_that_is_named(run, tmp_path):
    path = write_study_document([run], tmp_path / "figures.json", against="skipalign")
    document = read_json(path)
    assert document["reference"] == "skipalign"
    assert {row["method"] for row in document["paired"]} == {"normal", "skipalign-bias"}
    assert {row["against"] for row in document["paired"]} == {"skipalign"}
    page = write_report([run], tmp_path / "page.html", against="skipalign")
    told = Elements(page).text
    assert told != Elements(write_report([run], tmp_path / "other.html")).text
    with pytest.raises(RunError, match="--against pose: no such method"):
        write_report([run], against="pose")


def test_the_page_of_a_study_names_every_line_and_uses_only_its_own_parts(tmp_path):
    elements = Elements(write_report([make_study(tmp_path / "study", seeds=(0,))]))
    pictures = [each for each in elements.all("svg") if "aria-hidden" not in each]
    assert all(len(each["aria-label"]) > 20 for each in pictures)
    lines = [each for each in elements.all("g") if "tabindex" in each]
    assert len(lines) == 3 * len(STUDY)
    assert all(re.match(r"[\w-]+: \d\.\d\d at \d+", each["aria-label"]) for each in lines)
    names = [each["id"] for _, each in elements.found if "id" in each]
    assert len(set(names)) == len(names)
    used = {each["href"] for each in elements.all("use")}
    assert used == {f"#ghosts-{task}-1" for task in ("needle", "stretch", "perplexity")}
    assert {each.removeprefix("#") for each in used} <= set(names)


def test_every_part_with_pictures_has_its_data_behind_a_link(tmp_path):
    for made in (make_study(tmp_path / "s", seeds=(0,)), make_ablation(tmp_path / "a", seeds=(0,))):
        text = write_report([made]).read_text(encoding="utf-8")
        parts = re.findall(r'<section id="([\w-]+)"(.*?)</section>', text, re.DOTALL)
        drawn = {
            name: part for name, part in parts if re.search("<svg class=.plot|data-walk", part)
        }
        assert {"needle", "maps", "coverage", "loss"} <= {*drawn}
        for name, part in drawn.items():
            assert 'href="data:text/csv' in part, name
        figures = re.findall(
            r"<figure>(?:(?!</figure>).)*<svg class=.plot.*?</figure>", text, re.DOTALL
        )
        assert len(figures) > 1
    anchors = set(re.findall(r'href="#(csv-[\w-]+)"', text))
    assert anchors <= set(re.findall(r'id="(csv-[\w-]+)"', text))


def test_methods_can_be_chosen_where_there_are_several_and_none_is_hidden_without_script(tmp_path):
    elements = Elements(write_report([make_run(tmp_path / "three", seeds=(0,))]))
    boxes = [each for each in elements.all("input") if each.get("type") == "checkbox"]
    assert [each["value"] for each in boxes] == ["0", "1", "2"]
    assert all("checked" in each for each in boxes)
    hidden = [attributes for _, attributes in elements.found if "hidden" in attributes]
    assert [each["id"] for each in hidden] == ["choose"]
    marked = [attributes["data-m"] for _, attributes in elements.found if "data-m" in attributes]
    assert {*marked} == {"0", "1", "2"}
    assert marked.count("0") + 2 == marked.count("1") == marked.count("2"), (
        "no difference from itself"
    )
    alone = Elements(write_report([make_run(tmp_path / "one", methods=("normal",), seeds=(0,))]))
    assert not alone.all("input")


def test_marks_tell_where_an_interval_leaves_zero_out_without_colour(run):
    text = Elements(write_report([run])).text
    document = study_document([run])
    tables = [document, document["tasks"]["stretch"]]
    beyond = [row["low"] > 0 or row["high"] < 0 for each in tables for row in each["paired"]]
    short = [row for row in document["paired"] if row["context_length"] == 128]
    expected = sum(beyond) + sum(row["low"] > 0 or row["high"] < 0 for row in short)
    said = 2 * 2  # each of the two explanations names both marks
    assert text.count("▲") + text.count("▼") == expected + said
    assert sum(beyond) > 5


def test_nested_prompts_carry_their_warning(run):
    assert "intervals over several depths" not in Elements(write_report([run])).text
    for seed in range(3):
        cells = read_json(run / f"normal/seed-{seed}/evaluation/needle/needle.json")["cells"]
        write_needle(run / f"normal/seed-{seed}", cells, nested=True)
    assert "intervals over several depths" in Elements(write_report([run])).text


def test_numbers_of_the_table_stand_in_the_page(run):
    text = Elements(write_report([run])).text
    for row in table([run]):
        assert f"{row['mean']:.2f}[{row['low']:.2f}, {row['high']:.2f}]" in text


@pytest.mark.parametrize(
    "part",
    [
        *("recipe.yaml", "environment.json", "training.json", "accounting.json", "probe.json"),
        *("loss.jsonl", "coverage.json", "seconds.json", "evaluation/needle", "evaluation/stretch"),
    ],
)
def test_a_missing_part_is_no_crash(run, part):
    for path in [run / part, *run.glob(f"*/seed-*/{part}")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path = write_report([run])
    if part not in ("recipe.yaml", "seconds.json", "evaluation/stretch"):
        assert re.search("not measured", path.read_text(), re.IGNORECASE)


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "recipe.yaml").write_text("base: tiny\n")
    text = Elements(write_report([tmp_path])).text
    assert text.count("not measured") >= 7
    assert "base: tiny" in text


def test_runs_side_by_side(tmp_path):
    folders = [make_run(tmp_path / name, methods=("normal",), seeds=(0,)) for name in "ab"]
    text = Elements(write_report(folders, tmp_path / "both.html")).text
    assert "normal (a)" in text
    assert "normal (b)" in text


def test_one_command_makes_the_page_of_results_without_a_training(tmp_path):
    """LongBench with the published rows, needle maps and perplexity curves, of a folder alone."""
    made = make_study(tmp_path / "run", methods=("normal",), seeds=(0,)) / "normal/seed-0"
    shutil.copytree(made / "evaluation", tmp_path / "mine")
    scored = score_folder(Path(__file__).parent / "predictions")
    hostile = HOSTILE.replace("\ud800", "")
    scored["incomplete"] = {"lcc": hostile}
    write_json(tmp_path / "mine/longbench/longbench.json", {**scored, "cells": []})
    elements = Elements(write_report([tmp_path / "mine"]))
    text = " ".join(elements.text.split())
    sections = {attributes.get("id") for attributes in elements.all("section")}
    assert {"longbench", "needle", "maps", "perplexity"} <= sections
    assert not {"cost", "coverage", "loss", "probe", "data"} & sections
    assert "GPT-3.5-Turbo-16k" in text
    assert "Published: longbench-v1" in text
    assert visible(hostile) in elements.text, "shown as text"
    assert f"{scored['tasks']['lcc']['score']:.2f}" in text
    assert [str(drawn.title) for drawn in terminal_tables([tmp_path / "mine"])] == [
        "mine: longbench-v1, percent [95% interval]",
        "Needle accuracy by tokens of context: mean over seeds, 95% interval",
    ]
    document = study_document([tmp_path / "mine"])
    (row,) = (row for row in document["boards"]["longbench"] if row["part"] == "lcc")
    assert (row["method"], row["score"], row["n"]) == ("mine", scored["tasks"]["lcc"]["score"], 4)
    assert document["settings"]["longbench"]["protocol"] == "longbench-v1"


def test_protocols_are_told_apart_on_the_page_and_refused_in_a_document(tmp_path):
    for name, e in (("plain", False), ("by-length", True)):
        scored = score_folder(Path(__file__).parent / "predictions", e=e)
        write_json(tmp_path / name / "longbench.json", {**scored, "cells": []})
    folders = [tmp_path / "plain", tmp_path / "by-length"]
    text = " ".join(Elements(write_report(folders, tmp_path / "both.html")).text.split())
    assert "Not measured alike, so not in one table: protocol is longbench-v1 for plain" in text
    assert "0-4k" in text
    with pytest.raises(RunError, match="protocol is longbench-v1 for plain and longbench-e for"):
        study_document(folders)


# -------------------------------------------------------------------------------- hostile text


def test_no_text_becomes_markup(run):
    path = write_report([poison(run)])
    elements = Elements(path)
    assert len(elements.all("script")) == 1
    assert not elements.all("img")
    names = {name for _, attributes in elements.found for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert elements.text.count(visible(HOSTILE)) > 100
    assert not re.search("[\x1b\x07\u202e\u2066\u200b]", path.read_text(encoding="utf-8"))
    # The policy of the page lets no other script run, should one get through.
    script = re.search(r"<script>(.*?)</script>", path.read_text(), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [each["content"] for each in elements.all("meta") if "http-equiv" in each]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


# -------------------------------------------------------------------------------- the terminal


def shown(drawn, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(drawn)
    return console.file.getvalue()


def test_terminal_table_fits_80_columns_and_holds_every_figure(run):
    text = shown(terminal_table([run]))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for row in table([run]):
        assert f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" in text
    assert re.search(r"1,024 +8× +", text)
    assert "3 seeds, 120 trials a figure" in text


def test_many_methods_stand_below_each_other(tmp_path):
    methods = [f"method-{n}" for n in range(7)]
    text = shown(terminal_table([make_run(tmp_path / "many", methods, seeds=(0,))]))
    assert "…" not in text
    assert all(method in text for method in methods)
    assert "1 seed, 40 trials" in text


def test_terminal_table_of_nothing_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    assert "not measured" in shown(terminal_table([tmp_path]))


def test_the_terminal_shows_no_table_of_needles_that_were_not_asked(tmp_path):
    folder = make_run(tmp_path / "run", methods=("normal",), seeds=(0,))
    assert len(terminal_tables([folder])) == 1
    shutil.rmtree(folder / "normal/seed-0/evaluation/needle")
    assert terminal_tables([folder]) == []


def test_names_are_no_markup_in_the_terminal(tmp_path):
    make_training(tmp_path / "x", "[bold red]m[/]", 0)
    assert "[bold red]m[/]" in shown(terminal_table([tmp_path / "x"]))


@pytest.mark.parametrize("num_lengths", [6, 7])
def test_twenty_methods_fit_80_columns_without_losing_a_digit(tmp_path, num_lengths):
    for order, method in enumerate(STUDY):
        cells = [
            {"context_length": 128 << place, "depth": 0.5, "n": 40, "correct": 15 + order}
            for place in range(num_lengths)
        ]
        for seed in range(3):
            write_needle(tmp_path / method / f"seed-{seed}", cells)
    text = shown(terminal_table([tmp_path]))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for row in table([tmp_path]):
        low, high = (f"{row[key]:.2f}".removeprefix("0") for key in ("low", "high"))
        assert f"{low}–{high}" in text
    for method in STUDY:
        assert method[:12] in text


# ------------------------------------------------------------------------- the study's document


def test_the_document_holds_rows_differences_cost_coverage_and_conditions(tmp_path):
    folder = make_study(tmp_path / "study", methods=("base-ntk", "normal", "skipalign"))
    found = study_document([folder])
    assert json.loads(json.dumps(found)) == found
    assert found["rows"] == table([folder])
    assert list(found["rows"][0]) == [
        *("method", "context_length", "mean", "low", "high", "num_seeds", "num_trials")
    ]
    assert [row["method"] for row in found["paired"]] == [
        *["base-ntk"] * len(LENGTHS),
        *["skipalign"] * len(LENGTHS),
    ]
    assert {"method", "context_length", "against", "difference", "low", "high", "num_seeds"} <= set(
        found["paired"][0]
    )
    assert list(found["tasks"]) == ["stretch", "perplexity"]
    assert found["tasks"]["perplexity"]["measure"] == "nats"
    assert len(found["tasks"]["perplexity"]["paired"]) == 2 * len(LENGTHS)
    assert (found["reference"], found["training_window"], found["seeds"]) == (
        "normal",
        128,
        [0, 1, 2],
    )
    assert [row["method"] for row in found["cost"]] == ["base-ntk", "normal", "skipalign"]
    assert (found["cost"][0]["tokens"], found["cost"][1]["tokens"]) == (None, 1_228_800)
    assert found["cost"][1]["short"]["mean"] == found["rows"][len(LENGTHS)]["mean"]
    assert found["coverage"][1]["strategy"] == "contiguous"
    assert found["environment"]["packages"]["torch"] == "2.13.0+cpu"
    assert len(found["settings"]["needle"]["digest"]) == 8
    assert found["settings"]["needle"]["trials"] == 8


def test_equal_runs_give_equal_documents(run, tmp_path):
    first = write_study_document([run], tmp_path / "out/one.json").read_bytes()
    again = make_run(tmp_path / "again/tiny")
    assert write_study_document([again], tmp_path / "two.json").read_bytes() == first
    assert read_json(tmp_path / "two.json")["rows"] == table([run])


def test_several_runs_have_an_environment_each(tmp_path):
    folders = [
        make_run(tmp_path / name, methods=(name,), seeds=(0,)) for name in ("normal", "pose")
    ]
    assert list(study_document(folders)["environment"]) == ["normal", "pose"]


def test_a_run_that_has_only_begun_has_a_document(tmp_path):
    (tmp_path / "recipe.yaml").write_text("base: tiny\n")
    found = study_document([tmp_path])
    assert (found["rows"], found["paired"], found["cost"], found["reference"]) == ([], [], [], None)


def test_no_document_is_made_of_results_that_cannot_stand_together(run):
    document = read_json(run / "normal/seed-0/evaluation/stretch/stretch.json")
    write_stretch(run / "normal/seed-0", document["cells"], seed=9)
    with pytest.raises(RunError, match="the task stretch was measured in 2 unlike ways"):
        study_document([run])


# ------------------------------------------------------------------------------- the model card


def card_of(training, text="# A model\n\n<!-- results -->\nNone yet.\n<!-- /results -->\n\nEnd.\n"):
    (training / "model").mkdir()
    (training / "model/README.md").write_text(text)
    return training / "model"


def test_results_replace_the_marked_block_and_nothing_else(run):
    model = card_of(run / "skipalign/seed-1")
    first = add_results_to_cards([model], run)[0].read_text()
    assert first.startswith("# A model\n\n<!-- results -->\n")
    assert first.endswith("<!-- /results -->\n\nEnd.\n")
    assert "None yet" not in first
    assert "| method | 128 | 256 | 512 | 1,024 | 2,048 | 4,096 | seeds | trials |" in first
    heads = re.findall(r"^\| ([^|]+) \| [\d.]+ \[", first, re.MULTILINE)
    assert heads == ["this model", "normal", "skipalign", "skipalign-bias"]
    assert add_results_to_cards([model], run)[0].read_text() == first


def test_the_card_holds_this_models_own_figures(run):
    text = add_results_to_cards([card_of(run / "skipalign/seed-1")], run)[0].read_text()
    document = read_json(run / "skipalign/seed-1/evaluation/needle/needle.json")
    cells = [cell for cell in document["cells"] if cell["context_length"] == 2048]
    mean = sum(cell["correct"] for cell in cells) / sum(cell["n"] for cell in cells)
    own = next(line for line in text.splitlines() if line.startswith("| this model |"))
    assert own.split(" | ")[5].startswith(f"{mean:.2f} [")
    assert own.endswith(" | 1 | 40 |")
    for row in table([run]):
        assert f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" in text
    assert text.count(" | 3 | 120 |") == 3


def test_a_run_of_one_training_has_one_row(tmp_path):
    training = make_training(tmp_path / "mine", "skipalign", 0)
    text = add_results_to_cards([card_of(training)], training)[0].read_text()
    assert re.search(
        r"^\|---\|(---:\|){8}\n\| skipalign \| .* \| 1 \| 40 \|\n<!--", text, re.MULTILINE
    )


def test_all_cards_of_a_run_are_written_from_one_reading(run):
    models = [card_of(run / f"{name}/seed-0") for name in ("normal", "skipalign")]
    assert add_results_to_cards(models, run) == [model / "README.md" for model in models]
    one, other = ((model / "README.md").read_text() for model in models)
    assert one != other
    assert add_results_to_cards([models[0]], run)[0].read_text() == one


def test_a_model_whose_own_training_was_not_measured_has_the_runs_rows(run):
    shutil.rmtree(run / "normal/seed-0/evaluation")
    text = add_results_to_cards([card_of(run / "normal/seed-0")], run)[0].read_text()
    assert "this model" not in text
    assert "| normal | " in text


def test_a_card_without_marks_gets_them_at_its_end(run):
    model = card_of(run / "normal/seed-0", "# A model\n")
    first = add_results_to_cards([model], run)[0].read_text()
    assert first.startswith("# A model\n\n<!-- results -->\nNeedle in a haystack")
    assert add_results_to_cards([model], run)[0].read_text() == first


@pytest.mark.parametrize(
    "text", ["<!-- results -->", "<!-- /results -->", "<!-- /results --> <!-- results -->"]
)
def test_half_a_block_is_refused_and_left_alone(run, text):
    model = card_of(run / "normal/seed-0", text)
    with pytest.raises(RunError, match="put both in, or remove both"):
        add_results_to_cards([model], run)
    assert (model / "README.md").read_text() == text


def test_a_model_without_a_card_is_refused(run):
    with pytest.raises(RunError, match=r"README\.md: no such file"):
        add_results_to_cards([run / "normal/seed-0"], run)


def test_no_name_breaks_the_cards_table(tmp_path):
    make_training(tmp_path / "run/a/seed-0", "a | b <!-- /results --> [x](y)", 0)
    model = card_of(tmp_path / "run/a/seed-0")
    text = add_results_to_cards([model], tmp_path / "run")[0].read_text()
    assert text.count("<!-- /results -->") == 1
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert (len(rows), {line.count("|") for line in rows}) == (3, {10})


def test_a_card_of_an_unmeasured_run_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    text = add_results_to_cards([card_of(tmp_path)], tmp_path)[0].read_text()
    assert "Needle accuracy: not measured." in text


def test_table_is_what_json_prints(run):
    assert json.loads(json.dumps(table([run]))) == table([run])
    assert METHODS.keys() == {row["method"] for row in table([run])}
    write_needle(run / "normal/seed-0", [], seed=9)
    with pytest.raises(RunError, match="unlike"):
        table([run])
