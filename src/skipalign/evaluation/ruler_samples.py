"""RULER's 13 tasks as prompts of any size: needles, variables, common words and questions.

Source: Hsieh et al. 2024, arXiv 2404.06654, sections 3 and 4, appendix B; NVIDIA/RULER: its
synthetic.yaml, prompts and answer lengths; the words are those of wonderwords 2.2.0, as there.
Differs: numpy's Generator draws, each prompt apart, where the published code draws one after the
other; no key, variable or coded word comes twice in a prompt (published: hardly ever); needles and
documents are shuffled anew for each prompt, where one order serves all; an essay's sentences end
where this package's haystacks have them end; the example of `vt` has always ten lines of noise,
what fits its published 500 tokens with the usual tokenizers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import chain, pairwise
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal, Protocol, cast
from uuid import UUID

import numpy as np

from skipalign.evaluation.haystack import sentence_edges

_NUMBERS = (1_000_000, 9_000_000)  # the first, and how many: seven digits
_DEPTHS = np.round(np.linspace(0, 100, 40)) / 100
_NUM_HOPS = 4
_EXAMPLE_LINES = 10
_NUM_COMMON = 10
# Below it, lists of words are shorter and repeat less.
_LONG_LIST = 4096
_TOKENS_PER_CODED_WORD = 50  # of the vocabulary; a coded word has _CODE_LENGTH letters
_CODE_LENGTH = 6
_ZETA_2 = np.pi**2 / 6


@dataclass(frozen=True, slots=True)
class Puzzle:
    """What is asked, how the answer begins, and the texts it should hold."""

    prompt: str
    answer_start: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question about documents, by their numbers; `near` are others of the same article."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """The questions of a file in its order, and the unlike documents of them all, sorted."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """What all prompts are made of: the seed, the words of the prose, question files by task."""

    seed: int
    essay: tuple[str, ...] = ()
    files: Mapping[str, QuestionFile] = field(default_factory=dict[str, QuestionFile])


@dataclass(frozen=True, slots=True)
class Trial:
    """What decides a prompt besides its task and how many units it holds.

    Attributes:
        context_length: tokens that prompt and answer may take.
        index: which prompt of that length; of QA, which question of the file.
    """

    sources: Sources
    context_length: int
    index: int

    def rng(self, task: str) -> np.random.Generator:
        """Return the prompt's own stream, from its beginning."""
        return np.random.default_rng(
            [self.sources.seed, list(SUBTASKS).index(task), self.context_length, self.index]
        )


