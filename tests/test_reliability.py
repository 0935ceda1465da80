"""Faults that are really done to real starts of the command line; docs/reliability.md lists them.

Each test ends alike: what was done is kept, the message says what to do, the next start works and
ends with the digits of a run that met no fault. Starts are forks of a process that has imported
all (made_starts.py), so that fifty kills do not cost fifty imports.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from made_starts import Ended, Start, Starter, no_disks
from skipalign.checkpoints import newest_checkpoint
from skipalign.files import read_json, read_json_lines
from test_architecture import ROOT, defined_tests
from test_training import make_base

PAGE = ROOT / "docs/reliability.md"
NUM_KILLS = 50
KILLS_IN_A_ROW = 4  # of one stage
STEPS = 6
SAMPLES = 8
RECIPE = """
base: {root}/base
data: {{path: {root}/chats.jsonl, name: chats}}
rope: {{type: ntk, factor: 8}}
strategy: {{name: skipalign, max_position: 512}}
trainer: {{max_steps: 6, per_device_train_batch_size: 4, logging_steps: 1, save_steps: 2}}
evaluation:
  needle:
    lengths: [64, 128]
    depths: 2
    trials: 3
    haystack: {root}/prose.txt
    needle: "{{key}} x {{value}} ."
    question: "{{key}} ?"
    separator: " "
    keys: [a, b, c]
    values: [d, e, f]
    max_new_tokens: 3
"""
# The five stages, each a command; all of them run in `place`, a folder with the recipe.
MODEL = "runs/own/model"
STAGES = {
    "prepare": ("prepare", "own.yaml", "-q"),
    "train": ("train", "own.yaml", "-q"),
    "needle": ("evaluate", MODEL, "--task", "needle", "-q"),
    "longbench": (
        *("evaluate", MODEL, "--task", "longbench", "--data", "longbench", "-q"),
        "max_prompt_tokens=400",
    ),
    "report": ("report", "runs/own", "-q"),
}
long = pytest.mark.long


# ------------------------------------------------------------------------------ where it happens


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, conversations, prose and LongBench rows that all starts share."""
    root = tmp_path_factory.mktemp("reliability")
    make_base(root / "base")
    words = list("ghijklmnopqrst")
    (root / "prose.txt").write_text(" ".join(f"{' '.join(words)} ." for _ in range(40)))
    (root / "chats.jsonl").write_text(chats(words))
    (root / "longbench").mkdir()
    rows = [longbench_row(number) for number in range(SAMPLES)]
    (root / "longbench/hotpotqa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "disk").mkdir()
    return root


def chats(words: list[str]) -> str:
    turns = [
        [
            {"role": "user", "content": f"{w} {v} a x d ."},
            {"role": "assistant", "content": f"{v} d"},
        ]
        for w in words
        for v in words
    ]
    return "".join(json.dumps({"messages": each}) + "\n" for each in turns)


def longbench_row(number: int) -> dict[str, Any]:
    return {
        "input": f"which is {number} ?",
        "context": "a b c d e . " * (10 + number),
        "answers": ["d"],
        "length": 60,
        "dataset": "hotpotqa",
        "language": "en",
        "all_classes": None,
        "_id": f"sample-{number}",
    }


@pytest.fixture(scope="module")
def starter(root: Path) -> Iterator[Starter]:
    with Starter(root, None if no_disks() else root / "disk") as starter:
        yield starter


def make_place(root: Path, folder: Path, **replaced: str) -> Path:
    """A folder with a recipe, in which commands are started."""
    folder.mkdir(parents=True)
    text = RECIPE.format(root=root)
    for old, new in replaced.items():
        assert f"{old}: " in text
        text = re.sub(rf"(\b{old}): [^,}}\n]+", rf"\1: {new}", text)
    (folder / "own.yaml").write_text(text)
    (folder / "longbench").symlink_to(root / "longbench")
    return folder


@dataclass
class Finished:
    """A run that nothing happened to: its digits, and the seconds of each stage."""

    digits: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def whole(root: Path, starter: Starter) -> Finished:
    place = make_place(root, root / "whole")
    seconds: dict[str, float] = {}
    for name, words in STAGES.items():
        began = time.monotonic()
        ended = starter.run(*words, cwd=place)
        seconds[name] = time.monotonic() - began
        assert ended.code == 0, ended.err
    return Finished(digits(place), seconds)


def digits(place: Path) -> dict[str, Any]:
    """All that must not depend on what happened: data, weights, losses, answers, scores, page."""
    run = place / "runs/own"
    parts = {name: run / name for name in ("data/examples.arrow", "model/model.safetensors")}
    found: dict[str, Any] = {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in parts.items()
    }
    losses = read_json_lines(run / "loss.jsonl")
    found["losses"] = [[line["step"], line["loss"]] for line in losses]
    found["accounting"] = read_json(run / "accounting.json")["total"]
    outcome = read_json(run / "training.json")
    found["counted"] = [outcome[name] for name in ("steps", "tokens", "trained_tokens")]
    needle = run / "evaluation/needle"
    if (needle / "needle.json").exists():
        found["cells"] = read_json(needle / "needle.json")["cells"]
        trials = read_json_lines(needle / "needle.trials.jsonl")[1:]
        for line in trials:  # what prompts share is computed again after a stop
            del line["computed_tokens"], line["check"]
        found["trials"] = sorted(json.dumps(line, sort_keys=True) for line in trials)
    answers = run / "evaluation/longbench/predictions/hotpotqa.jsonl"
    if answers.exists():
        found["answers"] = answers.read_bytes()
        found["scores"] = read_json(answers.parents[1] / "longbench.json")["tasks"]
    if (run / "report.html").exists():
        page = (run / "report.html").read_text(encoding="utf-8")
        found["page"] = re.findall(r"<h[123][^>]*>.*?</h[123]>", page, re.DOTALL)
        assert page.rstrip().endswith("</html>")
    return found


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[Ended], None]:
    """Return what demands one line of error, in the words of a row that names this test."""
    name = f"`{Path(__file__).name}::{request.node.originalname}`"
    known = [said for row in rows() if name in row[-1] for said in re.findall("`([^`]+)`", row[2])]
    assert known, f"no row of {PAGE.name} names {name} and a message"

    def check(ended: Ended) -> None:
        lines = [line for line in ended.err.splitlines() if "error: " in line or "stopped" in line]
        assert len(lines) == 1, ended.err
        assert "Traceback" not in ended.err
        patterns = [re.escape(said).replace("…", ".*") for said in known]
        assert any(re.fullmatch(pattern, lines[0]) for pattern in patterns), (lines[0], known)

    return check


