"""What a model makes of long prompts, one task a file.

Here is what the tasks share: prose to hide records in, the records, and prompts that have exactly
the number of tokens asked for. A prompt is one user message, [passage with records][separator]
[question], rendered by the chat template that training uses and joined by token ids.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int

from skipalign.conversation import Message
from skipalign.errors import DataError, ModelError, RecipeError
from skipalign.template import Template
from skipalign.tokens import DataTokenizer, DropError, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# fmt: off
CITIES = (
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Lima", "Quito", "Cairo", "Tunis", "Dublin", "Geneva",
    "Havana", "Jakarta", "Kabul", "Lagos", "Madrid", "Manila", "Minsk", "Mumbai", "Munich",
    "Naples", "Odessa", "Ottawa", "Paris", "Prague", "Riga", "Rome", "Santiago", "Seoul", "Sofia",
    "Sydney", "Tallinn", "Tirana", "Tokyo", "Toronto", "Turin", "Vienna", "Warsaw", "Zagreb",
)
# fmt: on
"""Keys where a recipe names none. The values are then numbers of seven digits."""

_TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Rev", "Col", "Capt", "Prof")
_SENTENCE_STOP = re.compile(
    "".join(rf"(?<!\b{title})" for title in _TITLES)
    + r"[.!?…]+[\"'”’)\]]*(?=\s[^a-z])|[。！？]+[」』”’）]*"
)
_LONGEST_SENTENCE = 1000  # characters; longer ones are parted at a space
_LEAST_PASSAGE = 16  # tokens of prose that a prompt has besides its records
_SPARE = 16  # tokens of prose laid out too many, then cut: joining may save a token or two
_MARK = "DOCUMENT-AND-QUESTION"


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """What is hidden, what is asked, and where the prose comes from.

    Args:
        seed: of everything that is drawn.
        haystack: a text file or a folder of *.txt, read in sorted order; None is the built-in
            public-domain prose. White space is collapsed; a passage begins at a random sentence
            and goes on from the top where the text ends.
        needle: the hidden sentence, with `{key}` and `{value}`.
        question: with `{key}`.
        separator: what stands between passage and question.
        keys: drawn from; None is CITIES.
        values: drawn from; None is numbers of seven digits.
        distractors: further needles at random places, each with a key and a value of its own.
        max_new_tokens: the longest answer, in tokens on top of the prompt's.
        template_kwargs: what the chat template takes, such as `enable_thinking`.
    """

    seed: int = 0
    haystack: str | None = None
    needle: str = "The secret number of {key} is {value}."
    question: str = "What is the secret number of {key}? Answer with the number alone."
    separator: str = "\n\n"
    keys: tuple[str, ...] | None = None
    values: tuple[str, ...] | None = None
    distractors: int = 0
    max_new_tokens: int = 32
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises RecipeError for settings that no prompt can be made from."""
        for name, text, places in (
            ("needle", self.needle, ("{key}", "{value}")),
            ("question", self.question, ("{key}",)),
        ):
            missing = [place for place in places if place not in text]
            if missing:
                raise RecipeError(f"{name} is {text!r}; it must hold {' and '.join(missing)}")
        if self.seed < 0 or self.distractors < 0 or self.max_new_tokens < 1:
            raise RecipeError(
                f"seed is {self.seed}, distractors {self.distractors}, max_new_tokens "
                f"{self.max_new_tokens}; they must be at least 0, 0 and 1"
            )
        for name, choice in (("keys", self._keys), ("values", self.values)):
            if choice is not None and len(set(choice)) <= self.distractors:
                raise RecipeError(
                    f"{len(set(choice))} {name} for {self.distractors} distractors; "
                    f"give at least {self.distractors + 1} unlike {name}, or fewer distractors"
                )

    def draw(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Draw a key and a value for the needle (first) and for each distractor, all unlike."""
        num = 1 + self.distractors
        keys = rng.choice(sorted(set(self._keys)), size=num, replace=False)
        if self.values is None:
            values = (1_000_000 + rng.choice(9_000_000, size=num, replace=False)).astype(str)
        else:
            values = rng.choice(sorted(set(self.values)), size=num, replace=False)
        return [(str(key), str(value)) for key, value in zip(keys, values, strict=True)]

    @property
    def _keys(self) -> tuple[str, ...]:
        return CITIES if self.keys is None else self.keys

    def record(self, key: str, value: str) -> str:
        """Return the needle's text."""
        return self.needle.replace("{key}", key).replace("{value}", value)


def read_haystack(path: str | None) -> str:
    """Return the prose: a file, a folder's *.txt in sorted order, or the built-in chapters.

    Raises:
        DataError: no such file, no *.txt in the folder, or one that is empty or not UTF-8.
    """
    root = resources.files("skipalign.tiny") / "haystack" if path is None else Path(path)
    if root.is_file():
        files = [root]
    elif root.is_dir():
        found = (entry for entry in root.iterdir() if entry.name.endswith(".txt"))
        files = sorted(found, key=lambda entry: entry.name)
    else:
        raise DataError(f"haystack {root}: no such file or folder; give a text file or a folder")
    if not files:
        raise DataError(f"haystack {root}: holds no *.txt; put prose there as UTF-8 text files")
    texts: list[str] = []
    for entry in files:
        try:
            texts.append(entry.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"haystack {entry}: not UTF-8 ({error}); convert it") from None
    words = " ".join(texts).split()
    if not words:
        raise DataError(f"haystack {root}: holds no text; put prose there as UTF-8 text files")
    return " ".join(words)


@dataclass(frozen=True, slots=True, eq=False)
class Haystack:
    """Prose as tokens, each sentence with the space before it; it goes on from the top.

    `borders` are the tokens at which a sentence begins, `sentences` their texts.
    """

    ids: Int[np.ndarray, " N"]
    borders: Int[np.ndarray, " S"]
    sentences: tuple[str, ...]

    def passage(self, first: int, num_tokens: int) -> Int[np.ndarray, " T"]:
        """Return `num_tokens` tokens from token `first` on."""
        return np.take(self.ids, np.arange(first, first + num_tokens), mode="wrap")

    def borders_from(self, sentence: int, num_tokens: int) -> Int[np.ndarray, " B"]:
        """Return the borders within `num_tokens` tokens from that sentence on; the first is 0."""
        once = np.roll(self.borders, -sentence) - self.borders[sentence]
        once = np.where(once < 0, once + len(self.ids), once)
        rounds = 1 + num_tokens // len(self.ids)
        borders = (np.arange(rounds)[:, None] * len(self.ids) + once[None, :]).reshape(-1)
        return borders[borders < num_tokens]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt with its chat template; token indices of the needle and of the question in it."""

    ids: Int[np.ndarray, " T"]
    needle_start: int
    question_start: int


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Tokens of a part of the prompt; `record` is the record's index, None for prose."""

    ids: Int[np.ndarray, " T"]
    record: int | None = None
    start: int = 0


_haystacks: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, Haystack]]" = WeakKeyDictionary()