class Subtask(Protocol):
    """One of the 13.

    Attributes:
        name: as published.
        form: its prompt, by name.
        least: units that its shortest prompt has: words, lines, needles or documents.
    """

    @property
    def name(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def least(self) -> int: ...

    def most(self, trial: Trial) -> int:
        """Return how many units there are at most."""
        ...

    def puzzle(self, num_units: int, trial: Trial) -> Puzzle:
        """Make the prompt that holds so many units: a pure function of its arguments."""
        ...


@cache
def published() -> dict[str, Any]:
    """Return RULER's prompts and answer lengths, word for word."""
    return _packaged("prompts.json")


@cache
def _word_lists() -> dict[str, list[str]]:
    return {kind: sorted(set(words)) for kind, words in _packaged("words.json").items()}


@cache
def _words() -> list[str]:
    return sorted(set(chain.from_iterable(_word_lists().values())))


def _packaged(name: str) -> dict[str, Any]:
    text = resources.files("skipalign.evaluation") / "ruler_data" / name
    return json.loads(text.read_text(encoding="utf-8"))


def _filled(form: str, targets: Sequence[str], **words: object) -> Puzzle:
    texts = published()[form]
    prompt, start = (texts[part].format(**words) for part in ("template", "answer_start"))
    return Puzzle(prompt, start, tuple(targets))


# -------------------------------------------------------------------------------- needles


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """Records with key and value in noise, in prose or among records alike; units: lines or words.

    Attributes:
        haystack: what the needles lie in.
        keys: kind of keys, `words` being an adjective and a noun.
        values: kind of values.
        num_keys: keys in needles, each with `num_values` needles.
        num_queries: keys that are asked for; all values of theirs are right.
    """

    name: str
    haystack: Literal["noise", "essay", "needles"]
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    least: int = 1

    @property
    def form(self) -> str:
        """The name of its prompt: of one answer, or of several."""
        return "niah_one" if self.num_queries * self.num_values == 1 else "niah_many"

    def most(self, trial: Trial) -> int:
        """Return how many needles there are at most."""
        return trial.context_length  # a unit is a token at least

    def puzzle(self, num_units: int, trial: Trial) -> Puzzle:
        """Make a text that holds needles among others, prose or noise."""
        rng = trial.rng(self.name)
        num_others = num_units if self.haystack == "needles" else 0
        num_needles = self.num_keys * self.num_values
        keys = _names(self.keys, self.num_keys + num_others, rng)
        values = _names(self.values, num_needles + num_others, rng)
        holders = [key for key in keys[: self.num_keys] for _ in range(self.num_values)]
        records = [
            published()["needle"].format(kind=self.values, key=key, value=value)
            for key, value in zip(holders + keys[self.num_keys :], values, strict=True)
        ]
        needles = [records[i] for i in rng.permutation(num_needles)]
        context = (
            _in_prose(needles, trial.sources.essay, num_units, rng)
            if self.haystack == "essay"
            else "\n".join(_among(needles, records[num_needles:] or _noise(num_units), rng))
        )
        # Keys and places are drawn: the first keys stand anywhere.
        answers = values[: self.num_queries * self.num_values]
        kind = self.values if self.form == "niah_many" else self.values.removesuffix("s")
        query = _listed(keys[: self.num_queries])
        return _filled(self.form, answers, kind=kind, context=context, query=query)


def _names(kind: str, num: int, rng: np.random.Generator) -> list[str]:
    """Draw unlike names."""
    if kind == "uuids":
        return [str(UUID(bytes=rng.bytes(16), version=4)) for _ in range(num)]
    if kind == "numbers":
        start, size = _NUMBERS
        return [str(start + pick) for pick in rng.choice(size, size=num, replace=False)]
    first, second = _word_lists()["adjectives"], _word_lists()["nouns"]
    picks = rng.choice(len(first) * len(second), size=num, replace=False)
    return [f"{first[pick // len(second)]}-{second[pick % len(second)]}" for pick in picks]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


def _noise(num_lines: int) -> list[str]:
    return [published()["noise"]] * num_lines


def _among(needles: Sequence[str], lines: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Put each needle before another line, in the order given."""
    before = np.sort(rng.choice(len(lines), size=len(needles), replace=False))
    found = list(lines)
    for place, needle in reversed(list(zip(before, needles, strict=True))):
        found.insert(int(place), needle)
    return found


def _in_prose(
    needles: Sequence[str], words: Sequence[str], num_words: int, rng: np.random.Generator
) -> str:
    """Put needles between sentences of the prose, at unlike depths of 40; it begins at its top."""
    rounds = -(-num_words // len(words))
    text = " ".join((tuple(words) * rounds)[:num_words])
    sentences = [text[start:stop].strip() for start, stop in pairwise(sentence_edges(text))]
    depths = np.sort(rng.choice(_DEPTHS, size=len(needles), replace=False))
    places = [0, *(int(len(sentences) * depth) for depth in depths), len(sentences)]
    parts = [sentences[start:stop] for start, stop in pairwise(places)]
    for part, needle in zip(parts, needles, strict=False):
        part.append(needle)
    return " ".join(chain.from_iterable(parts))


# -------------------------------------------------------------------- variables and words


@dataclass(frozen=True, slots=True)
class Variables:
    """A chain of five variables in noise, after a solved example; units: lines of noise."""

    name: str = "vt"
    form: str = "vt"
    least: int = 1 + _NUM_HOPS

    def most(self, trial: Trial) -> int:
        """Return how many lines there are at most."""
        return trial.context_length

    def puzzle(self, num_units: int, trial: Trial) -> Puzzle:
        """Make chains of assigned variables: which hold the value asked for?"""
        rng = trial.rng(self.name)
        example = self._chain(_EXAMPLE_LINES, 3, rng)
        asked = self._chain(num_units, 5, rng)
        solved = f"{example.prompt}{example.answer_start} {' '.join(example.targets)}\n\n\n\n"
        return Puzzle(solved + asked.prompt, asked.answer_start, asked.targets)

    def _chain(self, num_lines: int, num_letters: int, rng: np.random.Generator) -> Puzzle:
        names = _codes(1 + _NUM_HOPS, num_letters, ascii_uppercase, rng)
        value = int(rng.integers(10_000, 99_999))
        steps = [f"VAR {names[0]} = {value}"]
        steps += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
        lines = [f"{line}\n" for line in _noise(num_lines)]
        context = " ".join(_among(steps, lines, rng))
        return _filled("vt", names, context=context, query=value, num_variables=len(names))


@dataclass(frozen=True, slots=True)
class CommonWords:
    """Ten words that come more often than others, after a solved example; units: unlike words."""

    name: str = "cwe"
    form: str = "cwe"
    least: int = 2 * _NUM_COMMON

    def most(self, trial: Trial) -> int:
        """Return how many words the list has at most."""
        return min(len(_words()), trial.context_length)

    def puzzle(self, num_units: int, trial: Trial) -> Puzzle:
        """Make a list in which some words come more often: which ones?"""
        rng = trial.rng(self.name)
        is_long = trial.context_length >= _LONG_LIST
        example = self._list(40 if is_long else 20, (10, 3) if is_long else (3, 1), rng)
        asked = self._list(num_units, (30, 3) if is_long else (6, 1), rng)
        answer = _numbered(example.targets)
        solved = f"{example.prompt}{example.answer_start} {answer}\n"
        return Puzzle(solved + asked.prompt, asked.answer_start, asked.targets)

    def _list(self, num_words: int, times: tuple[int, int], rng: np.random.Generator) -> Puzzle:
        """Make a list in which ten words come the first number of times, others the second."""
        words = [_words()[i] for i in rng.choice(len(_words()), size=num_words, replace=False)]
        common, others = words[:_NUM_COMMON], words[_NUM_COMMON:]
        listed = common * times[0] + others * times[1]
        context = _numbered([listed[i] for i in rng.permutation(len(listed))])
        return _filled("cwe", common, context=context)


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


@dataclass(frozen=True, slots=True)
class FrequentWords:
    """Coded words as often as Zipf's law has it, the first being dots; units: words."""

    name: str = "fwe"
    form: str = "fwe"
    least: int = 53  # from here on the fourth word comes more often than the fifth

    def most(self, trial: Trial) -> int:
        """Return how many words there are at most."""
        return trial.context_length

    def puzzle(self, num_units: int, trial: Trial) -> Puzzle:
        """Make a text of coded words drawn by a zeta law: which three come most often?"""
        rng = trial.rng(self.name)
        size = max(5, trial.context_length // _TOKENS_PER_CODED_WORD)
        words = ["...", *_codes(size - 1, _CODE_LENGTH, ascii_lowercase, rng)]
        ranks = np.arange(1, size + 1)
        times = (num_units / (ranks**2 * _ZETA_2)).astype(int)
        coded = np.repeat(words, times)
        return _filled("fwe", words[1:4], context=" ".join(rng.permutation(coded)))


def _codes(num: int, num_letters: int, letters: str, rng: np.random.Generator) -> list[str]:
    """Draw unlike words of random letters."""
    found: dict[str, None] = {}
    while len(found) < num:
        found["".join(letters[i] for i in rng.integers(len(letters), size=num_letters))] = None
    return list(found)


# ------------------------------------------------------------------------------ questions


@dataclass(frozen=True, slots=True)
class Questions:
    """A question of a file whose documents lie among others; units: documents."""

    name: str
    form: str = "qa"
    least: int = 1

    def most(self, trial: Trial) -> int:
        """Return how many documents there are."""
        return len(trial.sources.files[self.name].documents)

    def puzzle(self, num_units: int, trial: Trial) -> Puzzle:
        """Make a question and documents, of which one or some hold its answer."""
        rng, file = trial.rng(self.name), trial.sources.files[self.name]
        question = file.questions[trial.index]
        own, near = list(question.own), list(question.near)
        room = max(0, num_units - len(own))
        if room > len(near):
            rest = np.setdiff1d(np.arange(len(file.documents)), own + near)
            more = rng.choice(rest, size=min(room - len(near), len(rest)), replace=False)
            chosen = own + near + more.tolist()
        else:
            chosen = own + rng.permutation(near)[:room].tolist()
        texts = [file.documents[chosen[i]] for i in rng.permutation(len(chosen))]
        context = "\n\n".join(
            published()["document"].format(number=number, text=text)
            for number, text in enumerate(texts, start=1)
        )
        return _filled("qa", question.answers, context=context, query=question.text)


SUBTASKS: dict[str, Subtask] = {
    subtask.name: subtask
    for subtask in cast(
        "tuple[Subtask, ...]",
        (
            Needles(name="niah_single_1", haystack="noise"),
            Needles(name="niah_single_2", haystack="essay"),
            Needles(name="niah_single_3", haystack="essay", values="uuids"),
            Needles(name="niah_multikey_1", haystack="essay", num_keys=4),
            Needles(name="niah_multikey_2", haystack="needles"),
            Needles(name="niah_multikey_3", haystack="needles", keys="uuids", values="uuids"),
            Needles(name="niah_multivalue", haystack="essay", num_values=4),
            Needles(name="niah_multiquery", haystack="essay", num_keys=4, num_queries=4),
            Variables(),
            CommonWords(),
            FrequentWords(),
            Questions("qa_1"),
            Questions("qa_2"),
        ),
    )
}
"""The 13 by name; qa_1 asks of SQuAD, qa_2 of HotpotQA."""
