"""The numbers of a model and of a training -> parameters, FLOPs and memory, by arithmetic alone.

For decoders with a gated feed-forward: Llama, Mistral, Qwen2, Qwen3. Every term is a tensor that
transformers, with sdpa or eager attention, keeps for the backward pass; `benchmarks/plan_memory.py`
holds the sums against what is measured.

Shape letters: B rows, T tokens of a row, L layers, H heads, D head dimension, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from skipalign.errors import RecipeError

Mask = Literal["none", "padding", "float"]

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Bytes that an optimizer keeps per trained parameter: (a fixed part, times the weight's bytes).
OPTIMIZERS = {
    "adamw_torch": (0, 2),
    "adamw_torch_fused": (0, 2),
    "adamw_bnb_8bit": (2, 0),
    "adamw_8bit": (2, 0),
    "paged_adamw_8bit": (2, 0),
    "sgd": (0, 0),
}
# NF4 with doubly quantized constants: 4 bits and 0.127 (Dettmers et al. 2023, arXiv 2305.14314).
_FOUR_BIT_BYTES = 4.127 / 8
_READ_FROM = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention"),
    **dict.fromkeys(("gate_proj", "up_proj"), "feed-forward"),
}
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "temporary")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of an architecture that costs depend on.

    Args:
        num_layers: L.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward.
        num_heads: H, of queries.
        num_kv_heads: of keys and values.
        head_dim: D.
        vocab_size: V.
        tied: whether input and output embedding are one.
        qkv_bias: whether queries, keys and values have a bias (Qwen2).
        qk_norm: whether queries and keys are normalised per head (Qwen3).
        window: positions that the checkpoint was trained for.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    window: int
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def q(self) -> int:
        """Width of all queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all keys, or all values, of a token."""
        return self.num_kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices, by name."""
        h, f = self.hidden_size, self.intermediate_size
        sizes = ((h, self.q), (h, self.kv), (h, self.kv), (self.q, h), (h, f), (h, f), (f, h))
        return dict(zip(LINEARS, sizes, strict=True))

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer that multiply."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def matrices(self) -> int:
        """Weights that multiply every token: the layers' matrices and the output embedding."""
        return self.num_layers * self.layer_matrices + self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights."""
        layer = self.layer_matrices + 2 * self.hidden_size
        layer += (self.q + 2 * self.kv) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.num_layers * layer + embeddings + self.hidden_size


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Low-rank adapters: the base is frozen, r x (inputs + outputs) weights train for a matrix.

    Args:
        r: the rank.
        targets: names of the matrices, of LINEARS.
        dropout: whether the adapters' input is dropped out.
        four_bit: whether the base's matrices are kept in four bits.
        embeddings: how many of input and output embedding train as a whole.
        norms: whether all norms train as well.
    """

    r: int
    targets: Collection[str]
    dropout: bool = False
    four_bit: bool = False
    embeddings: int = 0
    norms: bool = False

    def added(self, shape: Shape) -> int:
        """Return how many weights the low ranks have."""
        sizes = [shape.linears[name] for name in self.targets]
        return shape.num_layers * sum(self.r * (inputs + outputs) for inputs, outputs in sizes)

    def copied(self, shape: Shape) -> int:
        """Return how many of the base's weights train, in a copy of their own."""
        norms = shape.hidden_size + shape.num_layers * (
            2 * shape.hidden_size + 2 * shape.head_dim * shape.qk_norm
        )
        return self.embeddings * shape.vocab_size * shape.hidden_size + norms * self.norms

    def trained(self, shape: Shape) -> int:
        """Return how many weights train."""
        return self.added(shape) + self.copied(shape)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one step of one device computes.

    Args:
        rows: B, in one forward pass.
        tokens: T, of each row.
        weight_bytes: of a weight: 4 or 2.
        autocast: whether matrices multiply in bfloat16 whatever the weights are.
        checkpointing: whether layers are computed again in the backward pass.
        accumulates: whether gradients stand while the next rows are computed.
        mask: what attention is given: nothing, a padding mask, or a float mask (key bias, packs).
        eager: whether attention keeps its T x T weights.
        optimizer: its name in TrainingArguments.
        adapter: None trains all weights.
        shards: devices that share weights, gradients and optimizer; 1 is a copy on each.
        whole_logits: whether the loss is computed from all logits at once; a fused loss keeps none.
    """

    rows: int
    tokens: int
    weight_bytes: int = 4
    autocast: bool = False
    checkpointing: bool = False
    accumulates: bool = False
    mask: Mask = "none"
    eager: bool = False
    optimizer: str = "adamw_torch_fused"
    adapter: LowRank | None = None
    shards: int = 1
    whole_logits: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(
                f"trainer.optim is {self.optimizer!r}; what it keeps in memory is known for "
                f"{', '.join(OPTIMIZERS)} - use one of them to plan"
            )

    @property
    def product_bytes(self) -> int:
        """Bytes of what matrices multiply."""
        return 2 if self.autocast else self.weight_bytes

    @property
    def casts(self) -> bool:
        """Whether every matrix multiplies a copy of its input and of its weights."""
        return self.autocast and self.weight_bytes != 2


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    Args:
        parts: the largest that each of PARTS becomes; they do not all stand at one time.
        peak: the most that stands at one time.
        moment: when.
    """

    parts: dict[str, int]
    peak: int
    moment: str


