"""JSON to a server and its answer: paced, tried again where that may help, and the key kept secret.

The key goes into the header of requests to the base URL and nowhere else: redirects are not
followed, and it is taken out of whatever a server says about it.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from ipaddress import ip_address
from socket import gaierror
from ssl import SSLCertVerificationError
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

import numpy as np

from skipalign import __version__
from skipalign.errors import BackendError, RecipeError

DEFAULT_KEY = "OPENAI_API_KEY"
# Statuses besides 5xx after which the same request may go well.
_TRY_AGAIN = (408, 429)
_LONGEST_BACKOFF_SECONDS = 60.0
# A server that asks for a longer wait has no place left today.
_LONGEST_WAIT_SECONDS = 600.0
_BYTES_AT_ONCE = 2**16
_NOT_THERE = (ConnectionRefusedError, gaierror, SSLCertVerificationError)

_Read = TypeVar("_Read")


class RefusedError(BackendError):
    """A server that will not answer this request, however often it is asked.

    Attributes:
        detail: what it says.
    """

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class _AgainError(Exception):
    """A failure that may pass; `after` is for how many seconds the server asks to be left alone."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.after = reason, after


class Poster:
    """Sends JSON to paths below a base URL; used by several threads at once.

    Args:
        base_url: see `checked_url`.
        key: sent as a bearer token; "" sends none.
        timeout_seconds: of one try, from sending to the end of the answer.
        retries: further tries after a first one that failed.
        backoff_seconds: the wait before the second try, about; it doubles each time.
        requests_per_minute: the most that are begun; None is no limit.
    """

    def __init__(
        self,
        base_url: str,
        key: str = "",
        *,
        timeout_seconds: float,
        retries: int,
        backoff_seconds: float,
        requests_per_minute: float | None = None,
    ) -> None:
        self._base_url = checked_url(base_url)
        self._key = key
        self._timeout, self._retries, self._backoff = timeout_seconds, retries, backoff_seconds
        self._pace = _Pace(60 / requests_per_minute if requests_per_minute else 0.0)
        self._opener = _opener(urlsplit(self._base_url))
        self._reached = False

    def post(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[Any], _Read],
        rng: np.random.Generator,
    ) -> _Read:
        """Return what `read` finds in the answer.

        Tried again: 408, 429, 5xx, a connection that is cut, no answer in time, and an answer in
        which `read` fails by LookupError, TypeError or ValueError.

        Args:
            path: below the base URL.
            body: plain data.
            read: takes the answer's JSON.
            rng: of the jitter.

        Raises:
            RefusedError: any other status.
            BackendError: no answer after all tries, or nobody there.
        """
        url = f"{self._base_url}/{path}"
        data = json.dumps(body).encode()
        tries = 0
        while True:
            self._pace.wait()
            tries += 1
            try:
                return self._once(url, data, read)
            except _AgainError as error:
                failed = error
            if tries > self._retries or failed.after > _LONGEST_WAIT_SECONDS:
                raise self._given_up(url, tries, failed)
            self._pace.hold(failed.after)
            wait = min(_LONGEST_BACKOFF_SECONDS, self._backoff * 2 ** (tries - 1))
            time.sleep(wait * float(rng.uniform(0.5, 1.0)))

    def _once(self, url: str, data: bytes, read: Callable[[Any], _Read]) -> _Read:
        headers = {"Content-Type": "application/json", "User-Agent": f"skipalign/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(url, data, headers)  # noqa: S310 - checked_url let http(s) through alone
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                self._reached = True
                text = _read_until(response, deadline)
        except HTTPError as error:
            with error:
                self._reached = True
                raise self._failed(url, error) from None
        except (HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, _NOT_THERE) and not self._reached:
                raise BackendError(
                    f"{url}: cannot be reached ({self._said(str(reason))}); start the server, or "
                    "mend the base URL"
                ) from None
            if isinstance(reason, TimeoutError):
                raise _AgainError(f"no answer within {self._timeout:g} seconds") from None
            raise _AgainError(f"the connection failed ({self._said(repr(reason))})") from None
        try:
            return read(json.loads(text))
        except (ValueError, LookupError, TypeError):
            said = self._said(text.decode(errors="replace"))
            raise _AgainError(f"the answer is cut short or no completion ({said})") from None

    def _given_up(self, url: str, tries: int, failed: _AgainError) -> BackendError:
        asked = f"; it asks to be left alone for {failed.after:,.0f} s" if failed.after else ""
        return BackendError(
            f"{url}: {failed.reason} at try {tries} of {self._retries + 1}{asked}; what is "
            "answered is kept - start again later, or with less concurrency, a lower rate or a "
            "longer timeout"
        )

    def _failed(self, url: str, error: HTTPError) -> Exception:
        """Return the exception for a status that is no success."""
        detail = self._said(_detail(error))
        reason = f"status {error.code}" + (f" ({detail})" if detail else "")
        if error.code in _TRY_AGAIN or error.code >= 500:
            return _AgainError(reason, _retry_after(error.headers))
        cure = {
            401: "give a key that the server takes, in the environment",
            403: "give a key that the server takes, in the environment",
            404: "mend the base URL, which mostly ends in /v1, or the model's name",
        }.get(error.code, "the server will not answer such a request; change what it names")
        return RefusedError(f"{url}: {reason}; {cure}", detail)

    def _said(self, text: str) -> str:
        """Return what a server says as one short line without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        return line if len(line) <= 300 else line[:300] + "..."


class _Pace:
    """When the next request may begin: some time after the last, later where a server asks."""

    def __init__(self, gap_seconds: float) -> None:
        self._gap = gap_seconds
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for one's turn."""
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + self._gap
                    return
                wait = self._next - now
            time.sleep(wait)

    def hold(self, seconds: float) -> None:
        """Let nobody begin for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


# ------------------------------------------------------------------------------- the base URL, keys


def checked_url(base_url: str) -> str:
    """Return a base URL without the slash at its end.

    Raises:
        RecipeError: it is no http(s) URL, or it holds what may be secret: a user, a password or a
            query; results record the URL.
    """
    try:
        parts = urlsplit(base_url)
        port_is_number = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_number = SplitResult("", "", "", "", ""), False
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise RecipeError(
            "the base URL holds a user, a password or a query, which results would record; give "
            "scheme, host and path alone, and the key in the environment"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_number:
        raise RecipeError(
            f"the base URL is {base_url!r}; it must be such as https://api.openai.com/v1 or "
            "http://localhost:8000/v1"
        )
    return base_url.rstrip("/")


def key_of(base_url: str, name: str | None) -> str:
    """Return the key for a base URL from the environment; "" where there is none.

    Args:
        base_url: where it would go.
        name: of the environment variable; None is OPENAI_API_KEY, "" is no key.

    Raises:
        RecipeError: the variable named is not there, the key is no key, or OPENAI_API_KEY, which
            nobody named, would go over a network unencrypted.
    """
    key = os.environ.get(DEFAULT_KEY if name is None else name, "").strip() if name != "" else ""
    if name and not key:
        raise RecipeError(f"the environment has no {name}; set it, or name another variable")
    where = urlsplit(checked_url(base_url))
    if name is None and key and where.scheme == "http" and not _is_here(where):
        raise RecipeError(
            f"{DEFAULT_KEY} would go to {where.hostname} unencrypted; use https, name the variable "
            "if that is meant (--api-key-env), or '' to send no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeError(
            f"{name or DEFAULT_KEY} holds characters that no key has; set it to the key alone"
        )
    return key


def _is_here(where: SplitResult) -> bool:
    """Whether a URL leads to this machine."""
    if where.hostname == "localhost":
        return True
    try:
        return ip_address(where.hostname or "").is_loopback
    except ValueError:
        return False


def _opener(where: SplitResult) -> OpenerDirector:
    """Return what opens URLs, through the proxies of the environment unless it is this machine.

    It follows no redirect, which would take the key elsewhere: that is a status like any other.
    """
    opener = OpenerDirector()
    handlers = (HTTPHandler(), HTTPSHandler(), HTTPDefaultErrorHandler(), HTTPErrorProcessor())
    for handler in (ProxyHandler({} if _is_here(where) else None), *handlers):
        opener.add_handler(handler)
    return opener


# ------------------------------------------------------------------------------- answers


def _read_until(response: Any, deadline: float) -> bytes:
    """Return the body; a server that lets it trickle past the deadline has not answered.

    Raises:
        TimeoutError: not all of it came in time.
    """
    parts: list[bytes] = []
    while part := response.read1(_BYTES_AT_ONCE):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _detail(error: HTTPError) -> str:
    """Return what the body of a failure says."""
    try:
        text = error.read(_BYTES_AT_ONCE).decode(errors="replace")
    except (HTTPException, OSError):
        return ""
    try:
        found = json.loads(text)
        found = found.get("error", found.get("detail", found))
        return str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        return text


def _retry_after(headers: Message) -> float:
    """Return for how many seconds a server asks to be left alone; 0 where it says nothing."""
    text = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(text)) if text else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
