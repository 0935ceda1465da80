"""Prompts -> completions by vLLM, on machines that have it: `pip install skipalign[vllm]`.

Not run here with vLLM itself, for want of a machine that has it: what is asked of it follows its
documentation (`LLM.generate`, `SamplingParams`); tests put a stand-in with these names there.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Int

from skipalign.errors import ModelError
from skipalign.generation import Completion, completion_of, stop_ids
from skipalign.model import weights_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_vllm() -> Any:
    """Import vLLM with its usage statistics off, which it else sends to its makers.

    Raises:
        ModelError: vLLM is not installed.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ModelError(
            "vLLM is not installed; pip install 'skipalign[vllm]', or use another backend"
        ) from None
    return cast(Any, vllm)


class VllmGenerator:
    """Answer greedily with vLLM, which makes its own batches and ends at the model's own EOS too.

    Args:
        path: folder or hub id of the model.
        tokenizer: the model's.
        engine: of `vllm.LLM`, such as {"max_model_len": 32768}; no code of a checkpoint is run,
            whatever it says.

    Raises:
        ModelError: vLLM is not installed.
    """

    def __init__(
        self, path: str, tokenizer: "PreTrainedTokenizerBase", engine: Mapping[str, Any]
    ) -> None:
        self._vllm, self._tokenizer = load_vllm(), cast(Any, tokenizer)
        self._stops = stop_ids(None, tokenizer)
        settings = {**engine, "model": path, "trust_remote_code": False}
        told = [weights_digest(path), settings, sorted(self._stops), str(self._vllm.__version__)]
        self.identity = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        self._engine = self._vllm.LLM(**settings)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        position_ids: Sequence[Int[np.ndarray, " T"]] | None = None,
        more_stop_ids: Collection[int] = (),
        min_new_tokens: int = 0,
    ) -> list[Completion]:
        """Answer each prompt in the order given; refuse positions, see `Generator.generate`."""
        if position_ids is not None:
            raise ModelError("positions are given, and vLLM takes none; use another backend")
        stops = self._stops | {*more_stop_ids}
        limits = {"max_tokens": max_new_tokens, "min_tokens": min_new_tokens}
        how = self._vllm.SamplingParams(temperature=0.0, stop_token_ids=sorted(stops), **limits)
        asked = [{"prompt_token_ids": [int(token) for token in prompt]} for prompt in prompts]
        answers = self._engine.generate(asked, how, use_tqdm=False)
        found = [each.outputs[0].token_ids for each in answers]
        return [completion_of(ids, stops, self._tokenizer) for ids in found]