def token_flops(shape: Shape, tokens: int, adapter: LowRank | None = None) -> int:
    """Return the floating-point operations of training on one token, nothing computed twice.

    A weight multiplies and adds once forwards and twice backwards, 6 in all; 4 where it is frozen.
    Queries meet keys and weights meet values: 12 H D T per layer, of which causality leaves half.

    Args:
        shape: of the model.
        tokens: of the token's row.
        adapter: None trains all weights.

    Source: PaLM (Chowdhery et al. 2022, arXiv 2204.02311), appendix B, on model FLOPs utilisation.
    Differs: causal attention counts half, and a token's lookup in the input embedding nothing.
    """
    attention = 6 * shape.num_layers * shape.q * tokens
    if adapter is None:
        return 6 * shape.matrices + attention
    return 4 * shape.matrices + 6 * adapter.added(shape) + attention


def memory(shape: Shape, load: Load) -> Memory:
    """Return what one step needs at most, once the optimizer has its state.

    The loss is computed in float32 from all logits of the pass: their log-softmax, and two
    gradients of that size, stand together when the backward pass begins.
    """
    num_tokens = load.rows * load.tokens
    weights, gradients, optimizer = (size / load.shards for size in _state_bytes(shape, load))
    layer = num_tokens * _layer_bytes(shape, load) + _mask_bytes_of_a_layer(load)
    kept = shape.num_layers * layer
    if load.checkpointing:
        kept = shape.num_layers * num_tokens * shape.hidden_size * load.weight_bytes
    kept += num_tokens * _norm_bytes(shape.hidden_size, load, linears=1)
    logits = 12 * num_tokens * shape.vocab_size * load.whole_logits
    flow = num_tokens * load.product_bytes * (3 * shape.intermediate_size + 2 * shape.hidden_size)
    again = layer * load.checkpointing
    copies = _copied_bytes(shape, load)
    gathered = _mask_bytes(load) + _gathered_bytes(shape, load)
    standing = gradients * load.accumulates
    moments = {
        "at the loss": kept + logits + copies + standing,
        "as the backward pass begins": kept + flow + again + standing,
        "as the backward pass ends": gradients + flow + layer,
        "in the optimizer's step": gradients + optimizer / 2 * (load.optimizer == "adamw_torch"),
    }
    moment = max(moments, key=lambda name: moments[name])
    parts = (weights, gradients, optimizer, kept, logits, gathered + copies + flow + again)
    return Memory(
        parts={name: round(size) for name, size in zip(PARTS, parts, strict=True)},
        peak=round(weights + optimizer + gathered + moments[moment]),
        moment=moment,
    )