def finish(starter: Starter, place: Path, *stages: str) -> None:
    for stage in stages:
        ended = starter.run(*STAGES[stage], cwd=place)
        assert ended.code == 0, ended.err


def until(there: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to be there."""
    last = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < last, "it did not come"
        time.sleep(0.005)


# ------------------------------------------------------------------------------ kills


@long
def test_fifty_kills_at_random_moments_change_nothing(
    root: Path, starter: Starter, whole: Finished
):
    """Start, kill, start again. A stage has a few kills in a row at most, so that none takes them
    all, and moments are drawn within the shortest time that it was seen to take."""
    rng = np.random.default_rng(0)
    kills: Counter[str] = Counter()
    shortest = dict(whole.seconds)
    finished = 0
    while kills.total() < NUM_KILLS:
        place = make_place(root, root / f"killed-{finished}")
        for stage, words in STAGES.items():
            for _ in range(KILLS_IN_A_ROW):
                start = starter.start(*words, cwd=place)
                start.kill(after=float(rng.uniform(0, shortest[stage])))
                ended = start.end()
                kills[stage] += ended.code == -signal.SIGKILL
                no_half_files(place / "runs/own")
                if ended.code == 0:
                    break
            began = time.monotonic()
            finish(starter, place, stage)
            shortest[stage] = min(shortest[stage], time.monotonic() - began)
        assert digits(place) == whole.digits
        finished += 1
    assert min(kills[stage] for stage in STAGES) >= 5, kills
    samples = [json.loads(line)["_id"] for line in whole.digits["answers"].splitlines()]
    assert samples == [f"sample-{number}" for number in range(SAMPLES)]
    assert len(set(whole.digits["trials"])) == len(whole.digits["trials"]) == 2 * 2 * 3


def no_half_files(run: Path) -> None:
    """Whatever has its own name is whole."""
    for path in run.rglob("*.json"):
        if not {"model", ".model.partial", ".partial"} & {*path.parts}:
            json.loads(path.read_text())


@long
def test_a_comparison_whose_own_process_is_killed_ends_its_workers_and_goes_on(
    root: Path, starter: Starter, tmp_path: Path
):
    words = ("compare", "own.yaml", "seeds=[0, 1]", "-q")
    changed = {"max_steps": "300", "save_steps": "20"}
    whole = make_place(root, tmp_path / "whole", **changed)
    assert starter.run(*words, cwd=whole).code == 0
    place = make_place(root, tmp_path / "place", **changed)
    start = starter.start(*words, "--jobs", "2", cwd=place)
    logs = [folder / "loss.jsonl" for folder in seeds_of(place)]
    until(lambda: any(len(read_json_lines(log)) >= 5 for log in logs), seconds=240)
    workers = psutil.Process(start.pid).children(recursive=True)
    start.kill()
    assert start.end().code == -signal.SIGKILL
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=20)[1], "a worker lives on"
    assert not all((folder / "training.json").exists() for folder in seeds_of(place))
    ended = starter.run(*words, "--jobs", "2", cwd=place)
    assert ended.code == 0, ended.err
    for found, wanted in zip(seeds_of(place), seeds_of(whole), strict=True):
        model, cells = "model/model.safetensors", "evaluation/needle/needle.json"
        assert (found / model).read_bytes() == (wanted / model).read_bytes()
        assert losses_in(found) == losses_in(wanted)
        assert read_json(found / cells)["cells"] == read_json(wanted / cells)["cells"]


def losses_in(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_json_lines(folder / "loss.jsonl")]


def seeds_of(place: Path) -> list[Path]:
    return [place / f"runs/own/skipalign/seed-{seed}" for seed in (0, 1)]


@long
def test_ctrl_c_keeps_the_step_and_the_next_start_goes_on(
    root: Path, starter: Starter, tmp_path: Path, told: Callable[[Ended], None]
):
    place = make_place(root, tmp_path / "place", max_steps="300", save_steps="100")
    start = started_training(starter, place)
    start.kill(signal.SIGINT)
    ended = start.end()
    assert ended.code == 130
    told(ended)
    left = newest_checkpoint(place / "runs/own/checkpoints")
    assert left is not None
    stopped_at = int(left.name[11:])
    assert 0 < stopped_at < 300
    finish(starter, place, "train")
    steps = [line["step"] for line in read_json_lines(place / "runs/own/loss.jsonl")]
    assert steps == list(range(1, 301))
    unstopped = make_place(root, tmp_path / "other", max_steps="300", save_steps="100")
    finish(starter, unstopped, "train")
    assert digits(place) == digits(unstopped)


def started_training(starter: Starter, place: Path) -> Start:
    """Start a training and return when it has done some steps."""
    finish(starter, place, "prepare")
    start = starter.start(*STAGES["train"], cwd=place)
    until(lambda: len(read_json_lines(place / "runs/own/loss.jsonl")) >= 3)
    return start


@long
def test_a_second_start_in_a_folder_is_refused_while_the_first_works(
    root: Path, starter: Starter, tmp_path: Path, told: Callable[[Ended], None], whole: Finished
):
    place = make_place(root, tmp_path / "place", max_steps="300", save_steps="100")
    first = started_training(starter, place)
    first.kill(signal.SIGSTOP)
    for words in (STAGES["train"], STAGES["prepare"], ("run", "own.yaml", "-q")):
        ended = starter.run(*words, cwd=place)
        assert ended.code == 1
        assert f"process {first.pid} of " in ended.err
        told(ended)
    ended = starter.run(*STAGES["train"], "name=second", "trainer.max_steps=2", cwd=place)
    assert ended.code == 0, ended.err
    first.kill(signal.SIGCONT)
    assert first.end().code == 0
    assert read_json(place / "runs/own/training.json")["steps"] == 300


@long
def test_two_evaluations_into_one_folder_are_never_mixed(
    root: Path, starter: Starter, tmp_path: Path, told: Callable[[Ended], None]
):
    place = make_place(root, tmp_path / "place")
    finish(starter, place, "prepare", "train")
    words = (*STAGES["needle"], "trials=60", "--out", "out")
    answers = place / "out/needle.trials.jsonl"
    first = starter.start(*words, cwd=place)
    until(lambda: len(read_json_lines(answers)) >= 3)
    first.kill(signal.SIGSTOP)
    ended = starter.run(*words, "--overwrite", cwd=place)
    assert ended.code == 1
    told(ended)
    first.kill(signal.SIGCONT)
    assert first.end().code == 0
    trials = [(t["context_length"], t["depth"], t["trial"]) for t in read_json_lines(answers)[1:]]
    assert len(trials) == len(set(trials)) == 2 * 2 * 60


# ------------------------------------------------------------------------------ disks


@pytest.fixture
def disk(root: Path, starter: Starter) -> Iterator["Disk"]:
    if (reason := no_disks()) is not None:
        pytest.skip(reason)
    disk = Disk(starter, root / "disk")
    yield disk
    disk.leave(None)
    for each in disk.here.iterdir():
        shutil.rmtree(each)


class Disk:
    """A small disk: where forks see it, where this process does, and how much room it has."""

    def __init__(self, starter: Starter, path: Path) -> None:
        self.path = path
        self.here = starter.seen(path)

    def leave(self, num_bytes: int | None) -> None:
        """Leave so much room, None for all that there is."""
        filler = self.here / "filler"
        filler.unlink(missing_ok=True)
        if num_bytes is not None:
            found = os.statvfs(self.here)
            with filler.open("wb") as handle:
                size = found.f_bavail * found.f_frsize - num_bytes
                os.posix_fallocate(handle.fileno(), 0, size)

    def place(self, root: Path) -> Path:
        """Return a folder with a recipe, by the name that forks know it by."""
        make_place(root, self.here / "place")
        return self.path / "place"


@long
def test_a_full_disk_loses_no_checkpoint(
    root: Path, starter: Starter, disk: Disk, told: Callable[[Ended], None], whole: Finished
):
    """Room for less than one checkpoint, for one and some of the next, for two and some: each
    library that writes into one meets the full disk once."""
    place, run = disk.place(root), disk.here / "place/runs/own"
    finish(starter, place, "prepare")
    kept: list[str] = []
    for room in (150_000, 330_000, 400_000, 480_000, 600_000, 700_000):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        disk.leave(room)
        ended = starter.run(*STAGES["train"], cwd=place)
        assert ended.code == 1, (room, ended.err)
        told(ended)
        assert not (run / "checkpoints/.partial").exists()
        newest = newest_checkpoint(run / "checkpoints")
        kept.append(newest.name if newest else "none")
    assert {"none", "checkpoint-2", "checkpoint-4"} == {*kept}
    disk.leave(None)
    finish(starter, place, "train")
    losses = [line["step"] for line in read_json_lines(run / "loss.jsonl")]
    assert losses == list(range(1, STEPS + 1))
    finish(starter, place, "needle", "longbench", "report")
    assert digits(disk.here / "place") == whole.digits


@long
def test_a_full_disk_keeps_the_answers_that_are_given(
    root: Path, starter: Starter, disk: Disk, told: Callable[[Ended], None], whole: Finished
):
    place, out = disk.place(root), disk.here / "place/runs/own/evaluation"
    disk.leave(20_000)
    ended = starter.run(*STAGES["prepare"], cwd=place)
    assert ended.code == 1
    told(ended)
    disk.leave(None)
    finish(starter, place, "prepare", "train")
    for stage, file in (
        ("needle", "needle/needle.trials.jsonl"),
        ("longbench", "longbench/predictions/hotpotqa.jsonl"),
    ):
        disk.leave(12_288)
        ended = starter.run(*STAGES[stage], cwd=place)
        assert ended.code == 1
        told(ended)
        given = (out / file).read_bytes()
        disk.leave(None)
        finish(starter, place, stage)
        assert (out / file).read_bytes().startswith(given[: given.rfind(b"\n") + 1])
    finish(starter, place, "report")
    assert digits(disk.here / "place") == whole.digits


@long
def test_a_full_disk_leaves_the_old_report_as_it_is(
    root: Path, starter: Starter, disk: Disk, told: Callable[[Ended], None]
):
    place, run = disk.place(root), disk.here / "place/runs/own"
    finish(starter, place, "prepare", "train", "needle", "report")
    old = (run / "report.html").read_bytes()
    disk.leave(20_000)
    ended = starter.run(*STAGES["report"], cwd=place)
    assert ended.code == 1
    told(ended)
    assert (run / "report.html").read_bytes() == old
    assert not list(run.glob(".report*"))
    disk.leave(None)
    finish(starter, place, "report")


@long
def test_a_folder_that_may_only_be_read_is_named(
    root: Path, starter: Starter, tmp_path: Path, told: Callable[[Ended], None]
):
    place = make_place(root, tmp_path / "place")
    (place / "runs").mkdir(mode=0o555)
    if no_disks() is None:
        starter.make_read_only(place / "runs")
    elif os.geteuid() == 0:
        pytest.skip(f"root may write into any folder, and {no_disks()}")
    ended = starter.run(*STAGES["prepare"], cwd=place)
    assert ended.code == 1
    told(ended)
    ended = starter.run(*STAGES["prepare"], "--runs-dir", "elsewhere", cwd=place)
    assert ended.code == 0


# ------------------------------------------------------------------------------ broken files


@long
def test_a_checkpoint_that_is_cut_in_half_is_passed_over(
    root: Path, starter: Starter, tmp_path: Path, whole: Finished
):
    place = make_place(root, tmp_path / "place")
    finish(starter, place, "prepare", "train")
    run = place / "runs/own"
    shutil.rmtree(run / "model")
    weights = run / "checkpoints/checkpoint-6/model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    ended = starter.run(*STAGES["train"], cwd=place)
    assert ended.code == 0
    assert "checkpoint-6 is broken and passed over: model.safetensors has" in ended.err
    finish(starter, place, "needle", "longbench", "report")
    assert digits(place) == whole.digits


@long
def test_a_prediction_file_whose_last_line_is_cut_goes_on(
    root: Path, starter: Starter, tmp_path: Path, whole: Finished
):
    place = make_place(root, tmp_path / "place")
    finish(starter, place, *STAGES)
    out = place / "runs/own/evaluation"
    for name in ("needle/needle.trials.jsonl", "longbench/predictions/hotpotqa.jsonl"):
        path = out / name
        path.write_bytes(path.read_bytes()[:-20])
    for name in ("needle", "longbench"):
        (out / name / f"{name}.json").unlink()
    finish(starter, place, "needle", "longbench", "report")
    assert digits(place) == whole.digits


@long
def test_data_that_changes_before_its_training_is_prepared_again(
    root: Path, starter: Starter, tmp_path: Path
):
    place = make_place(root, tmp_path / "place", path="chats.jsonl")
    (place / "chats.jsonl").write_text((root / "chats.jsonl").read_text())
    finish(starter, place, "prepare")
    before = read_json(place / "runs/own/accounting.json")["total"]["rows_read"]
    with (place / "chats.jsonl").open("a") as handle:
        handle.write(chats(["a", "b"]))
    finish(starter, place, "train")
    assert read_json(place / "runs/own/accounting.json")["total"]["rows_read"] == before + 4
    assert read_json(place / "runs/own/training.json")["steps"] == STEPS


@long
def test_data_that_changes_under_a_training_is_refused(
    root: Path, starter: Starter, tmp_path: Path, told: Callable[[Ended], None], whole: Finished
):
    place = make_place(root, tmp_path / "place", path="chats.jsonl")
    old = (root / "chats.jsonl").read_text()
    (place / "chats.jsonl").write_text(old)
    finish(starter, place, "prepare", "train")
    shutil.rmtree(place / "runs/own/model")
    made = (place / "runs/own/data/examples.arrow").read_bytes()
    (place / "chats.jsonl").write_text(old + chats(["a", "b"]))
    for stage in ("prepare", "train"):
        ended = starter.run(*STAGES[stage], cwd=place)
        assert ended.code == 1
        told(ended)
    assert (place / "runs/own/data/examples.arrow").read_bytes() == made
    ended = starter.run(*STAGES["train"], "name=new", cwd=place)
    assert ended.code == 0, ended.err
    (place / "chats.jsonl").write_text(old)
    finish(starter, place, "train", "needle", "longbench", "report")
    assert digits(place) == whole.digits


# ------------------------------------------------------------------------------ servers, numbers


SERVER = """
import http.server, json, os, signal, sys
port, dies_after, asked = int(sys.argv[1]), int(sys.argv[2]), 0

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def do_POST(self):
        global asked
        self.rfile.read(int(self.headers["Content-Length"]))
        asked += 1
        if asked > dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        body = json.dumps({"choices": [{"index": 0, "text": "d"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer.allow_reuse_address = True
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
print("ready", flush=True)
server.serve_forever()
"""


def served(port: int, dies_after: int) -> subprocess.Popen[str]:
    """Start a server of completions that kills itself at one request more than it may answer."""
    words = [sys.executable, "-c", SERVER, str(port), str(dies_after)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


@long
def test_a_server_that_dies_is_told_and_its_answers_are_kept(
    root: Path, starter: Starter, tmp_path: Path, told: Callable[[Ended], None]
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (
        *("evaluate", "served", "--task", "longbench", "--data", "longbench", "--out", "out"),
        *("--backend", "http", "--base-url", f"http://127.0.0.1:{port}/v1", "-q"),
        *("--tokenizer", str(root / "base"), "--api-key-env", "", "--with", "send=text"),
        *("--with", "concurrency=1", "--with", "retries=1", "--with", "backoff_seconds=0.01"),
        "max_prompt_tokens=400",
    )
    place = make_place(root, tmp_path / "place")
    answers = place / "out/predictions/hotpotqa.jsonl"
    server = served(port, dies_after=3)
    ended = starter.run(*words, cwd=place)
    assert ended.code == 1
    told(ended)
    assert server.wait(timeout=60) == -signal.SIGKILL
    kept = answers.read_bytes()
    assert len(kept.splitlines()) == 3
    server = served(port, dies_after=SAMPLES - 3)
    ended = starter.run(*words, cwd=place)
    assert ended.code == 0, ended.err
    assert server.poll() is None, "no sample was asked twice"
    server.kill()
    server.communicate()
    assert answers.read_bytes().startswith(kept)
    ids = [json.loads(line)["_id"] for line in answers.read_bytes().splitlines()]
    assert ids == [f"sample-{number}" for number in range(SAMPLES)]


@long
def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(
    root: Path, starter: Starter, tmp_path: Path, told: Callable[[Ended], None]
):
    place = make_place(root, tmp_path / "place")
    finish(starter, place, "prepare")
    wild = ("trainer.learning_rate=1e30", "trainer.max_grad_norm=0", "trainer.warmup_steps=3")
    ended = starter.run(*STAGES["train"], *wild, cwd=place)
    assert ended.code == 1
    told(ended)
    assert not (place / "runs/own/model").exists()
    ids = {*re.findall(r"\b[0-9a-f]{16,}\b", ended.err)}
    assert 4 <= len(ids) <= 8
    left = newest_checkpoint(place / "runs/own/checkpoints")
    assert left is not None
    assert str(Path("runs/own/checkpoints") / left.name) in ended.err
    ended = starter.run(*STAGES["train"], "name=calm", cwd=place)
    assert ended.code == 0, ended.err


@long
def test_memory_that_is_too_small_is_told_with_the_cure(
    root: Path, starter: Starter, tmp_path: Path, told: Callable[[Ended], None]
):
    """The limit is that of the process's address space; what torch asks for beyond it fails.

    The scores of 128 rows of 400 tokens are 164 MB a layer.
    """
    place = make_place(root, tmp_path / "place", path="long.jsonl")
    turns = [{"role": "user", "content": "a b c d " * 100}, {"role": "assistant", "content": "d"}]
    (place / "long.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 128)
    finish(starter, place, "prepare")
    large = ("trainer.per_device_train_batch_size=128", "base.attn_implementation=eager")
    ended = starter.run(*STAGES["train"], *large, cwd=place, more_memory=256)
    assert ended.code == 1, ended.err
    told(ended)
    finish(starter, place, "train")


# ------------------------------------------------------------------------------ the page


def rows() -> list[list[str]]:
    """The rows of the fault table: fault, what happens, what is said, what to do, tests."""
    table = PAGE.read_text(encoding="utf-8").partition("\n| fault |")[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines()[2:] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_row_names_tests_that_exist_and_every_test_stands_in_a_row(
    request: pytest.FixtureRequest,
):
    found = rows()
    assert len(found) >= 12
    assert all(len(row) == 5 and all(row) for row in found)
    named = [
        {f"{file}::{name}" for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", row[-1])}
        for row in found
    ]
    assert all(named), "a row without a test"
    every = set().union(*named)
    defined = defined_tests()
    assert not every - defined
    own = {name for name in defined if name.startswith(f"{Path(__file__).name}::")}
    (outside,) = own - every
    assert outside.endswith(request.node.name)
