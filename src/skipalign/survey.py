"""A model, data files and a device -> what a recipe for them must know, before anything is written.

Of the model its config is read, of the data the first rows; of these a few, drawn with a seed, are
tokenised as training would.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers import PretrainedConfig as Config

from skipalign import adapters, tiny
from skipalign.budget import GPUS, known_gpu
from skipalign.conversation import SHAPES, Conversation, Rejection, read_conversations
from skipalign.encoding import Encoded, Encoder
from skipalign.errors import DataError, ModelError
from skipalign.model import refuse_skips, rope_base
from skipalign.progress import Progress, Silent
from skipalign.tiny import make

ROWS = 20_000  # of each path that are looked at
SAMPLE = 500  # of these that are tokenised
QUANTILES = (0.5, 0.9, 0.95, 0.99)
_ROWS_OF_A_SHAPE = 20
_AT_ONCE = 50
_NO_LIMIT = 2**31 - 1
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the config of a model says.

    Attributes:
        path: as given.
        family: `model_type` of its config.
        window: positions that it was trained for.
        rope_type: of its frequencies; `default` is plain RoPE.
        parameters: all weights.
        dtype: of the weights on disk, or None where the config does not say.
        attn_implementation: what transformers takes for it: sdpa, or eager.
    """

    path: str
    family: str
    window: int
    rope_type: str
    parameters: int
    dtype: str | None
    attn_implementation: str


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the rows of a path are, and how long a few of them are as samples.

    Attributes:
        path: as given.
        shape: the first of SHAPES that rows have.
        rows: how many were read; `whole` tells whether those are all.
        rejected: how many of them cannot be used, by reason; `first_rejection` says why.
        sampled: how many good rows were tokenised.
        quantiles: tokens of a sample, by the share of samples that are no longer.
        longest: tokens.
        dropped: sampled rows that give no sample at any length, by reason.
        multi_turn: sampled rows with more than one answer.
        notes: what encoding changed in sampled rows, as `Encoded.notes` counts it.
        template: `tokenizer`, or the name of the plain one that stands in.
        marks_answers: whether the template marks answers with generation blocks.
    """

    path: str
    shape: str
    rows: int
    whole: bool
    rejected: dict[str, int]
    first_rejection: str | None
    sampled: int
    quantiles: dict[str, int]
    longest: int
    dropped: dict[str, int]
    multi_turn: int
    notes: dict[str, int]
    template: str
    marks_answers: bool

    @property
    def good(self) -> int:
        """Rows read that can be used."""
        return self.rows - sum(self.rejected.values())


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What training will run on: `memory` in bytes, `bf16` whether it multiplies in bfloat16.

    `gpu` is a name of budget.GPUS, or None; `on_gpu` is true of any GPU.
    """

    name: str
    memory: int
    bf16: bool
    on_gpu: bool
    gpu: str | None


# ------------------------------------------------------------------------------- the model


def look_at_model(path: str) -> ModelFacts:
    """Read the config of a local folder, a hub id or an embedded base; build it without weights.

    Raises:
        ModelError: it cannot be loaded, is an adapter, or has no RoPE that positions could use.
    """
    config = config_of(path)
    base = rope_base(config, where=path)
    parameters, attention = _built(config, path)
    dtype = getattr(config, "dtype", None)
    return ModelFacts(
        path=path,
        family=str(config.model_type),
        window=base.window,
        rope_type=str(base.parameters.get("rope_type", "default")),
        parameters=parameters,
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        attn_implementation=attention,
    )


def config_of(path: str) -> Config:
    """Return the config of a base that can be trained on.

    Raises:
        ModelError: it cannot be loaded, or is an adapter.
    """
    place = tiny.tokenizer_of(path)
    if adapters.base_of(place, None) is not None:
        raise ModelError(
            f"{path}: is an adapter, which cannot be trained on or extended - make a plain model "
            f"of it first: skipalign merge {path} OUT"
        )
    return make.config_of(path)


def refuse_model(path: str, max_position: int) -> None:
    """Refuse what training with skips would refuse.

    Raises:
        ModelError: attention of the model would be wrong under skipped positions.
    """
    refuse_skips(config_of(path), max_position, where=path)


def _built(config: Config, path: str) -> tuple[int, str]:
    """Return the number of weights, and the attention that transformers takes of itself."""
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except (ValueError, ImportError, KeyError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{path}: {config.model_type} is no causal language model of transformers "
            f"({first_line}); choose one, such as Llama, Mistral or Qwen"
        ) from None
    attention = str(model.config._attn_implementation)
    return sum(each.numel() for each in model.parameters()), attention


# ------------------------------------------------------------------------------- the data


