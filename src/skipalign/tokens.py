"""Text -> tokens with the characters they stand for; what is data yields no special token."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Int

from skipalign.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class DropError(Exception):
    """Why a conversation, or one answer of it, cannot be kept: counted, never shown as an error."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Ids and the characters `[starts, stops)` of each, never falling.

    Attributes:
        control: which tokens steer the model; None until `DataTokenizer.as_data` found them.
        special: how many control tokens `as_data` made ordinary text.
    """

    ids: Int[np.ndarray, " T"]
    starts: Int[np.ndarray, " T"]
    stops: Int[np.ndarray, " T"]
    control: Int[np.ndarray, " N"] | None = None
    special: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def first_from(self, character: int) -> int:
        """Return the first token that begins at `character` or later, else T."""
        return int(np.searchsorted(self.starts, character))


class DataTokenizer:
    """A tokenizer of transformers that can take parts of a text as data.

    A control token is one that steers the model and must not come from data: a special token, or
    an added token that the chat template writes around a message.

    Attributes:
        name: for messages.
        exact: a copy of the tokenizer whose offsets leave no white space out.

    Raises:
        ModelError: the tokenizer has no character offsets.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = cast(Any, tokenizer)
        self.name = str(self._tokenizer.name_or_path or type(tokenizer).__name__)
        if not self._tokenizer.is_fast:
            raise ModelError(
                f"tokenizer {self.name}: it has no character offsets; a fast tokenizer is required "
                "- load one that has a tokenizer.json, or convert it with transformers"
            )
        self.exact: Any = deepcopy(self._tokenizer)
        # It trims offsets and adds BOS and EOS; nothing here wants either.
        self.exact.backend_tokenizer.post_processor = None
        self._added: dict[int, Any] = dict(self._tokenizer.added_tokens_decoder)
        special = [i for i, token in self._added.items() if token.special]
        special += [i for i in self._tokenizer.all_special_ids if i in self._added]
        self._is_control = np.zeros(max([len(self._tokenizer) - 1, *self._added]) + 1, bool)
        self._is_control[special] = True
        self._plain: tuple[Any, Any] | None = None

    def add_control(self, turn: str) -> None:
        """Mark the added tokens of a rendered turn as control, where they lack the special flag."""
        for i in set(self.tokenize([turn])[0].ids.tolist()) & self._added.keys():
            # Gemma has its runs of newlines as added tokens: they are text all the same.
            self._is_control[i] |= not self._added[i].content.isspace()

    def tokenize(self, texts: list[str]) -> list[Tokens]:
        """Tokenise as `apply_chat_template` does."""
        if not texts:
            return []
        found = self.exact(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            make_tokens(ids, offsets)
            for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]

    def as_data(self, text: str, spans: Sequence[tuple[int, int]], raw: Tokens) -> Tokens:
        """Make every control token that touches one of `spans` ordinary text.

        Args:
            text: the whole text.
            spans: characters `[start, stop)` that are data, in order.
            raw: the text's tokens.

        Raises:
            DropError: the tokenizer makes the same control token from ordinary text.
        """
        control = self._find_control(text, raw)
        edges = np.array([edge for span in spans if span[0] < span[1] for edge in span], np.int64)
        before = np.searchsorted(edges, raw.starts[control], side="right")
        within = (before % 2 == 1) | (np.searchsorted(edges, raw.stops[control]) > before)
        if not within.any():
            return replace(raw, control=control)
        parts: list[Tokens] = []
        position = 0
        for token in control[~within]:
            one = slice(token, token + 1)
            parts.append(self._as_text(text, position, int(raw.starts[token])))
            parts.append(Tokens(raw.ids[one], raw.starts[one], raw.stops[one]))
            position = int(raw.stops[token])
        parts.append(self._as_text(text, position, len(text)))
        return Tokens(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.stops for part in parts]),
            np.cumsum([len(part) for part in parts])[1::2] - 1,
            int(within.sum()),
        )

    def find_control_text(self, text: str) -> tuple[int, int] | None:
        """Return the characters of the first control token's text in `text`, None without one."""
        control = (token.content for i, token in self._added.items() if self._is_control[i])
        places = ((text.find(content), len(content)) for content in control if content)
        start, length = min((place for place in places if place[0] >= 0), default=(-1, 0))
        return None if start < 0 else (start, start + length)

    def adds_bos(self) -> bool:
        """Tell whether the tokenizer puts BOS before a text."""
        bos = self._tokenizer.bos_token_id
        return bos is not None and self._tokenizer("a")["input_ids"][:1] == [bos]

    def document_ends(self) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """Return the ids before and after a document: BOS if the tokenizer adds one, and EOS.

        Raises:
            ModelError: the tokenizer has no EOS.
        """
        eos = self._tokenizer.eos_token_id
        if eos is None:
            raise ModelError(
                f"tokenizer {self.name}: it has no eos_token, with which a document must end - set "
                "tokenizer.eos_token to the token that the model ends a text with"
            )
        bos = [self._tokenizer.bos_token_id] if self.adds_bos() else []
        return np.array(bos, np.int32), np.array([eos], np.int32)

    def _find_control(self, text: str, tokens: Tokens) -> Int[np.ndarray, " N"]:
        """Return where control tokens were read as such.

        A vocabulary may hold them as what an unknown character or a byte becomes, too: only where
        the text is the token's own do they count, or may be it after normalising.
        """
        found = np.flatnonzero(self._is_control[tokens.ids])
        read = np.zeros(len(found), bool)
        for n, t in enumerate(found):
            token = self._added[int(tokens.ids[t])]
            own = text[tokens.starts[t] : tokens.stops[t]].strip() == token.content.strip()
            read[n] = own or (token.normalized and tokens.ids[t] != self._tokenizer.unk_token_id)
        return found[read]

    def _as_text(self, text: str, start: int, stop: int) -> Tokens:
        if start == stop:
            return make_tokens([], [])
        first, later = self._plain = self._plain or self._without_control()
        part = text[start:stop]
        encoding = (later if start else first).encode(part, add_special_tokens=False)
        tokens = make_tokens(encoding.ids, encoding.offsets)
        left = self._find_control(part, tokens)
        if len(left):
            token = self._added[int(tokens.ids[left[0]])].content
            raise DropError(
                "special_text",
                f"the tokenizer makes {token!r} from ordinary text; remove it from the row",
            )
        return replace(tokens, starts=tokens.starts + start, stops=tokens.stops + start)

    def _without_control(self) -> tuple[Any, Any]:
        """Return copies that know no control token, for the start of a text and for later parts.

        Tokenizers treat the parts between special tokens one by one anyway, so encoding a part
        alone changes nothing, but for the space that some put before the very first.
        """
        backend = self.exact.backend_tokenizer
        spec = json.loads(backend.to_str())
        spec["truncation"] = spec["padding"] = None
        for token in spec["added_tokens"]:
            token["special"] = bool(self._is_control[token["id"]])
        first = type(backend).from_str(json.dumps(spec))
        _drop_first_space(spec["normalizer"])
        _drop_first_space(spec["pre_tokenizer"])
        later = type(backend).from_str(json.dumps(spec))
        first.encode_special_tokens = later.encode_special_tokens = True
        return first, later


def make_tokens(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Tokens:
    """Return Tokens from what a tokenizer gives."""
    flat = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(ids))
    # Tokens without text of their own may come with (0, 0), which would not be in order.
    starts, stops = np.maximum.accumulate(flat[0::2]), np.maximum.accumulate(flat[1::2])
    return Tokens(np.array(ids, np.int32), starts, stops)


def _drop_first_space(spec: Any) -> None:
    if not isinstance(spec, dict):
        return
    fields = cast(dict[str, Any], spec)
    if fields.get("prepend_scheme") == "first":
        fields["prepend_scheme"] = "never"
    for part in fields.get("pretokenizers") or fields.get("normalizers") or ():
        _drop_first_space(part)
