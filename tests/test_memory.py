"""Reading takes little memory above start-up, whatever one row holds, and no long time."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from made_huge import HUGE, LONGEST, MB
from made_tokenizers import conversation, tokenizer
from skipalign.conversation import Conversation, read_conversations
from skipalign.encoding import Encoder

QUICK = ("50 MB.jsonl", "turns.jsonl")
# What a process of its own says: rows by outcome, and its peak above start-up in bytes.
READ = """
import json, resource, sys
from collections import Counter
from skipalign.conversation import read_conversations
if sys.argv[1].endswith(".parquet"):
    import pyarrow.parquet
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
before = peak()
items = read_conversations(sys.argv[1], name="x")
rows = Counter(getattr(each, "reason", "good") for each in items)
print(json.dumps([rows, peak() - before]))
"""


def read(path: Path) -> tuple[dict[str, int], int]:
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rows, peak = json.loads(done.stdout)
    return rows, peak


def check(name: str, folder: Path) -> None:
    """64 MB and ten times the longest row are the most."""
    make, longest, wanted = HUGE[name]
    path = folder / name
    path.write_bytes(make())
    rows, peak = read(path)
    path.unlink()
    assert rows == wanted
    assert peak <= 64 * MB + 10 * longest


@pytest.mark.parametrize("name", QUICK)
def test_a_line_of_50_mb_and_100_000_turns_are_read_in_bounded_memory(name: str, tmp_path: Path):
    check(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in HUGE if name not in QUICK])
def test_the_longest_rows_of_every_kind_are_read_in_bounded_memory(name: str, tmp_path: Path):
    check(name, tmp_path)


@pytest.mark.long
def test_long_rows_of_parquet_are_read_one_at_a_time(tmp_path: Path):
    texts = [f"{n}" + "x" * (LONGEST - 100) for n in range(8)] + ["x" * 40 * MB]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1, compression="zstd")
    rows, peak = read(path)
    assert rows == {"good": 8, "too_large": 1}
    assert peak <= 64 * MB + 10 * 40 * MB


def test_a_parquet_row_of_a_million_values_in_few_bytes_is_not_made(tmp_path: Path):
    path = tmp_path / "a.parquet"
    nulls = pa.array([[None] * 10**6], pa.list_(pa.null()))
    pq.write_table(pa.table({"text": ["a"], "x": nulls}), path)
    pq.write_table(pa.table({"text": ["good"]}), tmp_path / "b.parquet")
    bad, good = read_conversations(str(tmp_path), name="x")
    assert bad.reason == "too_many_values"
    assert isinstance(good, Conversation)


def chat(num_messages: int) -> Conversation:
    turns = [(("user", "assistant")[n % 2], f"text {n}") for n in range(num_messages)]
    return conversation(("system", "be brief"), *turns)


@pytest.mark.long
def test_of_100_000_turns_the_last_are_encoded():
    found = Encoder(tokenizer("chatml"), max_tokens=99_999).encode(chat(100_000))
    assert found.notes == {"turns_over_limit": 49_501}
    assert len(found.examples[0].segments) == 999


def test_more_messages_than_are_kept_lose_the_earliest_turns(monkeypatch: pytest.MonkeyPatch):
    """Rendering up to each message takes time that grows with the square of their number."""
    monkeypatch.setattr("skipalign.encoding._MOST_MESSAGES", 6)
    monkeypatch.setattr("skipalign.encoding._MOST_BEFORE", 4)
    fast = tokenizer("chatml")
    encoder = Encoder(fast, max_tokens=999)
    assert encoder.encode(chat(5)).notes == {}
    found = encoder.encode(chat(12))
    assert found.notes == {"turns_over_limit": 4}
    shown = fast.decode(found.examples[0].input_ids)
    assert [text in shown for text in ("be brief", "text 7<", "text 8<", "text 11<")] == [
        *(True, False, True, True)
    ]
    answers = Encoder(tokenizer("qwen3"), max_tokens=999).encode(chat(6))
    assert answers.notes == {"split_per_turn": 1, "turns_over_limit": 2}
    assert [len(example.segments) for example in answers.examples] == [3, 3]
    calls = [("assistant", "a"), ("tool", "t")] * 4
    long_turn = conversation(("user", "q"), *calls, ("assistant", "a"))
    assert encoder.encode(long_turn).dropped == "too_many_messages"
