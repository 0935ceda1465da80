"""Controls in which attention itself changes: noise by head, keys of others, temperatures.

All rows have the cuts, positions, data and steps of recipes/attention-controls-tiny.yaml, which
also says how they are evaluated. `cuts` and `noise-1` are its two methods, as the library trains
them; in the others transformers' attention function is another one while the library trains,
evaluates, or both. The models of those rows are not ordinary checkpoints; that is why they are here
and not in the library.

In training alone:

    noise-head          normal noise of 1 nat a run of positions, drawn for each head
    noise-layer         for each layer
    noise-head-layer    for each head of each layer; noise-1 has one draw for all of them
    other-samples       filler keys and values of 7 other samples of the batch are seen as well,
                        where their positions lie before: 519 at the end of a row, beside 125 of its
                        own (means of 12 batches); 8 samples in all have the keys of 8 windows
    repeated-keys       every query sees as many more keys, but they are repeats of its own filler

In training and in evaluation, or with the ending `-inference` in evaluation of `cuts` alone:

    ssmax               logits times log n / log 128, n the keys that a query sees; the paper has
                        s log n, and s is fixed here, not learned for each head (arXiv 2501.19399)
    infoscale           logits times sqrt((1 - n^(-2/d)) / (1 - 128^(-2/d))), n as above, d the head
                        dimension (arXiv 2501.08570)
    log-n               logits times max(1, log(position + 1) / log 128) (arXiv 2202.12172)
    temperature-T       logits times T, in both; temperature.py does it in inference alone

In training the two meanings of n part: a row of 128 tokens that skips has at most 128 keys and
positions up to 8,191. SSMax and InfoScale define n as the size of the softmax, so that they count
keys and have a factor of at most 1 there; log-n goes by positions and has one of up to 1.86. In
evaluation both are the same number, and log-n differs from ssmax only in being at least 1.

    python benchmarks/attention_controls.py                              # all rows, seeds 0, 1, 2
    python benchmarks/attention_controls.py --only ssmax --seeds 0,1     # one row in a process
    python benchmarks/attention_controls.py trainer.max_steps=3 name=try # keys of the recipe

Finished rows are skipped, others go on where they stopped. Rows of inference train `cuts` first
where it is not there. The command without options comes last, so that it is the one the results
name. The table:

    skipalign report runs/attention-controls-tiny --against cuts \\
        --json-out benchmarks/results/attention-controls-tiny.json
"""

import argparse
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from skipalign import recipe, report, study, tiny
from skipalign.encoding import Example
from skipalign.errors import RecipeError, SkipalignError
from skipalign.key_bias import runs
from skipalign.model import load_tokenizer
from skipalign.positions import Contiguous
from skipalign.resolved import Training
from skipalign.rope import NoExtension
from skipalign.terminal import hush
from skipalign.tiny.corpus import KEYS, VALUES

# Shape letters: B batch, H heads, Q queries, K keys, T tokens of a row (both in training), D head
# dimension; 1 where a dimension is shared.

RECIPE = Path(__file__).parents[1] / "recipes/attention-controls-tiny.yaml"
IMPLEMENTATION = "sdpa"
WINDOW = 128
TRAINING, BOTH, INFERENCE = "training", "training and inference", "inference"


# ------------------------------------------------------------------------------ one attention call


@dataclass(frozen=True)
class Call:
    """What transformers hands to its attention function."""

    module: Any
    query: Float[Tensor, " B H Q D"]
    key: Float[Tensor, " B H K D"]
    value: Float[Tensor, " B H K D"]
    mask: Tensor | None
    positions: Int[Tensor, " B Q"]

    def visible(self) -> Bool[Tensor, " B 1 Q K"]:
        """Tell which keys each query sees; without a mask all up to itself, the last one last."""
        if self.mask is None:
            shape = self.query.shape[2], self.key.shape[2]
            return torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])[None, None]
        if self.mask.dtype == torch.bool:
            return self.mask
        return self.mask > torch.finfo(self.mask.dtype).min

    def times(self, factor: Tensor) -> "Call":
        """Multiply the logits of queries: Float[" B 1 Q 1"]."""
        return replace(self, query=self.query * factor.to(self.query.dtype))

    def plus(self, bias: Tensor, seen: Bool[Tensor, " B 1 Q K"]) -> "Call":
        """Add to the logits of the keys that are seen; the mask's own numbers go."""
        lowest = torch.finfo(self.query.dtype).min
        return replace(self, mask=torch.where(seen, bias.to(self.query.dtype), lowest))


class Change(ABC):
    """Makes another call of an attention call."""

    @abstractmethod
    def __call__(self, call: Call) -> Call: ...


