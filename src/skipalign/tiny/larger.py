"""A base of 30 to 150 million parameters with a window of 1,024 tokens, for one GPU.

    python -m skipalign.tiny.larger --size 60m --minutes 9      # again and again, until it is made

FOLDER/tokenizer/                 a byte-level BPE in which a name is one token
FOLDER/conversations.jsonl.gz     what recipes/study-1k.yaml fine-tunes on
FOLDER/prose.jsonl.gz             plain text of the same kind
FOLDER/base-60m-0/                the base, once it has passed the gate
FOLDER/base-60m-0.state/          where its training goes on

The stages are those of `pretraining`: names that are named again, lists that come again in another
order, at 32 tokens and on to the window, then text and conversations (`stories`). Each stage is
gated by what the model retrieves. What a step is fed is a pure function of its seed, stage, attempt
and number, so that a training that was stopped goes on as if it had not been.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from skipalign.errors import ModelError, SkipalignError
from skipalign.files import read_json, write_gzip, write_json, written_aside
from skipalign.model import load_tokenizer, save_model
from skipalign.progress import Progress, Silent, Terminal
from skipalign.tiny import PROSE
from skipalign.tiny.corpus import read_prose, sentences
from skipalign.tiny.make import make_tokenizer
from skipalign.tiny.pretraining import NAMING_STEPS, Learner, Rows, cosine
from skipalign.tiny.stories import StoryRows, sentence

FOLDER = Path("runs/stories")
WINDOW = 1024
# Layers, width, width of the feed-forward. Heads have 64 dimensions: narrow ones retrieve late.
SIZES = {"30m": (10, 512, 1408), "60m": (12, 640, 1792), "150m": (11, 1024, 2816)}
HEAD_DIM = 64
ROPE_THETA = 10_000.0
_SILENT = Silent()
_MORE = 3  # exit status: stopped by the clock, to be started again


@dataclass(frozen=True, kw_only=True)
class Law:
    """How such a base is made. Starting points from the tiny bases: nothing was tuned here.

    Args:
        window: tokens of a row in the last stage.
        vocabulary: of the tokenizer.
        tokens_per_step: of every stage.
        peak_rate: learning rate.
        warm_up: steps.
        shortest: tokens of the rows in which retrieval forms.
        max_steps: of the first stage, and of each length that follows; then the attempt is given
            up and the next one draws new weights.
        reading_steps: of the last stage.
        max_attempts: then it is given up.
        check_every: steps between two looks at what lists the model retrieves.
        formed: share of the values of a list that ends a stage.
        gate: share of right answers at the window, or no base is written.
        num_sentences: of prose, drawn once.
        num_conversations: written for fine-tuning.
        save_seconds: between two states.
    """

    window: int = WINDOW
    vocabulary: int = 4096
    tokens_per_step: int = 65_536
    peak_rate: float = 8e-4
    warm_up: int = 100
    shortest: int = 32
    max_steps: tuple[int, int] = (1500, 500)
    reading_steps: int = 6000
    max_attempts: int = 5
    check_every: int = 25
    formed: float = 0.95
    gate: float = 0.95
    num_sentences: int = 200_000
    num_conversations: int = 8000
    save_seconds: float = 120


# The same code in seconds on a CPU; what it makes retrieves nothing.
SHRUNKEN = Law(
    window=64,
    vocabulary=1280,
    tokens_per_step=512,
    max_steps=(2, 2),
    reading_steps=3,
    max_attempts=1,
    check_every=1,
    formed=0.0,
    gate=0.0,
    num_sentences=300,
    num_conversations=40,
    save_seconds=0,
)


def make_config(size: str, law: Law) -> LlamaConfig:
    """Return the shape of a base.

    Raises:
        ModelError: no such size.
    """
    if size not in (*SIZES, "shrunken"):
        raise ModelError(f"no size {size!r}; give one of {', '.join(SIZES)}")
    num_layers, width, wide = SIZES.get(size, (2, 32, 48))
    heads = max(1, width // HEAD_DIM)
    return LlamaConfig(
        vocab_size=law.vocabulary,
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=law.window,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )


@dataclass(kw_only=True)
class State:
    """How far a training is.

    Args:
        attempt: how many were given up.
        length: tokens of its lists.
        step: of its stage.
        reading: whether it is in the last stage.
    """

    attempt: int = 0
    length: int = 0
    step: int = 0
    reading: bool = False


class Pretraining:
    """One base on its way, which can stop after any step."""

    def __init__(self, size: str, seed: int, folder: Path, law: Law, rows: StoryRows) -> None:
        self.config = make_config(size, law)
        self.seed, self.law, self.rows = seed, law, rows
        self.folder = folder
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.state = State(length=law.shortest)
        self.learner = self._new_learner()
        self.saved = time.monotonic()
        if (folder / "state.json").exists():
            self._go_on()

    def _new_learner(self) -> Learner:
        seed = self.seed + 1000 * self.state.attempt
        return Learner(self.config, seed=seed, device=self.device)

    def _go_on(self) -> None:
        found = read_json(self.folder / "state.json")
        if found["law"] != json.loads(json.dumps(asdict(self.law))):
            raise ModelError(
                f"{self.folder}: holds a training by another law; remove it, or give another --out"
            )
        self.state = State(**found["state"])
        kept = self.folder / f"{found['weights']}.pt"
        loaded = torch.load(kept, map_location=self.device, weights_only=True)
        self.learner.model.load_state_dict(loaded["model"])
        self.learner.optimizer.load_state_dict(loaded["optimizer"])

    def save(self) -> None:
        """Write where it goes on: weights under a new name, then the file that names them."""
        name = (
            f"{self.state.attempt}-{self.state.length}-{self.state.step}-{int(self.state.reading)}"
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        learner = self.learner
        held = {"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()}
        with written_aside(self.folder / f"{name}.pt") as aside:
            torch.save(held, aside)
        written = {"weights": name, "state": asdict(self.state), "law": asdict(self.law)}
        write_json(self.folder / "state.json", written)
        for other in self.folder.glob("*.pt"):
            if other.stem != name:
                other.unlink()
        self.saved = time.monotonic()

    def run(self, minutes: float, progress: Progress = _SILENT) -> bool:
        """Train until it has read or the time is up, one step at least; tell whether it has read.

        Raises:
            ModelError: no attempt came to retrieve.
        """
        ends = time.monotonic() + 60 * minutes
        with progress.bar(self._told(), self.law.reading_steps) as bar:
            if self.state.reading:
                bar.advance(self.state.step)
            while not (self.state.reading and self.state.step >= self.law.reading_steps):
                if self.state.reading:
                    self._read()
                    bar.advance()
                else:
                    self._form()
                if time.monotonic() > ends:
                    self.save()
                    return False
                if time.monotonic() - self.saved > self.law.save_seconds:
                    self.save()
        self.save()
        return True

    def _told(self) -> str:
        at = "reading" if self.state.reading else f"lists of {self.state.length} tokens"
        return f"pre-train, attempt {self.state.attempt + 1}, {at}"

    def _draw(self) -> None:
        """Let the rows of this step depend on nothing but its place."""
        state = self.state
        place = (state.attempt, state.length, state.step, int(state.reading))
        self.rows.rng = np.random.default_rng((self.seed, *place))

    def _read(self) -> None:
        law, state = self.law, self.state
        self._draw()
        rate = law.peak_rate * cosine(state.step, law.reading_steps)
        self.learner.step(self.rows.reading(law.tokens_per_step), rate)
        state.step += 1

    def _form(self) -> None:
        """Take a step on lists; go to longer ones, to reading, or to another attempt."""
        law, state = self.law, self.state
        first = state.length == law.shortest
        num_rows = law.tokens_per_step // state.length
        self._draw()
        rows = self._first_rows(num_rows) if first else self.rows.lists(num_rows, state.length)
        warm = min(1.0, (state.step + 1) / law.warm_up) if first else 1.0
        self.learner.step(rows, law.peak_rate * warm)
        state.step += 1
        most = law.max_steps[0 if first else 1]
        if state.step % law.check_every == 0:
            self.rows.rng = np.random.default_rng(self.seed)
            held_out, _ = self.rows.lists(16, state.length)
            if self.learner.retrieves(held_out) >= law.formed:
                self._formed()
                return
        if state.step >= most:
            self._begin_again()

    def _formed(self) -> None:
        done = self.state.length >= self.law.window
        length = min(2 * self.state.length, self.law.window)
        self.state = replace(self.state, length=length, step=0, reading=done)

    def _begin_again(self) -> None:
        attempt = self.state.attempt + 1
        if attempt >= self.law.max_attempts:
            raise ModelError(
                f"none of {attempt} attempts came to retrieve in lists of {self.state.length} "
                f"tokens; take another --seed, or remove {self.folder} to begin anew"
            )
        self.state = State(attempt=attempt, length=self.law.shortest)
        self.learner = self._new_learner()

    def _first_rows(self, num_rows: int) -> Rows:
        length = self.law.shortest
        if self.state.step < NAMING_STEPS:
            return self.rows.naming(num_rows, length)
        named = self.rows.naming(num_rows // 4, length)
        listed = self.rows.lists(num_rows - num_rows // 4, length)
        return np.concatenate([named[0], listed[0]]), np.concatenate([named[1], listed[1]])

    def retrieval(self, num_rows: int = 128) -> float:
        """Return the share of answers, at the window, whose every token the model predicts."""
        self.rows.rng = np.random.default_rng((self.seed, 1))
        right: list[bool] = []
        for _ in range(max(1, num_rows // 8)):
            ids, trained = self.rows.asked(8)
            wrong = trained[:, 1:] & (self.learner.predicted(ids)[:, :-1] != ids[:, 1:])
            for row_wrong, row_trained in zip(wrong, trained, strict=True):
                edges = np.flatnonzero(np.diff(np.append(row_trained, False).astype(int)))
                right += [
                    not row_wrong[start:stop].any()
                    for start, stop in zip(edges[::2], edges[1::2], strict=True)
                ]
        return float(np.mean(right))


# ------------------------------------------------------------------------------- what it leaves


def make(
    size: str,
    seed: int,
    folder: Path,
    *,
    law: Law | None = None,
    minutes: float = 9,
    progress: Progress = _SILENT,
) -> Path | None:
    """Make tokenizer, data and base in `folder`, or go on for some minutes.

    Returns:
        the base, or None if it needs more time.

    Raises:
        ModelError: no attempt came to retrieve, or the base does not pass the gate.
    """
    law = law or Law()
    place = folder / f"base-{size}-{seed}"
    if place.exists():
        return place
    began = time.monotonic()
    prose = _prose(law)
    tokenizer = _tokenizer(folder / "tokenizer", prose, law)
    rows = StoryRows(tokenizer, prose, law.window)
    _write_data(folder, rows, law)
    training = Pretraining(size, seed, place.with_name(f"{place.name}.state"), law, rows)
    if not training.run(minutes - (time.monotonic() - began) / 60, progress):
        return None
    score = training.retrieval()
    if score < law.gate:
        raise ModelError(
            f"{place}: the share of right answers at {law.window:,} tokens is {score:.3f} and must "
            f"be at least {law.gate}; nothing was written - take another --seed"
        )
    aside = place.with_name(f".{place.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    save_model(training.learner.model.cpu(), tokenizer, aside)
    write_json(aside / "made.json", {"size": size, "seed": seed, "retrieval": score, **asdict(law)})
    os.replace(aside, place)
    shutil.rmtree(training.folder)
    return place


def _prose(law: Law) -> list[str]:
    """Return sentences of the grammar and of the novel, in an order that mixes them."""
    rng = np.random.default_rng(0)
    found = [sentence(rng) for _ in range(law.num_sentences)]
    novel = sentences(read_prose(PROSE))
    found += novel[: max(1, law.num_sentences // 20)]
    return [found[index] for index in rng.permutation(len(found))]


def _tokenizer(folder: Path, prose: Sequence[str], law: Law) -> Any:
    if not folder.exists():
        text = " ".join(prose[:20_000])
        rng = np.random.default_rng(0)
        made = make_tokenizer(text, rng, vocabulary=law.vocabulary, window=law.window)
        aside = folder.with_name(f".{folder.name}.partial")
        made.save_pretrained(aside)
        os.replace(aside, folder)
    return load_tokenizer(str(folder))


def _write_data(folder: Path, rows: StoryRows, law: Law) -> None:
    """Write conversations and prose that no step of the base was fed."""
    rng = np.random.default_rng(1)
    path = folder / "conversations.jsonl.gz"
    if not path.exists():
        drawn = (rows.maker.draw(rng).messages() for _ in range(law.num_conversations))
        text = "".join(json.dumps({"messages": each}, ensure_ascii=False) + "\n" for each in drawn)
        write_gzip(path, text)
    path = folder / "prose.jsonl.gz"
    if not path.exists():
        made = " ".join(sentence(rng) for _ in range(law.num_sentences // 2))
        write_gzip(path, json.dumps({"text": made}, ensure_ascii=False) + "\n")


def main() -> None:
    """Make a base, or go on making it; exit status 3 asks to be started again."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=(*SIZES, "shrunken"), default="60m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=9, help="stop after so many and keep all")
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    law = SHRUNKEN if given.size == "shrunken" else Law()
    options: dict[str, Any] = {"law": law, "minutes": given.minutes, "progress": Terminal()}
    try:
        place = make(given.size, given.seed, given.out, **options)
    except SkipalignError as error:
        raise SystemExit(f"error: {error}") from None
    if place is None:
        print("not done yet; next: the same command, which goes on", file=sys.stderr)
        raise SystemExit(_MORE)
    print(f"made {place}; next: skipalign run recipes/study-1k.yaml --dry-run")


if __name__ == "__main__":
    main()
