"""Prompts -> completions by a transformers model, and how likely given texts are to it."""

import hashlib
import inspect
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from skipalign.errors import ModelError, is_out_of_memory
from skipalign.generation import Completion, completion_of, stop_ids

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

# A row shorter than this share of its batch's longest row waits for the next batch.
_LEAST_FILL = 0.875
# Weights read from each parameter to tell one checkpoint from another.
_WEIGHTS_READ = 64
# Tokens read at once on top of a cache: the attention mask has a row for each.
_TOKENS_ON_CACHE = 2048
# Numbers in the logits of one forward pass over texts: 1 GiB in float32.
_LOGITS_AT_ONCE = 2**28

_Each = TypeVar("_Each")


class TransformersGenerator:
    """Answer with a transformers model by a greedy loop over its forward pass.

    The loop is ours because `model.generate` (5.23) drops an attention_mask of ones, so that
    given positions that jump are right only as long as there is a cache; because it takes
    repetition penalties and the like from the checkpoint, which is then not greedy; and because
    it warns of every prompt beyond max_position_embeddings, which is what we measure.

    Prompts are sorted by length and answered in batches of at most `batch_tokens` tokens, padding
    included; a batch that does not fit into the device's memory is halved. Prompts of one length
    need no padding and keep the fast causal kernel.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_tokens: int = 16384,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.stop_ids = stop_ids(model, tokenizer)

    @property
    def identity(self) -> str:
        """A digest of the model's class, its config's RoPE and a sample of every parameter."""
        rope = getattr(self.model.config, "rope_parameters", None)
        digest = hashlib.sha256(repr((type(self.model).__name__, rope, self.stop_ids)).encode())
        for name, parameter in self.model.named_parameters():
            flat = parameter.detach().reshape(-1)
            step = max(1, len(flat) // _WEIGHTS_READ)
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(flat[::step].to("cpu", torch.float32).numpy().tobytes())
        return digest.hexdigest()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        position_ids: Sequence[Int[np.ndarray, " T"]] | None = None,
        more_stop_ids: Collection[int] = (),
        min_new_tokens: int = 0,
    ) -> list[Completion]:
        """Answer each prompt greedily, in the order given.

        Args:
            prompts: token ids, template included.
            max_new_tokens: the longest answer.
            position_ids: one array for each prompt; natural positions when None. The answer
                continues at the last one + 1.
            more_stop_ids: tokens that end an answer besides `stop_ids`.
            min_new_tokens: for so many tokens none that ends an answer is taken.

        Raises:
            ModelError: a prompt that the model cannot take, one that does not fit into memory
                alone, or logits that are not numbers.
        """
        rows = self._rows(prompts, position_ids)
        stops = self.stop_ids | {*more_stop_ids}

        def answered(batch: Sequence[int]) -> list[Completion]:
            padded = _padded_left([rows[index] for index in batch], self.model.device)
            new, _ = self._greedy(
                *padded, max_new_tokens, stop_ids=stops, min_new_tokens=min_new_tokens
            )
            return [completion_of(row, stops, self.tokenizer) for row in new.tolist()]

        return self._in_batches([len(ids) for ids, _ in rows], answered)

    def answer_from(
        self, cache: "Cache", prompt: Int[np.ndarray, " T"], max_new_tokens: int
    ) -> tuple[Completion, Float[torch.Tensor, " V"]]:
        """Answer a prompt whose first tokens `cache` holds, at natural positions.

        Args:
            cache: of this model; afterwards it holds the prompt and what was answered, but for
                the last token.
            prompt: token ids from the first on, at least one more than the cache holds.
            max_new_tokens: the longest answer, at least 1.

        Returns:
            the answer, and the logits of its first token.

        Raises:
            ModelError: see `generate`.
        """
        ((ids, places),) = self._rows([prompt], None)  # type: ignore[list-item]
        input_ids, mask, position_ids = _padded_left([(ids, places)], self.model.device)
        start = cache.get_seq_length()
        try:
            with _evaluating(self.model):
                while start and len(ids) - start > _TOKENS_ON_CACHE:
                    stop = start + _TOKENS_ON_CACHE
                    part = slice(start, stop)
                    self._forward(input_ids[:, part], mask[:, :stop], position_ids[:, part], cache)
                    start = stop
                rest = slice(start, None)
                new, logits = self._greedy(
                    *(input_ids[:, rest], mask, position_ids[:, rest], max_new_tokens, cache),
                    stop_ids=self.stop_ids,
                )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_long(len(ids)) from error
        assert logits is not None, "one token at least was asked for"
        return completion_of(new[0].tolist(), self.stop_ids, self.tokenizer), logits[0]

    def log_likelihoods(
        self, texts: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[Float[np.ndarray, " N"]]:
        """Return the log-likelihood, in nats, of each text's tokens from its start on.

        Each token is told from all before it, at natural positions. Logits are made for the
        scored tokens alone and, where these are many, a chunk at a time over a cache.

        Args:
            texts: token ids; nothing is added to them.
            starts: for each text the first token to score, at least 1.

        Raises:
            ModelError: see `generate`; or a start outside its text.
        """
        rows = self._rows(texts, None)
        for index, ((ids, _), start) in enumerate(zip(rows, starts, strict=True)):
            if not 1 <= start < len(ids):
                raise ModelError(
                    f"text {index} has {len(ids)} tokens and is scored from token {start} on; "
                    f"it must be one from 1 to {len(ids) - 1}, as nothing is before token 0"
                )

        def scored(batch: Sequence[int]) -> list[Float[np.ndarray, " N"]]:
            padded = _padded_left([rows[index] for index in batch], self.model.device)
            nums = [len(rows[index][0]) - starts[index] for index in batch]
            found = self._last_log_likelihoods(*padded, max(nums))
            kept = [row[-num:] for row, num in zip(found, nums, strict=True)]
            if any(bool(row.isnan().any()) for row in kept):
                raise self._not_numbers(padded[0].shape[1])
            return [row.to("cpu", torch.float64).numpy() for row in kept]

        return self._in_batches([len(ids) for ids, _ in rows], scored)

    def _in_batches(
        self, lengths: Sequence[int], run: Callable[[Sequence[int]], list[_Each]]
    ) -> list[_Each]:
        """Call `run` with indices of rows alike in length; halve what does not fit into memory."""
        done: dict[int, _Each] = {}
        budget = self.batch_tokens
        pending = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        with _evaluating(self.model):
            while pending:
                batch = _first_batch(pending, [lengths[index] for index in pending], budget)
                new = self._tried(run, batch, lengths[batch[0]])
                if new is None:
                    budget = _halved(len(batch), lengths[batch[0]])
                    continue
                done.update(zip(batch, new, strict=True))
                pending = pending[len(batch) :]
        return [done[index] for index in range(len(lengths))]

    def _tried(
        self, run: Callable[[Sequence[int]], list[_Each]], batch: Sequence[int], length: int
    ) -> list[_Each] | None:
        """Run one batch; None when it does not fit into memory but half of it may."""
        try:
            return run(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise self._too_long(length) from error
        if torch.cuda.is_available():  # outside the handler: its traceback keeps the tensors alive
            torch.cuda.empty_cache()
        return None

    def _rows(
        self,
        prompts: Sequence[Sequence[int]],
        position_ids: Sequence[Int[np.ndarray, " T"]] | None,
    ) -> list[tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]]:
        """Pair each prompt with its positions, checked."""
        num_ids = _num_embeddings(self.model)
        rows: list[tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]] = []
        if position_ids is not None and len(position_ids) != len(prompts):
            raise ModelError(
                f"{len(position_ids)} arrays of position_ids for {len(prompts)} prompts; "
                "give one for each prompt, or none at all"
            )
        for index, prompt in enumerate(prompts):
            ids = np.asarray(prompt, dtype=np.int64)
            natural = np.arange(len(ids))
            places = natural if position_ids is None else np.asarray(position_ids[index])
            if len(ids) == 0 or len(places) != len(ids):
                raise ModelError(
                    f"prompt {index} has {len(ids)} tokens and {len(places)} position_ids; "
                    "a prompt needs at least one token and one position for each"
                )
            if ids.min() < 0 or ids.max() >= num_ids:
                raise ModelError(
                    f"prompt {index} holds token ids {ids.min()} to {ids.max()}, the model knows "
                    f"0 to {num_ids - 1}; use the tokenizer saved with the model"
                )
            rows.append((ids, places.astype(np.int64)))
        return rows

    def _greedy(
        self,
        input_ids: Int[torch.Tensor, "B T"],
        attention_mask: Int[torch.Tensor, "B T"],
        position_ids: Int[torch.Tensor, "B T"],
        max_new_tokens: int,
        cache: "Cache | None" = None,
        *,
        stop_ids: Collection[int],
        min_new_tokens: int = 0,
    ) -> tuple[Int[torch.Tensor, "B N"], Float[torch.Tensor, "B V"] | None]:
        """Take the likeliest token until every row has stopped or has `max_new_tokens`.

        With a cache, `input_ids` and `position_ids` are those that it does not hold.

        Returns:
            the new tokens, and the logits of the first one, None where no token was asked for.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config) if cache is None else cache
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=input_ids.device)
        stopped: Bool[torch.Tensor, " B"] = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        new: list[Int[torch.Tensor, "B 1"]] = []
        first: Float[torch.Tensor, "B V"] | None = None
        while len(new) < max_new_tokens and not bool(stopped.all()):
            latest = new[-1] if new else input_ids
            logits = self._forward(latest, attention_mask, position_ids, cache)
            if bool(logits.isnan().any()):
                raise self._not_numbers(attention_mask.shape[1])
            first = logits if first is None else first
            if len(new) < min_new_tokens:
                logits = logits.index_fill(1, stops, -torch.inf)
            new.append(logits.argmax(-1, keepdim=True))
            stopped = stopped | torch.isin(new[-1][:, 0], stops)
            attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
            position_ids = position_ids[:, -1:] + 1
        return (torch.cat(new, dim=1) if new else input_ids[:, :0]), first

    def _forward(
        self,
        input_ids: Int[torch.Tensor, "B T"],
        attention_mask: Int[torch.Tensor, "B S"],
        position_ids: Int[torch.Tensor, "B T"],
        cache: "Cache",
    ) -> Float[torch.Tensor, "B V"]:
        """Return the logits after the last of these tokens; the cache then holds them."""
        # The mask is passed although it may be all ones: without it transformers takes a jump
        # in position_ids for the border of another document and cuts attention there.
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **({"logits_to_keep": 1} if _keeps_logits(self.model) else {}),
        ).logits[:, -1]

    def _last_log_likelihoods(
        self,
        input_ids: Int[torch.Tensor, "B T"],
        attention_mask: Int[torch.Tensor, "B T"],
        position_ids: Int[torch.Tensor, "B T"],
        num: int,
    ) -> Float[torch.Tensor, "B N"]:
        """Return the log-likelihood of the last `num` tokens of each row."""
        from transformers import DynamicCache

        num_rows, length = input_ids.shape
        chunk = max(1, _LOGITS_AT_ONCE // (num_rows * _num_embeddings(self.model)))
        cache = DynamicCache(config=self.model.config) if num > chunk else None
        found: list[Float[torch.Tensor, "B N"]] = []
        seen = 0
        for target in range(length - num, length, chunk):  # told by the logits one place before
            stop = min(target + chunk, length) - 1
            keep = stop - target + 1
            logits = self.model(
                input_ids=input_ids[:, seen:stop],
                attention_mask=attention_mask[:, :stop],
                position_ids=position_ids[:, seen:stop],
                past_key_values=cache,
                use_cache=cache is not None,
                **({"logits_to_keep": keep} if _keeps_logits(self.model) else {}),
            ).logits[:, -keep:]
            targets = input_ids[:, target : stop + 1, None]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            picked = logits.gather(-1, targets)[..., 0]
            found.append(picked - logits.logsumexp(-1))
            seen = stop
        return torch.cat(found, dim=1)

    def _too_long(self, num_tokens: int) -> ModelError:
        return ModelError(
            f"a prompt of {num_tokens} tokens does not fit into the memory of "
            f"{self.model.device}; shorten it, or load the model in a smaller dtype"
        )

    def _not_numbers(self, num_tokens: int) -> ModelError:
        return ModelError(
            f"logits are not numbers (NaN) after {num_tokens} tokens in {self.model.dtype}; "
            "load the model in bfloat16 or float32, or train it again"
        )


def _num_embeddings(model: "PreTrainedModel") -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr]


