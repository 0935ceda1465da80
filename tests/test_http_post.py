"""http_post.py: tried again where that may help, paced, and the key goes to the server alone."""

import json
import time
import traceback
from email.utils import formatdate
from types import SimpleNamespace

import numpy as np
import pytest

from fixtures_server import Asked, Reply, serving
from skipalign import http_post
from skipalign.errors import BackendError, RecipeError
from skipalign.http_post import Poster, RefusedError, checked_url, key_of

KEY = "sk-nobody-may-see-this-4711"


def poster(url, key="", **given):
    settings = {"timeout_seconds": 5.0, "retries": 3, "backoff_seconds": 0.01, **given}
    return Poster(url, key, **settings)


def post(sender, read=lambda answer: answer["text"]):
    return sender.post("completions", {"prompt": "a"}, read, np.random.default_rng(0))


def in_turn(*replies):
    return lambda asked: replies[min(asked.number, len(replies) - 1)]


FINE = Reply({"text": "fine"})


@pytest.mark.parametrize(
    "fault",
    [
        Reply({}, 500),
        Reply({}, 503),
        Reply({}, 408),
        Reply({"error": "no"}, 429),
        Reply({"text": "never whole"}, cut=True),
        Reply({"text": "too late"}, delay=0.6),
        Reply({"text": "too late"}, drip=0.2),
        Reply(b'{"text": "no end'),
        Reply({"error": {"message": "not now"}}),
        Reply(["text"]),
    ],
    ids=lambda fault: f"{fault.status}-{str(fault.body)[:20]}-{fault.delay}-{fault.drip}",
)
def test_what_may_pass_is_tried_again(fault):
    with serving(in_turn(fault, fault, FINE)) as server:
        assert post(poster(server.url, timeout_seconds=0.4)) == "fine"
        assert len(server.asked) == 3
        assert {json.dumps(asked.body) for asked in server.asked} == {'{"prompt": "a"}'}


def test_tries_end_and_the_error_says_why():
    with serving(in_turn(Reply({"error": {"message": "no room\x1b[2J"}}, 503))) as server:
        with pytest.raises(BackendError) as found:
            post(poster(server.url, retries=2))
        assert len(server.asked) == 3
    assert "status 503 (no room [2J) at try 3 of 3" in str(found.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 307])
def test_what_will_not_pass_is_one_error_at_once(status):
    reply = Reply({"error": {"message": "too long"}}, status, {"Location": "http://127.0.0.1:9/"})
    with serving(in_turn(reply)) as server:
        with pytest.raises(RefusedError) as found:
            post(poster(server.url))
        assert len(server.asked) == 1
    assert f"{server.url}/completions: status {status} (too long); " in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("says", ["seconds", "date"])
def test_a_server_that_asks_for_a_pause_gets_it(says):
    # A date has whole seconds: of two, one at least is left.
    header = "1" if says == "seconds" else formatdate(time.time() + 2, usegmt=True)
    with serving(in_turn(Reply({}, 429, {"Retry-After": header}), FINE)) as server:
        post(poster(server.url))
        first, second = (asked.at for asked in server.asked)
    assert second - first > 0.95


def test_a_pause_of_hours_is_an_error_and_not_waited_for():
    with serving(in_turn(Reply({}, 429, {"Retry-After": "7200"}))) as server:
        with pytest.raises(BackendError, match="left alone for 7,200 s"):
            post(poster(server.url))
        assert len(server.asked) == 1


def test_waits_grow_and_have_jitter(monkeypatch):
    waits = []

    def waited(seconds):
        waits.append(seconds)

    monkeypatch.setattr(http_post, "time", SimpleNamespace(sleep=waited, monotonic=time.monotonic))
    with serving(in_turn(Reply({}, 500))) as server:
        for seed in range(2):
            sender = poster(server.url, retries=9, backoff_seconds=1.0)
            with pytest.raises(BackendError):
                sender.post("completions", {}, len, np.random.default_rng(seed))
    longest = np.minimum(60, 2.0 ** np.arange(9))
    assert np.shape(waits) == (18,)
    assert np.all(0.5 * longest <= np.reshape(waits, (2, 9)))
    assert np.all(np.reshape(waits, (2, 9)) <= longest)
    assert len(set(waits)) == 18


