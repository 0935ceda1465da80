"""One training sample as one epoch of one training sees it, read from its source.

It is placed by the code that training uses.

Shape letters: T tokens of the sample.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from skipalign.conversation import Conversation, Place, read_conversations
from skipalign.encoding import IGNORE_INDEX, Encoder, Example, Segment
from skipalign.errors import DataError, RecipeError
from skipalign.key_bias import KeyBias
from skipalign.positions import Strategy
from skipalign.prepare import Source

_CONTEXT = 8  # tokens decoded before a piece of text, so that it comes out as within the whole


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A sample as one epoch of one training sees it.

    Attributes:
        example: tokens, labels, segments.
        place: where its row stands.
        notes: what encoding changed, as `Encoded.notes` counts it.
        num_skipped_rows: rows before it that were rejected or dropped.
        position_ids: drawn from (seed, epoch, the sample's id).
        key_bias: what training adds to the attention logits of keys, or None.
        strategy: that drew the positions.
    """

    example: Example
    place: Place
    notes: Mapping[str, int]
    num_skipped_rows: int
    position_ids: Int[np.ndarray, " T"]
    key_bias: Float[np.ndarray, " T"] | None
    strategy: Strategy
    index: int
    seed: int
    epoch: int

    @property
    def max_position(self) -> int:
        """The range that the positions may use; their own where the strategy never skips."""
        return max(getattr(self.strategy, "max_position", 0), int(self.position_ids[-1]) + 1)

    @property
    def trained(self) -> Bool[np.ndarray, " T"]:
        """Which tokens the loss reads; the first never, as nothing precedes it."""
        found = self.example.labels != IGNORE_INDEX
        found[0] = False
        return found

    @property
    def skips(self) -> dict[int, int]:
        """Positions left out, by the token before which they are."""
        jumps = np.diff(self.position_ids, prepend=-1) - 1
        return {int(token): int(jumps[token]) for token in np.flatnonzero(jumps)}


def draw_sample(
    sources: Sequence[Source],
    strategies: Mapping[str, Strategy],
    tokenizer: Any,
    *,
    index: int = 0,
    seed: int = 0,
    epoch: int = 0,
    key_bias: KeyBias | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Sample:
    """Read the sources up to sample `index` and place it as training will.

    Args:
        sources: read in their order; samples are counted through all of them.
        strategies: position strategy by source name.
        tokenizer: of the base.
        index: of the sample, from 0, in the order of `prepare`.
        seed: of the training.
        epoch: how often the sample had been seen before.
        key_bias: of the training.
        template_kwargs: what the chat template takes.

    Raises:
        DataError: a source cannot be read, or there is no such sample.
        ModelError: the tokenizer cannot be used.
        RecipeError: `index` or `epoch` is below 0.
    """
    from skipalign.batch import Collator  # torch: only a drawn sample needs it
    from skipalign.visits import Visit

    if index < 0 or epoch < 0:
        raise RecipeError(f"index is {index}, epoch {epoch}; both count from 0")
    example, place, notes, num_skipped_rows = _find(sources, tokenizer, index, template_kwargs)
    collator = Collator(strategies, seed=seed, pad_token_id=0, key_bias=key_bias)
    placed = collator.place(Visit(example, epoch))
    return Sample(
        example,
        place,
        notes,
        num_skipped_rows,
        placed.position_ids,
        placed.key_bias,
        strategies[example.source],
        index,
        seed,
        epoch,
    )


def _find(
    sources: Sequence[Source],
    tokenizer: Any,
    index: int,
    template_kwargs: Mapping[str, Any] | None,
) -> tuple[Example, Place, Mapping[str, int], int]:
    """Return sample `index`, its place and notes, and how many rows before it have none."""
    num_rows_lost = num_samples = 0
    for place, examples, notes in _rows(sources, tokenizer, template_kwargs):
        if index < num_samples + len(examples):
            return examples[index - num_samples], place, notes, num_rows_lost
        num_samples += len(examples)
        num_rows_lost += not examples
    names = ", ".join(source.path for source in sources)
    raise DataError(
        f"{names}: {num_samples} samples, and number {index} is asked for (they count from 0); "
        f"{num_rows_lost} rows were rejected or dropped - `skipalign prepare` says why"
    )


def _rows(
    sources: Sequence[Source], tokenizer: Any, template_kwargs: Mapping[str, Any] | None
) -> Iterator[tuple[Place, tuple[Example, ...], Mapping[str, int]]]:
    """Yield every row's place, its examples (none where it is rejected or dropped), its notes."""
    for source in sources:
        encoder = Encoder(tokenizer, max_tokens=source.max_tokens, template_kwargs=template_kwargs)
        for item in read_conversations(
            source.path,
            name=source.name,
            shape=source.shape,
            split=source.split,
            strict=source.strict,
            max_row_bytes=source.max_row_bytes,
        ):
            if isinstance(item, Conversation):
                encoded = encoder.encode(item)
                yield item.place, encoded.examples, encoded.notes
            else:
                yield item.place, (), {}


def describe(sample: Sample, tokenizer: Any) -> dict[str, Any]:
    """Return all that the preview shows, for machines."""
    bias = sample.key_bias
    return {
        "index": sample.index,
        "id": sample.example.id,
        "source": sample.example.source,
        "place": str(sample.place),
        "seed": sample.seed,
        "epoch": sample.epoch,
        "strategy": {"name": sample.strategy.name, **asdict(sample.strategy)},  # pyright: ignore
        "num_tokens": len(sample.position_ids),
        "num_trained_tokens": int(sample.trained.sum()),
        "max_position": sample.max_position,
        "num_skipped_rows": sample.num_skipped_rows,
        "notes": dict(sample.notes),
        "skips": [
            {"token": token, "position": int(sample.position_ids[token]), "length": length}
            for token, length in sample.skips.items()
        ],
        "segments": [
            {**figures(sample, segment), "text": _segment_text(sample, segment, tokenizer)}
            for segment in sample.example.segments
        ],
        "input_ids": sample.example.input_ids.tolist(),
        "position_ids": sample.position_ids.tolist(),
        "trained": sample.trained.tolist(),
        "key_bias": None if bias is None else [round(float(value), 6) for value in bias],
    }


def figures(sample: Sample, segment: Segment) -> dict[str, Any]:
    """Return where a segment lies and what of it is trained."""
    inside = slice(segment.start, segment.stop)
    bias = sample.key_bias
    return {
        **asdict(segment),
        "first_position": int(sample.position_ids[segment.start]),
        "last_position": int(sample.position_ids[segment.stop - 1]),
        "skip_before": sample.skips.get(segment.start, 0),
        "num_skips_within": sum(segment.start < token < segment.stop for token in sample.skips),
        "num_trained_tokens": int(sample.trained[inside].sum()),
        "key_bias": None
        if bias is None
        else [round(float(end), 4) for end in (bias[inside].min(), bias[inside].max())],
    }


def _segment_text(sample: Sample, segment: Segment, tokenizer: Any) -> str:
    return text_of(tokenizer, sample.example.input_ids, segment.start, segment.stop)


def text_of(tokenizer: Any, ids: Int[np.ndarray, " T"], start: int, stop: int) -> str:
    """Return the text of tokens [start, stop) as it stands within the whole."""
    first = max(0, start - _CONTEXT)
    before, whole = (
        str(
            tokenizer.decode(
                ids[first:end].tolist(),
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )
        for end in (start, stop)
    )
    # A character whose bytes are parted by `start` reads as U+FFFD before it.
    return whole[len(before if whole.startswith(before) else before.rstrip("\ufffd")) :]
