"""evaluate, score and report: what they choose, print and pass on."""

import json
from pathlib import Path
from typing import Any

import pytest

import made_runs
from fixtures_cli import METHODS
from fixtures_eval import prose
from fixtures_server import Reply, answers_as_tiny, said, serving
from skipalign import tiny
from skipalign.evaluation.lm_eval import LmEvalSettings
from skipalign.evaluation.longbench import LongBenchSettings
from skipalign.evaluation.needle import NeedleSettings
from skipalign.evaluation.short_check import ShortCheckSettings
from skipalign.evaluation.stretch import StretchSettings


def test_report_of_several_runs(run: Any, study: dict[str, Any]):
    found = run("report", "runs/a", "runs/b", "--out", "page.html", "--against", "pose")
    options = {"against": "pose"}
    assert study["report"] == ((Path("runs/a"), Path("runs/b")), Path("page.html"), options)
    assert found.out.splitlines()[0] == "the table"


def test_report_writes_its_figures_as_one_document(run: Any, tmp_path: Path):
    made_runs.make_run(tmp_path / "made", methods=("normal", "skipalign"), seeds=(0,))
    found = run("report", "made", "--json-out", "all.json")
    assert found.last == "made made/report.html and all.json; next: open it in a browser"
    document = json.loads(Path("all.json").read_text())
    assert {row["method"] for row in document["rows"]} == {"normal", "skipalign"}
    assert {row["against"] for row in document["paired"]} == {"normal"}


def made_run(*folders: str) -> None:
    """Leave what a run leaves beside its models."""
    Path("runs/many").mkdir(parents=True)
    Path("runs/many/recipe.yaml").write_text(METHODS)
    for folder in folders:
        (Path("runs/many") / folder / "model").mkdir(parents=True)
        (Path("runs/many") / folder / "training.json").write_text("{}")


def test_evaluate_takes_its_options(run: Any, study: dict[str, Any]):
    words = ["--lengths", "1024,4096", "--depths", "11", "--trials", "5", "--seed", "3"]
    found = run(
        "evaluate", "some/model", "--task", "needle", *words, "needle=The {key} is {value}."
    )
    model, settings, out, _, _ = study["evaluate"]
    assert model == "some/model"
    assert settings == NeedleSettings(
        lengths=(1024, 4096), depths=11, trials=5, seed=3, needle="The {key} is {value}."
    )
    assert out == Path("evaluation/needle")
    assert "64: 0.500 [" in found.out
    assert found.last.startswith("made evaluation/needle/needle.json; next: ")
    assert study["evaluate"][1].reuse
    run("evaluate", "m", "--task", "needle", "--lengths", "64", "--no-reuse", "nested=true")
    assert (study["evaluate"][1].nested, study["evaluate"][1].reuse) == (True, False)
    run(
        "evaluate", "m", "--task", "needle", "--lengths", "64", "--depths", "0,0.5", "--out", "here"
    )
    assert study["evaluate"][1].depths == (0.0, 0.5)
    assert study["evaluate"][2] == Path("here")


def test_evaluate_the_stretch_probe(run: Any, study: dict[str, Any]):
    run("evaluate", "m", "--task", "stretch", "--distances", "512,1024", "--context-length", "128")
    _, settings, out, _, _ = study["evaluate"]
    assert settings == StretchSettings(distances=(512, 1024), context_length=128)
    assert out == Path("evaluation/stretch")


@pytest.mark.parametrize("folder", ["", "skipalign/seed-1"])
def test_evaluate_a_model_of_a_run(run: Any, study: dict[str, Any], folder: str):
    made_run(folder)
    model = str(Path("runs/many") / folder / "model")
    found = run("evaluate", model, "--task", "needle")
    assert study["evaluate"][1] == NeedleSettings(
        lengths=(64,), trials={64: 3}, question="Who is {key}?"
    )
    assert study["evaluate"][2] == Path("runs/many") / folder / "evaluation/needle"
    assert found.last.endswith("next: skipalign report runs/many")
    run("evaluate", model, "--task", "needle", "--lengths", "128", "--out", "here")
    assert study["evaluate"][1] == NeedleSettings(lengths=(128,), question="Who is {key}?")
    assert study["evaluate"][2] == Path("here")


