"""Adapters: a few new weights beside frozen ones, trained instead of them, through PEFT.

The model keeps its forward pass, so positions, masks, key biases and packs are as without one.
What an adapter needs of its base besides the weights is the RoPE that it was trained with: its
folder holds the config of the extended base, and it is not loaded without that.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from skipalign.errors import ModelError, RecipeError

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# What the config of the base must say for an adapter to find the positions it was trained with.
ROPE_KEYS = ("rope_parameters", "max_position_embeddings")
VIRTUAL_TOKENS = (
    "learns virtual tokens: they shift every position, or PEFT drops position_ids, so no skip "
    "would reach the model"
)
PROMPT_LEARNING = ("prompt_tuning", "prefix_tuning", "p_tuning", "multitask_prompt_tuning", "cpt")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What all adapters share: the low-rank update W + s B A of a linear layer. `type` names one.

    Args:
        r: rank of the update.
        alpha: s is alpha / r.
        dropout: of the update's input, in training.
        target_modules: names of the layers that get an update; None is every linear layer except
            the output layer.
        modules_to_save: names of modules trained and saved whole; None is the token embedding and
            all norms, [] none.

    Source: Hu et al. 2021, arXiv 2106.09685. Embedding and norms beside it: LongLoRA (Chen et al.
        2023, arXiv 2309.12307), where the update alone did not reach long contexts.
    """

    type: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("r", self.r), ("alpha", self.alpha)):
            if value < 1:
                raise RecipeError(f"adapter: {name} is {value}; it must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"adapter: dropout is {self.dropout}; it must be in [0, 1)")
        if self.target_modules == ():
            raise RecipeError(
                "adapter: target_modules is empty; name layers, or leave it out for all linear ones"
            )

    def quantization(self, dtype: "torch.dtype") -> Any | None:  # noqa: ARG002
        """Return how the base is loaded in fewer bits, or None."""
        return None


@dataclass(frozen=True, kw_only=True)
class Lora(Adapter):
    """The plain update, s = alpha / r."""

    type: ClassVar[str] = "lora"


@dataclass(frozen=True, kw_only=True)
class RsLora(Adapter):
    """The update with s = alpha / sqrt(r), which does not fade as r grows.

    Source: Kalajdzievski 2023, arXiv 2312.03732.
    """

    type: ClassVar[str] = "rslora"
    options: ClassVar[Mapping[str, Any]] = {"use_rslora": True}


@dataclass(frozen=True, kw_only=True)
class Dora(Adapter):
    """The update of a weight's direction, its length trained apart.

    Source: Liu et al. 2024, arXiv 2402.09353.
    """

    type: ClassVar[str] = "dora"
    options: ClassVar[Mapping[str, Any]] = {"use_dora": True}


@dataclass(frozen=True, kw_only=True)
class QLora(Adapter):
    """The plain update beside a base whose linear layers are held in 4 bits.

    Args:
        quantization_type: of the 4 bits.
        double_quantization: whether the scales are quantized too.

    Source: Dettmers et al. 2023, arXiv 2305.14314.
    """

    type: ClassVar[str] = "qlora"
    quantization_type: Literal["nf4", "fp4"] = "nf4"
    double_quantization: bool = True

    def quantization(self, dtype: "torch.dtype") -> Any:
        """Return the base's 4 bits; what is computed with them is in `dtype`.

        Raises:
            ModelError: bitsandbytes is not installed.
        """
        from importlib.util import find_spec

        from transformers import BitsAndBytesConfig

        if find_spec("bitsandbytes") is None:
            raise ModelError(
                "adapter qlora: bitsandbytes, which holds the base in 4 bits, is not installed; "
                "run pip install 'skipalign[qlora]', or use adapter: lora"
            )
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quantization_type,
            bnb_4bit_use_double_quant=self.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )


ADAPTERS: dict[str, type[Adapter]] = {each.type: each for each in (Lora, RsLora, Dora, QLora)}


def refuse_prompt_learning(value: Any) -> Any:
    """Return what a recipe gives as its adapter, unless it would put virtual tokens into rows.

    Raises:
        RecipeError: it would.
    """
    found = value.get("type") if isinstance(value, dict) else value
    name = str(found).lower().replace("-", "_")
    if name in PROMPT_LEARNING or name.replace("_", "") in ("ptuning", "prefixtuning"):
        raise RecipeError(f"{found!r} {VIRTUAL_TOKENS} - use {', '.join(ADAPTERS)}")
    return value


def refuse_virtual_tokens(model: Any) -> None:
    """Refuse a model that PEFT has wrapped with a prompt, whoever asked for it.

    Raises:
        ModelError: it is.
    """
    if learns_prompt(getattr(model, "active_peft_config", None)):
        raise ModelError(
            f"the model's adapter {VIRTUAL_TOKENS} - take it off, or use {', '.join(ADAPTERS)}"
        )


def learns_prompt(config: Any) -> bool:
    """Tell whether a config of PEFT puts virtual tokens into rows; None does not."""
    return bool(getattr(config, "is_prompt_learning", False))


