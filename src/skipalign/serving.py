"""Is the model that others load the model that was trained? Log-probabilities beyond the window.

A RoPE extension lives in config.json. A loader that reads it otherwise, or a copy that lost it,
still answers short prompts well; only far positions tell. So a long text is read twice or three
times: by the weights in the config that training had, made anew from base and recipe; by plain
transformers from the folder, without positions or mask of ours; and by vLLM where it is installed.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoModelForCausalLM

from skipalign import adapters
from skipalign.errors import ModelError
from skipalign.evaluation.haystack import read_haystack
from skipalign.files import read_json
from skipalign.model import extend, files_told, load_config, load_model, load_tokenizer
from skipalign.progress import Progress, Silent
from skipalign.rope import ROPE_EXTENSIONS
from skipalign.transformers_engine import TransformersGenerator
from skipalign.vllm_engine import load_vllm

LONGEST = 8192  # tokens that are read where no length is asked for
# Nats between two readings of a token, by the dtype of the weights: rounding, not another RoPE.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}

_SILENT = Silent()


def verify_export(
    path: str, *, length: int | None = None, progress: Progress = _SILENT
) -> dict[str, Any]:
    """Compare what loaders make of a model folder, over the second half of a long text.

    Args:
        path: a model folder; in a training's folder its RoPE is made anew from base and settings.
        length: tokens to read; the model's window, at most 8,192, when None.
        progress: where to report readings.

    Returns:
        the tokens compared, for every loader the largest difference in nats per token and whether
        it is within rounding, and the commands that serve the model.

    Raises:
        ModelError: an adapter, or a length that the model does not take.
    """
    if adapters.base_of(path, None) is not None:
        raise ModelError(
            f"{path}: is an adapter, which other loaders read without its RoPE - "
            f"serve the plain model of: skipalign merge {path} OUT"
        )
    config, tokenizer = load_config(path), load_tokenizer(path)
    window = int(config.max_position_embeddings)
    tokens = min(window, LONGEST) if length is None else length
    if not 4 <= tokens <= window:
        raise ModelError(f"length is {tokens}; {path} takes 4 to {window} tokens")
    ids = _text(tokenizer, tokens)
    start = tokens // 2
    loaders: dict[str, Callable[[], Float[np.ndarray, " N"]]] = {
        "transformers": lambda: _plainly(path, ids, start)
    }
    if find_spec("vllm"):
        loaders["vllm"] = lambda: _by_vllm(path, ids, start)
    reading = progress.bar(f"read {tokens:,} tokens", 1 + len(loaders))
    with reading as bar, files_told(Silent()):
        trained = _as_trained(path)
        ours = TransformersGenerator(trained, tokenizer).log_likelihoods([ids], [start])[0]
        bar.advance()
        tolerance = TOLERANCES.get(str(trained.dtype).removeprefix("torch."), 1e-3)
        compared: dict[str, dict[str, Any]] = {}
        for name, read in loaders.items():
            compared[name] = _difference(ours, read(), tolerance)
            bar.advance()
    return {
        "model": path,
        "tokens": tokens,
        "first_compared": start,
        "tolerance": tolerance,
        "reference": "base and settings of the training" if _settings(path) else "the folder",
        "loaders": compared,
        "ok": all(each["ok"] for each in compared.values()),
        "serve": [
            f"vllm serve {path} --max-model-len {window}",
            f"transformers serve --force-model {path}",
        ],
    }


def _difference(
    ours: Float[np.ndarray, " N"], theirs: Float[np.ndarray, " N"], tolerance: float
) -> dict[str, Any]:
    largest = float(np.abs(ours - theirs).max())
    return {"largest_difference": round(largest, 6), "ok": largest <= tolerance}


def _text(tokenizer: Any, tokens: int) -> list[int]:
    """Return the first tokens of the built-in prose, from the top again where it ends."""
    ids: list[int] = list(tokenizer(read_haystack(None))["input_ids"])
    return (ids * (tokens // len(ids) + 1))[:tokens]


def _settings(path: str) -> dict[str, Any] | None:
    """Return the settings of the training that made a folder, or None."""
    file = Path(path).resolve().parent / "training.json"
    return read_json(file) if file.exists() else None


def _as_trained(path: str) -> Any:
    """Load the folder's weights into the config that training had."""
    settings = _settings(path)
    if settings is None:
        return load_model(path)
    base = settings["base"]["path"]
    config = load_config(base, revision=settings["base"]["revision"])
    rope = dict(settings["rope"])
    extension = ROPE_EXTENSIONS[rope.pop("type")](**rope)
    reach = max(each.get("max_position", 0) for each in settings["strategies"].values())
    extend(config, extension, reach or None, where=base)
    return AutoModelForCausalLM.from_pretrained(  # nosec B615 # the folder under test
        path, config=config, use_safetensors=True, trust_remote_code=False, dtype="auto"
    )


@torch.no_grad()
def _plainly(path: str, ids: Sequence[int], start: int) -> Float[np.ndarray, " N"]:
    """Read the text as any script with transformers would: no mask, no positions, no cache."""
    model: Any = AutoModelForCausalLM.from_pretrained(  # nosec B615 # the folder under test
        path, use_safetensors=True, trust_remote_code=False, dtype="auto"
    ).eval()
    tokens = torch.tensor([list(ids)])
    logits = model(tokens, use_cache=False).logits[0, start - 1 : -1].float()
    told = logits.log_softmax(-1).gather(1, tokens[0, start:, None])[:, 0]
    return told.double().numpy()


def _by_vllm(path: str, ids: Sequence[int], start: int) -> Float[np.ndarray, " N"]:
    """Read the text with vLLM; its documented `prompt_logprobs`, not run here."""
    room = load_vllm()
    engine = room.LLM(model=path, max_model_len=len(ids) + 1, trust_remote_code=False)
    how = room.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    (answer,) = engine.generate([{"prompt_token_ids": list(ids)}], how, use_tqdm=False)
    told = answer.prompt_logprobs[start:]
    return np.array([each[token].logprob for each, token in zip(told, ids[start:], strict=True)])
