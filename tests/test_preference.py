"""Preference pairs: one prompt, two answers, the same positions for both."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipalign.batch import Collator
from skipalign.encoding import IGNORE_INDEX
from skipalign.errors import DataError
from skipalign.files import read_json
from skipalign.model import load_tokenizer
from skipalign.positions import PoSE, SkipAlign, Strategy
from skipalign.preference import Pair, PairCollator, read_pairs
from skipalign.visits import Visit
from test_training import make_base

Read = Callable[..., list[Pair]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(str(make_base(tmp_path_factory.mktemp("base"))))


@pytest.fixture
def read(tokenizer: Any, tmp_path: Path) -> Read:
    def call(*rows: dict[str, Any], max_tokens: int = 100) -> list[Pair]:
        return read_pairs(rows, tokenizer, tmp_path, name="train", max_tokens=max_tokens)

    return call


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


PROMPT = [said("user", "a b . c d"), said("assistant", "e"), said("user", "f g ?")]
GOOD = {"prompt": PROMPT, "chosen": [said("assistant", "a b c d")]}
GOOD["rejected"] = [said("assistant", "e")]


def text(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode([int(token) for token in ids])


def test_a_pair_has_one_prompt_and_trains_its_last_answers_alone(read: Read, tokenizer: Any):
    (pair,) = read(GOOD)
    whole = tokenizer.apply_chat_template([*PROMPT, *GOOD["chosen"]], tokenize=True)["input_ids"]
    assert pair.chosen.input_ids.tolist() == whole
    trained = [side.input_ids[side.labels != IGNORE_INDEX] for side in (pair.chosen, pair.rejected)]
    assert [text(tokenizer, ids) for ids in trained] == ["a b c d <end>", "e <end>"]
    assert pair.longer.input_ids is pair.chosen.input_ids


def test_text_and_whole_conversations_give_the_same_pair(read: Read):
    by_text = {"prompt": "a b", "chosen": "c", "rejected": "d e"}
    whole = {
        "chosen": [said("user", "a b"), said("assistant", "c")],
        "rejected": [said("user", "a b"), said("assistant", "d e")],
    }
    first, second = read(by_text, whole)
    assert first.id == second.id
    assert first.chosen.segments == second.chosen.segments
    assert read({**by_text, "rejected": "d f"})[0].id != first.id


@pytest.mark.parametrize(
    "strategy",
    [SkipAlign(max_position=900, cuts_within=3, cut_at="token"), PoSE(max_position=900)],
)
def test_both_sides_of_a_pair_stand_at_the_same_positions(read: Read, strategy: Strategy):
    pairs = read(GOOD, {**GOOD, "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]})
    collate = PairCollator(Collator({"train": strategy}, seed=1, pad_token_id=0))
    skipped = 0
    for epoch in range(5):
        batch = collate([Visit(pair, epoch) for pair in pairs])  # type: ignore[arg-type]
        assert batch["input_ids"].shape[0] == 4
        for number in range(2):
            chosen, rejected = (batch["position_ids"][number + 2 * side] for side in (0, 1))
            shared = (batch["attention_mask"][[number, number + 2]] == 1).all(dim=0)
            assert chosen[shared].tolist() == rejected[shared].tolist()
            assert shared.sum() == min(
                len(side.input_ids) for side in (pairs[number].chosen, pairs[number].rejected)
            )
            skipped += int((chosen[shared].diff() > 1).sum())
            trained = batch["input_ids"][number][batch["completion_mask"][number] == 1]
            labels = pairs[number].chosen.labels
            assert trained.tolist() == labels[labels != IGNORE_INDEX].tolist()
    assert skipped > 5


def test_positions_depend_on_seed_epoch_and_the_pairs_ids_alone(read: Read):
    (pair,) = read(GOOD)
    other, again = read({**GOOD, "prompt": [said("user", "z")]}, GOOD)
    strategy = SkipAlign(max_position=900)

    def positions(pair: Pair, seed: int, epoch: int) -> list[int]:
        collate = PairCollator(Collator({"train": strategy}, seed=seed, pad_token_id=0))
        visit: Any = Visit(pair, epoch)  # type: ignore[arg-type]
        return collate.place(visit)[0].position_ids.tolist()

    assert pair.id == again.id != other.id
    assert positions(pair, 0, 0) == positions(again, 0, 0)
    assert len({tuple(positions(pair, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_what_gives_no_pair_is_counted_with_its_reason(read: Read, tmp_path: Path):
    bad = [
        {**GOOD, "chosen": [said("assistant", " ")]},
        {**GOOD, "rejected": None},
        {"chosen": [*PROMPT, said("assistant", "a")], "rejected": [said("user", "b")] * 2},
        {
            "chosen": [said("user", "a"), said("assistant", "c")],
            "rejected": [said("user", "b"), said("assistant", "c")],
        },
        {**GOOD, "rejected": [said("assistant", "a " * 90)]},
    ]
    assert len(read(*bad, GOOD)) == 1
    counts = read_json(tmp_path / "accounting.json")
    assert (counts["rows_read"], counts["used"]) == (6, 1)
    refused = [json.loads(line) for line in (tmp_path / "rejected.jsonl").open()]
    assert [each["row"] for each in refused] == [1, 2, 3, 4, 5]
    reasons = ["empty_answer", "unknown_shape", "two_users", "prompts_differ", "too_long"]
    assert [each["reason"] for each in refused] == reasons
    assert counts["refused"] == dict.fromkeys(reasons, 1)
    with pytest.raises(DataError, match=r"none of 1 rows gave a pair \(\{'too_long': 1\}\)"):
        read(GOOD, max_tokens=5)


def test_a_pair_is_never_shortened(read: Read):
    longest = len(read(GOOD)[0].chosen.input_ids)
    assert asdict(read(GOOD, max_tokens=longest)[0].chosen.segments[0])["start"] == 0
    with pytest.raises(DataError, match="too_long"):
        read(GOOD, max_tokens=longest - 1)
    assert np.array_equal(
        read(GOOD, max_tokens=longest)[0].chosen.input_ids, read(GOOD)[0].chosen.input_ids
    )