def attach(model: Any, adapter: Adapter, *, base: str, revision: str | None, seed: int) -> Any:
    """Return the model with a new adapter, its other weights frozen.

    Args:
        model: of transformers.
        adapter: its settings.
        base: what the adapter's config names as its base: a folder or a hub id.
        revision: of the hub.
        seed: of the update's first values; the global random state stays as it is.

    Raises:
        ModelError: PEFT is not installed, or a name is of no layer of the model.
    """
    import torch

    peft = _peft()
    whole = adapter.modules_to_save
    whole = _embedding_and_norms(model) if whole is None else sorted(set(whole))
    targets = adapter.target_modules
    _check_names(model, "target_modules", targets or ())
    _check_names(model, "modules_to_save", whole)
    tied = _is_tied(model)
    if tied:
        _refuse_tied(model, whole, targets or ())
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules="all-linear" if targets is None else sorted(set(targets)),
        modules_to_save=whole or None,
        ensure_weight_tying=tied and _last_name(model, model.get_input_embeddings()) in whole,
        **adapter.options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            wrapped = peft.get_peft_model(model, config)
        except ValueError as error:
            first_line = str(error).splitlines()[0]
            raise ModelError(f"adapter {adapter.type}: {first_line}") from None
    written = wrapped.peft_config["default"]
    written.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base
    written.revision = revision
    return wrapped


def is_attached(model: Any) -> bool:
    """Tell whether a model carries an adapter."""
    return hasattr(model, "get_base_model")


def merged(model: Any) -> Any:
    """Return the plain model that a model with an adapter computes; the weights are changed."""
    plain = model.merge_and_unload()
    plain.tie_weights()
    return plain


def save(model: Any, folder: Path, state_dict: Mapping[str, Any] | None = None) -> None:
    """Write the adapter's weights and config, and no layer of the base.

    PEFT would otherwise ask the hub whether the base's vocabulary has grown.
    """
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=state_dict)


def base_of(path: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Return the base of an adapter and its revision, or None if there is no adapter at `path`.

    Raises:
        ModelError: the adapter is not one that can be loaded, or lacks its base's RoPE settings.
    """
    from transformers.utils.hub import cached_file

    local = Path(path).is_dir()
    missing_is_fine: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }

    def file(name: str) -> Path | None:
        if local:
            return Path(path, name) if Path(path, name).is_file() else None
        found = cached_file(path, name, revision=revision, **missing_is_fine)
        return Path(found) if found else None

    config = file(CONFIG)
    if config is None:
        return None
    written = _read(config)
    if written.get("peft_type") != "LORA" or not written.get("base_model_name_or_path"):
        raise ModelError(
            f"{path}: its adapter is {written.get('peft_type')!r} of the base "
            f"{written.get('base_model_name_or_path')!r}; LORA of a named base is required"
        )
    rope = file("config.json")
    missing = [key for key in ROPE_KEYS if not (_read(rope) if rope else {}).get(key)]
    if missing:
        raise ModelError(
            f"{path}: an adapter without {' and '.join(missing)} of the base that it was trained "
            "on (config.json beside it); on another RoPE it would answer nonsense - take the "
            "folder as it was saved, or put that base's config.json there"
        )
    if file(WEIGHTS) is None:
        raise ModelError(f"{path}: no {WEIGHTS}; only safetensors weights are read")
    return written["base_model_name_or_path"], written.get("revision")


def load(model: Any, path: str, *, revision: str | None = None) -> Any:
    """Return the base `model` with the adapter at `path`.

    Raises:
        ModelError: PEFT is not installed, or the adapter is of another model.
    """
    peft = _peft()
    try:
        loaded = peft.PeftModel.from_pretrained(model, path, revision=revision)
    except (ValueError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{path}: the adapter does not fit its base ({first_line}); give the base that it was "
            "trained on"
        ) from None
    return loaded.eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON ({error}); take the folder as it was saved") from None
    return found if isinstance(found, dict) else {}


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ModelError(
            "adapters need PEFT, which is not installed; run pip install 'skipalign[peft]'"
        ) from None
    return peft


def _embedding_and_norms(model: Any) -> list[str]:
    names = {_last_name(model, model.get_input_embeddings())}
    names |= {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm")
    }
    return sorted(names)


def _last_name(model: Any, wanted: Any) -> str:
    found = (name for name, module in model.named_modules() if module is wanted)
    return next(found, "").rpartition(".")[2]


def _check_names(model: Any, field: str, names: Iterable[str]) -> None:
    """Refuse a name that is of no module: PEFT passes over it where it finds another one."""
    modules = [name for name, _ in model.named_modules()]
    for name in names:
        if not any(module.endswith(name) for module in modules):
            known = sorted({module.rpartition(".")[2] for module in modules if module})
            shown = ", ".join(each for each in known if not each.isdigit())
            raise ModelError(
                f"adapter: {field} names {name!r}, which is no module of "
                f"{type(model).__name__}; it has {shown}"
            )


def _is_tied(model: Any) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def _refuse_tied(model: Any, whole: Iterable[str], targets: Iterable[str]) -> None:
    """Refuse to change one of two layers that share a weight: no plain model could hold it."""
    inner = _last_name(model, model.get_input_embeddings())
    outer = _last_name(model, model.get_output_embeddings())
    for field, names in (("modules_to_save", {outer}), ("target_modules", {inner, outer})):
        given = whole if field == "modules_to_save" else targets
        for name in given:
            if name.rpartition(".")[2] in names:
                raise ModelError(
                    f"adapter: {field} names {name!r}, whose weight is that of both {inner} and "
                    f"{outer}; name {inner} in modules_to_save, which trains both as one"
                )
