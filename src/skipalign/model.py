"""Checkpoint -> model and tokenizer: loading, RoPE extension, saving so that any loader agrees.

Weights are read from safetensors only, and no code of a checkpoint is ever run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import PretrainedConfig as Config
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from skipalign import adapters, tiny
from skipalign.adapters import Adapter
from skipalign.errors import ModelError
from skipalign.files import disk_faults_of, write_text
from skipalign.progress import Bar, Progress, Silent, counted
from skipalign.rope import BATCH_DEPENDENT, NoExtension, RopeBase, RopeExtension

# The first release that writes and reads `rope_parameters`.
MINIMUM_TRANSFORMERS = "5.0"
DTYPES = ("float32", "bfloat16", "float16")
_SILENT = Silent()
# Kinds of layers, in the words of transformers' `layer_types`, that see tokens by attention alone.
ATTENDING = ("full_attention", "sliding_attention", "chunked_attention")


def load_tokenizer(path: str, *, revision: str | None = None) -> Tokenizer:
    """Load the tokenizer of an embedded base (`tiny`, `tiny-N`), a local folder or a hub id.

    Raises:
        ModelError: there is none, or it would need code of the checkpoint.
    """
    place = tiny.tokenizer_of(path)
    with _loading("tokenizer", path):
        return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)


def load_config(path: str, *, revision: str | None = None) -> Config:
    """Load the config of an embedded base (`tiny`, `tiny-N`), a local folder or a hub id.

    Raises:
        ModelError: there is none, or it would need code of the checkpoint.
    """
    place = tiny.found(path)
    with _loading("config", path):
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)


def load_model(
    path: str,
    *,
    revision: str | None = None,
    rope: RopeExtension | None = None,
    max_position: int | None = None,
    skips: bool = False,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    adapter: Adapter | None = None,
    base: str | None = None,
    seed: int = 0,
    progress: Progress = _SILENT,
) -> Model:
    """Load a causal language model, its RoPE extended, ready for positions in [0, max_position).

    A folder with an adapter is loaded with its base, in the RoPE settings that it was saved with.

    Args:
        path: an embedded base (`tiny`, or `tiny-N` once it is made), a local folder or a hub id.
        revision: of the hub.
        rope: how to extend; None leaves the checkpoint as it is.
        max_position: positions that the model must reach, exclusive; None is its own window.
        skips: whether position ids will skip; refuses what is wrong with skipped positions.
        dtype: of the weights: float32, bfloat16 or float16.
        attn_implementation: of transformers: sdpa, eager, flex_attention, flash_attention_2.
        adapter: a new one to train beside the frozen weights.
        base: of the adapter at `path`, where it no longer lies where its config says.
        seed: of a new adapter's first values.
        progress: where to report weights.

    Raises:
        ModelError: the checkpoint cannot be loaded or cannot be used for what is asked.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    path = tiny.found(path)
    found = adapters.base_of(path, revision)
    if found is not None and (rope is not None or adapter is not None):
        raise ModelError(
            f"{path}: is an adapter, which cannot be trained on or extended - make a plain model "
            f"of it first: skipalign merge {path} OUT"
        )
    config = load_config(path, revision=revision)
    if rope is not None:
        extend(config, rope, max_position, where=path)
    if skips:
        refuse_skips(config, max_position or config.max_position_embeddings, where=path)
    options: dict[str, Any] = {"attn_implementation": attn_implementation}
    options["dtype"] = getattr(torch, dtype)
    if found is not None:
        weights, of_base = (base, None) if base else found
        model = _load_weights(weights, config, progress, revision=of_base, **options)
        return adapters.load(model, path, revision=revision)
    if adapter is not None:
        options["quantization_config"] = adapter.quantization(options["dtype"])
    model = _load_weights(path, config, progress, revision=revision, **options)
    if adapter is None:
        return model
    return adapters.attach(model, adapter, base=path, revision=revision, seed=seed)


