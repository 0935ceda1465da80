"""page.py: what the page says, before it is markup."""

import csv
import io
import shutil
from urllib.parse import unquote

import pytest

from made_runs import (
    DEPTHS,
    LENGTHS,
    make_ablation,
    make_run,
    make_study,
    make_training,
    write_needle,
)
from skipalign.comparison import multiple
from skipalign.files import read_json
from skipalign.page import page
from skipalign.results import read_run
from skipalign.scores import table


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "tiny")


def page_of(*folders):
    return page([read_run(folder) for folder in folders])


def blocks(found, task="needle"):
    return next(each["blocks"] for each in found["tasks"] if each["name"] == task)


def records(link):
    return list(csv.DictReader(io.StringIO(unquote(link.partition(",")[2]))))


def test_table_shows_the_figures_of_report_json(run):
    (block,) = blocks(page_of(run))
    shown = {
        (row["name"], column["text"]): (cell["value"], cell["interval"])
        for row in block["table"]["rows"]
        for column, cell in zip(block["table"]["columns"], row["cells"], strict=True)
    }
    assert shown == {
        (row["method"], f"{row['context_length']:,}"): (
            row["mean"],
            f"[{row['low']:.2f}, {row['high']:.2f}]",
        )
        for row in table([run])
    }


def test_columns_within_the_training_window_are_marked(run):
    columns = blocks(page_of(run))[0]["table"]["columns"]
    assert [column["trained"] for column in columns] == [True, *[False] * 5]
    assert [column["multiple"] for column in columns] == ["1×", "2×", "4×", "8×", "16×", "32×"]


@pytest.mark.parametrize(
    ("tokens", "window", "text"),
    [(128, 128, "1×"), (64, 128, "0.5×"), (192, 128, "1.5×"), (131072, 128, "1,024×"), (9, 0, "")],
)
def test_multiples(tokens, window, text):
    assert multiple(tokens, window) == text


def test_maps_have_a_cell_for_every_length_and_depth(run):
    (block,) = blocks(page_of(run))
    assert [each["name"] for each in block["maps"]] == ["normal", "skipalign", "skipalign-bias"]
    for each in block["maps"]:
        assert [row["head"] for row in each["rows"]] == ["0%", "25%", "50%", "75%", "100%"]
        assert {len(row["cells"]) for row in each["rows"]} == {len(LENGTHS)}
        # The rule stands before the first length beyond the window.
        assert [cell["past"] for cell in each["rows"][0]["cells"]] == [False, True, *[False] * 4]
    cell = block["maps"][0]["rows"][2]["cells"][1]
    assert cell["label"].startswith(f"normal, 256 tokens, depth 50%: {cell['text']}, interval 0.")
    assert cell["label"].endswith("24 trials")
    assert cell["shade"] == round(float(cell["text"]) * 50)


def test_a_cell_that_was_not_measured_says_so(run):
    path = run / "normal/seed-0/evaluation/needle/needle.json"
    cells = [one for one in read_json(path)["cells"] if one["context_length"] < 4096]
    for seed in range(3):
        write_needle(run / f"normal/seed-{seed}", cells)
    cell = blocks(page_of(run))[0]["maps"][0]["rows"][0]["cells"][-1]
    assert cell == {
        "text": "",
        "past": False,
        "label": "normal, 4,096 tokens, depth 0%: not measured",
    }


def test_wide_maps_stand_alone_with_short_heads(tmp_path):
    cells = [{"context_length": 1024 * n, "depth": 0.5, "n": 4, "correct": 2} for n in range(1, 20)]
    write_needle(tmp_path / "run/normal/seed-0", cells)
    (block,) = blocks(page_of(tmp_path / "run"))
    assert (block["dense"], block["widest"]) == (True, True)
    assert block["maps"][0]["columns"][1] == {"text": "2k", "full": "2,048 tokens"}