@contextmanager
def changed_attention(
    change: Change | None, *, only_with_gradients: bool = False
) -> Iterator[None]:
    """Change every attention call of transformers' sdpa while open.

    Args:
        change: None changes nothing.
        only_with_gradients: leave the start-up probe of a training alone, which runs without them:
            keys of another sample are just what it refuses.
    """
    before = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Any:
        call = Call(module, query, key, value, mask, kwargs["position_ids"])
        if change is not None and (torch.is_grad_enabled() or not only_with_gradients):
            call = change(call)
        return before(module, call.query, call.key, call.value, call.mask, **kwargs)

    AttentionInterface.register(IMPLEMENTATION, attend)
    try:
        yield
    finally:
        AttentionInterface.register(IMPLEMENTATION, before)


# ------------------------------------------------------------------------------ factors of logits


@dataclass(frozen=True)
class Temperature(Change):
    """Logits times a number."""

    factor: float

    def __call__(self, call: Call) -> Call:
        return call.times(torch.tensor(self.factor, dtype=torch.float64))


@dataclass(frozen=True)
class LogN(Change):
    """Logits times log(position + 1) / log(window), at least 1."""

    window: int = WINDOW

    def __call__(self, call: Call) -> Call:
        logs = torch.log(call.positions.double() + 1) / math.log(self.window)
        return call.times(logs.clamp(min=1)[:, None, :, None])


@dataclass(frozen=True)
class SSMax(Change):
    """Logits times log n / log(window), n the keys that a query sees.

    Source: arXiv 2501.19399, s log n with s = 1 / log(window), which changes nothing at the window.
    """

    window: int = WINDOW

    def __call__(self, call: Call) -> Call:
        return call.times(torch.log(num_seen(call)) / math.log(self.window))


@dataclass(frozen=True)
class InfoScale(Change):
    """Logits times sqrt((1 - n^(-2/d)) / (1 - window^(-2/d))), n the keys that a query sees.

    Source: arXiv 2501.08570, as its authors' code has it (model/my_gau_alpha_eval/layer.py).
    """

    window: int = WINDOW

    def __call__(self, call: Call) -> Call:
        power = -2 / call.query.shape[-1]
        return call.times(((1 - num_seen(call) ** power) / (1 - self.window**power)).sqrt())


def num_seen(call: Call) -> Float[Tensor, " B 1 Q 1"]:
    """Return the number of keys that each query sees, cached ones with them; 1 for padding."""
    return call.visible().sum(-1, keepdim=True).clamp(min=1).double()


# ------------------------------------------------------------------------------ noise


@dataclass(frozen=True)
class Noise(Change):
    """Normal noise on the logits of each run of consecutive positions, in training.

    A pure function of seed and positions, so that a run that was killed goes on with the same.

    Args:
        by_head: whether each head has draws of its own.
        by_layer: whether each layer has.
        std: in nats.
        seed: of the training.
    """

    by_head: bool
    by_layer: bool
    std: float = 1.0
    seed: int = 0

    def __call__(self, call: Call) -> Call:
        if not self.std:
            return call
        config = call.module.config
        layer = call.module.layer_idx if self.by_layer else 0
        num_layers = config.num_hidden_layers if self.by_layer else 1
        num_heads = config.num_attention_heads if self.by_head else 1
        rows = call.positions.expand(len(call.query), -1).numpy()
        bias = np.zeros((len(rows), num_heads, call.key.shape[2]))
        for row, positions in enumerate(rows):
            num_tokens = int(positions.argmax()) + 1  # padding, on the right, has position 0
            drawn = self.draw(positions[:num_tokens], num_layers, num_heads)
            bias[row, :, :num_tokens] = drawn[layer]
        return call.plus(torch.from_numpy(bias)[:, :, None], call.visible())

    def draw(
        self, positions: Int[np.ndarray, " T"], num_layers: int, num_heads: int
    ) -> Float[np.ndarray, "L H T"]:
        """Return the noise of one sample."""
        digest = hashlib.blake2b(positions.astype(np.int64).tobytes(), digest_size=8).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(digest)])
        starts, stops = runs(positions)
        noise = self.std * rng.standard_normal((num_layers, num_heads, len(starts)))
        return np.repeat(noise, stops - starts, axis=-1)


# ------------------------------------------------------------------------------ more keys


@cache
def names() -> frozenset[int]:
    """Return the token ids of all names of records; the embedded bases share one tokenizer."""
    found = load_tokenizer(str(tiny.BASE))([*KEYS, *VALUES], add_special_tokens=False)
    assert all(len(ids) == 1 for ids in found["input_ids"])
    return frozenset(ids[0] for ids in found["input_ids"])


