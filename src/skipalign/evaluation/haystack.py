"""Prose to hide records in, as text and as tokens, and where its sentences begin."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from skipalign.errors import DataError
from skipalign.tokens import Tokens

_TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Rev", "Col", "Capt", "Prof")
_SENTENCE_STOP = re.compile(
    "".join(rf"(?<!\b{title})" for title in _TITLES)
    + r"[.!?…]+[\"'”’)\]]*(?=\s[^a-z])|[。！？]+…*[」』”’）》】]*"
)
_SPACE_BESIDE_WIDE = re.compile(r"(?<![!-~])\s+|\s+(?![!-~])")
_LONGEST_SENTENCE = 1000  # characters; longer ones are parted at a space


def read_haystack(path: str | None, *, spaced: bool = True) -> str:
    """Return the prose: a file, a folder's *.txt in sorted order, or the built-in chapters.

    Args:
        path: None is the built-in chapters.
        spaced: whether its script parts words and sentences by spaces. If not, white space stays
            between ASCII characters alone: elsewhere it is mere form, such as ends of lines.

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
    text = " ".join(" ".join(texts).split())
    if not text:
        raise DataError(f"haystack {root}: holds no text; put prose there as UTF-8 text files")
    return text if spaced else _SPACE_BESIDE_WIDE.sub("", text)


@dataclass(frozen=True, slots=True, eq=False)
class Haystack:
    """Prose as tokens, each sentence with the space before it; it goes on from the top.

    `borders` are the tokens at which a sentence begins, `sentences` their texts; `is_whole` tells
    the tokens that begin a character from those that go on in one.
    """

    ids: Int[np.ndarray, " N"]
    borders: Int[np.ndarray, " S"]
    sentences: tuple[str, ...]
    is_whole: Bool[np.ndarray, " N"]

    def passage(self, sentence: int, num_tokens: int) -> Int[np.ndarray, " T"]:
        """Return `num_tokens` tokens from that sentence on."""
        first = int(self.borders[sentence])
        return np.take(self.ids, np.arange(first, first + num_tokens), mode="wrap")

    def whole_tokens(self, sentence: int, num_tokens: int, most: int) -> int:
        """Return how many of `num_tokens` from that sentence on end with a whole character.

        Args:
            sentence: the first.
            num_tokens: to be cut from behind.
            most: tokens that may be given up; where these do not suffice, none is.
        """
        first = int(self.borders[sentence])
        for stop in range(num_tokens, max(0, num_tokens - most) - 1, -1):
            if self.is_whole[(first + stop) % len(self.ids)]:
                return stop
        return num_tokens

    def borders_from(self, sentence: int, num_tokens: int) -> Int[np.ndarray, " B"]:
        """Return the borders within `num_tokens` tokens from that sentence on; the first is 0."""
        once = np.roll(self.borders, -sentence) - self.borders[sentence]
        once = np.where(once < 0, once + len(self.ids), once)
        rounds = 1 + num_tokens // len(self.ids)
        borders = (np.arange(rounds)[:, None] * len(self.ids) + once[None, :]).reshape(-1)
        return borders[borders < num_tokens]

    def sentence_tokens(self, sentence: int) -> int:
        """Return how many tokens the sentence has."""
        stops = np.append(self.borders, len(self.ids))
        return int(stops[sentence + 1] - stops[sentence])


def tokenized(text: str, tokens_of: Callable[[str], Tokens], space: str = " ") -> Haystack:
    """Tokenise prose; a sentence begins with the `space` before it, the first one too."""
    text = space + text
    tokens = tokens_of(text)
    edges = sentence_edges(text)
    # A sentence begins with the first token that stops beyond the one before it; where that
    # token also began in the one before, there is no border.
    borders = np.searchsorted(tokens.stops, edges[:-1], side="right")
    kept = [index for index, token in enumerate(borders) if tokens.starts[token] >= edges[index]]
    edges = [*(edges[index] for index in kept), len(text)]
    sentences = tuple(text[start:stop].strip() for start, stop in pairwise(edges))
    is_whole = np.append(True, tokens.starts[1:] >= tokens.stops[:-1])
    return Haystack(tokens.ids, borders[kept], sentences, is_whole)


def sentence_edges(text: str) -> list[int]:
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
