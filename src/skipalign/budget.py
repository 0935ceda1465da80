"""Trainings -> what they will cost: parameters, tokens, FLOPs, memory and hours of a GPU.

Beside each training stands the one that it saves: rows as long as the range of positions. Nothing
is loaded or run; the base's config, or its architecture file, is all that is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from skipalign.adapters import Adapter
from skipalign.borders import takes_borders
from skipalign.costs import LINEARS, PARTS, Load, LowRank, Mask, memory, token_flops
from skipalign.errors import RecipeError
from skipalign.plan import arguments_for_any_device, config_of, short_reaches
from skipalign.resolved import Training
from skipalign.shapes import shape_of

GIB = 2**30
USABLE = 0.9  # of a GPU's memory: the rest is the driver's, the kernels' and between tensors
MOST_GPUS = 64
# Assumed, not measured: what well-tuned training reaches. Computing layers twice costs a fourth.
MFU, MFU_WITH_CHECKPOINTING = 0.4, 0.3


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU by its maker's data sheet: dense tensor operations, no sparsity.

    Args:
        memory: bytes.
        bf16: bfloat16 operations a second.
        float32: float32 operations a second, without tensor cores.
    """

    memory: int
    bf16: float
    float32: float


GPUS = {
    "h100": Gpu(memory=80 * 10**9, bf16=989.4e12, float32=66.9e12),
    "h200": Gpu(memory=141 * 10**9, bf16=989.4e12, float32=66.9e12),
    "a100": Gpu(memory=80 * 10**9, bf16=312e12, float32=19.5e12),
    "l40s": Gpu(memory=48 * 10**9, bf16=362e12, float32=91.6e12),
    "rtx4090": Gpu(memory=24 * 10**9, bf16=165.2e12, float32=82.6e12),
}


def estimate(
    trainings: Sequence[Training],
    *,
    gpu: str = "h100",
    gpus: int = 1,
    shared: bool = False,
    mfu: float | None = None,
) -> dict[str, Any]:
    """Return what each method costs, with one seed, and the full-length training beside it.

    Args:
        trainings: of a recipe.
        gpu: one of GPUS.
        gpus: how many work together; each takes the recipe's per-device batch.
        shared: whether each holds a part of weights, gradients and optimizer, not a copy.
        mfu: share of the GPU's peak that the model's own operations reach.

    Returns:
        {gpu, gpus, methods: [{method, base, parameters, trained_parameters, window, steps,
        as_asked, full_length}], notes}; as_asked and full_length hold {rows, tokens_per_row,
        memory: {parts, peak, moment} in bytes, gpus_needed, ...}, with None for what depends on
        the number of steps where the recipe leaves it to the data; full_length is None without
        skips.

    Raises:
        SkipalignError: the base's numbers are not known, or a setting that cannot be planned.
    """
    known = known_gpu(gpu)
    if mfu is not None and not 0 < mfu <= 1:
        raise RecipeError(f"mfu is {mfu}; it is a share of the GPU's peak, in (0, 1]")
    once: dict[str, Training] = {}
    for training in trainings:
        if training.train:
            once.setdefault(training.method, training)
    if not once:
        raise RecipeError("no method of this recipe is trained; there is nothing to plan")
    notes = dict.fromkeys(f"warning: {each}" for each in short_reaches([*once.values()]))
    methods = [_Method(each, known, gpus, shared, mfu).found(notes) for each in once.values()]
    return {"gpu": gpu, "gpus": gpus, "methods": methods, "notes": list(notes)}


def known_gpu(name: str) -> Gpu:
    """Return what is known of a GPU.

    Raises:
        RecipeError: it is none of GPUS.
    """
    if name not in GPUS:
        raise RecipeError(f"no GPU {name!r} is known; give one of {', '.join(GPUS)}")
    return GPUS[name]


