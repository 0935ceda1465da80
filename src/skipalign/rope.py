"""How a checkpoint's rotary frequencies are stretched to reach further: one class a method.

RoPE turns pair j of a head's D dimensions by position x theta_j, theta_j = base^(-2j/D). A model
that was trained to position W fails beyond it; an extension slows the turning by a factor s so
that s x W positions turn no further than W did. The result is a `rope_parameters` mapping of
transformers' config, which any loader applies; nothing is folded into weights.

Sources: linear (PI): Chen et al. 2023, arXiv 2306.15595. YaRN and its attention temperature: Peng
et al. 2023, arXiv 2309.00071. NTK-aware: base b -> b s^(D/(D-2)).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, ClassVar

from skipalign.errors import ModelError, RecipeError

BATCH_DEPENDENT = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class RopeBase:
    """What an extension must know of the checkpoint."""

    parameters: dict[str, Any]
    head_dim: int
    window: int

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that turn; fewer than D with partial RoPE."""
        return int(self.head_dim * self.parameters.get("partial_rotary_factor", 1.0))


class RopeExtension(ABC):
    """A way to stretch RoPE. `type` is its word in a recipe."""

    type: ClassVar[str]

    @abstractmethod
    def apply(self, base: RopeBase, max_position: int) -> tuple[dict[str, Any], int]:
        """Return the new `rope_parameters` and the new window, in positions.

        Args:
            base: the checkpoint's own frequencies and window.
            max_position: positions that must be reached, exclusive.

        Raises:
            ModelError: the checkpoint's own RoPE cannot be extended this way.
        """

    def reach(self, base: RopeBase) -> int | None:  # noqa: ARG002
        """Return how many positions turn no further than the window did; None: as many as asked."""
        return None


@dataclass(frozen=True, kw_only=True)
class NoExtension(RopeExtension):
    """Leave the frequencies as they are."""

    type: ClassVar[str] = "none"

    def apply(self, base: RopeBase, max_position: int) -> tuple[dict[str, Any], int]:
        return dict(base.parameters), max(base.window, max_position)

    def reach(self, base: RopeBase) -> int:
        return base.window


@dataclass(frozen=True, kw_only=True)
class _Stretched(RopeExtension):
    """What extensions by a factor share.

    Args:
        factor: s; None takes max_position / the checkpoint's window, at least 1.
    """

    factor: float | None = None

    def __post_init__(self) -> None:
        if self.factor is not None and self.factor < 1:
            raise RecipeError(
                f"rope {self.type}: factor is {self.factor}; it stretches the window and must be "
                "1 or more - leave it out to take max_position / window"
            )

    def reach(self, base: RopeBase) -> int | None:
        return None if self.factor is None else round(base.window * self.factor)

    def stretch(self, base: RopeBase, max_position: int) -> tuple[float, int]:
        """Return the factor and the new window.

        Raises:
            ModelError: the checkpoint's frequencies are stretched already.
        """
        rope_type = base.parameters.get("rope_type", "default")
        if rope_type != "default":
            raise ModelError(
                f"the checkpoint's own RoPE is {rope_type!r}, and {self.type} is defined on plain "
                "frequencies only; stretching it twice gives neither - use rope: none, or spell "
                "out rope: {type: parameters, parameters: {...}}"
            )
        factor = max(1.0, max_position / base.window) if self.factor is None else self.factor
        return factor, max(round(base.window * factor), max_position)


@dataclass(frozen=True, kw_only=True)
class Linear(_Stretched):
    """Divide every frequency by s (position interpolation).

    Source: Chen et al. 2023, arXiv 2306.15595.
    """

    type: ClassVar[str] = "linear"

    def apply(self, base: RopeBase, max_position: int) -> tuple[dict[str, Any], int]:
        factor, window = self.stretch(base, max_position)
        return {**base.parameters, "rope_type": "linear", "factor": factor}, window


@dataclass(frozen=True, kw_only=True)
class Ntk(_Stretched):
    """Raise the base to b s^(D/(D-2)): fast pairs keep their speed, the slowest turns s x slower.

    Args:
        factor: s.
        temperature: what attention logits are multiplied by, in training and after it. It lives
            in the config (as YaRN with factor 1, whose frequencies are plain), so every loader
            applies it; cos and sin are scaled by its root, each logit holds both.

    Source: the NTK-aware rule, as Peng et al. 2023, arXiv 2309.00071, write it down.
    Differs: `temperature` is ours.
    """

    type: ClassVar[str] = "ntk"
    temperature: float = 1.0

    def apply(self, base: RopeBase, max_position: int) -> tuple[dict[str, Any], int]:
        factor, window = self.stretch(base, max_position)
        dim = base.rotary_dim
        if dim <= 2:
            raise ModelError(
                f"rope ntk: {dim} dimensions of a head turn, and its exponent D/(D-2) needs more "
                "than 2; use rope: linear"
            )
        theta = base.parameters["rope_theta"] * factor ** (dim / (dim - 2))
        parameters = {**base.parameters, "rope_type": "default", "rope_theta": theta}
        if self.temperature != 1.0:
            parameters |= {
                "rope_type": "yarn",
                "factor": 1.0,
                "original_max_position_embeddings": window,
                "attention_factor": sqrt(self.temperature),
            }
        return parameters, window


@dataclass(frozen=True, kw_only=True)
class Yarn(_Stretched):
    """Stretch slow pairs, keep fast ones, and scale logits by (0.1 ln s + 1)^2.

    Args:
        factor: s.
        temperature: what attention logits are multiplied by; None takes YaRN's own value.

    Source: Peng et al. 2023, arXiv 2309.00071.
    Differs: `temperature` may replace the paper's value.
    """

    type: ClassVar[str] = "yarn"
    temperature: float | None = None

    def apply(self, base: RopeBase, max_position: int) -> tuple[dict[str, Any], int]:
        factor, window = self.stretch(base, max_position)
        parameters = {
            **base.parameters,
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": base.window,
        }
        if self.temperature is not None:
            parameters["attention_factor"] = sqrt(self.temperature)
        return parameters, window


@dataclass(frozen=True, kw_only=True)
class Spelled(RopeExtension):
    """Take `rope_parameters` as they are spelled out in the recipe, on top of the checkpoint's."""

    type: ClassVar[str] = "parameters"
    parameters: dict[str, Any] = field(default_factory=dict)

    def apply(self, base: RopeBase, max_position: int) -> tuple[dict[str, Any], int]:
        return {**base.parameters, **self.parameters}, max(base.window, max_position)


ROPE_EXTENSIONS: dict[str, type[RopeExtension]] = {
    extension.type: extension for extension in (NoExtension, Linear, Ntk, Yarn, Spelled)
}
