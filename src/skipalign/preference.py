"""Preference pairs: a prompt with a chosen and a rejected answer, both at the same positions.

The two rows of a pair are compared with each other. Were they drawn apart, one answer might stand
next to its prompt and the other far from it, and the comparison would be of distances. So a pair
draws once, and token n stands at the same position in both rows:

    chosen      <s> You are | Long prompt ... | Good answer .
    positions    0   1   2  | 41   42   43    | 96    97   98
    rejected    <s> You are | Long prompt ... | Bad
    positions    0   1   2  | 41   42   43    | 96

Shape letters: B batch (pairs), T tokens of the longest row.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Int
from torch import Tensor

from skipalign.batch import Collator, Placed, pad
from skipalign.conversation import Conversation, Rejection, read_conversations
from skipalign.encoding import IGNORE_INDEX, Encoded, Encoder, Example
from skipalign.errors import DataError
from skipalign.files import json_text, write_json, write_text
from skipalign.visits import Visit

SIDES = ("chosen", "rejected")
_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two examples with one prompt; only the last answer of each is trained.

    `id` is a digest of both rows' token ids.
    """

    chosen: Example
    rejected: Example
    id: str
    source: str

    @property
    def longer(self) -> Example:
        """The side with more tokens, under the id of the pair: its positions are those of both."""
        side = max(self.chosen, self.rejected, key=lambda example: len(example.input_ids))
        return replace(side, id=self.id, source=self.source)


class PairBatch(TypedDict):
    """What TRL's DPOTrainer sees: the chosen rows, then the rejected ones in the same order."""

    input_ids: Int[Tensor, " 2*B T"]
    attention_mask: Int[Tensor, " 2*B T"]
    position_ids: Int[Tensor, " 2*B T"]
    completion_mask: Int[Tensor, " 2*B T"]


class PairCollator:
    """Visits of pairs -> a padded PairBatch.

    Args:
        collator: draws positions; without a key bias, which the two rows would share in part only.
    """

    def __init__(self, collator: Collator) -> None:
        assert collator.key_bias is None
        assert collator.logit_scale is None
        self.collator = collator

    def __call__(self, visits: Sequence[Visit]) -> PairBatch:
        placed = [self.place(visit) for visit in visits]
        rows = [pair[side] for side in range(len(SIDES)) for pair in placed]
        batch = pad(rows, self.collator.pad_token_id)
        assert "attention_mask" in batch
        return PairBatch(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            completion_mask=(batch["labels"] != IGNORE_INDEX).long(),
        )

    def place(self, visit: Visit) -> tuple[Placed, Placed]:
        """Draw the positions of one visit: those of the longer row, for both."""
        pair: Any = visit.example
        positions = self.collator.place(Visit(pair.longer, visit.epoch)).position_ids
        chosen, rejected = (
            Placed(side, positions[: len(side.input_ids)]) for side in (pair.chosen, pair.rejected)
        )
        return chosen, rejected