def _state_bytes(shape: Shape, load: Load) -> tuple[float, float, float]:
    """Return the bytes of all weights, of gradients and of the optimizer, on one device alone."""
    fixed, times = OPTIMIZERS[load.optimizer]
    size = load.weight_bytes
    if load.adapter is None:
        count = shape.parameters
        return count * size, count * size, count * (fixed + times * size)
    in_layers = shape.num_layers * shape.layer_matrices
    base = in_layers * (_FOUR_BIT_BYTES if load.adapter.four_bit else size)
    base += (shape.parameters - in_layers) * size
    added, copied = load.adapter.added(shape), load.adapter.copied(shape)
    trained = 4 * added + size * copied  # low ranks are kept in float32
    return base + trained, trained, fixed * (added + copied) + times * trained


def _layer_bytes(shape: Shape, load: Load) -> float:
    """Return what one layer keeps of one token for the backward pass."""
    product = load.product_bytes
    found = _norm_bytes(shape.hidden_size, load, linears=3)
    found += _norm_bytes(shape.hidden_size, load, linears=2)
    # Keys and values are repeated for each head of the queries where there is a mask.
    repeated = load.mask != "none" or load.eager
    kv = shape.q if repeated else shape.kv
    found += product * (2 * shape.q + 2 * kv)
    if shape.qk_norm:
        trained = load.adapter is None or load.adapter.norms
        found += (4 + product * trained) * (shape.q + shape.kv)
        found += 4 * (shape.num_heads + shape.num_kv_heads)
    if load.eager:  # the softmax in float32, and what multiplies the values
        found += shape.num_heads * load.tokens * (4 + product * (product != 4))
    else:
        found += 4 * shape.num_heads  # log-sum-exp
    products = 4 if load.adapter is None else 3  # gate, its activation, up, and their product
    found += products * product * shape.intermediate_size
    if load.adapter is not None:
        found += _adapter_bytes(shape, load, load.adapter)
    return found


def _norm_bytes(size: int, load: Load, *, linears: int) -> float:
    """Return what a norm keeps of one token: its input and output, and the copies for matrices."""
    found = 4 * size + 4  # in float32, and the root of its mean square
    if load.adapter is None or load.adapter.norms:
        found += load.weight_bytes * size  # a frozen weight needs none of it for its gradient
    if load.adapter is not None:
        return found
    return found + size * (2 * linears if load.casts else load.weight_bytes)


def _adapter_bytes(shape: Shape, load: Load, adapter: LowRank) -> float:
    """Return what the adapters of one layer keep of one token: their input, and its low rank.

    Without a cast or dropout, those that read the same share it.
    """
    read = 2 if load.autocast else 4  # in a bfloat16 model adapters read a copy in float32
    shares = load.weight_bytes == 4 and not load.autocast and not adapter.dropout
    inputs: dict[str, int] = {}
    for name in adapter.targets:
        place = _READ_FROM.get(name, name) if shares else name
        inputs[place] = shape.linears[name][0]
    if shares:
        inputs.pop("o_proj", None)  # attention keeps what it returns
    masks = sum(inputs.values()) if adapter.dropout else 0
    return read * (sum(inputs.values()) + adapter.r * len(adapter.targets)) + masks


def _mask_bytes(load: Load) -> int:
    """Return the mask of a batch, and the one beside it in the precision of what it is added to."""
    square = load.rows * load.tokens**2
    if load.mask == "float":
        added_to = load.weight_bytes if load.eager else load.product_bytes
        return square * (4 + 2 * (added_to == 2))
    return square if load.mask == "padding" else 0


def _mask_bytes_of_a_layer(load: Load) -> int:
    """Return the mask that each layer keeps for itself, where it makes a float one of booleans."""
    if load.mask != "padding" or load.eager:
        return 0
    return load.rows * load.tokens**2 * load.product_bytes


def _gathered_bytes(shape: Shape, load: Load) -> int:
    """Return the whole weights of two layers, or of an embedding, where each device has a part."""
    if load.shards == 1:
        return 0
    whole = max(2 * shape.layer_matrices, shape.vocab_size * shape.hidden_size)
    return whole * load.product_bytes


def _copied_bytes(shape: Shape, load: Load) -> int:
    """Return autocast's copies of the weights; sharded weights are gathered in that precision."""
    return 2 * shape.matrices if load.casts and load.shards == 1 else 0
