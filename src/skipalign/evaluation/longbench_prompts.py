"""LongBench's samples, and the prompts that its authors ask them with, token by token.

Source: Bai et al. 2023, arXiv 2308.14508; THUDM/LongBench, pred.py and config/.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from skipalign.conversation import Message
from skipalign.errors import DataError, ModelError, RecipeError
from skipalign.template import Template
from skipalign.tokens import DataTokenizer, DropError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign.generation import Completion

# Asked as plain text: few-shot examples and code go on without a chat.
WITHOUT_TEMPLATE = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
HUB = "hub:"
_ARCHIVE = "data.zip"
# Tokenizers that part it alike are taken for one.
_PROBE = "The 3 quick brown foxes'\n\n\tdef f(x): return x  # 12,345.67\n注意：敏捷的棕色狐狸。"
_FIELDS = ("input", "context", "answers", "length", "all_classes")


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a data file; `id` is its `_id`, or its place where it has none."""

    id: str
    input: str
    context: str
    answers: list[Any]
    classes: list[str] | None
    length: float


# --------------------------------------------------------------------------------- data


class DataFiles:
    """The published data: a folder of TASK.jsonl, the hub's data.zip, or `hub:REPO` to fetch that.

    Files of LongBench-E are named TASK_e.jsonl.

    Raises:
        DataError: no such folder or archive, or it cannot be fetched.
    """

    def __init__(self, data: str, *, e: bool = False) -> None:
        self.where = data
        self._ending = "_e.jsonl" if e else ".jsonl"
        path = _fetched(data.removeprefix(HUB)) if data.startswith(HUB) else Path(data)
        self._folder = path if path.is_dir() else None
        self._archive = None
        if path.is_file() and zipfile.is_zipfile(path):
            self._archive = zipfile.ZipFile(path)
        if self._folder is None and self._archive is None:
            raise DataError(
                f"{data}: no folder of TASK.jsonl files and no {_ARCHIVE}; give one of them, or "
                f"{HUB}THUDM/LongBench to fetch {_ARCHIVE} from the hub, whose data set is a "
                "script, which datasets >= 4 does not run"
            )

    def has(self, task: str) -> bool:
        """Whether there is a file of a task."""
        return self._bytes(task) is not None if self._archive else self._path(task).is_file()

    def samples(self, task: str) -> tuple[list[Sample], str]:
        """Return the samples of a task and the digest of their file.

        Raises:
            DataError: there is no such file, or a row of it cannot be used.
        """
        content = self._bytes(task)
        name = f"{self.where}/{task}{self._ending}"
        if content is None:
            raise DataError(f"{name}: no such file; put it there, or leave the task out")
        found: dict[str, Sample] = {}
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            sample = _sample(line, task, f"{name} line {number}", str(len(found)))
            if sample.id in found:
                raise DataError(f"{name} line {number}: a second row has _id {sample.id!r}")
            found[sample.id] = sample
        if not found:
            raise DataError(f"{name}: holds no rows; put the published file there")
        return list(found.values()), hashlib.sha256(content).hexdigest()

    def _path(self, task: str) -> Path:
        return (self._folder or Path()) / f"{task}{self._ending}"

    def _bytes(self, task: str) -> bytes | None:
        if self._archive is None:
            path = self._path(task)
            return path.read_bytes() if path.is_file() else None
        found = [
            name
            for name in self._archive.namelist()
            if Path(name).name == f"{task}{self._ending}" and "__MACOSX" not in name
        ]
        return self._archive.read(found[0]) if found else None


def _fetched(repo: str) -> Path:
    """Fetch the archive of a hub repository, or find it in the hub's cache."""
    from huggingface_hub import hf_hub_download

    try:
        # Data alone, read as JSON; its sha256 stands in the results.
        return Path(hf_hub_download(repo, _ARCHIVE, repo_type="dataset"))  # nosec B615
    except (OSError, ValueError) as error:
        raise DataError(
            f"{HUB}{repo}: {_ARCHIVE} cannot be fetched ({' '.join(str(error).split())[:200]}); "
            "download it where there is a network and give its path"
        ) from None


def _sample(line: bytes, task: str, place: str, default_id: str) -> Sample:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}); put the published file there") from None
    missing = [name for name in _FIELDS if not isinstance(row, dict) or name not in row]
    if missing:
        raise DataError(f"{place}: lacks {', '.join(missing)}; put the published file there")
    named = str(row.get("dataset", task)).removesuffix("_e")
    if named != task:
        raise DataError(f"{place}: is a row of {named!r}, not of {task!r}; rename the file")
    texts = isinstance(row["input"], str) and isinstance(row["context"], str)
    classes = row["all_classes"]
    if not (texts and isinstance(row["answers"], list) and isinstance(classes, list | None)):
        raise DataError(
            f"{place}: input and context must be texts, answers a list, all_classes a list or "
            "null; put the published file there"
        )
    return Sample(
        id=str(row.get("_id", default_id)),
        input=row["input"],
        context=row["context"],
        answers=row["answers"],
        classes=classes,
        length=row["length"],
    )


