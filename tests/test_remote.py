"""remote.py: a server's answers are the model's own, through every fault, each kept at once."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from fixtures_eval import prose, train_tokenizer
from fixtures_server import (
    REFUSALS,
    Reply,
    answers_as_tiny,
    faulty_proxy,
    said,
    serving,
    tiny_generator,
)
from skipalign import remote as room
from skipalign import tiny
from skipalign.conversation import Message
from skipalign.errors import BackendError, ModelError, RecipeError
from skipalign.evaluation.needle import NeedleSettings, evaluate_needle
from skipalign.evaluation.perplexity import PerplexitySettings, evaluate_perplexity
from skipalign.evaluation.stretch import StretchSettings, evaluate_stretch
from skipalign.remote import CONTENT_ONLY, RemoteGenerator, ServerSettings, load_remote
from skipalign.template import Template
from skipalign.tokens import DataTokenizer

BASE = str(tiny.BASE)
NEW = 8


def remote(url, send="ids", **given):
    given = {"timeout_seconds": 30.0, "backoff_seconds": 0.01, **given}
    settings = ServerSettings(base_url=url, model=BASE, send=send, **given)
    return load_remote(settings, BASE, api_key_env="")[0]


def rendered(content):
    """The ids of a user's message in the tiny model's own template."""
    tokenizer = tiny_generator().tokenizer
    template = Template(tokenizer, DataTokenizer(tokenizer), {})
    text = template.render([Message("user", content)], prompt=True)
    return tokenizer(text)["input_ids"]


def contents(num=6):
    sentences = prose(60).split(". ")
    return [". ".join(sentences[3 * i : 3 * i + 2 + i % 3]) + "?" for i in range(num)]


def plain_ids(text):
    return tiny_generator().tokenizer(text)["input_ids"]


@pytest.fixture
def server():
    with serving(answers_as_tiny()) as made:
        yield made


@pytest.fixture
def needle(tmp_path):
    (tmp_path / "prose.txt").write_text(prose(120))
    return NeedleSettings(
        lengths=(96, 160),
        depths=3,
        trials=2,
        haystack=str(tmp_path / "prose.txt"),
        max_new_tokens=NEW,
    )


def trials(folder):
    """The answers in a log, by their place; each stands there once."""
    rows = [json.loads(line) for line in (folder / "needle.trials.jsonl").read_text().splitlines()]
    found = {(r["context_length"], r["depth"], r["trial"]): r["answer"] for r in rows[1:]}
    assert len(found) == len(rows) - 1
    return found


# ------------------------------------------------------------------------------ the answers


@pytest.mark.parametrize("send", ["ids", "text", "chat"])
def test_answers_are_those_of_the_model_itself_in_order(server, send):
    wanted = tiny_generator().generate([rendered(each) for each in contents()], max_new_tokens=NEW)
    prompts = [plain_ids(each) if send == "chat" else rendered(each) for each in contents()]
    found = remote(server.url, send).generate(prompts, max_new_tokens=NEW)
    assert [each.text for each in found] == [each.text for each in wanted]
    assert len({each.text for each in found}) > 1
    paths = {asked.path for asked in server.asked}
    assert paths == {"/v1/chat/completions" if send == "chat" else "/v1/completions"}
    bodies = [asked.body for asked in server.asked]
    assert all(body["temperature"] == 0 and body["max_tokens"] == NEW for body in bodies)
    assert server.most_at_once > 1


@pytest.mark.parametrize("send", ["ids", "text", "chat"])
def test_a_further_stop_ends_the_answer(server, send):
    content = contents()[0]
    prompt = plain_ids(content) if send == "chat" else rendered(content)
    (whole,) = tiny_generator().generate([rendered(content)], max_new_tokens=NEW)
    stop = whole.ids[3]
    (wanted,) = tiny_generator().generate(
        [rendered(content)], max_new_tokens=NEW, more_stop_ids=[stop]
    )
    assert len(wanted.text) < len(whole.text)
    asked = {"max_new_tokens": NEW, "more_stop_ids": [stop]}
    assert remote(server.url, send).generate([prompt], **asked)[0].text == wanted.text


def test_a_stop_is_cut_off_where_the_server_leaves_it_and_goes_on():
    answers = {"a": "one\ntwo", "b": "\n\none\n", "c": "one"}
    tokenizer = train_tokenizer(template=None)
    with serving(lambda asked: Reply(said(answers[asked.body["prompt"]]))) as server:
        settings = ServerSettings(base_url=server.url, model="m", send="text")
        generator = RemoteGenerator(settings, tokenizer)
        (newline,) = tokenizer("\n")["input_ids"]
        asked = {"max_new_tokens": NEW, "more_stop_ids": [newline]}
        prompts = [tokenizer(each)["input_ids"] for each in answers]
        assert [a.text for a in generator.generate(prompts, **asked)] == ["one", "", "one"]
        assert all(each.body["stop"] == ["\n"] for each in server.asked)
        least = generator.generate(prompts, **asked, min_new_tokens=1)
        assert [a.text for a in least] == ["one", "one", "one"]
        assert all("stop" not in each.body for each in server.asked[3:])


def test_a_server_with_vllms_fields_stops_by_tokens_exactly(server):
    content = contents()[0]
    (whole,) = tiny_generator().generate([rendered(content)], max_new_tokens=NEW)
    asked = {"max_new_tokens": NEW, "more_stop_ids": [whole.ids[0]], "min_new_tokens": 3}
    (wanted,) = tiny_generator().generate([rendered(content)], **asked)
    generator = remote(server.url, dialect="vllm")
    assert generator.generate([rendered(content)], **asked)[0].text == wanted.text
    body = server.asked[0].body
    assert body["min_tokens"] == 3
    assert whole.ids[0] in body["stop_token_ids"]


def test_a_chats_prompt_is_one_message_without_template_or_bos():
    tokenizer = train_tokenizer(template=CONTENT_ONLY)
    texts = DataTokenizer(tokenizer)
    messages = [Message("system", "Be brief."), Message("user", " Who is <|end|>? ")]
    text = Template(tokenizer, texts, {}).render(messages, prompt=True)
    span = [(0, len(text))]
    ids = texts.as_data(text, span, texts.tokenize([text])[0]).ids
    begins = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = begins
    with serving(lambda asked: Reply(said("fine", is_chat=True))) as server:
        settings = ServerSettings(base_url=server.url, model="m", concurrency=1)
        prompts = [ids.tolist(), tokenizer("Who?")["input_ids"]]
        assert prompts[1][0] == tokenizer.bos_token_id
        RemoteGenerator(settings, tokenizer).generate(prompts, max_new_tokens=NEW)
    found = [asked.body["messages"] for asked in server.asked]
    wanted = ["Be brief.\n\n Who is <|end|>? ", "Who?"]
    assert found == [[{"role": "user", "content": each}] for each in wanted]


def test_a_text_is_sent_without_the_bos_that_the_server_adds():
    tokenizer = train_tokenizer()
    begins = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = begins
    with serving(lambda asked: Reply(said("fine"))) as server:
        settings = ServerSettings(base_url=server.url, model="m", send="text")
        prompt = tokenizer("<|user|>\nWho?")["input_ids"]
        RemoteGenerator(settings, tokenizer).generate([prompt], max_new_tokens=NEW)
    assert server.asked[0].body["prompt"] == "<|user|>\nWho?"


def test_no_content_is_an_empty_answer():
    with serving(lambda asked: Reply(said(None, is_chat=True))) as server:
        (answer,) = remote(server.url, "chat").generate([plain_ids("Who?")], max_new_tokens=NEW)
    assert (answer.ids, answer.text) == ([], "")


def test_models_that_know_the_newer_limit_alone_are_asked_with_it():
    def newer(asked):
        if "max_tokens" in asked.body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return Reply({"error": {"message": message}}, 400)
        return Reply(said(str(asked.body["max_completion_tokens"]), is_chat=True))

    with serving(newer) as server:
        generator = remote(server.url, "chat", concurrency=1)
        answers = generator.generate([plain_ids(each) for each in "abc"], max_new_tokens=NEW)
        assert [answer.text for answer in answers] == [str(NEW)] * 3
        assert len(server.asked) == 4


def test_further_fields_are_sent_and_ours_can_be_taken_out():
    with serving(lambda asked: Reply(said("fine"))) as server:
        generator = remote(server.url, body={"seed": 3, "temperature": None})
        generator.generate([[5]], max_new_tokens=NEW)
        body = {"model": BASE, "prompt": [5], "seed": 3, "max_tokens": NEW}
        assert server.asked[0].body == body


# ------------------------------------------------------------------------------ faults


def test_no_sample_is_lost_and_none_scored_twice_through_faults(server, needle, tmp_path):
    tokenizer = tiny_generator().tokenizer
    wanted = evaluate_needle(tiny_generator(), tokenizer, needle, tmp_path / "plain")
    faults = {0: REFUSALS["busy"], 2: REFUSALS["broken"], 3: "cut", 5: "slow", 7: "cut"}
    faults |= {8: Reply({}, 503), 11: Reply(b"{")}
    with serving(faulty_proxy(server.url, faults)) as proxy:
        generator = remote(proxy.url, timeout_seconds=1.2)
        found = evaluate_needle(generator, tokenizer, needle, tmp_path / "remote")
    assert len(proxy.asked) >= 12 + len(faults)
    assert trials(tmp_path / "remote") == trials(tmp_path / "plain")
    assert found["cells"] == wanted["cells"]
    assert found["reuse"]["reason"] == "RemoteGenerator has no cache that can be cropped"


def test_what_was_answered_before_a_failure_is_not_asked_again(server, needle, tmp_path):
    tokenizer = tiny_generator().tokenizer
    # It comes late: by then later prompts are answered, which must be kept as well.
    faults = {2: Reply({"error": {"message": "maximum context length is 8"}}, 400, delay=0.7)}
    with serving(faulty_proxy(server.url, faults)) as proxy:
        generator = remote(proxy.url)
        with pytest.raises(BackendError, match=r"status 400 \(maximum context length is 8"):
            evaluate_needle(generator, tokenizer, needle, tmp_path)
        kept = trials(tmp_path)
        assert len(kept) == len(proxy.delivered) >= 5
        evaluate_needle(generator, tokenizer, needle, tmp_path)
        assert len(proxy.delivered) == 12
        assert len({json.dumps(body) for body in proxy.delivered}) == 12
    assert trials(tmp_path).items() >= kept.items()


def test_answers_come_while_others_are_still_awaited():
    others_are_there = threading.Event()

    def last_waits(asked):
        if asked.body["prompt"] == [7]:
            assert others_are_there.wait(20)
        return Reply(said("fine"))

    with serving(last_waits) as server:
        stream = remote(server.url, concurrency=3).stream([[5], [6], [7]], max_new_tokens=1)
        assert [next(stream)[0], next(stream)[0]] == [0, 1]
        others_are_there.set()
        assert next(stream)[0] == 2


def test_ctrl_c_gives_what_is_answered_and_waits_for_nothing(monkeypatch):
    over = threading.Event()

    class Interrupted(room.SimpleQueue):
        taken = 0

        def get(self):
            if self.taken == 2:
                raise KeyboardInterrupt
            self.taken += 1
            return super().get()

    def first_waits(asked):
        if asked.body["prompt"] == [5]:
            over.wait(20)
        return Reply(said("fine"))

    with serving(first_waits) as server:
        monkeypatch.setattr(room, "SimpleQueue", Interrupted)
        stream = remote(server.url, concurrency=2).stream([[5], [6], [7], [8]], max_new_tokens=1)
        found = []
        with pytest.raises(KeyboardInterrupt):
            found.extend(index for index, _ in stream)
        over.set()
    assert found == [1, 2]


# ------------------------------------------------------------------------------ refusals


def test_what_a_server_cannot_do_is_refused_before_anything_is_sent(server, needle, tmp_path):
    generator, tokenizer = remote(server.url), tiny_generator().tokenizer
    with pytest.raises(ModelError, match="positions are given, and a server takes none"):
        generator.generate([[5]], max_new_tokens=1, position_ids=[np.array([9])])
    with pytest.raises(ModelError, match="3 tokens at least, which OpenAI's API cannot"):
        generator.generate([[5]], max_new_tokens=4, min_new_tokens=3)
    with pytest.raises(ModelError, match="prompt 1 has no tokens"):
        generator.generate([[5], []], max_new_tokens=1)
    haystack = needle.haystack
    stretch = StretchSettings(distances=(200,), context_length=96, trials=1, haystack=haystack)
    with pytest.raises(ModelError, match="positions are given"):
        evaluate_stretch(generator, tokenizer, stretch, tmp_path / "stretch")
    told = PerplexitySettings(lengths=(128,), haystack=haystack)
    with pytest.raises(ModelError, match="perplexity needs the likelihood"):
        evaluate_perplexity(generator, tokenizer, told, tmp_path / "perplexity")
    assert server.asked == []


def test_a_text_that_reads_as_other_tokens_is_refused(server):
    tokenizer = train_tokenizer()
    whole = tokenizer("walked")["input_ids"]
    apart = [token for letter in "walked" for token in tokenizer(letter)["input_ids"]]
    settings = ServerSettings(base_url=server.url, model="m", send="text")
    with pytest.raises(ModelError, match="prompt 1 begins 'walked' and is not the same tokens"):
        RemoteGenerator(settings, tokenizer).generate([whole, apart], max_new_tokens=1)
    assert server.asked == []
    remote(server.url, "ids").generate([apart], max_new_tokens=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds is 0"),
        ({"requests_per_minute": 0.0}, "requests_per_minute is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"body": {"stream": True, "n": 2}}, "body holds n, stream"),
        ({"send": "chat", "dialect": "vllm"}, "dialect is 'vllm' and send is 'chat'"),
        ({"base_url": "here"}, "the base URL is 'here'"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(RecipeError, match=message):
        ServerSettings(**{"base_url": "http://localhost:1/v1", "model": "m", **given})


def test_identity_changes_with_whatever_changes_answers(tmp_path):
    def identity(tokenizer=BASE, **given):
        given = {"base_url": "http://localhost:1/v1", "model": "m", **given}
        return load_remote(ServerSettings(**given), tokenizer, api_key_env="")[0].identity

    other = tiny_generator().tokenizer.__class__.from_pretrained(BASE)
    other.add_tokens(["zebra"])
    other.save_pretrained(tmp_path)
    changed = [
        identity(),
        identity(model="n"),
        identity(base_url="http://localhost:2/v1"),
        identity(send="text"),
        identity(send="ids", dialect="vllm"),
        identity(body={"seed": 1}),
        identity(tokenizer=str(tmp_path)),
    ]
    assert len(set(changed)) == len(changed)
    assert identity(concurrency=9, timeout_seconds=1.0, retries=0) == changed[0]


# ------------------------------------------------------------------------------ transformers serve


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """The URL of `transformers serve` with the packaged model."""
    pytest.importorskip("uvicorn", reason="needs the extra transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    script = Path(sys.executable).with_name("transformers")
    words = [script, "serve", BASE, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as handle:
        process = subprocess.Popen(words, stdout=handle, stderr=handle, env={**os.environ})
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.long
@pytest.mark.parametrize("send", ["text", "chat"])
def test_transformers_serve_answers_as_our_own_loop(transformers_serve, send):
    wanted = tiny_generator().generate([rendered(each) for each in contents()], max_new_tokens=24)
    prompts = [plain_ids(each) if send == "chat" else rendered(each) for each in contents()]
    generator = remote(transformers_serve, send)
    found = generator.generate(prompts, max_new_tokens=24)
    assert [each.text for each in found] == [each.text for each in wanted]
    stop = {"max_new_tokens": 24, "more_stop_ids": [wanted[0].ids[4]]}
    ended = tiny_generator().generate([rendered(contents()[0])], **stop)
    assert len(ended[0].text) < len(wanted[0].text)
    assert generator.generate(prompts[:1], **stop)[0].text == ended[0].text


@pytest.mark.long
def test_transformers_serve_takes_no_token_ids_and_that_is_one_line(transformers_serve):
    with pytest.raises(BackendError, match=r"status 400 \(prompt must be a string"):
        remote(transformers_serve, "ids").generate([[5]], max_new_tokens=1)
    settings = ServerSettings(base_url=transformers_serve, model="other")
    generator = RemoteGenerator(settings, tiny_generator().tokenizer)
    with pytest.raises(BackendError, match="Server is pinned to"):
        generator.generate([[5]], max_new_tokens=1)


@pytest.mark.long
def test_no_sample_of_transformers_serve_is_lost_through_faults(
    transformers_serve, needle, tmp_path
):
    tokenizer = tiny_generator().tokenizer
    evaluate_needle(tiny_generator(), tokenizer, needle, tmp_path / "plain")
    faults = {1: REFUSALS["busy"], 3: REFUSALS["broken"], 4: "cut", 6: "slow"}
    with serving(faulty_proxy(transformers_serve, faults)) as proxy:
        generator = remote(proxy.url, "text", timeout_seconds=1.2)
        evaluate_needle(generator, tokenizer, needle, tmp_path / "remote")
        assert len(proxy.asked) >= 12 + len(faults)
    assert trials(tmp_path / "remote") == trials(tmp_path / "plain")
