"""Cross-entropy from hidden states, a part of the tokens at a time: logits never stand whole.

Logits of T tokens take 4 T V bytes in float32, and with their log-softmax and gradients three
times that: with V = 128,000 and rows of 8,192 tokens 12 GiB, more than all layers of many models
keep. Only tokens that are trained need logits, and no two of them need theirs at once. So the
head's forward pass is exchanged for one that returns losses: it takes the trained tokens some at a
time, and backward computes each part's logits again. It stays inside the model's forward pass,
where DDP finds every weight that is used and FSDP2 holds the head's weights whole.

Where there is a GPU and the package liger-kernel, `trainer: {use_liger_kernel: true}` does the same
in one kernel, without computing them twice.

Shape letters: B rows, T tokens, D hidden dimensions, V vocabulary, N trained tokens.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from skipalign.encoding import IGNORE_INDEX
from skipalign.errors import ModelError

TOKENS_AT_ONCE = 256


class ChunkedHead:
    """The head of a model, applied to parts of its hidden states.

    Args:
        model: of transformers, with output embeddings, an adapter or none, not wrapped yet.
        tokens_at_once: whose logits stand together; None is TOKENS_AT_ONCE.

    Raises:
        ModelError: the model has no head, or does more to its logits than the head does.
    """

    def __init__(self, model: Any, tokens_at_once: int | None = None) -> None:
        self.module = model.get_output_embeddings()
        if self.module is None:
            raise ModelError(
                f"chunked_loss: {type(model).__name__} has no output embeddings; leave it out"
            )
        self.apply: Callable[[Tensor], Tensor] = self.module.forward
        self.tokens_at_once = tokens_at_once or TOKENS_AT_ONCE
        self._labels: Tensor | None = None
        # How many tokens are trained is data: compiled, it would be compiled anew for each batch.
        self._forward: Any = torch.compiler.disable(self._of_labels)
        self._require_plain_logits(model)

    @contextmanager
    def in_parts(self, labels: Int[Tensor, " B T"]) -> Generator[None]:
        """While open, the `logits` of the model are the losses of its tokens: Float[" B T-1"].

        Args:
            labels: of what the model is given, not shifted.
        """
        before, self._labels = self._labels, labels
        try:
            with self._exchanged(self._forward):
                yield
        finally:
            self._labels = before

    def _of_labels(self, hidden: Float[Tensor, " B T D"]) -> Float[Tensor, " B T-1"]:
        assert self._labels is not None
        return self.token_losses(hidden, self._labels)

    @contextmanager
    def _exchanged(self, forward: Callable[[Tensor], Tensor]) -> Generator[None]:
        before = vars(self.module).get("forward")
        self.module.forward = forward
        try:
            yield
        finally:
            if before is None:
                del self.module.forward
            else:
                self.module.forward = before

    def token_losses(
        self, hidden: Float[Tensor, " B T D"], labels: Int[Tensor, " B T"]
    ) -> Float[Tensor, " B T-1"]:
        """Return the loss of every token from the second on, 0 where it is not trained.

        Args:
            hidden: what the head is given.
            labels: not shifted.
        """
        targets = labels[:, 1:]
        trained = targets != IGNORE_INDEX
        parts = zip(
            hidden[:, :-1][trained].split(self.tokens_at_once),
            targets[trained].split(self.tokens_at_once),
            strict=True,
        )
        losses = [checkpoint(self._losses, *part, use_reentrant=False) for part in parts]
        found = torch.zeros(targets.shape, dtype=torch.float32, device=hidden.device)
        return found.masked_scatter(trained, torch.cat(losses)) if losses else found

    def _losses(
        self, hidden: Float[Tensor, " N D"], targets: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        return cross_entropy(self.apply(hidden).float(), targets, reduction="none")

    def _require_plain_logits(self, model: Any) -> None:
        """Give the model made logits; they must come out as they are, whatever its weights."""
        device = next(model.parameters()).device
        inputs = {
            "input_ids": torch.tensor([[0, 1]], device=device),
            "attention_mask": torch.ones(1, 2, dtype=torch.long, device=device),
        }
        made = torch.linspace(-100, 100, 16, device=device).view(1, 2, 8)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self._exchanged(lambda _: made):
                found = model(**inputs, use_cache=False).logits
        finally:
            model.train(was_training)
        if not torch.equal(found, made):
            raise ModelError(
                f"chunked_loss: {type(model).__name__} changes its logits after the head (a soft "
                "cap or a scale), so that the head alone gives another loss - leave chunked_loss "
                "out"
            )


def token_losses(
    logits: Float[Tensor, " B T V"], labels: Int[Tensor, " B T"]
) -> Float[Tensor, " B T-1"]:
    """Return the loss of every token from the second on, 0 where it is not trained.

    Args:
        logits: of all tokens.
        labels: not shifted.
    """
    targets = labels[:, 1:]
    losses = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return losses.view(targets.shape)