def _keeps_logits(model: Any) -> bool:
    """Whether the forward pass can return the last token's logits alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def _first_batch(pending: list[int], lengths: list[int], budget: int) -> list[int]:
    """Return the head of `pending`, longest first, that one batch of `budget` tokens takes."""
    most = max(1, budget // lengths[0])
    least = _LEAST_FILL * lengths[0]
    fitting = [place for place in range(min(most, len(pending))) if lengths[place] >= least]
    return pending[: len(fitting)]


def _halved(num_rows: int, length: int) -> int:
    """Return the token budget that takes half of `num_rows` rows of `length` tokens."""
    return length * (num_rows // 2)


def _padded_left(
    rows: Sequence[tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]], device: torch.device
) -> tuple[
    Int[torch.Tensor, "B T"],
    Int[torch.Tensor, "B T"],
    Int[torch.Tensor, "B T"],
]:
    """Return input_ids, attention_mask and position_ids with every row's end at the right."""
    shape = (len(rows), max(len(ids) for ids, _ in rows))
    input_ids, attention_mask, position_ids = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for row, (ids, places) in enumerate(rows):
        input_ids[row, -len(ids) :] = ids
        attention_mask[row, -len(ids) :] = 1
        position_ids[row, -len(ids) :] = places
    return (
        torch.from_numpy(input_ids).to(device),
        torch.from_numpy(attention_mask).to(device),
        torch.from_numpy(position_ids).to(device),
    )


@contextmanager
def _evaluating(model: torch.nn.Module) -> Generator[None]:
    """Turn off dropout, checkpointing and gradients; put every module's mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: buffers that RoPE makes here may be needed in a later backward pass.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
