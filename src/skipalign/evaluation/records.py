"""What is hidden in a text and what is asked about it: the settings, and the drawing of records.

A record is a sentence with a key and a value of its own, such as "Ada Adler came.". Those that the
question asks for are needles, the others distractors. With `link` a record is two sentences at two
places, "Ada met Ben." and "Ben Adler came.", and the question gives the first key alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from skipalign.errors import RecipeError

# fmt: off
CITIES = (
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Lima", "Quito", "Cairo", "Tunis", "Dublin", "Geneva",
    "Havana", "Jakarta", "Kabul", "Lagos", "Madrid", "Manila", "Minsk", "Mumbai", "Munich",
    "Naples", "Odessa", "Ottawa", "Paris", "Prague", "Riga", "Rome", "Santiago", "Seoul", "Sofia",
    "Sydney", "Tallinn", "Tirana", "Tokyo", "Toronto", "Turin", "Vienna", "Warsaw", "Zagreb",
)
CITIES_ZH = (
    "里斯本", "奥斯陆", "内罗毕", "京都", "利马", "基多", "开罗", "突尼斯", "都柏林", "日内瓦",
    "哈瓦那", "雅加达", "喀布尔", "拉各斯", "马德里", "马尼拉", "明斯克", "孟买", "慕尼黑",
    "那不勒斯", "敖德萨", "渥太华", "巴黎", "布拉格", "里加", "罗马", "圣地亚哥", "首尔", "索非亚",
    "悉尼", "塔林", "地拉那", "东京", "多伦多", "都灵", "维也纳", "华沙", "萨格勒布",
)
# fmt: on
"""Keys where a recipe names none. The values are then numbers of seven digits."""

_NUMBERS = (1_000_000, 9_000_000)  # the first, and how many

Words = tuple[str, ...] | tuple[tuple[str, ...], ...]
_Lists = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Language:
    """What settings say where a recipe is silent, and how sentences are joined.

    Attributes:
        needle: a record.
        question: about it.
        key_joiner: what stands between several keys in a question.
        keys: drawn from.
        space: what stands between two sentences.
        stop: what a sentence ends with.
        letter: any.
    """

    needle: str
    question: str
    key_joiner: str
    keys: tuple[str, ...]
    space: str
    stop: str
    letter: str


LANGUAGES = {
    "en": Language(
        needle="The secret number of {key} is {value}.",
        question="What is the secret number of {key}? Answer with the number alone.",
        key_joiner=" and ",
        keys=CITIES,
        space=" ",
        stop=".",
        letter="e",
    ),
    "zh": Language(
        needle="{key}的秘密数字是{value}。",
        question="{key}的秘密数字是多少？只回答这个数字。",
        key_joiner="和",
        keys=CITIES_ZH,
        space="",
        stop="。",
        letter="的",
    ),
}


@dataclass(frozen=True, slots=True)
class Hidden:
    """What one prompt hides and asks.

    Attributes:
        texts: sentences to hide; the first lies at the prompt's depth, the others anywhere.
        question: asks for all of `values`.
        key: what the question asks about, several keys joined.
        values: the right answer; each must stand in what the model says.
        other_keys: those of distractors, links' included.
        other_values: those of distractors.
    """

    texts: tuple[str, ...]
    question: str
    key: str
    values: tuple[str, ...]
    other_keys: frozenset[str] = frozenset()
    other_values: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """What is hidden, what is asked, and where the prose comes from.

    Args:
        seed: of everything that is drawn.
        haystack: a text file or a folder of *.txt, read in sorted order; None is the built-in
            public-domain prose. White space is collapsed; a passage begins at a random sentence
            and goes on from the top where the text ends.
        language: of the texts. `zh` has a needle, a question, a `key_joiner` and keys of its own,
            where these are not given, joins sentences without spaces, and needs a haystack. It
            serves any script that writes without spaces, with a needle and a question in it.
        needle: the hidden sentence, with `{key}` and `{value}`.
        question: with `{key}`.
        separator: what stands between passage and question.
        keys: drawn from; None is 38 cities. A list of lists makes keys of several words, one of
            each list.
        values: drawn from, like keys; None is numbers of seven digits.
        distractors: further records at random places, each with a key and a value of its own.
        tokens_per_record: in place of `distractors`, as many as make one record for so many tokens
            of the prompt, needles counted: the same density at every length.
        distractors_repeat: draw the keys and values of distractors with replacement; those of
            needles still stand in the text once.
        near_keys: all other keys share all words but one with the needle's; needs keys of
            several words.
        num_needles: records that the question asks for; the first lies at the depth asked, the
            others anywhere. An answer is right when it holds all their values.
        same_key: the needles share one key, and the question asks for all its values.
        key_joiner: what stands between several keys in a question.
        link: makes every record two, a link with `{key}` and `{other}`, and the needle with
            `{other}` for its key: the answer needs both. The needle lies at the depth asked.
        max_new_tokens: the longest answer, in tokens on top of the prompt's.
        template_kwargs: what the chat template takes, such as `enable_thinking`.
    """

    seed: int = 0
    haystack: str | None = None
    language: Literal["en", "zh"] = "en"
    needle: str = LANGUAGES["en"].needle
    question: str = LANGUAGES["en"].question
    separator: str = "\n\n"
    keys: Words | None = None
    values: Words | None = None
    distractors: int = 0
    tokens_per_record: float | None = None
    distractors_repeat: bool = False
    near_keys: bool = False
    num_needles: int = 1
    same_key: bool = False
    key_joiner: str = LANGUAGES["en"].key_joiner
    link: str | None = None
    max_new_tokens: int = 32
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises RecipeError for settings that no prompt can be made from."""
        self._take_language()
        for name, text, places in (
            ("needle", self.needle, ("{key}", "{value}")),
            ("question", self.question, ("{key}",)),
            ("link", self.link, ("{key}", "{other}")),
        ):
            missing = [place for place in places if text is not None and place not in text]
            if missing:
                raise RecipeError(f"{name} is {text!r}; it must hold {' and '.join(missing)}")
        if self.seed < 0 or self.distractors < 0 or self.max_new_tokens < 1:
            raise RecipeError(
                f"seed is {self.seed}, distractors {self.distractors}, max_new_tokens "
                f"{self.max_new_tokens}; they must be at least 0, 0 and 1"
            )
        if self.tokens_per_record is not None and (self.distractors or self.tokens_per_record < 1):
            raise RecipeError(
                f"tokens_per_record is {self.tokens_per_record:g} and distractors are "
                f"{self.distractors}; give one of them, tokens_per_record at least 1"
            )
        if self.num_needles < 1 or (self.same_key and self.num_needles == 1):
            raise RecipeError(
                f"num_needles is {self.num_needles}; at least {2 if self.same_key else 1} is "
                "required" + (" with same_key" if self.same_key else "")
            )
        for name, words in (("keys", self._key_lists), ("values", _lists(self.values or ()))):
            spaced = [word for each in words for word in each if len(word.split()) != 1]
            if len(words) > 1 and spaced:
                raise RecipeError(
                    f"{name} are combined from {len(words)} lists and {spaced[0]!r} is not one "
                    "word; two names could come out the same - give single words"
                )
        if self.near_keys and len(self._key_lists) == 1:
            raise RecipeError(
                "near_keys is true and the keys are single words; near keys share all words but "
                "one - give keys as a list of lists, such as [[Ada, Ben], [Mary, Jane]]"
            )

    def _take_language(self) -> None:
        """Put the language's own texts where the recipe gives none."""
        if self.language not in LANGUAGES:
            raise RecipeError(f"language is {self.language!r}; it must be {' or '.join(LANGUAGES)}")
        if self.language == "en":
            return
        if self.haystack is None:
            raise RecipeError(
                f"language is {self.language} and haystack is None: the built-in prose is English "
                "- give a text file or a folder of *.txt as haystack"
            )
        for name in ("needle", "question", "key_joiner"):
            if getattr(self, name) == getattr(LANGUAGES["en"], name):
                object.__setattr__(self, name, getattr(self.wording, name))

    @property
    def wording(self) -> Language:
        """What the language brings along."""
        return LANGUAGES[self.language]

    def num_records(self, context_length: int) -> int:
        """Return how many records a prompt of `context_length` tokens has, needles included."""
        if self.tokens_per_record is None:
            return self.num_needles + self.distractors
        return max(self.num_needles, round(context_length / self.tokens_per_record))

    def refuse_too_few_names(self, context_length: int) -> None:
        """Raises RecipeError where keys or values are too few for a prompt of that length."""
        others = self.num_records(context_length) - self.num_needles
        num_unlike, num_others = self._num_keys(others)
        lists = self._key_lists
        num_keys = 1 + sum(len(words) - 1 for words in lists) if self.near_keys else _size(lists)
        found = [("keys", num_keys, num_unlike, num_others)]
        if self.values is not None:
            found.append(("values", _size(_lists(self.values)), self.num_needles, others))
        for name, num, unlike, more in found:
            required = unlike + (min(1, more) if self.distractors_repeat else more)
            if num < required:
                raise RecipeError(
                    f"{num} {name} for {others} distractors and {self.num_needles} needle(s) in "
                    f"{context_length} tokens; at least {required} unlike {name} are required - "
                    "give more, lists of words that are combined, fewer distractors, or "
                    "distractors_repeat"
                )

    def draw(self, rng: np.random.Generator, context_length: int) -> Hidden:
        """Draw the records of one prompt; no key or value of a needle comes twice."""
        num, asked = self.num_needles, 1 if self.same_key else self.num_needles
        others = self.num_records(context_length) - num
        num_unlike, num_others = self._num_keys(others)
        keys = self._draw_keys(rng, num_unlike, num_others)
        values = self._draw_values(rng, others)
        # Needles first; `holders` are the keys that stand beside the values.
        given = (keys[:1] * num if self.same_key else keys[:num]) + keys[num_unlike:][:others]
        holders, links = given, list[str]()
        if self.link is not None:
            holders = keys[asked:num_unlike] + keys[num_unlike + others :]
            links = [
                self.link.replace("{key}", key).replace("{other}", other)
                for key, other in zip(given, holders, strict=True)
            ]
        texts = [self.record(*pair) for pair in zip(holders, values, strict=True)]
        return Hidden(
            texts=(*texts, *links),
            question=self.question.replace("{key}", self.key_joiner.join(keys[:asked])),
            key=self.key_joiner.join(keys[:asked]),
            values=tuple(values[:num]),
            other_keys=frozenset(keys[num_unlike:]),
            other_values=frozenset(values[num:]),
        )

    def hidden(self, key: str, value: str) -> Hidden:
        """Return a single needle of that key and value."""
        question = self.question.replace("{key}", key)
        return Hidden((self.record(key, value),), question, key, (value,))

    def record(self, key: str, value: str) -> str:
        """Return the needle's text."""
        return self.needle.replace("{key}", key).replace("{value}", value)

    @property
    def _key_lists(self) -> _Lists:
        return _lists(self.wording.keys if self.keys is None else self.keys)

    def all_names(self) -> Iterator[str]:
        """Yield every word that the recipe names for keys and values."""
        for words in (*_lists(self.keys or ()), *_lists(self.values or ())):
            yield from words

    def _num_keys(self, distractors: int) -> tuple[int, int]:
        """Return how many keys must stand in the text once, and how many others there are."""
        asked = 1 if self.same_key else self.num_needles
        linked = self.link is not None
        return asked + linked * self.num_needles, distractors * (1 + linked)

    def _draw_keys(self, rng: np.random.Generator, num_unlike: int, num_others: int) -> list[str]:
        lists = self._key_lists
        if not self.near_keys:
            return _named(lists, self._picks(rng, _size(lists), num_unlike, num_others))
        first = [str(rng.choice(words)) for words in lists]
        near = [
            " ".join([*first[:place], word, *first[place + 1 :]])
            for place, words in enumerate(lists)
            for word in words
            if word != first[place]
        ]
        picks = self._picks(rng, len(near), num_unlike - 1, num_others)
        return [" ".join(first), *(near[pick] for pick in picks)]

    def _draw_values(self, rng: np.random.Generator, distractors: int) -> list[str]:
        if self.values is None:
            start, num = _NUMBERS
            picks = rng.choice(num, size=self.num_needles + distractors, replace=False)
            return [str(start + pick) for pick in picks]
        lists = _lists(self.values)
        return _named(lists, self._picks(rng, _size(lists), self.num_needles, distractors))

    def _picks(
        self, rng: np.random.Generator, size: int, num_unlike: int, num_others: int
    ) -> Int[np.ndarray, " N"]:
        """Pick from `size`: first those that come once, then the others."""
        if not self.distractors_repeat:
            return rng.choice(size, size=num_unlike + num_others, replace=False)
        unlike = rng.choice(size, size=num_unlike, replace=False)
        left = np.setdiff1d(np.arange(size), unlike)
        return np.concatenate([unlike, rng.choice(left, size=num_others)])


def _lists(words: Words) -> _Lists:
    """Return the lists that names take one word of each from, in an order that is always one."""
    if all(isinstance(word, str) for word in words):
        return (tuple(sorted(set(words))),)  # type: ignore[arg-type]
    return tuple(tuple(sorted(set(each))) for each in words)


def _size(lists: _Lists) -> int:
    return prod(len(words) for words in lists)


def _named(lists: _Lists, picks: Int[np.ndarray, " N"]) -> list[str]:
    """Return the names that `picks` number, the last list's word changing first."""
    columns: Sequence[Any] = np.unravel_index(picks, [len(words) for words in lists])
    return [
        " ".join(words[index] for words, index in zip(lists, row, strict=True))
        for row in zip(*columns, strict=True)
    ]