def test_stretch_names_its_natural_positions(run):
    (block,) = blocks(page_of(run), "stretch")
    columns = block["table"]["columns"]
    assert [(column["text"], column["multiple"]) for column in columns[:2]] == [
        ("61", "natural"),
        ("128", "1×"),
    ]


def test_a_method_has_one_colour_in_every_plot(run):
    shutil.rmtree(run / "normal/seed-0/evaluation")
    shutil.rmtree(run / "normal/seed-1/evaluation")
    shutil.rmtree(run / "normal/seed-2/evaluation")
    found = page_of(run)
    styles = {line.name: line.style for line in blocks(found)[0]["plot"].lines}
    assert styles == {"skipalign": 1, "skipalign-bias": 2}
    assert {line.style for line in found["losses"][2]["plot"].lines} == {2}


def test_every_picture_carries_its_data(run):
    found = page_of(run)
    assert len(records(blocks(found)[0]["csv"])) == 3 * len(LENGTHS)
    assert len(records(blocks(found)[0]["maps_csv"])) == 3 * len(LENGTHS) * len(DEPTHS)
    assert len(records(blocks(found, "stretch")[0]["csv"])) == 3 * (1 + len(LENGTHS))
    coverage = records(found["coverage"][0]["plot"].csv)
    assert (coverage[0]["from"], coverage[-1]["below"]) == ("0", "4096")
    assert len(records(found["losses"][0]["plot"].csv)) == 3 * 30


def test_coverage_adds_up_the_seeds(run):
    found = page_of(run)
    pairs = sum(int(row["pairs"]) for row in records(found["coverage"][1]["plot"].csv))
    assert pairs == sum(
        read_json(run / f"skipalign/seed-{seed}/coverage.json")["num_pairs"] for seed in range(3)
    )
    rows = {row[0]: row[1:] for row in found["coverage_rows"]}
    assert rows["normal"][:3] == ["contiguous", "4,096", "60 of 60"]
    assert rows["normal"][-1] == "128.0"


def test_losses_share_their_axes_and_name_their_seeds(run):
    found = page_of(run)["losses"]
    assert len({each["plot"].y_ticks for each in found}) == 1
    assert sorted(line.name for line in found[0]["plot"].lines) == ["seed 0", "seed 1", "seed 2"]


def test_unlike_settings_are_shown_apart(run):
    path = run / "normal/seed-0/evaluation/needle/needle.json"
    cells = read_json(path)["cells"]
    for seed in range(3):
        write_needle(run / f"normal/seed-{seed}", cells, seed=5)
    found = blocks(page_of(run))
    assert [[row["name"] for row in block["table"]["rows"]] for block in found] == [
        ["normal"],
        ["skipalign", "skipalign-bias"],
    ]
    assert found[0]["digest"] != found[1]["digest"]
    assert "seed 5" in found[0]["settings"]


def test_what_is_absent_is_listed_by_method(run):
    for seed in range(3):
        shutil.rmtree(run / f"skipalign/seed-{seed}/evaluation")
        (run / f"skipalign/seed-{seed}/loss.jsonl").unlink()
    (run / "normal/seed-0/coverage.json").unlink()
    found = page_of(run)["missing"]
    assert (found["needle"], found["loss"]) == ("skipalign", "skipalign")
    assert found["coverage"] == ""  # two seeds of normal still have it


def test_notes_say_what_is_not_whole(run):
    (run / "normal/seed-0/coverage.json").write_text("{")
    make_training(run / "normal/seed-1", "normal", 1, interrupted=True)
    path = run / "skipalign/seed-2/evaluation/needle/needle.json"
    write_needle(run / "skipalign/seed-2", read_json(path)["cells"][:-1])
    notes = page_of(run)["notes"]
    assert "coverage.json: not JSON" in notes[0]
    assert notes[1].endswith("the training was interrupted before its end")
    assert notes[2] == "left out: skipalign seed 2: 4 of 5 cells at 4,096 tokens"


