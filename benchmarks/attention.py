"""Where attention goes as texts grow: mass on the needle, entropy, effective number of keys.

At the token before the value of the answer ("Ada Adler." after "Who is Ada?": at "Ada"), in needle
prompts of constant density, for every head: the attention mass on the needle's value and the two
tokens behind it ("Adler came."; a layer may have carried the value there), the entropy of the
attention in nats, and exp(entropy), the number of keys among which it is spread. The head that is
followed over lengths is the one with the most mass on the needle in the shortest texts,
chosen for each model; the mean entropy of all heads stands beside it. Models are those of a run
folder, as `skipalign compare recipes/study-tiny.yaml` leaves it.

    python benchmarks/attention.py runs/study-tiny normal,pose,skipalign-bias
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipalign import recipe, tiny
from skipalign.evaluating import load_generator
from skipalign.evaluation.needle import NeedlePrompt, NeedleSettings, build_prompts
from skipalign.origin import sha256_of_files, write_result

TRIALS = 2
DENSE = Path(__file__).parents[1] / "recipes/bias-controls-tiny.yaml"


@torch.no_grad()
def attention(model: Any, ids: np.ndarray) -> np.ndarray:
    """Return the attention of the last token: heads of all layers x tokens, in float64."""
    tokens = torch.from_numpy(np.asarray(ids))[None]
    model.set_attn_implementation("sdpa")
    cache = model(tokens[:, :-1], use_cache=True).past_key_values
    model.set_attn_implementation("eager")  # the one that hands its weights out
    last = model(tokens[:, -1:], past_key_values=cache, output_attentions=True).attentions
    return torch.cat([layer[0, :, 0] for layer in last]).double().numpy()


def answered(prompt: NeedlePrompt, tokenizer: Any) -> tuple[np.ndarray, int]:
    """Return the prompt with the answer up to its value, and where the value stands in the text."""
    key, value = (
        tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        for word in (prompt.key, *prompt.values)
    )
    places = np.flatnonzero(prompt.ids == value[0])
    assert len(key) == len(value) == 1, f"{prompt.key} {prompt.value} is more than two tokens"
    assert len(places) == 1, f"{prompt.value} stands {len(places)} times"
    return np.append(prompt.ids, key), int(places[0])


def measure(model: Any, tokenizer: Any, settings: NeedleSettings) -> dict[int, np.ndarray]:
    """Return by length: prompts x heads x (mass on the needle, entropy)."""
    found: dict[int, list[np.ndarray]] = {}
    for prompt in build_prompts(tokenizer, settings):
        ids, value = answered(prompt, tokenizer)
        weights = attention(model, ids)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1)
        row = np.stack([weights[:, value : value + 3].sum(-1), entropy], -1)
        found.setdefault(prompt.context_length, []).append(row)
    return {length: np.stack(rows) for length, rows in found.items()}


def rows_of(method: str, seed: int, found: dict[int, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row for each length."""
    head = int(found[min(found)][:, :, 0].mean(0).argmax())
    return [
        {
            "method": method,
            "seed": seed,
            "context_length": length,
            "head": head,
            "mass_on_needle": round(float(values[:, head, 0].mean()), 4),
            "effective_keys": round(float(np.exp(values[:, head, 1]).mean()), 2),
            "entropy": round(float(values[:, head, 1].mean()), 4),
            "entropy_of_all_heads": round(float(values[:, :, 1].mean()), 4),
            "num_prompts": len(values),
        }
        for length, values in found.items()
    ]


def main() -> None:
    run_dir, methods = Path(sys.argv[1]), sys.argv[2].split(",")
    read = recipe.load(str(DENSE))
    settings = replace(read.tasks["needle"], trials=TRIALS, seed=1)
    rows: list[dict[str, Any]] = []
    for method in methods:
        for folder in sorted((run_dir / method).glob("seed-*")):
            generator, tokenizer = load_generator(folder / "model")
            found = measure(generator.model, tokenizer, settings)
            rows += rows_of(method, int(folder.name[5:]), found)
            for row in rows[-len(found) :]:
                print(*row.values(), sep="\t", flush=True)
    out = Path(__file__).parent / "results" / "attention-tiny.json"
    write_result(
        out,
        {"rows": rows, "prompts_seed": 1},
        seeds=[1, *(row["seed"] for row in rows)],
        data=sha256_of_files([tiny.HAYSTACK]),
        exact=("mass_on_needle", "effective_keys", "entropy", "entropy_of_all_heads"),
        measured=(),
    )


if __name__ == "__main__":
    main()