class PromptMaker:
    """Make prompts of an exact number of tokens, fast: the prose is tokenised once a process.

    Raises:
        DataError: no haystack (see `read_haystack`).
        RecipeError: a text that holds a special token's text.
        ModelError: the tokenizer or its template cannot be used.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", settings: RetrievalSettings) -> None:
        self.settings = settings
        self._texts = DataTokenizer(tokenizer)
        template = Template(tokenizer, self._texts, settings.template_kwargs)
        self._head, self._tail = _around_content(template)
        text = read_haystack(settings.haystack)
        self._refuse_control(text)
        self.haystack_sha256 = hashlib.sha256(text.encode()).hexdigest()
        known = _haystacks.setdefault(tokenizer, {})
        key = f"{len(tokenizer)} {self.haystack_sha256}"
        if key not in known:
            known[key] = self._tokenized(text)
        self.haystack = known[key]

    def described(self) -> dict[str, Any]:
        """Return what besides the settings decides the prompts, for the results file."""
        tokens = hashlib.sha256(self.haystack.ids.astype("<i4").tobytes())
        tokens.update(f"{self._head}\0{self._tail}".encode())
        return {
            "haystack_sha256": self.haystack_sha256,
            "haystack_tokens": len(self.haystack.ids),
            "template_and_tokens_sha256": tokens.hexdigest(),
        }

    def make(
        self,
        context_length: int,
        depth: float,
        records: Sequence[tuple[str, str]],
        rng: np.random.Generator,
    ) -> Prompt:
        """Make a prompt of exactly `context_length` tokens, template and question included.

        The first of `records` is the needle: it goes to the border nearest to `depth` of the
        passage (0: first, 1: last). The others go to random borders. A border is where a sentence
        begins, before or after another record, and the passage's end, which is cut at a token.

        Raises:
            RecipeError: the prompt has no room for its records.
        """
        texts = [" " + self.settings.record(key, value) for key, value in records]
        question = self.settings.question.replace("{key}", records[0][0])
        pieces = [self._after(".", text).ids for text in texts]
        taken = [len(piece) for piece in pieces]
        fixed = len(self._opening(".")[0]) - 1 + sum(taken) + len(self._closing("", question)[0])
        room = context_length - fixed
        if room < _LEAST_PASSAGE:
            raise RecipeError(
                f"context_length {context_length}: template, question and {len(texts)} record(s) "
                f"take {fixed} tokens; at least {fixed + _LEAST_PASSAGE} are required - "
                "leave this length out, or use fewer distractors or shorter texts"
            )
        sentence = int(rng.integers(len(self.haystack.borders)))
        passage = self.haystack.passage(int(self.haystack.borders[sentence]), room + _SPARE)
        inner = self.haystack.borders_from(sentence, max(1, room - _SPARE // 2))
        placed = _placed(np.append(inner, room), depth, taken, rng)
        parts = _parts(passage, room, [(place, record, pieces[record]) for place, record in placed])
        parts[0] = self._first(parts[0], sentence, texts)
        ending, question_start = self._closing("", question)
        if (last := parts[-1].record) is not None:
            ending, question_start = self._closing(texts[last], question)
            parts[-1] = _Part(ending[:0], last)
        return _joined(parts, _Part(ending, start=question_start), context_length)

    def _first(self, part: _Part, sentence: int, texts: Sequence[str]) -> _Part:
        """Tokenise the first part anew, with the template's head before it."""
        if part.record is not None:
            ids, start = self._opening(texts[part.record].lstrip())
            return _Part(ids, part.record, start)
        stops = np.append(self.haystack.borders, len(self.haystack.ids))
        num_known = int(stops[sentence + 1] - stops[sentence])
        ids, _ = self._opening(self.haystack.sentences[sentence])
        return _Part(np.concatenate([ids, part.ids[num_known:]]))

    def _opening(self, text: str) -> tuple[Int[np.ndarray, " T"], int]:
        """Return the tokens of the template's head and `text`, and where those of `text` begin."""
        tokens = self._tokens(self._head + text)
        return tokens.ids, int(np.searchsorted(tokens.stops, len(self._head), side="right"))

    def _closing(self, record: str, question: str) -> tuple[Int[np.ndarray, " T"], int]:
        """Return the tokens from the last record (or '') on, and where the question begins."""
        before = record + self.settings.separator
        tokens = self._after("." if record else "e", before + question + self._tail)
        return tokens.ids, int(np.searchsorted(tokens.stops, len(before), side="right"))

    def _after(self, left: str, text: str) -> Tokens:
        """Return the tokens of `text` as they are after `left`, characters counted from there.

        Raises:
            ModelError: a token reaches over the border.
        """
        tokens = self._tokens(left + text)
        first = int(np.searchsorted(tokens.stops, len(left), side="right"))
        if first == len(tokens) or tokens.starts[first] < len(left):
            raise ModelError(
                f"tokenizer {self._texts.name}: {left + text[:20]!r} has a token that reaches over "
                f"the border after {left!r}; prompts are joined there - use a tokenizer that "
                "parts words from what follows"
            )
        starts, stops = tokens.starts[first:] - len(left), tokens.stops[first:] - len(left)
        return Tokens(tokens.ids[first:], starts, stops)

    def _tokens(self, text: str) -> Tokens:
        return self._texts.tokenize([text])[0]

    def _tokenized(self, text: str) -> Haystack:
        """Tokenise the prose; a sentence begins with the space before it, the first one too."""
        text = " " + text
        tokens = self._after(".", text)
        edges = _sentence_edges(text)
        # A sentence begins with the first token that stops beyond the one before it; where that
        # token also began in the one before, there is no border.
        borders = np.searchsorted(tokens.stops, edges[:-1], side="right")
        kept = [
            index for index, token in enumerate(borders) if tokens.starts[token] >= edges[index]
        ]
        edges = [*(edges[index] for index in kept), len(text)]
        sentences = tuple(text[start:stop].strip() for start, stop in pairwise(edges))
        return Haystack(tokens.ids, borders[kept], sentences)

    def _refuse_control(self, haystack: str) -> None:
        settings = self.settings
        texts = {"haystack": [haystack], "needle": [settings.needle]}
        texts["question"] = [settings.question]
        texts["keys and values"] = [*(settings.keys or ()), *(settings.values or ())]
        for name, text in ((name, text) for name, group in texts.items() for text in group):
            if (found := self._texts.find_control_text(text)) is not None:
                raise RecipeError(
                    f"{name}: {text[slice(*found)]!r} is a special token of this tokenizer; "
                    "prompts must be ordinary text - take it out"
                )