def test_a_run_is_repeated_by_its_own_recipe(run):
    found = page_of(run)
    assert found["commands"] == [f"skipalign run {run}/recipe.yaml", f"skipalign report {run}"]
    assert found["recipes"][0]["text"] == (run / "recipe.yaml").read_text()


def test_summary_counts_methods_and_seeds(run, tmp_path):
    text = "3 methods with 3 training seeds each: normal, skipalign, skipalign-bias."
    assert page_of(run)["summary"] == text
    make_training(tmp_path / "mine", "skipalign", 7)
    assert page_of(tmp_path / "mine")["summary"] == "One training: skipalign, seed 7."
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/recipe.yaml").write_text("")
    assert "Nothing" in page_of(tmp_path / "bare")["summary"]


def test_a_summary_of_long_names_leaves_them_out(tmp_path):
    methods = tuple(f"skip-fraction-0.5-max-position-{n}" for n in range(15))
    for method in methods:
        write_needle(tmp_path / f"run/{method}/seed-0", [])
    assert page_of(tmp_path / "run")["summary"] == "15 methods with 1 training seed each."


def test_the_title_of_many_runs_counts_them(tmp_path):
    folders = [tmp_path / f"run-number-{n:03}" for n in range(9)]
    for folder in folders:
        write_needle(folder / "normal/seed-0", [])
    assert page_of(*folders[:2])["title"] == "run-number-000, run-number-001"
    assert page_of(*folders)["title"] == "9 runs, run-number-000 to run-number-008"


def test_rows_packed_as_one_text_are_said_to_reach_farther(tmp_path):
    for method, attention in (("packed", "causal"), ("apart", "block_diagonal")):
        packing = {"max_tokens": 1024, "attention": attention, "loss": "token"}
        make_training(tmp_path / f"run/{method}/seed-0", method, 0, packing=packing)
    assert page_of(tmp_path / "run")["coverage_packed"] == "packed"


def test_a_base_that_is_not_trained_lacks_nothing_of_a_training(tmp_path):
    folder = make_study(tmp_path / "study", methods=("base-ntk", "normal", "pose"), seeds=(0,))
    found = page_of(folder)
    assert {found["missing"][part] for part in ("coverage", "loss", "probe", "accounting")} == {""}
    rows = {row[0]: row[1:] for row in found["coverage_rows"]}
    assert list(rows) == ["base-ntk", "normal", "pose"]
    assert set(rows["base-ntk"]) == {"–"}


def test_every_task_that_was_measured_has_a_part(run, tmp_path):
    assert [each["name"] for each in page_of(run)["tasks"]] == ["needle", "stretch"]
    study = make_study(tmp_path / "study", methods=("normal",), seeds=(0,))
    found = [each["name"] for each in page_of(study)["tasks"]]
    assert found == ["needle", "stretch", "perplexity"]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/recipe.yaml").write_text("")
    (needle,) = page_of(tmp_path / "bare")["tasks"]
    assert (needle["name"], needle["blocks"]) == ("needle", [])


def test_cost_stands_beside_accuracy_at_the_training_window(run):
    found = page_of(run)
    assert found["cost_head"][-2:] == ["accuracy at 128 tokens", "less normal"]
    (row,) = [r for r in table([run]) if (r["method"], r["context_length"]) == ("skipalign", 128)]
    shown = found["cost_rows"][1][-2].replace("\u00a0", " ")
    assert shown == f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def test_an_ablation_leads_where_it_is_most_of_the_page(run, tmp_path):
    folder = make_ablation(tmp_path / "ablation", seeds=(0,))
    found = page_of(folder)
    assert (len(found["ablations"]), found["ablation_first"]) == (1, True)
    both = page_of(folder, make_study(tmp_path / "study", seeds=(0,)))
    assert (len(both["ablations"]), both["ablation_first"]) == (1, False)
    assert page_of(run)["ablations"] == []
