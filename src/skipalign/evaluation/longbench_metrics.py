"""LongBench's metrics: the official scores to the last digit, in a fraction of their time.

Every metric parts into what a prediction becomes, what an answer becomes, and how the two compare,
so that a text is taken apart once however many answers it is compared with.

Source: Bai et al. 2023, arXiv 2308.14508, and the scores that THUDM/LongBench publishes.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from skipalign.errors import DataError

# The version whose dictionary the official scores were made with.
JIEBA_VERSION = "0.42.1"
# Steps through the table of a pair of sentences at which `rouge` 1.0.1 fails, called as the
# official eval.py calls it: measured under Python 3.11 to 3.13 (990 under 3.8 to 3.10).
STEPS_TOO_DEEP = 991

Sentences = list[list[str]]


def _never(_prediction: Any, _answer: Any) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Metric:
    """How one task's predictions are scored, from 0 to 1.

    Attributes:
        prediction: what becomes of a prediction.
        answer: what becomes of a right answer.
        compare: (what `prediction` returned, what `answer` returned) -> score.
        too_deep: whether the official code ends in a RecursionError, which it scores 0.
    """

    prediction: Callable[[str], Any]
    answer: Callable[[str], Any]
    compare: Callable[[Any, Any], float]
    too_deep: Callable[[Any, Any], bool] = _never

    def best(
        self, prediction: str, answers: Sequence[str], *, official_faults: bool = False
    ) -> tuple[float, int]:
        """Score a prediction against the best of `answers`.

        Args:
            prediction: the part of the model's text that counts, see `counted_part`.
            answers: all of them right.
            official_faults: score 0 where the official code ends in a RecursionError.

        Returns:
            the score, 0 without answers, and against how many of them that error comes.
        """
        said = self.prediction(prediction)
        best, num_too_deep = 0.0, 0
        for answer in map(self.answer, answers):
            too_deep = self.too_deep(said, answer)
            num_too_deep += too_deep
            if not (official_faults and too_deep):
                best = max(best, self.compare(said, answer))
        return best, num_too_deep


# --------------------------------------------------------------------------------- words


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FULL_WIDTH = "！＂＃＄％＆＇（）＊＋，－／：；＜＝＞？＠［＼］＾＿｀｛｜｝～｟｠｡｢｣､"
# 《 stays: the official list lacks it.
_CHINESE = "、。〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
_GENERAL = "–—‘’‛“”„‟…‧﹏"
_NO_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_NO_PUNCTUATION_ZH = dict.fromkeys(map(ord, string.punctuation + _FULL_WIDTH + _CHINESE + _GENERAL))


def words(text: str) -> list[str]:
    """Return the words of an English text without letter case, punctuation and articles.

    Source: Rajpurkar et al. 2016, arXiv 1606.05250, the evaluation of SQuAD.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def words_zh(text: str) -> list[str]:
    """Return jieba's words of a Chinese text without letter case, punctuation and white space."""
    return [word for word in map(characters_zh, cut(text)) if word]


def characters_zh(text: str) -> str:
    """Return a Chinese text without letter case, punctuation and white space."""
    return "".join(text.lower().translate(_NO_PUNCTUATION_ZH).split())


def cut(text: str) -> list[str]:
    """Part a text into words as jieba does in its accurate mode.

    Raises:
        DataError: jieba is not installed.
    """
    return list(_cutter()(text))


@cache
def _cutter() -> Callable[[str], Any]:
    """Return jieba's cut with a dictionary of its own: no cache file, no words of other users."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
    except ImportError:
        raise DataError(
            "jieba is not installed; LongBench scores Chinese by its words - "
            f"pip install jieba=={JIEBA_VERSION}, or score English tasks alone"
        ) from None
    tokenizer: Any = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer.cut


def token_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Return the harmonic mean of the shares of words that both have, as often as both do."""
    same = (Counter(prediction) & Counter(answer)).total()
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


# --------------------------------------------------------------------------------- ROUGE-L


def sentences(text: str) -> Sentences:
    """Return the words of each sentence; only a full stop ends one, and none is without words."""
    return [part.split() or [""] for part in text.split(".") if part]


def sentences_zh(text: str) -> Sentences:
    """Return the sentences of a text parted into jieba's words."""
    return sentences(" ".join(cut(text)))


def rouge_l(prediction: Sentences, answer: Sentences) -> float:
    """Return ROUGE-L's F as the package `rouge` 1.0.1 has it.

    Every sentence of the answer is aligned with every one of the prediction by a longest common
    subsequence; the unlike words of all alignments are counted against all unlike words.

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, section 3.2.
    Differs: as in the package, a word counts once however often it stands; Lin counts all.
    """
    said = [(each, frozenset(each)) for each in prediction]
    wanted = [(each, frozenset(each)) for each in answer]
    if not said or not wanted:
        return 0.0
    num_said = len(frozenset[str]().union(*(known for _, known in said)))
    num_wanted = len(frozenset[str]().union(*(known for _, known in wanted)))
    found: set[str] = set()
    for sentence, known in wanted:
        for other, others in said:
            if not (known & others) <= found:
                found.update(aligned(sentence, other)[0])
    recall, precision = len(found) / num_wanted, len(found) / num_said
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def rouge_too_deep(prediction: Sentences, answer: Sentences) -> bool:
    """Whether `rouge` 1.0.1 raises RecursionError on the texts, called by the official eval.py."""
    longest = [max(map(len, each), default=0) for each in (prediction, answer)]
    return sum(longest) >= STEPS_TOO_DEEP and any(
        aligned(sentence, other)[1] >= STEPS_TOO_DEEP for sentence in answer for other in prediction
    )