class Survey:
    """The sampled rows of a path, and what becomes of them at any length.

    Attributes:
        facts: what was found.

    Args:
        path: as `read_conversations` takes it, or the name of embedded data.
        tokenizer: of the model.
        seed: draws the sample.
        progress: where to report.

    Raises:
        DataError: nothing can be read there, or no row gives a sample.
        ModelError: the tokenizer cannot be used.
    """

    facts: DataFacts

    def __init__(
        self, path: str, tokenizer: Any, *, seed: int = 0, progress: Progress = _SILENT
    ) -> None:
        self._tokenizer = tokenizer
        found = _Rows(make.conversations(path, progress), np.random.default_rng(seed), progress)
        encoder = Encoder(tokenizer, max_tokens=_NO_LIMIT)
        encoded: list[Encoded] = []
        with progress.bar(f"tokenize {path}", len(found.sample)) as bar:
            for first in range(0, len(found.sample), _AT_ONCE):
                part = found.sample[first : first + _AT_ONCE]
                encoded += encoder.encode_many(part)
                bar.advance(len(part))
        self._rows = list(zip(found.sample, map(_longest, encoded), strict=True))
        lengths = [len(example.input_ids) for each in encoded for example in each.examples]
        dropped = Counter(each.dropped for each in encoded if each.dropped)
        if not lengths:
            reasons = ", ".join(f"{reason} {number}" for reason, number in dropped.items())
            detail = next(each.detail for each in encoded if each.dropped)
            raise DataError(
                f"{path}: none of {len(encoded)} rows gives a sample ({reasons}); the first one: "
                f"{detail} - mend the rows, or the tokenizer's chat template"
            )
        notes: Counter[str] = Counter()
        for each in encoded:
            notes.update(each.notes)
        quantiles = np.quantile(lengths, QUANTILES, method="higher")
        self.facts = DataFacts(
            path=path,
            shape=found.shape,
            rows=found.rows,
            whole=found.whole,
            rejected=dict(found.rejected),
            first_rejection=found.first_rejection,
            sampled=len(encoded),
            quantiles={
                str(share): int(each) for share, each in zip(QUANTILES, quantiles, strict=True)
            },
            longest=max(lengths),
            dropped=dict(dropped),
            multi_turn=sum(_num_answers(each) > 1 for each in found.sample),
            notes=dict(notes),
            template=encoder.template_name,
            marks_answers="generation %}" in encoder.template,
        )

    def at(self, max_tokens: int) -> dict[str, int]:
        """Return of the sampled rows: how many are longer, and shortened or dropped for it."""
        longer = [row for row, length in self._rows if length > max_tokens]
        encoder = Encoder(self._tokenizer, max_tokens=max_tokens)
        dropped = sum(each.dropped is not None for each in encoder.encode_many(longer))
        return {"longer": len(longer), "dropped": dropped, "shortened": len(longer) - dropped}


class _Rows:
    """The first rows of a path, counted, and a sample of the good ones, each as likely."""

    def __init__(self, path: str, rng: np.random.Generator, progress: Progress) -> None:
        self.shape = _shape_of(path)
        self.rows = 0
        self.rejected: Counter[str] = Counter()
        self.first_rejection: str | None = None
        self.sample: list[Conversation] = []
        items = read_conversations(path, name="init")
        with progress.bar(f"read {path}", None) as bar:
            for item in islice(items, ROWS):
                self.rows += 1
                self._take(item, rng)
                bar.advance()
        self.whole = self.rows < ROWS or next(items, None) is None
        if not self.sample:
            raise DataError(
                f"{path}: none of the first {self.rows:,} rows can be used; the first one: "
                f"{self.first_rejection}"
            )

    def _take(self, item: Conversation | Rejection, rng: np.random.Generator) -> None:
        if isinstance(item, Rejection):
            self.rejected[item.reason] += 1
            self.first_rejection = self.first_rejection or str(item)
            return
        if len(self.sample) < SAMPLE:
            self.sample.append(item)
            return
        place = int(rng.integers(self.rows - self.rejected.total()))
        if place < SAMPLE:
            self.sample[place] = item


def _shape_of(path: str) -> str:
    """Return the shape that the most of the first rows have; of equals the one recognised first."""
    found: dict[str, int] = {}
    for shape in SHAPES:
        found[shape] = _num_good(path, shape)
        if found[shape] == _ROWS_OF_A_SHAPE:
            break
    return max(found, key=lambda shape: found[shape])


def _num_good(path: str, shape: str) -> int:
    items = islice(read_conversations(path, name="init", shape=shape), _ROWS_OF_A_SHAPE)
    good = 0
    try:
        for item in items:
            good += isinstance(item, Conversation)
    except DataError:  # none of a short file's rows has this shape
        return 0
    return good


def _longest(encoded: Encoded) -> int:
    return max((len(example.input_ids) for example in encoded.examples), default=0)


def _num_answers(conversation: Conversation) -> int:
    return sum(message.role == "assistant" for message in conversation.messages)


# ------------------------------------------------------------------------------- the device


def look_at_device(gpu: str | None) -> DeviceFacts:
    """Return the GPU of that name, else the largest one here, else this machine's processor.

    Raises:
        RecipeError: no such GPU is known.
    """
    if gpu is not None:
        memory = known_gpu(gpu).memory
        return DeviceFacts(name=gpu, memory=memory, bf16=True, on_gpu=True, gpu=gpu)
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if not found:
        import psutil

        memory = int(psutil.virtual_memory().total)
        return DeviceFacts(
            name="this machine's CPU", memory=memory, bf16=False, on_gpu=False, gpu=None
        )
    best = max(found, key=_memory)
    return DeviceFacts(
        name=best.name,
        memory=best.total_memory,
        bf16=torch.cuda.is_bf16_supported(),
        on_gpu=True,
        gpu=listed(best.name),
    )


def _memory(gpu: Any) -> int:
    return int(gpu.total_memory)


def listed(name: str) -> str | None:
    """Return the name in GPUS of what a driver calls, say, NVIDIA GeForce RTX 4090."""
    letters = "".join(filter(str.isalnum, name.lower()))
    return next((each for each in GPUS if each in letters), None)
