"""Prompts -> completions by an OpenAI-compatible server, and the text of a chat's prompt.

Prompts are token ids here as everywhere; how they travel is `ServerSettings.send`. A server gives
text back and no ids, takes no position_ids and tells no likelihoods: what needs them is refused.
"""

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from jaxtyping import Int

from skipalign.errors import ModelError, RecipeError
from skipalign.generation import Completion, stop_ids
from skipalign.http_post import Poster, RefusedError, checked_url, key_of
from skipalign.model import load_tokenizer
from skipalign.tokens import DataTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The chat template for a server that has its own: contents, a system message before the user's.
CONTENT_ONLY = (
    "{% for message in messages %}{{ message['content'] }}"
    "{{ '' if loop.last else '\\n\\n' }}{% endfor %}"
)
# Fields of a request that are ours to set.
_OURS = ("messages", "model", "n", "prompt", "stop", "stream")
# So many requests for each thread may be answered before one that is not.
_AHEAD = 4
_JITTER = 0x1177E2


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Which server, and how it is asked.

    Args:
        base_url: scheme, host and path, mostly ending in /v1; no credentials.
        model: the server's name for it.
        send: "chat": the prompt's text as one user message to /chat/completions, whose template is
            the server's own. "text": the text to /completions, refused where it would not be the
            same tokens again. "ids": token ids to /completions, where the server takes them.
        dialect: "openai": the fields of OpenAI's API alone. "vllm": also stop_token_ids and
            min_tokens, which vLLM and SGLang take; with text or ids alone, where the tokenizer
            must be the server's own.
        body: further fields of every request, such as {seed: 0}; None takes one of ours out, as
            {temperature: None} for a model that will not be asked for greedy answers. Results
            record it.
        concurrency: requests under way at once.
        requests_per_minute: the most that are begun; None is no limit.
        timeout_seconds: of one try.
        retries: further tries of one request.
        backoff_seconds: the wait before the second try, about; it doubles each time.
    """

    base_url: str
    model: str
    send: Literal["chat", "text", "ids"] = "chat"
    dialect: Literal["openai", "vllm"] = "openai"
    body: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 4
    requests_per_minute: float | None = None
    timeout_seconds: float = 300.0
    retries: int = 6
    backoff_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Raises RecipeError for what no server can be asked with."""
        checked_url(self.base_url)
        if self.dialect == "vllm" and self.send == "chat":
            raise RecipeError(
                "dialect is 'vllm' and send is 'chat'; its fields hold token ids of the server's "
                "tokenizer - use send=ids or send=text with that tokenizer"
            )
        if taken := sorted(self.body.keys() & {*_OURS}):
            raise RecipeError(f"body holds {', '.join(taken)}, which is set from the prompt; out")
        rate = self.requests_per_minute
        least = {"concurrency": 1, "retries": 0, "backoff_seconds": 0}
        wrong = [name for name, low in least.items() if getattr(self, name) < low]
        wrong += ["timeout_seconds"] if self.timeout_seconds <= 0 else []
        wrong += ["requests_per_minute"] if rate is not None and rate <= 0 else []
        if wrong:
            raise RecipeError(
                f"{wrong[0]} is {getattr(self, wrong[0])}; concurrency must be at least 1, retries "
                "and backoff_seconds at least 0, timeout and rate above 0"
            )

    @property
    def described(self) -> dict[str, Any]:
        """What the answers depend on, for the results; no credentials."""
        names = ("base_url", "model", "send", "dialect", "body")
        return {"name": "http", **{name: getattr(self, name) for name in names}}


