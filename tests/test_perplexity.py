"""perplexity.py: the same tokens at every length, scored as one plain forward pass scores them."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fixtures_eval import Reader, prose, tiny_llama, train_tokenizer
from skipalign import tiny
from skipalign.errors import DataError, ModelError, RecipeError
from skipalign.evaluation.metrics import bootstrap_nested
from skipalign.evaluation.perplexity import (
    PerplexitySettings,
    draw_stops,
    evaluate_perplexity,
    read_text,
)
from skipalign.files import read_json
from skipalign.model import load_model, load_tokenizer
from skipalign.transformers_engine import TransformersGenerator


@pytest.fixture(scope="module")
def base():
    tokenizer = load_tokenizer(str(tiny.BASE))
    return TransformersGenerator(load_model(str(tiny.BASE)), tokenizer), tokenizer


@pytest.fixture
def settings():
    return PerplexitySettings(lengths=(512, 128, 1024), documents=6, stride=64)


@pytest.fixture(scope="module")
def measured(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    settings = PerplexitySettings(lengths=(512, 128, 1024), documents=6, stride=64)
    return evaluate_perplexity(*base, settings, out), out


def plain_nats(model, window):
    """Cross entropy of every token but the first, by one forward pass over one window."""
    ids = torch.as_tensor(window)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none").numpy()


class Counter:
    """Scores a token by its index in the window, and keeps what it was asked."""

    identity = "counter"

    def __init__(self):
        self.asked = []

    def log_likelihoods(self, texts, starts):
        self.asked += zip([list(text) for text in texts], starts, strict=True)
        pairs = zip(texts, starts, strict=True)
        return [-np.arange(start, len(text), dtype=float) for text, start in pairs]


def test_the_base_loses_beyond_the_window_that_it_was_trained_at(measured):
    document, _ = measured
    assert [cell["context_length"] for cell in document["cells"]] == [128, 512, 1024]
    short, _, long = (cell["mean"] for cell in document["cells"])
    assert short + 0.5 < long
    pairs = zip(document["cells"][0]["values"], document["cells"][2]["values"], strict=True)
    assert all(near < far for near, far in pairs)
    first = document["buckets"][0]
    best = min(document["buckets"], key=lambda bucket: bucket["mean"])
    assert best["stop"] <= 128 < document["buckets"][-1]["start"]
    assert best["mean"] < first["mean"]  # context helps, as long as there is little of it


def test_values_are_the_cross_entropy_of_plain_windows(base, measured):
    document, _ = measured
    generator, tokenizer = base
    ids = read_text(tokenizer, None).ids
    for cell in document["cells"]:
        length = cell["context_length"]
        for stop, value in zip(document["text"]["stops"], cell["values"], strict=True):
            nats = plain_nats(generator.model, ids[stop - length : stop])
            assert value == pytest.approx(nats[-64:].mean(), abs=1e-4)
    windows = [ids[stop - 1024 : stop] for stop in document["text"]["stops"]]
    nats = np.stack([plain_nats(generator.model, window) for window in windows])
    for bucket in document["buckets"]:
        expected = nats[:, bucket["start"] - 1 : bucket["stop"] - 1].mean()
        assert bucket["mean"] == pytest.approx(expected, abs=1e-4)
    edges = [(bucket["start"], bucket["stop"]) for bucket in document["buckets"]]
    assert edges == [(1, 16), *((2**k, 2 ** (k + 1)) for k in range(4, 10))]


def test_all_lengths_score_the_same_tokens(base, settings, tmp_path):
    counter = Counter()
    document = evaluate_perplexity(counter, base[1], settings, tmp_path)
    targets = {}
    for window, start in counter.asked:
        targets.setdefault(len(window), []).append(window[-64:])
        assert start == (1 if len(window) == 1024 else len(window) - 64)
    assert len(targets) == 3
    assert targets[128] == targets[512] == targets[1024]
    assert len({tuple(target) for target in targets[128]}) == 6
    text = read_text(base[1], None).ids.tolist()
    assert targets[128] == [text[stop - 64 : stop] for stop in document["text"]["stops"]]
    assert [cell["mean"] for cell in document["cells"]] == [95.5, 479.5, 991.5]
    assert document["cells"][2]["perplexity"] is None  # more than a float holds


def test_cells_and_files(measured):
    document, out = measured
    assert document == read_json(out / "perplexity.json")
    assert document["task"] == "perplexity"
    assert document["unit"] == "nats per token"
    assert document["sliding"] is None
    for cell in document["cells"]:
        assert cell["n"] == len(cell["values"]) == 6
        assert cell["mean"] == pytest.approx(np.mean(cell["values"]))
        assert cell["perplexity"] == pytest.approx(np.exp(cell["mean"]))
        assert min(cell["values"]) <= cell["low"] < cell["mean"] < cell["high"]
        low, high = bootstrap_nested([cell["values"]], np.random.default_rng(5))
        assert (cell["low"], cell["high"]) == pytest.approx((low, high), abs=0.1)
    with (out / "perplexity.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [row["context_length"] for row in table] == ["128", "512", "1024"]
    assert float(table[0]["mean"]) == document["cells"][0]["mean"]
    from matplotlib.image import imread

    assert min(imread(out / "perplexity.png").shape[:2]) > 300


def test_batching_changes_no_value(base, settings, measured, tmp_path):
    generator, tokenizer = base
    alone = TransformersGenerator(generator.model, tokenizer, batch_tokens=1)
    document = evaluate_perplexity(alone, tokenizer, settings, tmp_path)
    for cell, same in zip(document["cells"], measured[0]["cells"], strict=True):
        assert cell["values"] == pytest.approx(same["values"], abs=1e-5)


def test_the_whole_text_is_scored_once_in_sliding_windows(base, tmp_path, monkeypatch):
    monkeypatch.setattr("skipalign.evaluation.perplexity._WINDOWS_AT_ONCE", 5)
    (tmp_path / "text.txt").write_text(prose(60))
    settings = PerplexitySettings(
        lengths=(100,),
        documents=2,
        stride=30,
        sliding_window=100,
        haystack=str(tmp_path / "text.txt"),
    )
    document = evaluate_perplexity(*base, settings, tmp_path / "out")
    ids = read_text(base[1], settings.haystack).ids
    nats, done = [], 100
    nats += plain_nats(base[0].model, ids[:100]).tolist()
    while done < len(ids):
        stop = min(done + 30, len(ids))
        nats += plain_nats(base[0].model, ids[stop - 100 : stop])[done - stop :].tolist()
        done = stop
    sliding = document["sliding"]
    assert sliding["num_tokens"] == len(nats) == len(ids) - 1
    assert sliding["mean"] == pytest.approx(np.mean(nats), abs=1e-4)
    assert sliding["perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
    assert sliding["low"] < sliding["mean"] < sliding["high"]
    assert (sliding["context_length"], sliding["stride"]) == (100, 30)
    assert sliding["n"] == (len(ids) - 1) // 30


@pytest.mark.parametrize(
    ("kind", "end"), [("bytes", " <s> and <|end|> are text."), ("unigram", "")]
)
def test_bos_begins_every_window_where_the_tokenizer_adds_it(kind, end, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(kind)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    (tmp_path / "text.txt").write_text(prose(40) + end)
    settings = PerplexitySettings(
        lengths=(20, 50),
        documents=3,
        stride=10,
        sliding_window=40,
        haystack=str(tmp_path / "text.txt"),
    )
    counter = Counter()
    document = evaluate_perplexity(counter, tokenizer, settings, tmp_path / "out")
    assert document["text"]["bos"] is True
    assert {len(window) for window, _ in counter.asked} == {20, 50, 40}
    assert all(window[0] == 1 and 1 not in window[1:] for window, _ in counter.asked)
    ids = read_text(tokenizer, settings.haystack).ids
    assert not {1, 2} & set(ids.tolist())  # special tokens in the text are ordinary tokens
    assert document["sliding"]["num_tokens"] == len(ids)  # after BOS the first one counts as well


def test_places_are_drawn_from_the_seed_and_do_not_overlap_where_the_text_is_long_enough():
    settings = PerplexitySettings(lengths=(100, 1000), documents=8, stride=50)
    for num_tokens in (8000, 8001, 20000):
        stops = draw_stops(num_tokens, settings)
        assert np.diff([0, *stops]).min() >= 1000
        assert stops[-1] <= num_tokens
        assert draw_stops(num_tokens, settings).tolist() == stops.tolist()
    others = [draw_stops(20000, replace(settings, seed=seed)).tolist() for seed in range(5)]
    assert len({tuple(stops) for stops in others}) == 5
    crowded = draw_stops(1000 + 7 * 60 + 3, settings)
    assert np.diff(crowded).min() >= 60  # spread evenly, scored tokens apart
    assert draw_stops(1350, settings).tolist() == list(range(1000, 1351, 50))
    assert draw_stops(1000, replace(settings, documents=1)).tolist() == [1000]
    with pytest.raises(DataError, match=r"1,349 tokens .* need 1,350 - give a longer text"):
        draw_stops(1349, settings)


def test_a_text_that_is_too_short_is_named(base, tmp_path):
    (tmp_path / "short.txt").write_text("A short text. " * 10)
    short = str(tmp_path / "short.txt")
    asked = PerplexitySettings(lengths=(16,), documents=2, stride=8, haystack=short)
    with pytest.raises(DataError, match=r"short\.txt: it has \d+ tokens"):
        evaluate_perplexity(*base, replace(asked, documents=200), tmp_path / "out")
    with pytest.raises(DataError, match=r"fewer than sliding_window 4,096"):
        evaluate_perplexity(*base, replace(asked, sliding_window=4096), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_backend_without_likelihoods_is_refused(base, settings, tmp_path):
    with pytest.raises(ModelError, match=r"Reader gives completions alone; perplexity needs"):
        evaluate_perplexity(Reader(base[1]), base[1], settings, tmp_path)


def test_settings_read_as_they_were_written(measured, settings):
    stored = measured[0]["settings"]
    sha = stored.pop("haystack_sha256")
    assert len(sha) == 64
    assert stored == json.loads(json.dumps(settings.__dict__))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": ()}, r"lengths are \[\]"),
        ({"lengths": (128, 128)}, r"lengths are \[128, 128\]"),
        ({"documents": 0}, r"documents are 0"),
        ({"seed": -1}, r"seed is -1"),
        ({"stride": 0}, r"stride is 0 for windows of 128 tokens; it must be from 1 to 127"),
        ({"stride": 128}, r"stride is 128 for windows of 128 tokens"),
        ({"sliding_window": 64}, r"stride is 64 for windows of 64 tokens"),
    ],
)
def test_settings_without_windows(settings, change, message):
    with pytest.raises(RecipeError, match=message):
        replace(settings, **change)


def test_a_random_model_knows_nothing(tmp_path):
    tokenizer = train_tokenizer()
    generator = TransformersGenerator(tiny_llama(len(tokenizer)), tokenizer)
    (tmp_path / "text.txt").write_text(prose(200))
    settings = PerplexitySettings(
        lengths=(32, 64), documents=4, stride=16, haystack=str(tmp_path / "text.txt")
    )
    document = evaluate_perplexity(generator, tokenizer, settings, tmp_path / "out")
    assert all(cell["mean"] > np.log(600) - 1 for cell in document["cells"])