def _around_content(template: Template) -> tuple[str, str]:
    """Return what the template writes before and after a user's text."""
    try:
        text = template.render([Message("user", _MARK)], prompt=True)
    except DropError as error:
        raise ModelError(
            f"{error.detail}; a prompt is a single user message, which the template must take - "
            "mend tokenizer.chat_template, or give it what it asks for in template_kwargs"
        ) from None
    if text.count(_MARK) != 1:
        raise ModelError(
            f"the chat template writes the user's text {text.count(_MARK)} times; prompts need it "
            "once - use another template"
        )
    head, _, tail = text.partition(_MARK)
    return head, tail


def _sentence_edges(text: str) -> list[int]:
    """Return 0, the characters at which a sentence ends, and the text's end."""
    edges = [0]
    for stop in [*(match.end() for match in _SENTENCE_STOP.finditer(text)), len(text)]:
        while stop - edges[-1] > _LONGEST_SENTENCE:
            space = text.find(" ", edges[-1] + _LONGEST_SENTENCE // 2, stop)
            if space < 0:
                break
            edges.append(space)
        edges.append(stop)
    return sorted(set(edges))


def _placed(
    borders: Int[np.ndarray, " B"],
    depth: float,
    lengths: Sequence[int],
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Return (border, record) in the order of the text; record 0 is the needle.

    The others are drawn first; the needle then has its choice of all borders and of the places
    between records at one border.
    """
    num = len(lengths) - 1
    slots = np.sort(rng.choice(len(borders), size=num, replace=num > len(borders)))
    ahead = np.cumsum([0, *lengths[1:]])
    # Before the needle stand `before` other records; border `place` allows `low` to `high` of them.
    low = np.searchsorted(slots, np.arange(len(borders)), side="left")
    high = np.searchsorted(slots, np.arange(len(borders)), side="right")
    choices = [
        (int(border + ahead[before]), place, before)
        for place, border in enumerate(borders)
        for before in range(low[place], high[place] + 1)
    ]
    target = depth * (int(borders[-1]) + int(ahead[-1]))
    _, place, before = min(choices, key=lambda choice: abs(choice[0] - target))
    order = [(int(borders[slot]), other) for other, slot in enumerate(slots, start=1)]
    order.insert(before, (int(borders[place]), 0))
    return order


def _parts(
    passage: Int[np.ndarray, " T"],
    room: int,
    placed: Sequence[tuple[int, int, Int[np.ndarray, " R"]]],
) -> list[_Part]:
    """Part the passage at its records; those at its end, `room`, come after the spare tokens."""
    parts: list[_Part] = []
    done = 0
    for place, record, ids in placed:
        stop = len(passage) if place == room else place
        parts += [_Part(passage[done:stop]), _Part(ids, record)]
        done = stop
    parts.append(_Part(passage[done:]))
    return [part for part in parts if len(part.ids)]


def _joined(parts: Sequence[_Part], closing: _Part, context_length: int) -> Prompt:
    """Join the parts; the last stretch of prose gives up what is beyond `context_length`."""
    excess = sum(len(part.ids) for part in parts) + len(closing.ids) - context_length
    last = max(index for index, part in enumerate(parts) if part.record is None)
    assert 0 <= excess < len(parts[last].ids), "the spare tokens make up for every joint"
    kept = [
        part.ids[:-excess] if index == last and excess else part.ids
        for index, part in enumerate(parts)
    ]
    needle = next(index for index, part in enumerate(parts) if part.record == 0)
    needle_start = sum(len(ids) for ids in kept[:needle]) + parts[needle].start
    ids = np.concatenate([*kept, closing.ids])
    return Prompt(ids, needle_start, len(ids) - len(closing.ids) + closing.start)
