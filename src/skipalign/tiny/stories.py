"""Natural text without end, and conversations about it, drawn from a grammar and the novel.

A base with a window of 1,024 tokens sees hundreds of millions of tokens, and the packaged novel has
150,000: what is seen again is learned by heart and not retrieved. So sentences are made by a
grammar with millions of combinations, conversations are drawn anew for every step, and a record
("Rosa Sharp came.", as in `corpus`) holds in its own text alone.

Shape letters: T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from skipalign.tiny.corpus import ANSWER, KEYS, QUESTION, VALUES, Record, draw_records
from skipalign.tiny.pretraining import RowMaker

Ids = Int[np.ndarray, " T"]
TokenIds = Callable[[str], Ids]

# How a record ends; the needle of the recipes is the first.
TAILS = ("came", "left", "sang", "slept", "wrote", "waited", "paid", "laughed")
_WHO = """
miller|old sailor|baker's wife|young clerk|captain|gardener|schoolmaster|travelling doctor|shepherd
boy|judge|widow next door|printer|ferryman|night porter|violin teacher|surveyor|cook of the inn
blacksmith|postman|botanist|lamp lighter|tailor|retired general|bookbinder|chimney sweep|farrier
glass blower|midwife|mayor|beekeeper|clockmaker|harbour master|girl from the mill|two brothers
strangers at the gate|children of the village|guests|labourers|nuns|students from the city
"""
_DID = """
mended|carried|forgot|painted|sold|borrowed|hid|described|weighed|counted|polished|repaired|bought
dropped|inherited|praised|examined|wrapped|lost|found|drew|moved|guarded|unpacked|returned|hung up
"""
_WHAT = """
kettle|letter|basket of plums|copper lamp|map|wooden chest|pair of boots|broken chair|clock|saddle
silver spoon|bundle of candles|bag of flour|telescope|blanket|fishing net|piano|ladder|jar of honey
umbrella|painting|heap of newspapers|bottle of ink|lantern|handcart|bell|cabinet|roll of cloth|rope
barrel of cider|compass|wheel|tin box|bird cage|mirror|pocket knife|set of cups|ledger|coat|hammer
"""
_LIKE = """
heavy|small|yellow|ancient|useless|borrowed|dusty|crooked|painted|narrow|elegant|damp|nameless|cheap
enormous|faded|plain|unfinished|curious|green|second best|carefully folded|half empty|well known
"""
_WHERE = """
behind the stable|in the attic|near the bridge|on the quay|at the edge of the orchard|by the stove
under the stairs|along the canal|in the market square|beside the chapel|at the foot of the tower
across the valley|in the kitchen garden|on the upper deck|in an empty classroom|at the crossroads
outside the town hall|in the back of the shop|on the road to the coast|between the two rivers
"""
_WHEN = """
that morning|before dawn|late in the evening|after the rain|on the third day|during the fair|at noon
in the first week of spring|when the bells had stopped|a year later|at the end of winter|once more
without a word|as usual|for the second time|all through the night|between two meals|in great haste
"""
_FELT = """
nobody asked why|it hardly mattered|the dog barked twice|everyone seemed content|there was no reply
the price was too high|supper was already cold|the wind had turned|the road was longer than expected
the others had gone home|rain began to fall|it would be remembered for years|the door stood open
there was enough for all|the candles burned low|a quarrel could not be avoided|the news was old
"""
_SAID = """
the harvest would be poor|the ferry no longer ran|the roof must be mended|nothing had been stolen
the summer had been kinder|music cost too much|the accounts were in order|the bridge would not last
one horse was enough|the letter had been opened|the town had grown|patience was a kind of wealth
"""
_PATTERNS = (
    "The {who} {did} the {like} {what} {where}.",
    "The {who} {did} a {what} {when}, and {felt}.",
    "{When}, the {who} {did} the {what}.",
    "{Where} stood a {like} {what}.",
    "It was said {where} that {said}.",
    "“I never {did} the {what},” said the {who}, “and {said}.”",
    "There was a {what} {where}, {like} and {like}.",
    "The {who} thought that {said}, but {felt}.",
    "{When} the {who} and the {who} met {where}.",
    "Although {felt}, the {who} {did} another {what}.",
    "Nobody had seen the {like} {what} since the {who} {did} it {where}.",
    "“Is it true that {said}?” asked the {who}.",
    "The {who} waited {where} until {felt}.",
    "Of all that lay {where}, only the {what} was {like}.",
)


@cache
def _words(text: str) -> tuple[str, ...]:
    return tuple(word for line in text.strip().splitlines() for word in line.split("|"))


def sentence(rng: np.random.Generator) -> str:
    """Draw a sentence; it names nobody that a question could be about."""

    def one(text: str) -> str:
        words = _words(text)
        return words[int(rng.integers(len(words)))]

    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))]
    slots = {"who": _WHO, "did": _DID, "what": _WHAT, "like": _LIKE}
    slots |= {"where": _WHERE, "when": _WHEN, "felt": _FELT, "said": _SAID}
    for name, text in slots.items():
        for slot, change in ((f"{{{name}}}", str), (f"{{{name.title()}}}", str.capitalize)):
            while slot in pattern:
                pattern = pattern.replace(slot, change(one(text)), 1)
    return pattern


@dataclass(frozen=True, slots=True)
class StoryLaw:
    """How a conversation is drawn.

    Args:
        max_tokens: of the whole conversation, template included.
        tokens_per_record: of the document, at most and at least: its density is drawn between.
        num_turns: questions asked at most, each for another record.
        overhead: template tokens of one turn, question and answer.
    """

    max_tokens: int = 1024
    tokens_per_record: tuple[float, float] = (25.0, 200.0)
    num_turns: int = 8
    overhead: int = 4


@dataclass(frozen=True, slots=True)
class Story:
    """A document, sentence by sentence, and what is asked about it."""

    sentences: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]

    def messages(self) -> list[dict[str, str]]:
        """Return the conversation."""
        found: list[dict[str, str]] = []
        for number, (question, answer) in enumerate(self.turns):
            words = (*self.sentences, question) if number == 0 else (question,)
            found.append({"role": "user", "content": " ".join(words)})
            found.append({"role": "assistant", "content": answer})
        return found


class StoryMaker:
    """Draws stories that fill their tokens.

    Args:
        prose: sentences to choose from.
        token_ids: of a text that begins as after a space, so that ids of sentences laid side by
            side are those of the sentences as one text.
        law: of the stories.
    """

    def __init__(self, prose: Sequence[str], token_ids: TokenIds, law: StoryLaw) -> None:
        self.law = law
        self.prose = prose
        self.token_ids = token_ids
        self._known: dict[str, Ids] = {}
        self._lengths = np.array([len(self.ids(each)) for each in prose])

    def ids(self, text: str) -> Ids:
        """Return the ids of a sentence; each is asked of the tokenizer once."""
        if text not in self._known:
            self._known[text] = self.token_ids(text)
        return self._known[text]

    def draw(self, rng: np.random.Generator) -> Story:
        """Draw one story."""
        law = self.law
        fewest, most = (law.max_tokens / each for each in law.tokens_per_record[::-1])
        num_records = int(np.clip(rng.uniform(fewest, most), 1, min(len(KEYS), len(VALUES))))
        records = draw_records(rng, num_records)
        told = [_told(record, rng) for record in records]
        turns: list[tuple[str, str]] = []
        left = law.max_tokens - sum(len(self.ids(each)) for each in told)
        for index in rng.permutation(num_records)[: law.num_turns]:
            turn = _asked(records[int(index)])
            left -= law.overhead + sum(len(self.ids(each)) for each in turn)
            turns.append(turn)
        return Story(tuple(self._document(told, left, rng)), tuple(turns))

    def _document(self, told: list[str], left: int, rng: np.random.Generator) -> list[str]:
        """Lay records between sentences, as many as fit into `left` tokens."""
        pieces: list[str] = []
        while True:
            index = int(rng.integers(len(self.prose)))
            left -= int(self._lengths[index])
            if left < 0:
                break
            pieces.append(self.prose[index])
        places = np.sort(rng.integers(0, len(pieces) + 1, len(told)))
        for place, sentence_told in zip(places[::-1], told, strict=True):
            pieces.insert(int(place), sentence_told)
        return pieces

    def encoded(
        self, story: Story, marks: tuple[int, int, int]
    ) -> tuple[Ids, Bool[np.ndarray, " T"]]:
        """Return what the chat template makes of a story, and which of its tokens are answers.

        Args:
            story: with sentences of this maker.
            marks: ids that begin a user's and an assistant's message, and that end one.
        """
        user, assistant, end = marks
        parts: list[Ids] = []
        trained: list[Bool[np.ndarray, " T"]] = []

        def add(ids: Sequence[int] | Ids, answers: bool) -> None:
            parts.append(np.asarray(ids))
            trained.append(np.full(len(ids), answers))

        for number, (question, answer) in enumerate(story.turns):
            add([user], False)
            for each in (*(story.sentences if number == 0 else ()), question):
                add(self.ids(each), False)
            add([end, assistant], False)
            add([*self.ids(answer), end], True)
        return np.concatenate(parts), np.concatenate(trained)


def _told(record: Record, rng: np.random.Generator) -> str:
    key, value = record
    return f"{key} {value} {TAILS[int(rng.integers(len(TAILS)))]}."


def _asked(record: Record) -> tuple[str, str]:
    key, value = record
    return QUESTION.format(key=key), ANSWER.format(key=key, value=value)


class StoryRows(RowMaker):
    """The rows of the tiny bases, with conversations that are drawn anew each time.

    Args:
        tokenizer: of the base, in which a name is one token.
        prose: sentences.
        window: tokens of a row.
    """

    def __init__(self, tokenizer: Any, prose: Sequence[str], window: int) -> None:
        ids = [np.array(each) for each in tokenizer(list(prose))["input_ids"]]
        known = dict(zip(prose, ids, strict=True))
        keys, values = (
            np.array([tokenizer(name)["input_ids"][0] for name in names])
            for names in (KEYS, VALUES)
        )
        # Lists of the window's length need more words than there are names.
        begins = len(tokenizer.all_special_ids)
        others = np.setdiff1d(np.arange(begins, len(tokenizer)), np.concatenate([keys, values]))
        names = np.concatenate([keys, others[::2]]), np.concatenate([values, others[1::2]])
        rng = np.random.default_rng(0)
        super().__init__(np.concatenate(ids), names, [], window, rng)

        def token_ids(text: str) -> Int[np.ndarray, " T"]:
            found = known.get(text)
            return np.array(tokenizer(text)["input_ids"]) if found is None else found

        self.maker = StoryMaker(prose, token_ids, StoryLaw(max_tokens=window))
        user, assistant, end = tokenizer.convert_tokens_to_ids(
            ["<|user|>", "<|assistant|>", "<|end|>"]
        )
        self.marks = (user, assistant, end)

    def _conversation(self) -> tuple[Any, Any]:
        return self._filled_up(*self.maker.encoded(self.maker.draw(self.rng), self.marks))

    def asked(self, num_rows: int) -> tuple[Any, Any]:
        """Draw rows that hold a conversation each, and which of their tokens are answers."""
        rows = [self._conversation() for _ in range(num_rows)]
        ids, weights = (np.array(each) for each in zip(*rows, strict=True))
        return ids, weights == 4.0
