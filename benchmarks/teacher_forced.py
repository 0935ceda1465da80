"""Is an answer that is read off the logits the answer that a model gives?

    python benchmarks/teacher_forced.py runs/confirmation-tiny normal,pose,noise-1

Free generation counts everywhere in this repository. Cheaper would be to hand a model the right
answer and see whether each of its tokens is the likeliest (teacher forcing). Both are asked here of
the needle of recipes/confirmation-tiny.yaml at its longest, 25 prompts for each base, and compared
prompt by prompt. Results go to benchmarks/results/teacher-forced.json.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pages
import torch
import transfer

from skipalign import recipe
from skipalign.evaluating import load_generator
from skipalign.evaluation.needle import NeedlePrompt, NeedleSettings, build_prompts
from skipalign.origin import sha256_of_files, write_result

RESULT = pages.RESULTS / "teacher-forced.json"
TRIALS = 5  # at each of five depths


def answer_of(prompt: NeedlePrompt) -> str:
    """Return the right answer as the fine-tuning data write it."""
    return f" {prompt.key} {prompt.value}."


def forced(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Tell whether every token of the answer is the likeliest after all before it."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    likeliest = found.logits[0, len(prompt) - 1 : -1].argmax(dim=-1)
    return likeliest.tolist() == list(answer)


def compare(place: Path, settings: NeedleSettings) -> Counter[tuple[bool, bool]]:
    """Return how often (free, forced) are right, over the prompts of one model."""
    generator, tokenizer = load_generator(place / "model")
    counts: Counter[tuple[bool, bool]] = Counter()
    for prompt in build_prompts(tokenizer, settings):
        ids = prompt.ids.tolist()
        (given,) = generator.generate([ids], max_new_tokens=settings.max_new_tokens)
        answer = tokenizer.encode(answer_of(prompt), add_special_tokens=False)
        counts[prompt.value in given.text, forced(generator.model, ids, answer)] += 1
    return counts


def row(method: str, counts: Counter[tuple[bool, bool]]) -> dict[str, Any]:
    """Return the shares of one method."""
    n = sum(counts.values())
    return {
        "method": method,
        "num_prompts": n,
        "free": (counts[True, True] + counts[True, False]) / n,
        "forced": (counts[True, True] + counts[False, True]) / n,
        "only_free": counts[True, False],
        "only_forced": counts[False, True],
    }


def main(words: Sequence[str] | None = None) -> None:
    """Ask every model both ways and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("methods")
    given = parser.parse_args(words)
    tasks: Any = recipe.load(str(transfer.RECIPE)).tasks
    settings = replace(tasks["needle"], lengths=(max(tasks["needle"].lengths),), trials=TRIALS)
    rows: list[dict[str, Any]] = []
    for method in given.methods.split(","):
        places = sorted((given.run / method).glob("seed-*"))
        rows.append(row(method, sum((compare(each, settings) for each in places), Counter())))
        print(rows[-1], flush=True)
    write_result(
        RESULT,
        {"context_length": settings.lengths[0], "rows": rows},
        seeds=[settings.seed],
        data=sha256_of_files([transfer.RECIPE]),
        exact=("rows",),
        measured=(),
    )


if __name__ == "__main__":
    main()