def read_pairs(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    out: Path,
    *,
    name: str,
    max_tokens: int,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """Encode rows of prompt / chosen / rejected; write `out`/accounting.json and rejected.jsonl.

    `chosen` and `rejected` are answers, as text or messages; without a `prompt` each is a whole
    conversation. A pair is never shortened: cut by itself, each side would lose other tokens.

    Args:
        rows: of a data set, walked through twice.
        tokenizer: whose chat template renders them; a prompt that is text is a user's message.
        out: folder.
        name: of the source.
        max_tokens: of the longer side.
        template_kwargs: what the chat template takes.

    Raises:
        DataError: no pair can be used.
        ModelError, RecipeError: the tokenizer or a setting cannot be used.
    """
    # Nothing is cut: the limit is on what came out, the same for both sides.
    encoder = Encoder(tokenizer, max_tokens=2**31 - 1, template_kwargs=template_kwargs)
    pairs: list[Pair] = []
    refused: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for number, found in enumerate(_encoded(rows, encoder, Path(folder), name), 1):
            problem = found if isinstance(found, _Problem) else _problem(*found, max_tokens)
            if problem is None:
                assert not isinstance(found, _Problem)
                pairs.append(_pair(*found, name))
            else:
                refused.append({"row": number, "reason": problem[0], "detail": problem[1]})
    counts = dict(Counter(each["reason"] for each in refused))
    lines = "".join(json_text(each) + "\n" for each in refused)
    write_text(out / "rejected.jsonl", lines)
    total = len(pairs) + len(refused)
    write_json(out / "accounting.json", {"rows_read": total, "used": len(pairs), "refused": counts})
    if not pairs:
        raise DataError(
            f"{name}: none of {total} rows gave a pair ({counts}); at least one is required - "
            f"{out / 'rejected.jsonl'} names each row and its reason"
        )
    return pairs


class _Problem(tuple[str, str]):
    """Why a row gave no pair: (reason, detail)."""

    __slots__ = ()


def _encoded(
    rows: Iterable[Mapping[str, Any]], encoder: Encoder, folder: Path, name: str
) -> Iterator[tuple[Encoded, Encoded] | _Problem]:
    """Yield both sides of each row as the reader and the encoder of all our data see them."""
    items: list[Iterator[Conversation | Rejection]] = []
    for side in SIDES:
        path = folder / f"{side}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(_one_side(row, side)) + "\n" for row in rows)
        items.append(read_conversations(str(path), name=name, max_row_bytes=2**31 - 1))
    both = zip(*items, strict=True)
    while batch := list(islice(both, _BATCH)):
        good = [pair for pair in batch if not any(isinstance(each, Rejection) for each in pair)]
        flat: list[Any] = [each for pair in good for each in pair]
        encoded = iter(encoder.encode_many(flat))
        for pair in batch:
            bad = next((n for n in (0, 1) if isinstance(pair[n], Rejection)), None)
            if bad is None:
                yield next(encoded), next(encoded)
            else:
                rejection: Any = pair[bad]
                yield _Problem((rejection.reason, f"{SIDES[bad]}: {rejection.detail}"))


def _one_side(row: Mapping[str, Any], side: str) -> dict[str, Any]:
    if row.get("prompt") is None:
        return {"messages": row.get(side)}
    return {"prompt": row["prompt"], "completion": row.get(side)}


def _problem(chosen: Encoded, rejected: Encoded, max_tokens: int) -> _Problem | None:
    for side, encoded in zip(SIDES, (chosen, rejected), strict=True):
        if encoded.dropped or encoded.notes.get("answers_dropped"):
            reason = encoded.dropped or "answers_dropped"
            return _Problem((reason, f"{side}: {encoded.detail}"))
    rows = [_last_answer(encoded) for encoded in (chosen, rejected)]
    starts = [int((row.labels != IGNORE_INDEX).argmax()) for row in rows]
    if not all((row.labels[1:] != IGNORE_INDEX).any() for row in rows):
        return _Problem(("no_trained_token", "no token of the last answer would be trained"))
    prompts = [row.input_ids[:start] for row, start in zip(rows, starts, strict=True)]
    if not np.array_equal(prompts[0], prompts[1]):
        return _Problem(
            ("prompts_differ", "the tokens before the two last answers are not the same")
        )
    longest = max(len(row.input_ids) for row in rows)
    if longest > max_tokens:
        return _Problem(("too_long", f"{longest} tokens, and the limit is {max_tokens}"))
    return None


def _last_answer(encoded: Encoded) -> Example:
    """Return the whole conversation with the loss on its last answer alone."""
    example = encoded.examples[-1]
    labels = example.labels.copy()
    labels[: example.segments[-1].start] = IGNORE_INDEX
    return replace(example, labels=labels)


def _pair(chosen: Encoded, rejected: Encoded, name: str) -> Pair:
    rows = [_last_answer(each) for each in (chosen, rejected)]
    ids = json.dumps([row.input_ids.tolist() for row in rows]).encode()
    return Pair(rows[0], rows[1], blake2b(ids, digest_size=16).hexdigest(), name)
