"""Prose and records -> a small model that retrieves at its window: the law of the tiny bases.

A two-layer model retrieves when its first layer tells every token what stood before it and the
second looks for that. Such a pair of heads forms late and not with every seed, so the rows come in
three stages, each gated by what the model can do:

1. forming: rows of 32 tokens; names that are to be named again (`a b a`: look one token back),
   then lists of pairs that come again in another order. An attempt that does not retrieve in time
   is given up, and the next one draws new weights;
2. growing: the lists at 64 and 128 tokens;
3. reading: rows of the window: prose, prose that repeats itself, lists, and conversations.

Lists are shuffled when they come again: repeats at a fixed distance are learned as that distance.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from skipalign.errors import ModelError
from skipalign.progress import Bar, Progress, Silent

TOKENS_PER_STEP = 4096
PEAK_LEARNING_RATE = 3e-3
WARM_UP = 100  # steps
SHORT = 32  # tokens of the rows in which retrieval forms
NAMING_STEPS = 60
FORMED = 0.95  # share of retrieved values
HOPELESS = (275, 0.3)  # after so many steps, less than this share
MAX_FORMING, MAX_GROWING = 500, 300  # steps
READING_STEPS = 1500
MAX_ATTEMPTS = 8
CHECK_EVERY = 25
_SILENT = Silent()

Rows = tuple[Int[np.ndarray, " B T"], Float[np.ndarray, " B T"]]


class RowMaker:
    """Rows of token ids with a loss weight for every token.

    Args:
        prose: its token ids.
        names: token ids of the keys and of the values, one token each.
        conversations: token ids of each, and which of them are trained on.
        window: tokens of a row in the last stage.
        rng: of all draws.
    """

    def __init__(
        self,
        prose: Int[np.ndarray, " N"],
        names: tuple[Int[np.ndarray, " K"], Int[np.ndarray, " V"]],
        conversations: list[tuple[Int[np.ndarray, " T"], Any]],
        window: int,
        rng: np.random.Generator,
    ) -> None:
        self.prose_ids = prose
        self.keys, self.values = names
        self.conversations = conversations
        self.window = window
        self.rng = rng

    def naming(self, num_rows: int, length: int = SHORT) -> Rows:
        """Draw names `a b a`: the third is the one before the second."""
        names = np.concatenate([self.keys, self.values])
        num_triples = -(-length // 3)
        first = self.rng.choice(names, (num_rows, num_triples))
        second = self.rng.choice(names, (num_rows, num_triples))
        ids = np.stack([first, second, first], -1).reshape(num_rows, -1)[:, :length]
        weights = np.full(ids.shape, 0.02)
        weights[:, 2::3] = 4
        return ids, weights

    def lists(self, num_rows: int, length: int) -> Rows:
        """Draw pairs of names, then the same pairs in another order."""
        rows = [self._list(length) for _ in range(num_rows)]
        weights = np.full(length, 0.2)
        weights[length // 2 + 1 :: 2] = 4
        return np.array(rows), np.tile(weights, (num_rows, 1))

    def reading(self, num_tokens: int | None = None) -> Rows:
        """Draw rows of prose, repeats, lists and conversations: TOKENS_PER_STEP, or so many."""
        num_rows = (num_tokens or TOKENS_PER_STEP) // self.window
        rows = [self._read() for _ in range(num_rows)]
        return np.array([ids for ids, _ in rows]), np.array([weights for _, weights in rows])

    def _read(self) -> tuple[Any, Any]:
        chance = self.rng.random()
        if chance < 0.15:
            return self._prose()
        if chance < 0.3:
            return self._repeated()
        if chance < 0.4:
            ids, weights = self.lists(1, self.window)
            return ids[0], weights[0]
        return self._conversation()

    def _list(self, length: int) -> Int[np.ndarray, " T"]:
        num_pairs = length // 4
        keys = self.rng.choice(self.keys, num_pairs, replace=False)
        values = self.rng.choice(self.values, num_pairs)
        pairs = np.stack([keys, values], axis=1)
        again = pairs[self.rng.permutation(num_pairs)]
        return np.concatenate([pairs.reshape(-1), again.reshape(-1)])

    def _prose(self) -> tuple[Any, Any]:
        start = self.rng.integers(len(self.prose_ids) - self.window)
        return self.prose_ids[start : start + self.window], np.ones(self.window)

    def _repeated(self) -> tuple[Any, Any]:
        """Return prose in which a stretch comes again later."""
        ids, weights = self._prose()
        ids, length = ids.copy(), self.window
        size = int(self.rng.integers(length // 16, length // 4))
        first = int(self.rng.integers(0, length - 2 * size))
        again = int(self.rng.integers(first + size, length - size + 1))
        ids[again : again + size] = ids[first : first + size]
        weights[again + 1 : again + size] = 2
        return ids, weights

    def _conversation(self) -> tuple[Any, Any]:
        return self._filled_up(*self.conversations[self.rng.integers(len(self.conversations))])

    def _filled_up(self, ids: Any, trained: Any) -> tuple[Any, Any]:
        """Return a conversation with prose behind it, its answers weighing four times as much."""
        rest, _ = self._prose()
        missing = self.window - len(ids)
        weights = np.concatenate([np.where(trained, 4.0, 1.0), np.ones(missing)])
        return np.concatenate([ids, rest[:missing]]), weights


class Learner:
    """A model with its optimizer.

    Args:
        config: of the model.
        seed: of its first weights.
        device: where it learns; on a GPU matrices multiply in bfloat16.
    """

    def __init__(self, config: PreTrainedConfig, *, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.device = torch.device(device)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        self.model.to(self.device)  # type: ignore[arg-type] # torch's own signature
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.98), weight_decay=0.01
        )

    def step(self, rows: Rows, rate: float) -> None:
        """Learn from one batch of rows with their weights."""
        ids = torch.from_numpy(rows[0]).to(self.device)
        weights = torch.from_numpy(rows[1])[:, 1:].float().to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        logits = self._logits(ids)[:, :-1].float()
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def predicted(self, ids: Int[np.ndarray, " B T"]) -> Int[np.ndarray, " B T"]:
        """Return the likeliest next token after every token."""
        with torch.no_grad():
            return self._logits(torch.from_numpy(ids).to(self.device)).argmax(-1).cpu().numpy()

    def retrieves(self, ids: Int[np.ndarray, " B T"]) -> float:
        """Return the share of the values in the second half of lists that it predicts."""
        half = ids.shape[1] // 2
        return float((self.predicted(ids)[:, half:-1:2] == ids[:, half + 1 :: 2]).mean())

    def _logits(self, ids: Any) -> Any:
        mask = torch.ones_like(ids)
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def pretrain(
    config: PreTrainedConfig,
    rows: RowMaker,
    *,
    seed: int,
    name: str = "a base",
    progress: Progress = _SILENT,
) -> PreTrainedModel:
    """Train a model until it has read; `seed` is of weights, the rows have their own generator.

    Raises:
        ModelError: no attempt came to retrieve.
    """
    with progress.bar(f"pre-train {name}", MAX_FORMING + READING_STEPS) as bar:
        for attempt in range(MAX_ATTEMPTS):
            learner = Learner(config, seed=seed + 1000 * attempt)
            if _forms(learner, rows, bar) and _grows(learner, rows, bar):
                for step in range(READING_STEPS):
                    learner.step(rows.reading(), PEAK_LEARNING_RATE * cosine(step, READING_STEPS))
                    bar.advance()
                return learner.model
    raise ModelError(
        f"{name}: none of {MAX_ATTEMPTS} attempts came to retrieve in lists of {SHORT} "
        "tokens; take another seed"
    )


def _forms(learner: Learner, rows: RowMaker, bar: Bar) -> bool:
    num_rows = TOKENS_PER_STEP // SHORT
    held_out, _ = rows.lists(32, SHORT)
    for step in range(1, MAX_FORMING + 1):
        batch = rows.naming(num_rows)
        if step > NAMING_STEPS:
            named, listed = rows.naming(num_rows // 4), rows.lists(num_rows - num_rows // 4, SHORT)
            batch = np.concatenate([named[0], listed[0]]), np.concatenate([named[1], listed[1]])
        learner.step(batch, PEAK_LEARNING_RATE * min(1.0, step / WARM_UP))
        bar.advance()
        if step % CHECK_EVERY:
            continue
        share = learner.retrieves(held_out)
        if share >= FORMED:
            return True
        if step >= HOPELESS[0] and share < HOPELESS[1]:
            return False
    return False


def _grows(learner: Learner, rows: RowMaker, bar: Bar) -> bool:
    length = SHORT
    while length < rows.window:
        length = min(2 * length, rows.window)
        held_out, _ = rows.lists(16, length)
        for step in range(1, MAX_GROWING + 1):
            learner.step(rows.lists(TOKENS_PER_STEP // length, length), PEAK_LEARNING_RATE)
            bar.advance()
            if step % CHECK_EVERY == 0 and learner.retrieves(held_out) >= FORMED:
                break
        else:
            return False
    return True


def cosine(step: int, total: int) -> float:
    """Return the share of the peak rate: from 1 down to 0.03."""
    return 0.485 * (1 + math.cos(math.pi * step / total)) + 0.03
