"""Scoring 4,750 stored LongBench answers: the official procedure and `score_folder`, in turn.

Promise: at most a third of the time, every single score the same to the last bit. The official
side is the procedure of THUDM/LongBench with the packages that it uses (rouge 1.0.1 with its
default metrics, jieba, difflib), from the files to the 21 figures. Ours is `score_folder`: the
same, and the checks of every line, the intervals, the categories and the averages. One process;
imports and jieba's dictionary are left out on both sides. Needs stored answers: a
folder with one TASK.jsonl a task in the official fields, as the argument.
"""

import json
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jieba
import numpy as np
from rouge import Rouge

from skipalign.evaluation.longbench_metrics import cut
from skipalign.evaluation.longbench_score import score_file, score_folder
from skipalign.origin import sha256_of_files, write_result

ROOT = Path(__file__).parents[1]
STORED = ROOT.parent / "shared/data/predictions/llama3-8b-instruct"
REPEATS = 5

PUNCTUATION = set(string.punctuation)
PUNCTUATION_ZH = PUNCTUATION | set(
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏"
)


def f1(prediction: list[str], answer: list[str]) -> float:
    same = sum((Counter(prediction) & Counter(answer)).values())
    if same == 0:
        return 0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def qa_f1(prediction: str, answer: str, _: Any) -> float:
    def normal(text: str) -> list[str]:
        text = "".join(each for each in text.lower() if each not in PUNCTUATION)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    return f1(normal(prediction), normal(answer))


def qa_f1_zh(prediction: str, answer: str, _: Any) -> float:
    def normal(text: str) -> list[str]:
        found = []
        for word in jieba.cut(text, cut_all=False):
            kept = "".join(each for each in word.lower() if each not in PUNCTUATION_ZH)
            found.append("".join(kept.split()))
        return [word for word in found if word]

    return f1(normal(prediction), normal(answer))


def rouge(prediction: str, answer: str, _: Any = None) -> float:
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0


def rouge_zh(prediction: str, answer: str, _: Any) -> float:
    return rouge(" ".join(jieba.cut(prediction)), " ".join(jieba.cut(answer)))


def classification(prediction: str, answer: str, classes: list[str]) -> float:
    named = [name for name in classes if name in prediction]
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1.0 / len(named) if answer in named else 0.0


def right_numbers(prediction: str, right: str) -> float:
    found = re.findall(r"\d+", prediction)
    return sum(number == right for number in found) / len(found) if found else 0.0


def count(prediction: str, answer: str, _: Any) -> float:
    return right_numbers(prediction, str(answer))


def retrieval(prediction: str, answer: str, _: Any) -> float:
    return right_numbers(prediction, re.findall(r"Paragraph (\d+)", answer)[0])


def retrieval_zh(prediction: str, answer: str, _: Any) -> float:
    return right_numbers(prediction, re.findall(r"段落(\d+)", answer)[0])


def code(prediction: str, answer: str, _: Any) -> float:
    line = ""
    for each in prediction.lstrip("\n").split("\n"):
        if "`" not in each and "#" not in each and "//" not in each:
            line = each
            break
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


METRICS: dict[str, Callable[[str, str, Any], float]] = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa"), qa_f1),
    **dict.fromkeys(("2wikimqa", "musique", "triviaqa"), qa_f1),
    "multifieldqa_zh": qa_f1_zh,
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), rouge),
    **dict.fromkeys(("dureader", "vcsum"), rouge_zh),
    **dict.fromkeys(("trec", "lsht"), classification),
    "passage_count": count,
    "passage_retrieval_en": retrieval,
    "passage_retrieval_zh": retrieval_zh,
    **dict.fromkeys(("lcc", "repobench-p"), code),
}


def official(folder: Path) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the score of every file, and of every sample of it."""
    figures, samples = {}, {}
    for path in sorted(folder.glob("*.jsonl")):
        task = path.stem
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        classes = rows[-1]["all_classes"]
        scores = []
        for row in rows:
            prediction = row["pred"]
            if task in ("trec", "triviaqa", "samsum", "lsht"):
                prediction = prediction.lstrip("\n").split("\n")[0]
            best = 0.0
            for answer in row["answers"]:
                best = max(best, METRICS[task](prediction, answer, classes))
            scores.append(best)
        figures[task] = round(100 * sum(scores) / len(scores), 2)
        samples[task] = scores
    return figures, samples


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what `run` returns, its processor seconds and its seconds by the clock."""
    clock, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, time.process_time() - processor, time.perf_counter() - clock


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = (round(float(q), 3) for q in np.quantile(values, [0, 0.5, 1]))
    return {"median": middle, "low": low, "high": high}


def main() -> None:
    """Print and keep the times of both and their ratio, repeat by repeat."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else STORED
    if not folder.is_dir():
        sys.exit(f"{folder}: no stored answers; give a folder of TASK.jsonl files")
    jieba.setLogLevel(60)
    jieba.initialize()
    cut("")
    times: dict[str, list[float]] = {}
    for repeat in range(REPEATS):
        (figures, samples), *theirs = timed(lambda: official(folder))
        ours, *own = timed(lambda: score_folder(folder))
        for name, old, new in zip(("processor_s", "clock_s"), theirs, own, strict=True):
            times.setdefault(f"official_{name}", []).append(old)
            times.setdefault(f"skipalign_{name}", []).append(new)
            times.setdefault(f"ratio_{name.removesuffix('_s')}", []).append(old / new)
        assert {name: entry["score"] for name, entry in ours["tasks"].items()} == figures
        print(f"repeat {repeat + 1}: official {theirs[0]:.2f} s, skipalign {own[0]:.2f} s")
    for task, scores in samples.items():
        found = score_file(folder / f"{task}.jsonl", task).values.tolist()
        assert found == scores, f"{task}: a sample has another score"
    row = {name: spread(values) for name, values in times.items()}
    for name, found in row.items():
        print(f"{name:22s} {found['median']:8.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    num = sum(map(len, samples.values()))
    results = {
        "answers": folder.name,
        "num_answers": num,
        "num_equal_to_the_bit": num,
        "repeats": REPEATS,
        **row,
        "tasks": figures,
    }
    write_result(
        Path(__file__).parent / "results/longbench-score.json",
        results,
        seeds=(),
        data=sha256_of_files(sorted(folder.glob("*.jsonl"))),
        exact=("tasks", "num_equal_to_the_bit"),
        measured=("median", "low", "high"),
    )


if __name__ == "__main__":
    main()
