"""Prompts that begin alike: one text a trial, of which every prompt is a beginning.

    400 tokens, depth .5   [text ..... needle ..... |question]
    800 tokens, depth .25  [text ..... needle .................................. |question]
    800 tokens, depth .5   [text ........................ needle ............... |question]

Up to the needle all prompts of a trial are one text; where two have the needle at one place, the
shorter is a beginning of the longer up to its question. A model with a cache therefore reads each
shared beginning once (see `reuse`). Places are drawn to coincide: depth x length is rounded to a
power of two tokens, at most 2% of the length, then moved to the nearest border.
"""

from math import floor, log2

import numpy as np
from jaxtyping import Int

from skipalign.evaluation.prompts import MARGIN, Plan, Prompt, PromptMaker
from skipalign.evaluation.records import Hidden

# Parts its draws from those of prompts that are not nested, which begin with the same seed.
_STREAM = 0x4E57ED
_DEPTH_STEP = 0.02


class NestedText:
    """The text of one trial, distractors included; the needle is drawn anew for every place.

    Args:
        maker: of the prompts; its settings have one needle, and no number of distractors but
            `tokens_per_record`: a number for all lengths cannot be nested.
        trial: which one.
        longest: tokens of the longest prompt.
    """

    def __init__(self, maker: PromptMaker, trial: int, longest: int) -> None:
        self._maker, self._trial = maker, trial
        rng = np.random.default_rng([maker.settings.seed, _STREAM, trial])
        self._sentence = int(rng.integers(len(maker.haystack.borders)))
        self._borders = maker.haystack.borders_from(self._sentence, longest)
        hidden = maker.settings.draw(rng, longest)
        self._texts = maker.spaced(hidden.texts[1:])
        self._drawn = hidden
        self._pieces = maker.pieces(self._texts)
        self._before = maker.num_before("")
        self._places = self._placed(rng)
        self._reach = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)
        ahead = np.append(0, self._reach)
        ahead = ahead[np.searchsorted(self._places, self._borders, side="right")]
        self._starts = self._before + self._borders + ahead

    def prompt(self, context_length: int, depth: float) -> tuple[Prompt, Hidden]:
        """Return a prompt of `context_length` tokens (see `PromptMaker.make`), and what it hides.

        The needle begins near `depth` of the whole prompt, template and question included, and
        within the passage: at depth 1 it is the last sentence before the question.

        Raises:
            RecipeError: the prompt has no room for its records.
        """
        step = 2 ** max(0, floor(log2(_DEPTH_STEP * context_length)))
        target = step * round(depth * context_length / step)
        border = int(np.abs(self._starts - target).argmin())
        hidden = self._needle(int(self._borders[border]))
        texts = [*self._maker.spaced(hidden.texts[:1]), *self._texts]
        pieces = self._maker.pieces(texts[:1]) + self._pieces
        body = self._maker.room(context_length, hidden.question, [len(pieces[0])])
        num = int(np.searchsorted(self._places + self._reach, body - MARGIN, side="right"))
        taken = [len(piece) for piece in pieces[: 1 + num]]
        room = self._maker.room(context_length, hidden.question, taken)
        place, start, end = self._borders[border], self._starts[border], self._before + body
        if start > end - MARGIN or abs(end - target) < abs(start - target):
            place = room
        placed = [(int(each), index) for index, each in enumerate(self._places[:num], start=1)]
        after = int(np.searchsorted(self._places[:num], place, side="right"))
        placed.insert(after, (int(place), 0))
        plan = Plan(context_length, hidden.question, texts, pieces, self._sentence, room, placed)
        return self._maker.assembled(plan), hidden

    def _placed(self, rng: np.random.Generator) -> Int[np.ndarray, " K"]:
        """Draw a border for every distractor, one in each stretch of `tokens_per_record`."""
        stretch = self._maker.settings.tokens_per_record or 0.0
        places: list[int] = []
        ahead = self._before
        for index, piece in enumerate(self._pieces):
            target = (index + rng.random()) * stretch - ahead
            nearest = int(self._borders[np.abs(self._borders - target).argmin()])
            places.append(max([nearest, *places[-1:]]))
            ahead += len(piece)
        return np.array(places, dtype=np.int64)

    def _needle(self, border: int) -> Hidden:
        """Draw the needle of a place; its key and value are no distractor's."""
        settings = self._maker.settings
        rng = np.random.default_rng([settings.seed, _STREAM, self._trial, border])
        drawn = [settings.draw(rng, 0)]
        while drawn[-1].key in self._drawn.other_keys:
            drawn.append(settings.draw(rng, 0))
        key = drawn[-1].key
        while drawn[-1].values[0] in self._drawn.other_values:
            drawn.append(settings.draw(rng, 0))
        return settings.hidden(key, drawn[-1].values[0])