@dataclass(frozen=True)
class FillerMarks:
    """Tells attention which keys are filler, by the way of a key bias: 1 for filler, 0 for others.

    Filler are sentences of contents without a name of a record: neither records, which in another
    sample contradict the own ones, nor questions and answers. `MoreKeys` takes the marks out again.
    """

    name: ClassVar[str] = "filler-marks"

    def values(
        self, example: Example, _positions: Int[np.ndarray, " T"], _rng: np.random.Generator
    ) -> Float[np.ndarray, " T"]:
        """Return the mark of every key."""
        marks = np.zeros(len(example.input_ids), np.float32)
        for segment in example.segments:
            content = slice(segment.content_start, segment.content_stop)
            inside = (example.breaks > content.start) & (example.breaks < content.stop)
            edges = [content.start, *example.breaks[inside].tolist(), content.stop]
            for start, stop in pairwise(edges):
                marks[start:stop] = names().isdisjoint(example.input_ids[start:stop].tolist())
        return marks


@dataclass(frozen=True)
class MoreKeys(Change, ABC):
    """Lets queries see more keys than their sample has, in rows that skip; others stay as they are.

    The border is the position: a query sees the filler keys of another sample, at the positions
    that it has there, whose position is at most the query's own. Gradients reach the other sample,
    as in Focused Transformer.

    Args:
        num_samples: other samples, those of the next rows of the batch.
    """

    num_samples: int = 7

    def __call__(self, call: Call) -> Call:
        if call.mask is None or call.mask.dtype == torch.bool:  # no marks
            return call
        own = call.visible()
        # The last query of a row, padding or not, sees all of its tokens.
        filler = own[:, 0, -1] & (call.mask[:, 0, -1] > 0)
        num_tokens = own[:, 0, -1].sum(-1)
        skips = call.positions.amax(-1) - call.positions[:, 0] >= num_tokens
        before = call.positions[:, :, None] >= self.next_rows(call.positions, 1)[:, None]
        others = (self.next_rows(filler, 1)[:, None] & before & skips[:, None, None])[:, None]
        return self.changed(call, own, filler, others)

    def next_rows(self, rows: Tensor, dimension: int) -> Tensor:
        """Return what the next rows of the batch hold, beside each other along a dimension."""
        num = min(self.num_samples, len(rows) - 1)
        empty = rows.narrow(dimension, 0, 0)
        return torch.cat([empty, *(rows.roll(-by, 0) for by in range(1, num + 1))], dimension)

    @abstractmethod
    def changed(self, call: Call, own: Tensor, filler: Tensor, others: Tensor) -> Call:
        """Return the call.

        Args:
            call: with marks in its mask.
            own: Bool[" B 1 T T"], keys that each query sees of its own sample.
            filler: Bool[" B T"], the own keys that are filler.
            others: Bool[" B 1 T N"], keys that it may see of others.
        """


@dataclass(frozen=True)
class OtherSamples(MoreKeys):
    """Appends the keys of other samples (Focused Transformer, arXiv 2307.03170).

    Differs: in all layers, filler only, at rotated positions; there in some layers, all keys, and
    all at one position.
    """

    def changed(self, call: Call, own: Tensor, filler: Tensor, others: Tensor) -> Call:  # noqa: ARG002
        key, value = (
            torch.cat([each, self.next_rows(each, 2)], 2) for each in (call.key, call.value)
        )
        return replace(call, key=key, value=value, mask=torch.cat([own, others], -1))


@dataclass(frozen=True)
class RepeatedKeys(MoreKeys):
    """Repeats each query's own filler keys as often as makes the same number, to the nearest.

    A key and its value n times are one key with log n added to its logit.
    """

    def changed(self, call: Call, own: Tensor, filler: Tensor, others: Tensor) -> Call:
        repeated = own & filler[:, None, None]
        num = repeated.sum(-1, keepdim=True).clamp(min=1)
        times = 1 + (others.sum(-1, keepdim=True).double() / num).round()
        return call.plus(torch.where(repeated, times.log(), 0.0), own)


# ------------------------------------------------------------------------------ rows


@dataclass(frozen=True)
class Row:
    """A row of the table: what changes, and where."""

    change: Change | None = None
    where: str = BOTH