def test_evaluate_longbench(run: Any, study: dict[str, Any]):
    words = ("evaluate", "m", "--task", "longbench", "--data", "bench", "--out", "here")
    run(*words, "--tasks", "lcc, qasper", "--e", "max_prompt_tokens=100", "limit=3")
    assert study["evaluate"][1] == LongBenchSettings(
        data="bench", tasks=("lcc", "qasper"), e=True, max_prompt_tokens=100, limit=3
    )
    run(*words)
    assert study["evaluate"][1] == LongBenchSettings(data="bench")
    Path("here/predictions").mkdir(parents=True)
    for name in ("lcc.jsonl", "asked.json"):
        Path(f"here/predictions/{name}").touch()
    found = run(*words, "--overwrite")
    assert list(Path("here/predictions").iterdir()) == []
    assert found.last.endswith("next: skipalign report here")


def test_tasks_may_be_named_behind_the_task(run: Any, study: dict[str, Any]):
    run("evaluate", "m", "--task", "lm-eval:arc_easy, hellaswag", "num_fewshot=5")
    assert study["evaluate"][1] == LmEvalSettings(tasks=("arc_easy", "hellaswag"), num_fewshot=5)
    assert study["evaluate"][2] == Path("evaluation/lm_eval")
    run("evaluate", "m", "--task", "longbench:lcc", "--data", "bench")
    assert study["evaluate"][1] == LongBenchSettings(data="bench", tasks=("lcc",))
    run("evaluate", "m", "--task", "short-check", "max_new_tokens=9")
    assert study["evaluate"][1] == ShortCheckSettings(max_new_tokens=9)
    for words, message in (
        (["lm-eval"], "give --tasks; there is no recipe"),
        (["lm-eval:a", "--tasks", "b"], "named behind --task and by --tasks; keep one"),
        (["needle:a", "--lengths", "64"], "--tasks belongs to --task"),
        (["lm-evil:a"], "'lm-evil' is none of needle"),
    ):
        found = run("evaluate", "m", "--task", *words)
        assert found.code == 2
        assert message in " ".join(found.err.split())


def test_report_of_results_alone(run: Any):
    scored = json.loads(run("score", str(Path(__file__).parent / "predictions"), "--json").out)
    made_runs.write_json(Path("mine/longbench.json"), scored)
    found = run("report", "mine")
    assert found.code == 0
    assert "mine: longbench-v1" in found.out
    assert found.last == "made mine/report.html; next: open it in a browser"


def test_score_stored_answers(run: Any):
    folder = str(Path(__file__).parent / "predictions")
    found = run("score", folder)
    assert "qasper" in found.out
    assert "lcc 4 of 500" in " ".join(found.err.split())
    scores = json.loads(run("score", folder, "--json").out)
    assert {"tasks", "categories", "averages"} <= {*scores}
    assert scores["tasks"]["qasper"]["n"] == 4
    assert {*scores["tasks"]["qasper"]} == {"score", "n", "low", "high"}
    scores = json.loads(run("score", folder, "--json", "--e", "--official-faults").out)
    assert [*scores["tasks"]["qasper"]] == ["0-4k", "4-8k", "8k+"]
    assert scores["scoring"]["official_faults"]


def test_a_file_that_cannot_be_scored_ends_in_one_line(run: Any):
    Path("stored").mkdir()
    Path("stored/lcc.jsonl").write_text('{"pred": "x", "ans')
    found = run("score", "stored")
    assert found.code == 1
    assert found.err.startswith("error: stored/lcc.jsonl line 1: not JSON")
    assert len(found.err.splitlines()) == 1


def test_overwrite_throws_away_the_trials_of_that_task_alone(run: Any, study: dict[str, Any]):
    Path("here").mkdir()
    for task in ("needle", "stretch"):
        Path(f"here/{task}.trials.jsonl").touch()
    words = ("evaluate", "m", "--task", "needle", "--lengths", "64", "--out", "here")
    run(*words)
    assert Path("here/needle.trials.jsonl").exists()
    run(*words, "--overwrite")
    assert [path.name for path in Path("here").glob("*.jsonl")] == ["stretch.trials.jsonl"]


# ------------------------------------------------------------------------------ other backends

KEY = "sk-nobody-may-see-this-4711"
GRID = ("--task", "needle", "--lengths", "96", "--depths", "0.5", "--trials", "3")


