"""What a model makes of long prompts, one task a file. Here is what the tasks share.

How an answer is graded, and how results are written: TASK.csv, TASK.png and TASK.json.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipalign.evaluation.metrics import contains_value, folded, share
from skipalign.files import SCHEMA_VERSION, write_json, write_text, written_aside

# Besides whether an answer is right: secondary figures, so that old ones can be compared.
SECONDARY = ("share_found", "rouge1_recall", "word_share")
SCORES = ("n", "correct", "mean", "low", "high", *SECONDARY)
# A word, or one character of a script that writes without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def graded(key: str, values: Sequence[str], answer: str) -> dict[str, Any]:
    """Return a trial as results hold it; it is correct when the answer holds every value.

    `rouge1_recall`: share of the values' words in the answer, each as often as it comes.
    Source: the score of Retrieval Head (Wu et al. 2024, arXiv 2404.15574). Differs: no stemming,
    and words of any script; of scripts without spaces (Chinese, Japanese) each character is one.

    `word_share`: unlike words of the values in the answer, over all words of the values.
    Source: the score of Fu et al. 2024, arXiv 2402.10171. Differs: marks are no part of a word.
    """
    found = [contains_value(answer, value) for value in values]
    wanted, said = (_WORD.findall(folded(text)) for text in (" ".join(values), answer))
    return {
        "key": key,
        "value": ", ".join(values),
        "answer": answer,
        "correct": all(found),
        "share_found": sum(found) / len(found),
        "rouge1_recall": (Counter(wanted) & Counter(said)).total() / max(1, len(wanted)),
        "word_share": len({*wanted} & {*said}) / max(1, len(wanted)),
    }


def thought_is_open(text: str) -> bool:
    """Whether the last `<think>` of a text is not closed."""
    return "<think>" in text.rpartition("</think>")[2]


def scores(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the accuracy of graded trials with n and interval, and the secondary figures."""
    means = {name: round(float(np.mean([t[name] for t in trials])), 6) for name in SECONDARY}
    return {**share(sum(trial["correct"] for trial in trials), len(trials)), **means}


def write_results(
    out: Path,
    document: dict[str, Any],
    columns: Sequence[str],
    draw: Callable[[Mapping[str, Any], Path], None],
) -> dict[str, Any]:
    """Write table and picture, and the document last: it stands for the whole.

    Args:
        out: the folder.
        document: with `task`, which names the files, and `cells`, the rows of the table; whatever
            JSON can hold, tuples and keys that are numbers too.
        columns: the keys of a cell that are in the table.
        draw: writes the picture of a document as PNG.

    Returns:
        the document as TASK.json holds it.
    """
    document = json.loads(json.dumps(document))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([cell[name] for name in columns] for cell in document["cells"])
    name = document["task"]
    write_text(out / f"{name}.csv", text.getvalue())
    with written_aside(out / f"{name}.png") as aside:
        draw(document, aside)
    write_json(out / f"{name}.json", document)
    return {"schema_version": SCHEMA_VERSION, **document}