# --------------------------------------------------------------------------------- prompts


@cache
def _official() -> dict[str, dict[str, Any]]:
    folder = resources.files("skipalign.evaluation") / "longbench_data"
    return json.loads((folder / "prompts.json").read_text(encoding="utf-8"))


def filled(task: str, sample: Sample) -> str:
    """Return the official prompt of a task with a sample in it."""
    return str(_official()[task]["prompt"]).format(context=sample.context, input=sample.input)


def max_new_tokens(task: str) -> int:
    """Return the official length of a task's answers."""
    return int(_official()[task]["max_new_tokens"])


def default_limit(window: int) -> int:
    """Return the tokens that a filled prompt may have in a model's window.

    Source: config/model2maxlen.json of THUDM/LongBench, which this gives for 4k, 8k, 16k and 32k.
    Differs: models with windows below 2,000 tokens are not in it; they keep an eighth free.
    """
    return window // 1000 * 1000 - 500 if window >= 2000 else window - window // 8


class PromptMaker:
    """Make prompts as the official pred.py does.

    A prompt that is too long loses its middle before the chat template goes around it. Text of the
    data that spells a special token becomes that token, as there.

    Differs: the chat template is the tokenizer's own, with its own BOS and no second one; pred.py
    has a line of code for each of its models.

    Args:
        tokenizer: with or without a chat template; without one all prompts are plain text.
        max_prompt_tokens: of the filled prompt, special tokens that the tokenizer adds included.
        template_kwargs: what the chat template takes, such as `enable_thinking`.

    Raises:
        ModelError: the tokenizer or its template cannot be used.
        RecipeError: `max_prompt_tokens` leaves no two halves.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_prompt_tokens: int,
        template_kwargs: Mapping[str, Any],
    ) -> None:
        if max_prompt_tokens < 2:
            raise RecipeError(f"max_prompt_tokens is {max_prompt_tokens}; it must be at least 2")
        self._tokenizer = cast(Any, tokenizer)
        self._max_tokens = max_prompt_tokens
        self._template_kwargs = dict(template_kwargs)
        self._template = None
        if self._tokenizer.chat_template:
            self._template = Template(tokenizer, DataTokenizer(tokenizer), template_kwargs)

    def described(self) -> dict[str, Any]:
        """Return what besides the data decides the prompts, for the results file."""
        return {
            "max_prompt_tokens": self._max_tokens,
            "template": self._template.text if self._template else None,
            "template_kwargs": self._template_kwargs,
            "tokens_sha256": hashlib.sha256(repr(self._encoded(_PROBE)).encode()).hexdigest(),
        }

    def ids(self, task: str, sample: Sample) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            ModelError: the chat template refuses a single message of the user.
        """
        text = self._shortened(filled(task, sample))
        if self._template is None or task in WITHOUT_TEMPLATE:
            return self._encoded(text)
        return self._encoded(self._rendered(text), add_special_tokens=False)

    def opens_thought(self, task: str) -> bool:
        """Whether the prompt ends with a `<think>` that the answer has to close."""
        if self._template is None or task in WITHOUT_TEMPLATE:
            return False
        return self._rendered("?").rstrip().endswith("<think>")

    def spoken(self, answer: "Completion", thinks: bool) -> str:
        """Return an answer with its special tokens, after the thought that the prompt opens."""
        text = self._tokenizer.decode(answer.ids) if answer.ids else answer.text
        return "<think>" * thinks + str(text)

    def newline_id(self) -> int:
        """Return the token that ends an answer of samsum."""
        return self._encoded("\n", add_special_tokens=False)[-1]

    def _rendered(self, text: str) -> str:
        assert self._template is not None
        try:
            return self._template.render([Message("user", text)], prompt=True)
        except DropError as error:
            raise ModelError(
                f"{error.detail}; a prompt is a single user message, which the template must take "
                "- mend tokenizer.chat_template, or give it what it asks for in template_kwargs"
            ) from None

    def _shortened(self, text: str) -> str:
        ids = self._encoded(text)
        if len(ids) <= self._max_tokens:
            return text
        half = self._max_tokens // 2
        return self._decoded(ids[:half]) + self._decoded(ids[-half:])

    def _encoded(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        found = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return list(found["input_ids"])

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