class RemoteGenerator:
    """Answer by an OpenAI-compatible server, several prompts at once.

    An answer is greedy as far as the server keeps temperature 0. It ends where the server ends it,
    and at the text of a token of `more_stop_ids`.

    Differs from the transformers backend: a stop is found in the text, so that a longer token
    which holds it ends the answer as well; and where the server does not know min_tokens,
    `min_new_tokens=1` takes stops off the answer's beginning, in place of choosing another first
    token. The dialect "vllm" has neither difference. A chat's prompt is one user message, whatever
    the task's own template is.

    Args:
        settings: of the server.
        tokenizer: turns prompts into text; with a chat, its template should be CONTENT_ONLY.
        key: kept here and in the header of requests alone.
    """

    # So many tokens of prompts may be handed over together: none waits for the others.
    tokens_at_once = 2**22

    def __init__(
        self, settings: ServerSettings, tokenizer: "PreTrainedTokenizerBase", key: str = ""
    ) -> None:
        self.settings = settings
        self._tokenizer = cast(Any, tokenizer)
        self._adds_bos = DataTokenizer(tokenizer).adds_bos()
        self._poster = Poster(
            settings.base_url,
            key,
            timeout_seconds=settings.timeout_seconds,
            retries=settings.retries,
            backoff_seconds=settings.backoff_seconds,
            requests_per_minute=settings.requests_per_minute,
        )
        self._most_tokens = "max_tokens"
        self._num_asked = 0

    @property
    def identity(self) -> str:
        """A digest of URL, model name, way of asking and tokenizer; weights are the server's."""
        text = json.dumps(self.settings.described, sort_keys=True)
        digest = hashlib.sha256(text.encode())
        digest.update(self._tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        position_ids: Sequence[Int[np.ndarray, " T"]] | None = None,
        more_stop_ids: Collection[int] = (),
        min_new_tokens: int = 0,
    ) -> list[Completion]:
        """Answer each prompt, in the order given; see `stream`."""
        found = dict(
            self.stream(
                prompts,
                max_new_tokens=max_new_tokens,
                position_ids=position_ids,
                more_stop_ids=more_stop_ids,
                min_new_tokens=min_new_tokens,
            )
        )
        return [found[index] for index in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        position_ids: Sequence[Int[np.ndarray, " T"]] | None = None,
        more_stop_ids: Collection[int] = (),
        min_new_tokens: int = 0,
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) in order as answers come.

        When one fails, or the user stops, all others that are answered come before the error.

        Raises:
            ModelError: what a server cannot do, before any prompt is sent.
            BackendError: the server does not answer, or refuses.
        """
        self._refuse(position_ids, min_new_tokens)
        asked = [self._prompt(index, prompt) for index, prompt in enumerate(prompts)]
        stops = {*more_stop_ids}
        if self.settings.send != "chat":
            stops |= stop_ids(None, self._tokenizer) - {self._tokenizer.eos_token_id}
        ending = _Ending(
            texts=tuple(self._text_of(stop) for stop in sorted(stops)),
            keeps_first=min_new_tokens > 0,
            is_exact=self.settings.dialect == "vllm",
        )
        more: dict[str, Any] = {}
        if ending.is_exact:
            more = {"stop_token_ids": sorted(stops), "min_tokens": min_new_tokens}
        elif ending.texts and not ending.keeps_first:
            more = {"stop": list(ending.texts)}
        first, self._num_asked = self._num_asked, self._num_asked + len(asked)

        def answer(index: int) -> Completion:
            rng = np.random.default_rng([_JITTER, first + index])
            text = self._ask(asked[index] | more, max_new_tokens, rng)
            return Completion([], ending.cut(text))

        return _in_order(answer, len(asked), self.settings.concurrency)

    def _refuse(
        self, position_ids: Sequence[Int[np.ndarray, " T"]] | None, min_new_tokens: int
    ) -> None:
        if position_ids is not None:
            raise ModelError(
                "positions are given, and a server takes none; evaluate this task with the "
                "transformers backend"
            )
        if min_new_tokens > 1 and self.settings.dialect != "vllm":
            raise ModelError(
                f"answers must have {min_new_tokens} tokens at least, which OpenAI's API cannot "
                "ask for; use dialect=vllm where the server takes min_tokens"
            )

    def _text_of(self, token: int) -> str:
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        if not text:
            raise ModelError(
                f"token {token} ends an answer and has no text by which a server could tell it; "
                "use dialect=vllm where the server takes stop_token_ids"
            )
        return text

    def _prompt(self, index: int, prompt: Sequence[int]) -> dict[str, Any]:
        """Return the field that holds a prompt.

        Raises:
            ModelError: it is empty, or its text is not the same tokens again.
        """
        ids = [int(token) for token in prompt]
        if not ids:
            raise ModelError(f"prompt {index} has no tokens; a prompt needs at least one")
        if self.settings.send == "ids":
            return {"prompt": ids}
        has_bos = self._adds_bos and ids[0] == self._tokenizer.bos_token_id
        text = str(self._tokenizer.decode(ids[has_bos:], clean_up_tokenization_spaces=False))
        if self.settings.send == "chat":
            return {"messages": [{"role": "user", "content": text}]}
        if list(self._tokenizer(text, verbose=False)["input_ids"]) != ids:
            raise ModelError(
                f"prompt {index} begins {text[:40]!r} and is not the same tokens once it is text; "
                "a server would read another prompt - use send=ids where it takes them, or "
                "send=chat"
            )
        return {"prompt": text}

    def _ask(self, prompt: dict[str, Any], max_new_tokens: int, rng: np.random.Generator) -> str:
        is_chat = self.settings.send == "chat"
        path, read = ("chat/completions", _message) if is_chat else ("completions", _text)
        field_name = self._most_tokens
        body = {"model": self.settings.model, **prompt, "temperature": 0} | self.settings.body
        body = {key: value for key, value in body.items() if value is not None}
        try:
            return self._poster.post(path, body | {field_name: max_new_tokens}, read, rng)
        except RefusedError as error:
            # Newer models of OpenAI's know the limit by its newer name alone, and say so.
            if field_name != "max_tokens" or "max_completion_tokens" not in error.detail:
                raise
        self._most_tokens = "max_completion_tokens"
        return self._ask(prompt, max_new_tokens, rng)


def load_remote(
    settings: ServerSettings, tokenizer: str, *, api_key_env: str | None = None
) -> tuple[RemoteGenerator, Any]:
    """Return a server as a generator, and the tokenizer that makes its prompts.

    Args:
        settings: of the server.
        tokenizer: folder or hub id; with a chat it counts and cuts, and renders no template.
        api_key_env: the environment variable that holds the key, see `http_post.key_of`.

    Raises:
        ModelError: the tokenizer cannot be loaded.
        RecipeError: see `http_post.key_of`.
    """
    key = key_of(settings.base_url, api_key_env)
    loaded: Any = load_tokenizer(tokenizer)
    if settings.send == "chat":
        loaded.chat_template = CONTENT_ONLY
    return RemoteGenerator(settings, loaded, key), loaded


# --------------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class _Ending:
    """Where an answer ends besides where the server ends it.

    Attributes:
        texts: that end it.
        keeps_first: an answer has one token at least.
        is_exact: the server stops by tokens, so that a text within the answer is no stop.
    """

    texts: tuple[str, ...]
    keeps_first: bool
    is_exact: bool

    def cut(self, text: str) -> str:
        """Return the answer without what ends it."""
        if self.is_exact:
            return next((text.removesuffix(s) for s in self.texts if text.endswith(s)), text)
        while self.keeps_first and (ahead := [s for s in self.texts if text.startswith(s)]):
            text = text.removeprefix(ahead[0])
        return text[
            : min((place for s in self.texts if (place := text.find(s)) >= 0), default=None)
        ]


def _message(answer: Any) -> str:
    content = answer["choices"][0]["message"]["content"]
    return "" if content is None else _as_text(content)


def _text(answer: Any) -> str:
    return _as_text(answer["choices"][0]["text"])


def _as_text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError(type(found).__name__)
    return found


def _in_order(
    answer: Callable[[int], Completion], num: int, concurrency: int
) -> Iterator[tuple[int, Completion]]:
    """Call `answer` with 0 to num - 1, several at once; yield what it returns, in order.

    Threads are daemons: a stopped process does not wait for what a server still owes.

    Raises:
        BackendError: what `answer` raised first, after all else that is answered was yielded.
    """
    finished: SimpleQueue[tuple[int, Completion | Exception]] = SimpleQueue()

    def run(index: int) -> None:
        try:
            finished.put((index, answer(index)))
        except Exception as error:  # noqa: BLE001 - raised again where the answers are awaited
            finished.put((index, error))

    waiting = deque(range(num))
    done: dict[int, Completion] = {}
    failure: BaseException | None = None
    running = next_index = 0
    while running or (waiting and failure is None):
        while (
            waiting
            and failure is None
            and running < concurrency
            and waiting[0] < next_index + _AHEAD * concurrency
        ):
            threading.Thread(target=run, args=(waiting.popleft(),), daemon=True).start()
            running += 1
        try:
            index, found = finished.get()
        except KeyboardInterrupt as error:
            failure = error
            break
        running -= 1
        if isinstance(found, Exception):
            failure = failure or found
        else:
            done[index] = found
        while next_index in done:
            yield next_index, done.pop(next_index)
            next_index += 1
    yield from sorted(done.items())
    if failure is not None:
        raise failure