ROWS: Mapping[str, Row] = {
    "cuts": Row(),
    "noise-1": Row(),
    "noise-head": Row(Noise(by_head=True, by_layer=False), TRAINING),
    "noise-layer": Row(Noise(by_head=False, by_layer=True), TRAINING),
    "noise-head-layer": Row(Noise(by_head=True, by_layer=True), TRAINING),
    "other-samples": Row(OtherSamples(), TRAINING),
    "repeated-keys": Row(RepeatedKeys(), TRAINING),
    "ssmax": Row(SSMax()),
    "ssmax-inference": Row(SSMax(), INFERENCE),
    "infoscale": Row(InfoScale()),
    "infoscale-inference": Row(InfoScale(), INFERENCE),
    "log-n": Row(LogN()),
    "log-n-inference": Row(LogN(), INFERENCE),
    "temperature-1.2": Row(Temperature(1.2)),
    "temperature-1.45": Row(Temperature(1.45)),
    "temperature-2": Row(Temperature(2.0)),
}


@dataclass(frozen=True, kw_only=True)
class Changed(Training):
    """A training of the library whose settings also say how attention changes, and where."""

    row: Row

    def settings(self) -> dict[str, Any]:
        """Return all that decides the weights and what is asked of them."""
        change = self.row.change
        named = {"name": type(change).__name__, "where": self.row.where, **asdict(change)}  # type: ignore[call-overload]
        return {**super().settings(), "attention": named}


def training_of(name: str, cuts: Training, run_dir: Path) -> Changed:
    """Return the training of a row that is not a method of the recipe."""
    row = ROWS[name]
    if isinstance(row.change, Noise):
        row = replace(row, change=replace(row.change, seed=cuts.seed))
    inherited = {each.name: getattr(cuts, each.name) for each in fields(cuts)}
    changed = Changed(
        **inherited | {"method": name, "directory": f"{name}/seed-{cuts.seed}"}, row=row
    )
    if isinstance(row.change, MoreKeys):
        return replace(changed, key_bias=FillerMarks())
    if row.where == INFERENCE:
        made = replace(cuts.base, path=str(run_dir / cuts.directory / "model"))
        natural = dict.fromkeys(cuts.strategies, Contiguous())
        return replace(changed, base=made, rope=NoExtension(), strategies=natural, train=False)
    return changed


def complete(training: Training, run_dir: Path, *, reach: int) -> None:
    """Train and evaluate a row with one seed, as far as that is not done."""
    row = ROWS[training.method]
    if isinstance(training, Changed):
        row = training.row
    training_only = row.where == TRAINING
    order = list(ROWS).index(training.method)
    with changed_attention(row.change, only_with_gradients=training_only):
        study.train(training, run_dir, order=order, coverage_range=reach)
    with nullcontext() if training_only else changed_attention(row.change):
        study.evaluate(training, run_dir)


def chosen(only: str | None, seeds: str | None, read: recipe.Recipe) -> tuple[list[str], list[int]]:
    """Return the rows and seeds to work on; rows of inference need `cuts`, which comes first.

    Raises:
        RecipeError: a row or a seed that there is not.
    """
    rows = only.split(",") if only else list(ROWS)
    numbers = [int(each) for each in seeds.split(",")] if seeds else list(read.seeds)
    for asked, known in ((rows, list(ROWS)), (numbers, list(read.seeds))):
        if missing := [each for each in asked if each not in known]:
            raise RecipeError(f"no {missing[0]!r}; there is {', '.join(map(str, known))}")
    if any(ROWS[name].where == INFERENCE for name in rows):
        rows = ["cuts", *(name for name in rows if name != "cuts")]
    return rows, numbers


def work(overrides: Sequence[str], only: str | None, seeds: str | None, runs_dir: Path) -> Path:
    """Complete the chosen rows, one after the other; return the page."""
    read = recipe.load(RECIPE, overrides)
    run_dir = runs_dir / read.name
    methods = {(each.method, each.seed): each for each in read.trainings()}
    rows, numbers = chosen(only, seeds, read)
    todo = [
        methods.get((name, seed)) or training_of(name, methods["cuts", seed], run_dir)
        for seed in numbers
        for name in rows
    ]
    study.begin(run_dir, read.resolved(), todo, seeds=read.seeds)
    study.prepare(todo, run_dir)
    reach = max(each.max_position for each in methods.values())
    for training in todo:
        complete(training, run_dir, reach=reach)
        print(training.method, f"seed {training.seed}", sep="\t", flush=True)
    return report.write_report([run_dir], against="cuts")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the recipe")
    parser.add_argument("--only", metavar="ROW,...", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", metavar="N,...", help="of the recipe's")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    given = parser.parse_args()
    hush(verbose=False)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        page = work(given.overrides, given.only, given.seeds, given.runs_dir)
    except SkipalignError as error:
        parser.exit(1, f"error: {error}\n")
    print("made", page)


if __name__ == "__main__":
    main()