def everything_written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_evaluate_by_a_server_records_it_and_never_the_key(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Path("prose.txt").write_text(prose(60))
    with serving(answers_as_tiny()) as server:
        words = ["evaluate", "its-name", "--backend", "http", "--base-url", server.url, *GRID]
        words += ["--tokenizer", str(tiny.BASE), "--with", "send=ids", "--with", "concurrency=2"]
        words += ["--haystack", "prose.txt"]
        found = run(*words)
        assert found.code == 0, found.err
        assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
        again = run(*words, "--json", "-v")
        assert len(server.asked) == 3
        other = run(*words, "--with", "send=text")
    document = json.loads(Path("evaluation/needle/needle.json").read_text())
    assert document["backend"] == {
        "name": "http",
        "base_url": server.url,
        "model": "its-name",
        "send": "ids",
        "dialect": "openai",
        "body": {},
        "tokenizer": str(tiny.BASE),
    }
    assert json.loads(again.out) == document
    assert other.err.startswith("error: evaluation/needle/needle.trials.jsonl: holds trials that")
    told = found.out + found.err + again.out + again.err + other.out + other.err
    assert KEY.encode() not in everything_written(tmp_path) + told.encode()


def test_a_server_that_tells_the_key_back_is_quoted_without_it(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OWN_KEY", KEY)

    def echo(asked: Any) -> Reply:
        return Reply({"error": {"message": f"wrong: {asked.headers['Authorization']}"}}, 401)

    with serving(echo) as server:
        words = ["evaluate", "m", "--backend", "http", "--base-url", server.url, *GRID]
        found = run(*words, "--tokenizer", str(tiny.BASE), "--api-key-env", "OWN_KEY")
    assert found.code == 1
    line = next(line for line in found.err.splitlines() if line.startswith("error: "))
    assert "status 401 (wrong: Bearer [key])" in line
    assert KEY.encode() not in everything_written(tmp_path) + (found.out + found.err).encode()


def test_longbench_by_a_chat_server(run: Any):
    rows = Path(__file__).parent / "longbench_rows"
    with serving(lambda asked: Reply(said("Mary went home.", is_chat=True))) as server:
        words = ["evaluate", "m", "--backend", "http", "--base-url", server.url, "--data", rows]
        words += ["--task", "longbench", "--tokenizer", tiny.BASE, "limit=1"]
        found = run(*map(str, words), "max_prompt_tokens=200")
        assert found.code == 0, found.err
        refused = run(*map(str, words), "--out", "elsewhere")
        contents = [asked.body["messages"][0]["content"] for asked in server.asked]
    assert "max_prompt_tokens is not given" in refused.err
    assert sorted(text.strip()[:14] for text in contents) == ["Please complet", "You are given "]
    stored = Path("evaluation/longbench/predictions/qasper.jsonl").read_text().splitlines()
    assert [json.loads(line)["pred"] for line in stored] == ["Mary went home."]


def test_the_transformers_backend_is_recorded_too(run: Any):
    Path("prose.txt").write_text(prose(60))
    found = run("evaluate", str(tiny.BASE), *GRID, "--haystack", "prose.txt", "--out", "here")
    assert found.code == 0, found.err
    document = json.loads(Path("here/needle.json").read_text())
    assert document["backend"] == {"name": "transformers", "model": str(tiny.BASE)}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--backend", "http"), 2, "--backend http needs --base-url and --tokenizer"),
        (("--base-url", "http://a/v1"), 2, "--base-url does not belong to --backend transformers"),
        (
            ("--backend", "vllm", "--tokenizer", "t"),
            2,
            "--tokenizer does not belong to --backend vl",
        ),
        (("--backend", "vllm"), 1, "error: vLLM is not installed"),
        (
            ("--backend", "http", "--base-url", "http://u:word@a/v1", "--tokenizer", "t"),
            1,
            "error: --backend http: the base URL holds a user, a password or a query",
        ),
        (
            ("--backend", "http", "--base-url", "http://a", "--tokenizer", "t", "--with", "sent=1"),
            1,
            "error: --backend http: sent: no such key; did you mean 'send'?",
        ),
    ],
)
def test_backends_that_cannot_be(run: Any, words: tuple[str, ...], code: int, message: str):
    found = run("evaluate", str(tiny.BASE), *GRID, *words)
    assert (found.code, message in found.err) == (code, True), found.err
    assert "word" not in found.err.replace("password", "")


def test_verify_export_says_what_serves_the_model_or_what_differs(run: Any, monkeypatch: Any):
    from skipalign import serving
    from skipalign.tiny import BASE

    found = run("verify-export", str(BASE), "--length", "64")
    assert found.code == 0
    assert found.out.startswith("transformers  equal, at most ")
    assert found.last == f"compared 64 tokens; next: vllm serve {BASE} --max-model-len 128"
    plainly = serving._plainly
    monkeypatch.setattr(serving, "_plainly", lambda *given: plainly(*given) - 1)
    found = run("verify-export", str(BASE), "--length", "64")
    assert found.code == 1
    assert "transformers  DIFFERENT" in found.out
    assert "tokens 32 to 64 are not read as the model was trained" in found.err