def test_requests_begin_no_faster_than_the_rate():
    with serving(in_turn(FINE)) as server:
        sender = poster(server.url, requests_per_minute=600)
        started = time.monotonic()
        for _ in range(4):
            post(sender)
        assert server.asked[-1].at - started >= 0.3


def test_nobody_there_is_an_error_at_once():
    with serving(in_turn(FINE)) as server:
        url = server.url
    started = time.monotonic()
    with pytest.raises(BackendError, match=f"{url}/completions: cannot be reached"):
        post(poster(url, backoff_seconds=60.0))
    assert time.monotonic() - started < 20


# ------------------------------------------------------------------------------ the key


def echoing(asked: Asked) -> Reply:
    return Reply({"error": {"message": f"{asked.headers['Authorization']} is wrong"}}, 401)


def test_the_key_is_sent_and_never_told():
    with serving(echoing) as server:
        sender = poster(server.url, KEY)
        with pytest.raises(RefusedError) as found:
            post(sender)
        assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    told = "".join(traceback.format_exception(found.value)) + found.value.detail + repr(sender)
    assert "Bearer [key] is wrong" in told
    assert KEY not in told


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: Reply({"error": asked.headers["Authorization"]}, 500),
        lambda asked: Reply(asked.headers["Authorization"].encode()),
    ],
)
def test_the_key_is_in_no_error_after_all_tries(answer):
    with serving(answer) as server, pytest.raises(BackendError) as found:
        post(poster(server.url, KEY, retries=0))
    told = "".join(traceback.format_exception(found.value))
    assert "[key]" in told
    assert KEY not in told


def test_a_redirect_takes_the_key_nowhere():
    with serving(in_turn(FINE)) as elsewhere:
        there = Reply({}, 302, {"Location": f"{elsewhere.url}/completions"})
        with serving(in_turn(there)) as server, pytest.raises(RefusedError, match="status 302"):
            post(poster(server.url, KEY))
        assert elsewhere.asked == []


def test_where_a_key_comes_from(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OTHER", f" {KEY}\n")
    assert key_of("https://api.example/v1", None) == ""
    assert key_of("https://api.example/v1", "OTHER") == KEY
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert key_of("https://api.example/v1", None) == "sk-1"
    assert key_of("https://api.example/v1", "") == ""
    with pytest.raises(RecipeError, match="the environment has no ABSENT"):
        key_of("https://api.example/v1", "ABSENT")


def test_a_key_that_nobody_named_stays_off_an_open_network(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(RecipeError, match="would go to gpu-box unencrypted") as found:
        key_of("http://gpu-box:8000/v1", None)
    assert KEY not in str(found.value)
    assert key_of("http://gpu-box:8000/v1", "OPENAI_API_KEY") == KEY
    for here in ("http://localhost:1/v1", "http://127.0.0.1:1", "http://[::1]:1/v1"):
        assert key_of(here, None) == KEY


@pytest.mark.parametrize("key", ["two words", "line\nends", "schlüssel"])
def test_a_key_that_is_none_is_refused_without_being_shown(key, monkeypatch):
    monkeypatch.setenv("OTHER", key)
    with pytest.raises(RecipeError, match="OTHER holds characters") as found:
        key_of("https://api.example/v1", "OTHER")
    assert key not in str(found.value)


@pytest.mark.parametrize(
    "url", ["https://me:word@api.example/v1", "https://me@api.example", "https://a/v1?key=word"]
)
def test_a_url_with_secrets_is_refused_without_being_shown(url):
    with pytest.raises(RecipeError, match="a user, a password or a query") as found:
        checked_url(url)
    assert "word" not in str(found.value).replace("password", "")
    assert "example" not in str(found.value)


@pytest.mark.parametrize(
    "url", ["api.example/v1", "ftp://a/v1", "http://", "file:///etc", "http://a:x"]
)
def test_a_base_url_is_http(url):
    with pytest.raises(RecipeError, match="the base URL is"):
        checked_url(url)
    assert checked_url("http://a:1/v1/") == "http://a:1/v1"