class _Method:
    """One training on GPUs of one kind."""

    def __init__(
        self, training: Training, gpu: Gpu, gpus: int, shared: bool, mfu: float | None
    ) -> None:
        config = config_of(training)
        if config is None:
            raise RecipeError(
                f"base {training.base.path} is not on this machine; name the numbers of its "
                "config, such as architecture: architectures/llama-2-7b.json"
            )
        self.training = training
        self.shape = shape_of(config, where=training.base.path)
        self.args = arguments_for_any_device(training)
        self.gpu, self.gpus, self.shards = gpu, gpus, gpus if shared else 1
        checkpointing = bool(self.args.activation_checkpointing)
        self.mfu = mfu or (MFU_WITH_CHECKPOINTING if checkpointing else MFU)

    def found(self, notes: dict[str, None]) -> dict[str, Any]:
        """Return the method's part of the plan; add what it does not count to `notes`."""
        training, args, shape = self.training, self.args, self.shape
        load, shares = self._load(), self._token_shares()
        mean = 1 / sum(share / tokens for tokens, share in shares.items())
        tokens = None
        if args.max_steps > 0:
            rows = load.rows * args.gradient_accumulation_steps * self.gpus
            tokens = round(args.max_steps * rows * mean)
        asked = self._costs(load, shares, tokens)
        full = self._at_full_length(load, tokens, mean, notes) if training.max_position else None
        if args.use_liger_kernel:
            note = "use_liger_kernel: its fused loss keeps no logits; no other saving is counted"
            notes[note] = None
        return {
            "method": training.method,
            "base": training.base.path,
            "parameters": shape.parameters,
            "trained_parameters": load.adapter.trained(shape) if load.adapter else shape.parameters,
            "window": shape.window,
            "max_position": training.max_position or None,
            "mfu": self.mfu,
            "steps": args.max_steps if args.max_steps > 0 else None,
            "as_asked": asked,
            "full_length": full,
        }

    def _at_full_length(
        self, load: Load, tokens: int | None, mean: float, notes: dict[str, None]
    ) -> dict[str, Any]:
        """Return the costs of the training that skips save: rows as long as positions reach."""
        reach, window = self.training.max_position, self.shape.window
        longer = replace(load, rows=1, tokens=reach, mask="none", accumulates=True)
        full = self._costs(longer, {reach: 1.0}, tokens)
        hours = full["gpu_hours"]
        of_samples = None if hours is None else hours * reach / mean
        if reach <= window:
            note = (
                f"{self.training.base.path}: its own window of {window:,} positions holds all "
                f"{reach:,} that are trained for; it may need no skips, see docs/when-not.md"
            )
            notes[note] = None
        return {**full, "gpu_hours_of_as_many_samples": of_samples}

    def _load(self) -> Load:
        training, args = self.training, self.args
        packing = training.packing
        rows = args.per_device_train_batch_size
        longest = max(source.max_tokens for source in training.sources)
        attention = training.base.attn_implementation
        mask: Mask = "padding" if rows > 1 and not attention.startswith("flash") else "none"
        told = training.key_bias is not None or (packing and packing.attention == "block_diagonal")
        if told and not takes_borders(attention):
            mask = "float"
        return Load(
            rows=rows,
            tokens=packing.max_tokens if packing else longest,
            weight_bytes=4 if training.base.dtype == "float32" else 2,
            autocast=bool(training.trainer.get("bf16") or training.trainer.get("fp16")),
            checkpointing=bool(args.activation_checkpointing),
            accumulates=args.gradient_accumulation_steps > 1,
            mask=mask,
            eager=attention == "eager",
            optimizer=str(getattr(args.optim, "value", args.optim)),
            adapter=_low_rank(training.adapter),
            shards=self.shards,
            whole_logits=not (args.use_liger_kernel or training.chunked_loss),
        )

    def _token_shares(self) -> dict[int, float]:
        """Return the share of the tokens by the length of their row, every row at its longest."""
        training = self.training
        if training.packing is not None:
            return {training.packing.max_tokens: 1.0}
        weights = [source.weight for source in training.sources]
        if any(weight is None for weight in weights):
            return {max(source.max_tokens for source in training.sources): 1.0}
        shares: dict[int, float] = {}
        total = sum(weight or 0 for weight in weights)
        for source, weight in zip(training.sources, weights, strict=True):
            shares[source.max_tokens] = shares.get(source.max_tokens, 0) + (weight or 0) / total
        return shares

    def _costs(
        self, load: Load, token_shares: Mapping[int, float], tokens: int | None
    ) -> dict[str, Any]:
        """Return memory and time of `tokens` in rows whose lengths are those of `token_shares`."""
        flops = sum(
            share * token_flops(self.shape, length, load.adapter)
            for length, share in token_shares.items()
        )
        in_bf16 = load.product_bytes == 2
        speed = (self.gpu.bf16 if in_bf16 else self.gpu.float32) * self.mfu / flops
        return {
            "rows": load.rows,
            "tokens_per_row": load.tokens,
            "tokens": tokens,
            "flops_per_token": round(flops),
            "flops": None if tokens is None else round(flops * tokens),
            "tokens_per_second": speed,
            "gpu_hours": None if tokens is None else tokens / speed / 3600,
            "memory": asdict(memory(self.shape, load)),
            "shards": load.shards,
            "gpus_needed": self._gpus_needed(load),
        }

    def _gpus_needed(self, load: Load) -> int | None:
        """Return how many GPUs must share weights, gradients and optimizer; None: none would do."""
        count = 1
        while count <= MOST_GPUS:
            if memory(self.shape, replace(load, shards=count)).peak <= USABLE * self.gpu.memory:
                return count
            count *= 2
        return None