@contextmanager
def files_told(progress: Progress) -> Generator[None]:
    """While open, the weights that transformers reads and writes are told to `progress`."""

    def told(made: Callable[..., Any], items: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not items:
            return made(*items, **options)
        return counted(progress, str(options.get("desc", "load")).lower(), items[0])

    before = logging.set_tqdm_hook(told)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _load_weights(path: str, config: Config, progress: Progress, **options: Any) -> Any:
    with _loading("model", path), files_told(progress):
        return AutoModelForCausalLM.from_pretrained(  # nosec B615 # options hold the revision
            path, config=config, use_safetensors=True, trust_remote_code=False, **options
        )


def weights_digest(path: str, progress: Progress = _SILENT) -> str | None:
    """Return blake2b of the *.safetensors in a local folder, read in order; None for a hub id."""
    files = sorted(Path(path).glob("*.safetensors"))
    stats = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    if files and stats not in _digests:
        mebibytes = sum(size for _, size, _ in stats) >> 20
        with progress.bar("digest of the weights, MiB", mebibytes) as bar:
            _digests[stats] = _files_digest(files, bar)
    return _digests[stats] if files else None


_digests: dict[tuple[tuple[Path, int, int], ...], str] = {}  # of files as they were in this process


def _files_digest(files: Sequence[Path], bar: Bar) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
                bar.advance()
    return digest.hexdigest()


def extend(config: Config, rope: RopeExtension, max_position: int | None, *, where: str) -> None:
    """Write the extended `rope_parameters` and `max_position_embeddings` into `config`.

    Raises:
        ModelError: the model has no RoPE, or one that this extension cannot be applied to.
    """
    base = rope_base(config, where=where)
    _refuse_temperature(config, rope, base, where=where)
    try:
        parameters, window = rope.apply(base, max_position or base.window)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    if isinstance(rope, NoExtension) and window == base.window:
        return
    config.rope_parameters = parameters
    config.max_position_embeddings = window


def _refuse_temperature(config: Config, rope: RopeExtension, base: RopeBase, *, where: str) -> None:
    """Refuse a temperature that would reach a part of the logits alone: it comes with RoPE."""
    asked = getattr(rope, "temperature", None)
    if asked in (None, 1.0):
        return
    turning = base.rotary_dim if getattr(config, "qk_nope_head_dim", 0) == 0 else 0
    layers = getattr(config, "no_rope_layers", None) or (1,)
    if turning < base.head_dim or not all(layers):
        raise ModelError(
            f"{where}: rope {rope.type} with temperature {asked:g}: it comes with the rotary "
            f"embedding, and in {config.model_type} some dimensions or layers do not turn, whose "
            "logits it would not reach - leave temperature out"
        )


def rope_base(config: Config, *, where: str) -> RopeBase:
    """Return the checkpoint's own frequencies and window.

    Raises:
        ModelError: the model has no RoPE, or one per kind of layer.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise ModelError(
            f"{where}: {config.model_type} has no rotary position embedding (its config has no "
            "rope_parameters); skipped positions and RoPE extension need one - choose a model "
            "with RoPE, such as Llama, Mistral or Qwen"
        )
    if any(isinstance(value, dict) for value in parameters.values()):
        raise ModelError(
            f"{where}: {config.model_type} has one RoPE per kind of layer "
            f"({', '.join(parameters)}); extending them is not supported - choose a model with "
            "one RoPE"
        )
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return RopeBase(dict(parameters), head_dim, config.max_position_embeddings)


def refuse_skips(config: Config, max_position: int, *, where: str) -> None:
    """Refuse models whose attention would be wrong under skipped positions.

    Raises:
        ModelError: no RoPE; frequencies chosen from the largest position of a batch; layers that
            see less than the positions that are trained for, or that keep a state.
    """
    rope_type = rope_base(config, where=where).parameters.get("rope_type", "default")
    if rope_type in BATCH_DEPENDENT:
        raise ModelError(
            f"{where}: rope_type {rope_type!r} chooses its frequencies from the largest position "
            "of the whole batch, so one skipped row changes every other; spell out fixed ones "
            "(rope: {type: yarn, factor: ...}) for training with skips"
        )
    window = sliding_window(config)
    if window is not None and window < max_position:
        raise ModelError(
            f"{where}: some layers see {window:,} tokens back (sliding_window), fewer than "
            f"max_position {max_position:,}; what skips teach would not reach them - lower "
            "max_position or choose a model with full attention"
        )
    counted = getattr(config, "floor_scale", max_position)
    if getattr(config, "attn_temperature_tuning", False) and counted < max_position:
        raise ModelError(
            f"{where}: the temperature of its attention follows the number of tokens, not the "
            f"positions, from {counted:,} on (floor_scale), so a skipped row has another than the "
            f"long one - lower max_position to {counted:,}"
        )
    if others := stateful_layers(config):
        raise ModelError(
            f"{where}: layers of kind {', '.join(others)} do not attend by position alone: a "
            "state or convolution passes over no gap, so a skipped row is not to them what the "
            "long one is - choose a model with attention in all layers"
        )


def stateful_layers(config: Config) -> list[str]:
    """Return the kinds of layers that carry a state or convolution along the row."""
    return sorted(set(getattr(config, "layer_types", None) or ()) - set(ATTENDING))


def sliding_window(config: Config) -> int | None:
    """Return the shortest look-back of any layer, in tokens, or None for full attention.

    A chunk of chunked attention counts as one: tokens look back no further than its begin.
    """
    layers = getattr(config, "layer_types", None)
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None and "chunked_attention" in (layers or ()):
        return int(chunk)
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    if layers is not None and not any("sliding" in layer for layer in layers):
        return None
    return int(window)


def save_model(
    model: Any, tokenizer: Tokenizer, folder: Path, weights: Mapping[str, Any] | None = None
) -> None:
    """Save weights, config, tokenizer and generation config; make config.json readable by all.

    transformers 5 writes `rope_parameters` only. A loader that knows the older keys alone would
    take its default theta without a word, so they are written beside it. Of a model with an
    adapter only that is saved, with the same config: without it the adapter finds other positions.

    Args:
        model: what is saved.
        tokenizer: its tokenizer.
        folder: where to.
        weights: of a model that holds only shards of them; None are its own.
    """
    with disk_faults_of(folder):
        if adapters.is_attached(model):
            adapters.save(model, folder, weights)
            model.config.save_pretrained(folder)
        else:
            model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)  # of a base in 4 bits, which the adapter does not need
    parameters = config.get("rope_parameters")
    if parameters:
        config["rope_theta"] = parameters["rope_theta"]
        if parameters.get("rope_type", "default") != "default":
            config["rope_scaling"] = {**parameters, "type": parameters["rope_type"]}
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def merge(
    path: str,
    out: Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Write an adapter and its base as one plain model, which loads without skipalign and PEFT.

    Args:
        path: folder or hub id of the adapter.
        out: folder of the plain model; it must not be there.
        base: of the adapter, where it no longer lies where its config says.
        dtype: of the weights; None is that of the base.
        progress: where to report: loading, reading before and after, writing.

    Returns:
        {dtype, change, largest}: by how much a logit changed at most at far positions, and the
        largest logit.

    Raises:
        ModelError: no adapter, or one that cannot be loaded; or `out` is there already.
    """
    if adapters.base_of(path) is None:
        raise ModelError(f"{path}: no {adapters.CONFIG}, so it is no adapter; give one")
    if out.exists():
        raise ModelError(f"{out}: is there already; give a new folder, or remove it")
    saved = str(load_config(path).dtype).removeprefix("torch.")
    dtype = dtype or (saved if saved in DTYPES else "float32")
    with progress.bar("merge", 4) as bar:
        model = load_model(path, base=base, dtype=dtype)  # its own bar would be a second one
        bar.advance()
        before = _far_logits(model)
        bar.advance()
        plain = adapters.merged(model)
        change = float((_far_logits(plain) - before).abs().max())
        bar.advance()
        aside = out.with_name(f".{out.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        save_model(plain, load_tokenizer(path), aside)
        os.replace(aside, out)
        bar.advance()
    return {"dtype": dtype, "change": change, "largest": float(before.abs().max())}


def _far_logits(model: Any) -> torch.Tensor:
    """Return logits of a few tokens that lie as far apart as the window allows."""
    window = model.config.max_position_embeddings
    num_ids = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 17, device=model.device)[None] * 7919 % num_ids
    positions = torch.linspace(0, window - 1, 16, device=model.device).long()[None]
    with torch.no_grad():
        output = model(ids, attention_mask=torch.ones_like(ids), position_ids=positions)
    return output.logits.float()


@contextmanager
def _loading(part: str, path: str) -> Generator[None]:
    """While open, what transformers raises names the part and the path."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(_load_message(part, path, error)) from None


def _load_message(part: str, path: str, error: Exception) -> str:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    hint = "give a folder with config.json and *.safetensors, or a hub id that can be reached"
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        hint = "it needs code of the checkpoint, which is never run here"
    elif path.startswith((".", "/", "~")) and not Path(path).expanduser().exists():
        first_line = "no such folder"  # the hub's word for it is that this is no id
    elif "safetensors" in str(error):
        hint = "only safetensors weights are read; convert the checkpoint with save_pretrained"
    return f"{path}: cannot load its {part} ({first_line}); {hint}"
