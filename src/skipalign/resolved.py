"""One method with one seed, everything resolved: what a recipe becomes and every stage takes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from skipalign.adapters import Adapter
from skipalign.key_bias import KeyBias
from skipalign.packing import Packing
from skipalign.positions import Strategy
from skipalign.prepare import Source
from skipalign.rope import RopeExtension


@dataclass(frozen=True, kw_only=True)
class Base:
    """The checkpoint that a training starts from: `tiny-N`, a local folder or a hub id."""

    path: str
    revision: str | None = None
    dtype: str = "float32"
    attn_implementation: str = "sdpa"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One method with one seed, everything resolved.

    Args:
        method: its name in tables.
        seed: of order, positions and dropout.
        directory: below the run folder; "" is the run folder itself.
        base: what it starts from.
        sources: the conversations.
        strategies: position strategy by source name.
        key_bias: added to attention logits of keys in training, or None.
        rope: RoPE extension.
        packing: how samples share rows, or None.
        logit_scale: what attention logits are multiplied by in training, or None.
        chunked_loss: whether the loss is computed a part of the tokens at a time.
        adapter: what is trained instead of all weights, or None.
        trainer: keys of transformers' TrainingArguments.
        template_kwargs: what the chat template takes.
        tasks: the settings of each task to evaluate, by its name.
        watch: after how many steps each time a task is asked in training, by its name.
        architecture: a file with the numbers of the base, for plans and dry runs, or None.
        train: False evaluates the extended base as it is.
    """

    method: str
    seed: int
    directory: str
    base: Base
    sources: tuple[Source, ...]
    strategies: Mapping[str, Strategy]
    rope: RopeExtension
    key_bias: KeyBias | None = None
    packing: Packing | None = None
    logit_scale: float | str | None = None
    chunked_loss: bool = False
    adapter: Adapter | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Any] = field(default_factory=dict)
    watch: Mapping[str, int] = field(default_factory=dict)
    architecture: str | None = None
    train: bool = True

    @property
    def max_position(self) -> int:
        """The largest range of positions that any of its strategies uses; 0 without skips."""
        return max(getattr(each, "max_position", 0) for each in self.strategies.values())

    def settings(self) -> dict[str, Any]:
        """Return all that decides the weights, ready for JSON."""
        strategies = {
            name: {"name": strategy.name, **asdict(strategy)}  # type: ignore[call-overload]
            for name, strategy in self.strategies.items()
        }
        bias, adapter = self.key_bias, self.adapter
        return {
            "method": self.method,
            "seed": self.seed,
            "base": asdict(self.base),
            "sources": [asdict(source) for source in self.sources],
            "strategies": strategies,
            "key_bias": {"name": bias.name, **asdict(bias)} if bias else None,  # type: ignore[call-overload]
            "packing": asdict(self.packing) if self.packing else None,
            "logit_scale": self.logit_scale,
            "chunked_loss": self.chunked_loss or None,  # None: as in folders that know no such key
            "adapter": {"type": adapter.type, **asdict(adapter)} if adapter else None,
            "rope": {"type": self.rope.type, **asdict(self.rope)},  # type: ignore[call-overload]
            "trainer": dict(self.trainer),
            "template_kwargs": dict(self.template_kwargs),
            "train": self.train,
        }