def _low_rank(adapter: Adapter | None) -> LowRank | None:
    """Return what an adapter's settings train."""
    if adapter is None:
        return None
    targets = LINEARS if adapter.target_modules is None else adapter.target_modules
    if unknown := set(targets) - set(LINEARS):
        raise RecipeError(
            f"adapter.target_modules names {', '.join(sorted(unknown))}; a plan knows "
            f"{', '.join(LINEARS)}"
        )
    saved = adapter.modules_to_save
    saved = ("embed_tokens", "norm") if saved is None else saved
    return LowRank(
        r=adapter.r,
        targets=tuple(targets),
        dropout=adapter.dropout > 0,
        four_bit=adapter.type == "qlora",
        embeddings=len({"embed_tokens", "lm_head"} & set(saved)),
        norms=any("norm" in each for each in saved),
    )


# ------------------------------------------------------------------------------- as text


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `estimate` found as lines of text: memory, time, then what it rests on."""
    gpu = GPUS[found["gpu"]]
    memory_rows = [["method", "rows", "tokens a row", *PARTS, "most at one time", "fits"]]
    time_rows = [["method", "steps", "tokens", "FLOPs", "tokens a second", "GPU hours"]]
    for method in found["methods"]:
        for name, costs in _named(method):
            memory_rows.append(_memory_row(name, costs))
            time_rows.append(_time_row(name, method, costs))
    first = found["methods"][0]
    return [
        f"{first['base']}: {first['parameters']:,} parameters, window {first['window']:,}",
        "",
        f"memory of each GPU, GiB ({found['gpu']}: {gpu.memory / GIB:.0f} GiB, of which "
        f"{USABLE:.0%} are filled)",
        *_table(memory_rows),
        "",
        f"time on {found['gpus']} x {found['gpu']}, rows as long as they may be",
        *_table(time_rows),
        "",
        *_assumptions(found),
        *found["notes"],
    ]


def _named(method: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    rows = [(method["method"], method["as_asked"])]
    if method["full_length"] is not None:
        rows.append(("  at full length", method["full_length"]))
    return rows


def _memory_row(name: str, costs: Mapping[str, Any]) -> list[str]:
    parts, needed = costs["memory"]["parts"], costs["gpus_needed"]
    fits = {None: "not at all", 1: "1 GPU"}.get(needed, f"{needed} GPUs, shared")
    sizes = [f"{parts[part] / GIB:.1f}" for part in PARTS]
    peak = f"{costs['memory']['peak'] / GIB:.1f} {costs['memory']['moment']}"
    return [name, str(costs["rows"]), f"{costs['tokens_per_row']:,}", *sizes, peak, fits]


def _time_row(name: str, method: Mapping[str, Any], costs: Mapping[str, Any]) -> list[str]:
    steps = "-" if method["steps"] is None else f"{method['steps']:,}"
    tokens, flops, hours = costs["tokens"], costs["flops"], costs["gpu_hours"]
    shown_hours = "-" if hours is None else f"{hours:.1f}"
    samples = costs.get("gpu_hours_of_as_many_samples")
    if samples is not None:
        shown_hours += f" ({samples:.1f} for as many samples)"
    return [
        name,
        steps,
        "-" if tokens is None else f"{tokens:,}",
        "-" if flops is None else f"{flops:.2e}",
        f"{costs['tokens_per_second']:,.0f}",
        shown_hours,
    ]


def _assumptions(found: Mapping[str, Any]) -> list[str]:
    shares = sorted({method["mfu"] for method in found["methods"]})
    used = " or ".join(f"{share:.0%}" for share in shares)
    return [
        "FLOPs: 6 a weight and token (4 where it is frozen), 6 H D T a layer and token for causal",
        f"attention (PaLM, arXiv 2204.02311, appendix B); assumed MFU {used}. Memory: the sums of",
        "skipalign/costs.py, held against measurements in benchmarks/results/plan-memory.json.",
        "shared: each GPU holds a part of weights, gradients and optimizer (docs/many-gpus.md).",
        "At full length: one row a pass, as many tokens in all. Logits stand",
        "whole, but for chunked_loss and trainer.use_liger_kernel, counted as none.",
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
