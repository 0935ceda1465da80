"""The rows of a task for lm-evaluation-harness that needs no network."""

from datasets import Dataset


def load(**_: object) -> dict[str, Dataset]:
    names = ["Ada", "Ben", "Mary"]
    rows = [{"question": f"Who came {n}?", "choices": names, "gold": n % 3} for n in range(10)]
    return {"test": Dataset.from_list(rows)}