def aligned(rows: Sequence[str], columns: Sequence[str]) -> tuple[list[str], int]:
    """Return the words of the longest common subsequence that `rouge` 1.0.1 takes, last first.

    There are many of one length. The one taken is found from the end of both: equal words are
    taken; else the last row is left out if the table says that this costs nothing while leaving
    out the last column does; else the last column is. A bit-parallel table (one integer a row,
    its zeros the columns at which the length grows) tells the same.

    Source: Hyyrö 2004, Bit-Parallel LCS-length Computation Revisited.

    Returns:
        the words, and how many words were left out or taken until one side was used up: the depth
        of the package's recursion.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(columns):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(columns)) - 1
    flat = whole
    table: list[tuple[int, int]] = []
    for word in rows:
        if equal := places.get(word, 0):
            kept = flat & equal
            flat = (flat + kept | flat - kept) & whole
        table.append((equal, flat))
    taken: list[str] = []
    row, left = len(rows), whole
    while row and left:
        equal, flat = table[row - 1]
        stops = left & (equal | ~flat)
        if not stops:
            left = 0
            break
        last = 1 << stops.bit_length() - 1
        row -= 1
        left = last - 1
        if equal & last:
            taken.append(rows[row])
        else:
            left |= last
    num_left = len(columns) - left.bit_length() + len(rows) - row
    return taken, num_left - len(taken)


# --------------------------------------------------------------------------------- the others


def classified(prediction: str, classes: Sequence[str]) -> list[str]:
    """Return the classes that a prediction names."""
    return [name for name in classes if name in prediction]


def classification(named: Sequence[str], answer: str) -> float:
    """Return 1 over the number of classes named, if the right one is among them.

    A class whose name is a part of the right one's does not count. As in the official code it is
    taken off the list that is being walked, so the one after it is passed over.
    """
    kept = list(named)
    for name in kept:
        if name in answer and name != answer:
            kept.remove(name)
    return 1.0 / len(kept) if answer in kept else 0.0


def numbers(text: str) -> list[str]:
    """Return the numbers in a text."""
    return re.findall(r"\d+", text)


def share_of_numbers(found: Sequence[str], right: str) -> float:
    """Return how many of the numbers found are the right one."""
    return found.count(right) / len(found) if found else 0.0


def numbered(label: str) -> Callable[[str], str]:
    """Return what finds the number after `label` in an answer."""
    pattern = re.compile(re.escape(label) + r"(\d+)")

    def find(answer: str) -> str:
        found = pattern.search(answer)
        if found is None:
            raise ValueError(f"an answer is {answer!r}; it must hold {label!r} and a number")
        return found[1]

    return find


def line_of_code(text: str) -> str:
    """Return the first line that holds no comment and no fence; '' without one."""
    lines = text.lstrip("\n").split("\n")
    return next((line for line in lines if not re.search("`|#|//", line)), "")


def edit_similarity(line: str, right: str) -> float:
    """Return difflib's ratio in whole hundredths.

    Not that of rapidfuzz or Levenshtein: difflib takes the longest common block first and, from
    200 characters on, leaves out those that are frequent.
    """
    if line == right:
        return 1.0
    return round(100 * SequenceMatcher(None, line, right).ratio()) / 100


# --------------------------------------------------------------------------------- by task


_F1 = Metric(words, words, token_f1)
_F1_ZH = Metric(words_zh, words_zh, token_f1)
_ROUGE = Metric(sentences, sentences, rouge_l, rouge_too_deep)
_ROUGE_ZH = Metric(sentences_zh, sentences_zh, rouge_l, rouge_too_deep)
_CODE = Metric(line_of_code, str, edit_similarity)
_BY_CLASSES = ("trec", "lsht")
_BY_TASK = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "triviaqa"), _F1),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), _F1),
    "multifieldqa_zh": _F1_ZH,
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), _ROUGE),
    **dict.fromkeys(("dureader", "vcsum"), _ROUGE_ZH),
    "passage_count": Metric(numbers, str, share_of_numbers),
    "passage_retrieval_en": Metric(numbers, numbered("Paragraph "), share_of_numbers),
    "passage_retrieval_zh": Metric(numbers, numbered("段落"), share_of_numbers),
    **dict.fromkeys(("lcc", "repobench-p"), _CODE),
}
_FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")


def metric_of(task: str, classes: Sequence[str]) -> Metric:
    """Return the metric of a task; `classes` are those that classification knows."""
    if task in _BY_CLASSES:
        return Metric(lambda text: classified(text, classes), str, classification)
    return _BY_TASK[task]


def counted_part(task: str, prediction: str) -> str:
    """Return the part of a prediction that counts: of some tasks the first line alone."""
    return prediction.lstrip("\n").split("\n")[0] if task in _FIRST_LINE else prediction
