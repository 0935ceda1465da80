"""Rows become examples on disk, and every row is accounted for."""

import json
import multiprocessing
import os
import signal
import tracemalloc
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from made_tokenizers import tokenizer
from skipalign import digests, example_file
from skipalign import prepare as room
from skipalign.digests import digests_of
from skipalign.errors import DataError, RecipeError, RunError
from skipalign.example_file import ExampleFile
from skipalign.prepare import Source, prepare
from skipalign.progress import Silent

SHARED = Path(__file__).parents[1].parent / "shared/data"


def chat(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


GOOD = [chat(f"Question {n} of the fox?", f"Answer {n}.") for n in range(7)]
BAD = ["{", chat("q", " "), json.dumps({"messages": [{"role": "king", "content": "x"}]})]
LONG = chat("the fox", "the fox " * 300)
SPECIAL = chat("say <|im_end|>", "no")


def write(path: Path, rows: list[str]) -> str:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def mixed(tmp_path) -> str:
    rows = [*GOOD[:3], BAD[0], LONG, *GOOD[3:], BAD[1], SPECIAL, BAD[2]]
    return write(tmp_path / "mixed.jsonl", rows)


@pytest.fixture
def fast():
    return tokenizer("chatml")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stamp(out: Path) -> tuple[int, int]:
    found = (out / "data/examples.arrow").stat()
    return found.st_ino, found.st_mtime_ns


def test_every_row_is_accounted_for(mixed, fast, tmp_path):
    out = tmp_path / "out"
    found = prepare([Source(mixed, "mixed", max_tokens=256)], fast, out)
    mine = found["sources"]["mixed"]
    assert mine["rows_read"] == 12
    assert mine["used"] == mine["examples"] == 8
    assert mine["rejected"] == {"not_json": 1, "empty_answer": 1, "wrong_role": 1}
    assert mine["dropped"] == {"too_long": 1}
    assert mine["rows_read"] == mine["used"] + sum(mine["rejected"].values()) + sum(
        mine["dropped"].values()
    )
    assert mine["notes"] == {"special_text": 1}
    assert found["total"] == mine
    assert found == json.loads((out / "accounting.json").read_text())
    examples = ExampleFile(out / "data")
    assert mine["tokens"] == examples.lengths.sum()
    assert mine["longest"] == examples.lengths.max()
    assert mine["trained_tokens"] == sum((e.labels[1:] != -100).sum() for e in examples)


def test_each_lost_row_is_named_with_its_reason(mixed, fast, tmp_path):
    prepare([Source(mixed, "mixed", max_tokens=256)], fast, tmp_path / "out")
    rows = lines(tmp_path / "out/rejected.jsonl")
    assert [(row["line"], row["reason"]) for row in rows] == [
        (4, "not_json"),
        (5, "too_long"),
        (10, "empty_answer"),
        (12, "wrong_role"),
    ]
    assert all(row["file"] == mixed and row["source"] == "mixed" for row in rows)
    assert all(row["detail"] and 0 < len(row["row"]) <= 500 for row in rows)
    (changed,) = lines(tmp_path / "out/data/changed.jsonl")
    assert changed["notes"] == {"special_text": 1}
    assert SPECIAL in Path(mixed).read_text().splitlines()[changed["line"] - 1]


def test_sources_have_their_own_limits_and_are_told_apart(fast, tmp_path):
    short = write(tmp_path / "short.jsonl", [*GOOD, LONG])
    texts = write(tmp_path / "texts.jsonl", [json.dumps({"text": "The fox. " * 100})])
    sources = [Source(short, "short", max_tokens=40), Source(texts, "texts", max_tokens=90)]
    found = prepare(sources, fast, tmp_path / "out")
    assert found["sources"]["short"]["longest"] <= 40
    assert found["sources"]["texts"]["longest"] == 90
    assert found["sources"]["texts"]["used"] == 1
    assert found["sources"]["texts"]["examples"] > 1
    total, parts = found["total"], found["sources"].values()
    for key in ("rows_read", "used", "examples", "tokens", "trained_tokens"):
        assert total[key] == sum(part[key] for part in parts)
    assert total["longest"] == 90
    examples = ExampleFile(tmp_path / "out/data")
    assert examples.source_names == ("short", "texts")
    named = [examples.source_names[number] for number in examples.sources]
    assert named == [example.source for example in examples]
    assert named.count("short") == found["sources"]["short"]["examples"]


def test_split_rows_count_once(fast, tmp_path):
    thinking = tokenizer("qwen3")
    messages = json.loads(GOOD[0])["messages"] + json.loads(GOOD[1])["messages"]
    path = write(tmp_path / "a.jsonl", [json.dumps({"messages": messages}), *GOOD])
    found = prepare([Source(path, "a")], thinking, tmp_path / "out")["total"]
    assert (found["rows_read"], found["used"], found["examples"]) == (8, 8, 9)
    assert found["notes"] == {"split_per_turn": 1}


def test_the_same_data_is_not_made_again(mixed, fast, tmp_path):
    source = Source(mixed, "mixed")
    first = prepare([source], fast, tmp_path)
    before = stamp(tmp_path)
    fast("a b c", truncation=True, max_length=2)  # no change of the tokenizer
    moved = write(tmp_path / "moved.jsonl", Path(mixed).read_text().splitlines())
    other = Source(moved, "mixed", weight=3.0)
    assert prepare([source], fast, tmp_path) == first
    assert prepare([other], tokenizer("chatml"), tmp_path) == first
    assert stamp(tmp_path) == before


def changed_row(source, fast, path):
    write(Path(path), GOOD[:4])
    return source, fast, {}


def changed_limit(source, fast, path):
    return Source(path, "mixed", max_tokens=100), fast, {}


def changed_name(source, fast, path):
    return Source(path, "other"), fast, {}


def changed_template(source, fast, path):
    fast.chat_template += "{# #}"
    return source, fast, {}


def changed_tokenizer(source, fast, path):
    fast.add_tokens(["fox"])
    return source, fast, {}


def changed_kwargs(source, fast, path):
    return source, fast, {"template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    "change",
    [changed_row, changed_limit, changed_name, changed_template, changed_tokenizer, changed_kwargs],
)
def test_other_data_is_made_again(change, mixed, fast, tmp_path):
    out = tmp_path / "out"
    source = Source(mixed, "mixed")
    prepare([source], fast, out)
    before = stamp(out)
    source, fast, kwargs = change(source, fast, mixed)
    prepare([source], fast, out, **kwargs)
    assert stamp(out) != before
    again = stamp(out)
    prepare([source], fast, out, **kwargs)
    assert stamp(out) == again


@pytest.mark.parametrize("name", ["data/examples.arrow", "data/manifest.json", "accounting.json"])
@pytest.mark.parametrize("harm", ["remove", "halve"])
def test_harmed_data_is_made_again(name, harm, mixed, fast, tmp_path):
    source = Source(mixed, "mixed")
    first = prepare([source], fast, tmp_path)
    path = tmp_path / name
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if "accounting" not in name:
        with pytest.raises(RunError):
            ExampleFile(tmp_path / "data")
    assert prepare([source], fast, tmp_path) == first
    assert len(ExampleFile(tmp_path / "data")) == 9


def killed(path: str, out: str, after: int) -> None:
    """Prepare, and die as by SIGKILL at the `after`-th step that touches a file."""
    steps = 0

    def step(function):
        def stepping(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps > after:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return stepping

    os.replace = step(os.replace)
    os.fsync = step(os.fsync)
    os.unlink = step(os.unlink)
    room.ExampleWriter.write = step(room.ExampleWriter.write)
    prepare([Source(path, "mixen")], tokenizer("chatml"), out)


def test_a_kill_at_any_step_leaves_what_the_next_start_repairs(mixed, fast, tmp_path):
    context = multiprocessing.get_context("fork")
    old, new = Source(mixed, "mixed"), Source(mixed, "mixen")  # files of the same size
    for after in range(40):
        prepare([old], fast, tmp_path)
        process = context.Process(target=killed, args=(mixed, str(tmp_path), after))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        if (tmp_path / "data/manifest.json").exists():
            assert ExampleFile(tmp_path / "data").source_names in (("mixed",), ("mixen",))
        for source in (old, new):
            assert prepare([source], fast, tmp_path)["total"]["examples"] == 9
            assert {e.source for e in ExampleFile(tmp_path / "data")} == {source.name}
            assert not list(tmp_path.rglob("*.partial-*"))
    assert 10 < after < 39


def test_no_example_is_an_error_with_its_reasons(fast, tmp_path):
    path = write(tmp_path / "a.jsonl", [LONG, LONG, BAD[0]])
    with pytest.raises(DataError, match=r"a: none of 3 rows .*too_long 2, not_json 1"):
        prepare([Source(path, "a", max_tokens=50)], fast, tmp_path / "out")
    assert len(lines(tmp_path / "out/rejected.jsonl")) == 3
    with pytest.raises(RunError):
        ExampleFile(tmp_path / "out/data")


def test_strict_stops_at_the_first_bad_row_and_keeps_no_data(mixed, fast, tmp_path):
    with pytest.raises(DataError, match="line 4"):
        prepare([Source(mixed, "mixed", strict=True)], fast, tmp_path / "out")
    assert not (tmp_path / "out/data/examples.arrow").exists()
    assert not list((tmp_path / "out").rglob("*.partial-*"))


def test_sources_need_names_of_their_own(mixed, fast, tmp_path):
    with pytest.raises(RecipeError, match="named 'a', 'a'"):
        prepare([Source(mixed, "a"), Source(mixed, "a")], fast, tmp_path)
    with pytest.raises(RecipeError, match="at least one"):
        prepare([], fast, tmp_path)


def test_memory_does_not_grow_with_the_file(fast, tmp_path, monkeypatch):
    monkeypatch.setattr(example_file, "_MAX_WAITING", 100)
    peaks = []
    for times in (40, 160):
        path = write(tmp_path / f"{times}.jsonl", GOOD * times)
        tracemalloc.start()
        prepare([Source(path, "a")], fast, tmp_path / str(times))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_progress_is_told_row_by_row(mixed, fast, tmp_path):
    seen = []

    class Bar:
        def advance(self, amount: int = 1) -> None:
            seen.append(amount)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    class Progress:
        def bar(self, description, total):
            seen.append((description, total))
            return Bar()

    prepare([Source(mixed, "mixed")], fast, tmp_path, progress=Progress())
    assert seen[0] == ("prepare mixed", 12)
    assert sum(seen[1:]) == 12


@pytest.mark.parametrize(
    ("name", "rows", "limit"),
    [("openassistant_messages.jsonl", 400, 1024), ("gpteacher_roleplay_simple.json", 1923, 256)],
)
def test_real_conversations_with_a_real_tokenizer(name, rows, limit, tmp_path):
    data, known = SHARED / "instructions" / name, SHARED / "tokenizers"
    if not data.exists():
        pytest.skip(f"{data} is not on this machine")
    backend = Tokenizer.from_file(str(known / "allenai_gpt-neox-olmo-dolma-v1_5.json"))
    olmo = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    found = prepare([Source(str(data), "real", max_tokens=limit)], olmo, tmp_path)["total"]
    assert found["rows_read"] == rows
    lost = sum(found["rejected"].values()) + sum(found["dropped"].values())
    assert found["used"] == found["examples"] == rows - lost
    assert lost == len(lines(tmp_path / "rejected.jsonl"))
    assert found["used"] > 0.99 * rows
    assert limit / 2 < found["longest"] <= limit
    examples = ExampleFile(tmp_path / "data")
    assert len({example.id for example in examples}) == found["examples"]
    for example in examples:
        assert example.segments[-1].stop == len(example.input_ids)
        trained = olmo.decode(example.labels[example.labels != -100])
        answers = sum(segment.role == "assistant" for segment in example.segments)
        assert trained.count("<|endoftext|>") == answers


def test_a_file_that_changes_while_it_is_read_is_refused(mixed, fast, tmp_path):
    path = tmp_path / "growing.jsonl"
    path.write_bytes(Path(mixed).read_bytes())

    class Growing:
        def bar(self, description, total):
            with path.open("a") as handle:
                handle.write(GOOD[0] + "\n")
            return Silent().bar(description, total)

    with pytest.raises(DataError, match=r"growing\.jsonl: changed while it was read"):
        prepare([Source(str(path), "a")], fast, tmp_path / "out", progress=Growing())
    assert not (tmp_path / "out/data/manifest.json").exists()
    assert prepare([Source(str(path), "a")], fast, tmp_path / "out")["total"]["examples"]


def test_files_that_a_training_has_read_are_not_replaced_by_others(mixed, fast, tmp_path):
    prepare([Source(mixed, "a")], fast, tmp_path / "out")
    read = digests_of(tmp_path / "out/data")
    made = (tmp_path / "out/data/examples.arrow").read_bytes()
    other = write(tmp_path / "other.jsonl", GOOD[:1])
    with pytest.raises(DataError, match=r"began with other data \(a changed since\); put the old"):
        prepare([Source(other, "a")], fast, tmp_path / "out", trained_on=read)
    assert (tmp_path / "out/data/examples.arrow").read_bytes() == made
    assert prepare([Source(mixed, "a")], fast, tmp_path / "out", trained_on=read)


def test_only_the_data_files_of_a_folder_make_its_digest(fast, tmp_path):
    folder = tmp_path / "chats"
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join(GOOD[:2]), encoding="utf-8")  # no end of line
    (folder / "README.md").write_text("one")
    source = Source(str(folder), "chats")
    prepare([source], fast, tmp_path / "out")
    before = digests_of(tmp_path / "out/data"), stamp(tmp_path / "out")
    (folder / "README.md").write_text("another")
    (folder / ".DS_Store").write_bytes(b"\0")
    prepare([source], fast, tmp_path / "out")
    assert (digests_of(tmp_path / "out/data"), stamp(tmp_path / "out")) == before
    assert digests.files_of(str(folder), Silent()).num_rows == 2
