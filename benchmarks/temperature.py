"""The cheapest remedy of all: attention logits multiplied at inference, on models as trained.

Every method gets the same choice: a constant, among them YaRN's own for the extension factor of 32
(arXiv 2309.00071: (0.1 ln 32 + 1)^2 = 1.81), or log-n, max(1, log(position + 1) / log 128) at each
query (arXiv 2202.12172; SSMax, arXiv 2501.19399, with its scalar fixed at 1 / log 128). Needles of
constant density; models are those of a run folder, as `skipalign compare recipes/study-tiny.yaml`
leaves it.

    python benchmarks/temperature.py runs/study-tiny normal,pose,skipalign-bias
"""

import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skipalign import recipe, tiny
from skipalign.evaluating import load_generator
from skipalign.evaluation.needle import by_length, evaluate_needle
from skipalign.origin import sha256_of_files, write_result

DENSE = Path(__file__).parents[1] / "recipes/bias-controls-tiny.yaml"
WINDOW = 128
YARN = (0.1 * math.log(32) + 1) ** 2
SCALES: tuple[float | str, ...] = (1.0, 1.2, 1.45, round(YARN, 2), 2.0, 3.0, "log-n")


@contextmanager
def scaled_queries(model: Any, scale: float | str) -> Iterator[None]:
    """Multiply every query, and with it the logits of its token, while open."""
    positions: dict[str, torch.Tensor] = {}

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        positions["now"] = given["position_ids"]

    def times(_: Any, __: Any, queries: torch.Tensor) -> torch.Tensor:
        if scale != "log-n":
            return queries * scale
        logs = torch.log(positions["now"].to(queries.dtype) + 1) / math.log(WINDOW)
        return queries * logs.clamp(min=1)[..., None]

    named = list(model.named_modules())
    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for name, module in named
        if name.endswith("rotary_emb")
    ]
    hooks += [module.register_forward_hook(times) for name, module in named if "q_proj" in name]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    run_dir, methods = Path(sys.argv[1]), sys.argv[2].split(",")
    settings = replace(recipe.load(str(DENSE)).tasks["needle"], lengths=(128, 1024, 4096))
    rows: list[dict[str, Any]] = []
    for method in methods:
        for folder in sorted((run_dir / method).glob("seed-*")):
            generator, tokenizer = load_generator(folder / "model")
            for scale in SCALES:
                with tempfile.TemporaryDirectory() as out, scaled_queries(generator.model, scale):
                    found = evaluate_needle(generator, tokenizer, settings, Path(out))
                at = {cell["context_length"]: cell["mean"] for cell in by_length(found)}
                cells = {"method": method, "seed": int(folder.name[5:]), "scale": scale}
                rows.append({**cells, "accuracy": at})
                print(method, folder.name, scale, at, flush=True)
    write_result(
        Path(__file__).parent / "results" / "temperature-tiny.json",
        {"rows": rows, "prompts_a_cell": 40},
        seeds=[settings.seed, *(row["seed"] for row in rows)],
        data=sha256_of_files([tiny.HAYSTACK]),
        exact=("accuracy",),
        measured=(),
    )


if __name__ == "__main__":
    main()
