"""Changed attention of benchmarks/attention_controls.py against plain formulas in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from made_models import SIZES
from made_scripts import script
from skipalign import recipe, tiny
from skipalign.batch import Placed, pad
from skipalign.conversation import Conversation, Message, Place
from skipalign.encoding import IGNORE_INDEX, Encoder, Example, Segment
from skipalign.key_bias import runs
from skipalign.model import load_tokenizer

controls = script("benchmarks/attention_controls.py")
ROWS, HEADS, WIDTH, LENGTHS = 4, 2, 8, (12, 9, 12, 10)
LONGEST, SCALING = max(LENGTHS), 0.4
# The last row does not skip.
POSITIONS = [
    np.r_[0:4, 100:104, 900:904],
    np.r_[0:2, 60:64, 300:303],
    np.r_[0:7, 101:106],
    np.arange(10),
]


def tensors(num_queries=LONGEST):
    random = torch.Generator().manual_seed(0)
    shapes = [(ROWS, HEADS, length, WIDTH) for length in (num_queries, LONGEST, LONGEST)]
    return [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]


def module(layer=0):
    config = SimpleNamespace(num_hidden_layers=3, num_attention_heads=HEADS)
    return SimpleNamespace(config=config, layer_idx=layer, is_causal=True)


def batch(marks=None):
    """The library's own batch of four rows, with padding; marks travel as a key bias does."""
    placed = []
    for row, positions in enumerate(POSITIONS):
        num = len(positions)
        ids = np.arange(num)
        segments = (Segment(0, num, "user", 0, num),)
        example = Example(ids, np.full(num, IGNORE_INDEX), segments, ids[:0], str(row), "tiny")
        bias = None if marks is None else marks[row][:num].astype(np.float32)
        placed.append(Placed(example, positions, bias))
    return pad(placed, 0)


def attend(change, query, key, value, mask, positions, *, layer=0, **options):
    with controls.changed_attention(change, **options):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            *(module(layer), query, key, value, mask), scaling=SCALING, position_ids=positions
        )[0].transpose(1, 2)


def plain(query, key, value, seen, factor=1.0, bias=0.0):
    logits = query @ key.transpose(-1, -2) * SCALING * factor + bias
    return logits.masked_fill(~seen, -torch.inf).softmax(-1) @ value


def causal(num_queries=LONGEST):
    return torch.ones(num_queries, LONGEST, dtype=torch.bool).tril(LONGEST - num_queries)


def equal(found, expected):
    return float((found - expected).abs().max()) < 1e-12


def skipped():
    return torch.from_numpy(np.stack([np.r_[0:4, 200 + row : 208 + row] for row in range(ROWS)]))


# ------------------------------------------------------------------------------ factors


def factor_of(name, positions, numbers):
    if name.startswith("temperature"):
        return np.array(float(name.removeprefix("temperature-")))
    if name == "log-n":
        return np.maximum(1, np.log(positions + 1) / np.log(128))
    if name == "ssmax":
        return np.log(numbers) / np.log(128)
    return np.sqrt((1 - numbers ** (-2 / WIDTH)) / (1 - 128 ** (-2 / WIDTH)))


FACTORS = ("temperature-1.2", "temperature-1.45", "temperature-2", "log-n", "ssmax", "infoscale")


@pytest.mark.parametrize("name", FACTORS)
def test_logits_are_multiplied_as_the_formula_says(name: str):
    query, key, value = tensors()
    positions = skipped()
    numbers = np.broadcast_to(np.arange(1, LONGEST + 1.0), positions.shape)
    factor = torch.from_numpy(factor_of(name, positions.numpy(), numbers))
    factor = factor if factor.dim() == 0 else factor[:, None, :, None]
    found = attend(controls.ROWS[name].change, query, key, value, None, positions)
    assert equal(found, plain(query, key, value, causal(), factor))
    assert not equal(found, plain(query, key, value, causal()))


@pytest.mark.parametrize("name", FACTORS)
def test_evaluation_alone_has_the_same_change(name: str):
    row = controls.ROWS.get(f"{name}-inference")
    assert row is None or row.change == controls.ROWS[name].change
    assert (row is None) == name.startswith("temperature")


@pytest.mark.parametrize("name", ["ssmax", "infoscale"])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_cached_keys_count(name: str, num_queries: int):
    query, key, value = tensors(num_queries)
    numbers = np.arange(LONGEST - num_queries + 1.0, LONGEST + 1)
    mask = None if num_queries == 1 else causal(num_queries).expand(ROWS, 1, -1, -1)
    found = attend(controls.ROWS[name].change, query, key, value, mask, torch.zeros(1, 1))
    factor = torch.from_numpy(factor_of(name, None, numbers))[:, None]
    assert equal(found, plain(query, key, value, causal(num_queries), factor))


def test_factors_at_the_window_and_at_32_windows():
    query = torch.ones(1, 1, 1, 32, dtype=torch.float64)
    at = {}
    for num in (128, 4096):
        key = torch.zeros(1, 1, num, 32)
        call = controls.Call(None, query, key, key, None, torch.tensor([[num - 1]]))
        for name in ("ssmax", "infoscale", "log-n"):
            at[name, num] = float(controls.ROWS[name].change(call).query[0, 0, 0, 0])
    ends = {name: (at[name, 128], at[name, 4096]) for name, _ in at}
    assert ends["ssmax"] == ends["log-n"] == pytest.approx((1, 12 / 7))
    assert ends["infoscale"] == pytest.approx((1, 1.2448), abs=1e-4)


@pytest.mark.parametrize("name", ["ssmax", "infoscale", "log-n"])
def test_a_padded_row_has_the_factors_of_a_lone_one_and_so_has_one_on_a_cache(name: str):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).double().eval()
    ids = torch.arange(1, 21)[None]
    ones, places = torch.ones_like(ids), torch.arange(20)[None]
    zeros = torch.zeros(1, 7, dtype=torch.long)
    # A row with padding on the left, beside a longer one.
    padded = {
        "input_ids": torch.cat([torch.cat([zeros, ids], 1), torch.arange(27)[None]]),
        "attention_mask": torch.cat([torch.cat([zeros, ones], 1), torch.ones(1, 27).long()]),
        "position_ids": torch.cat([torch.cat([zeros, places], 1), torch.arange(27)[None]]),
    }
    change = type(controls.ROWS[name].change)(window=8)
    with torch.no_grad():
        unchanged = model(ids, attention_mask=ones).logits
        with controls.changed_attention(change):
            whole = model(ids, attention_mask=ones).logits
            row = model(**padded).logits[:1, 7:]
            step = model(ids[:, :15], attention_mask=ones[:, :15], use_cache=True)
            found = [step.logits]
            for start, stop in ((15, 19), (19, 20)):
                mask, cache = ones[:, :stop], step.past_key_values
                step = model(ids[:, start:stop], attention_mask=mask, past_key_values=cache)
                found.append(step.logits)
    assert equal(row, whole)
    assert equal(torch.cat(found, 1), whole)
    assert not equal(whole, unchanged)


# ------------------------------------------------------------------------------ noise


NOISE = {
    "noise-head": (True, False),
    "noise-layer": (False, True),
    "noise-head-layer": (True, True),
}


@pytest.mark.parametrize(("name", "own"), NOISE.items())
def test_noise_is_added_for_each_run(name: str, own):
    query, key, value = tensors()
    found = batch()
    change = controls.ROWS[name].change
    shape = (3 if own[1] else 1, HEADS if own[0] else 1)
    bias = torch.zeros(ROWS, HEADS, 1, LONGEST, dtype=torch.float64)
    for row, positions in enumerate(POSITIONS):
        drawn = change.draw(positions, *shape)
        bias[row, :, 0, : len(positions)] = torch.from_numpy(drawn[2 if own[1] else 0])
        for start, stop in zip(*runs(positions), strict=True):
            assert np.ptp(drawn[..., start:stop], axis=-1).max() == 0
    tokens = found["attention_mask"].bool()[:, None, None]
    seen = tokens & causal()
    mask = seen.expand(ROWS, 1, -1, -1)
    got = attend(change, query, key, value, mask, found["position_ids"], layer=2)
    assert equal(got, plain(query, key, value, seen, bias=bias))
    assert not equal(got, plain(query, key, value, seen))


@pytest.mark.parametrize(("name", "own"), NOISE.items())
def test_noise_differs_by_head_and_layer_as_named(name: str, own):
    query, key, value = tensors()
    masks = []
    for layer in (0, 1):
        call = controls.Call(module(layer), query, key, value, None, skipped())
        masks.append(controls.ROWS[name].change(call).mask[:, :, -1])
    by_head = bool((masks[0][:, 0] != masks[0][:, -1]).any())
    by_layer = bool((masks[0] != masks[1]).any())
    assert (by_head, by_layer) == own
    assert (masks[0][0] != masks[0][1]).any(), "each sample has draws of its own"


def test_equal_seeds_draw_the_same_and_no_global_state_is_touched():
    noise = controls.Noise(by_head=True, by_layer=True)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    drawn = [
        controls.Noise(by_head=True, by_layer=True, seed=seed).draw(POSITIONS[0], 3, HEADS)
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).all()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    many = noise.draw(np.arange(0, 4000, 2), 2, 2)
    assert many.mean() == pytest.approx(0, abs=0.05)
    assert many.std() == pytest.approx(1, abs=0.05)


# ------------------------------------------------------------------------------ more keys


MARKS = np.random.default_rng(5).integers(0, 2, (ROWS, LONGEST))


def extra_of(row: int, query: int, num_samples: int):
    """Which (row, key) of others a query sees, told token by token."""
    positions = POSITIONS[row]
    if query >= len(positions) or np.ptp(positions) == len(positions) - 1:
        return []
    return [
        (other, place)
        for by in range(1, num_samples + 1)
        for other in [(row + by) % ROWS]
        for place, position in enumerate(POSITIONS[other])
        if MARKS[other][place] and position <= positions[query]
    ]


@pytest.mark.parametrize("num_samples", [1, 3])
def test_keys_of_other_samples_are_appended(num_samples: int):
    query, key, value = tensors()
    given = batch(MARKS)
    change = controls.OtherSamples(num_samples=num_samples)
    found = attend(change, query, key, value, given["attention_mask"], given["position_ids"])
    num = 0
    for row, positions in enumerate(POSITIONS):
        for place in range(len(positions)):
            extra = extra_of(row, place, num_samples)
            num += len(extra)
            keys, values = (
                torch.cat([own[row, :, : place + 1], *(own[o, :, p : p + 1] for o, p in extra)], 1)
                for own in (key, value)
            )
            one = query[row, :, place : place + 1]
            expected = plain(one, keys, values, torch.tensor(True))
            assert equal(found[row, :, place : place + 1], expected)
    assert num > 50


def test_own_filler_is_repeated_as_often():
    query, key, value = tensors()
    given = batch(MARKS)
    change = controls.RepeatedKeys(num_samples=3)
    found = attend(change, query, key, value, given["attention_mask"], given["position_ids"])
    most = 0
    for row, positions in enumerate(POSITIONS):
        for place in range(len(positions)):
            filler = np.flatnonzero(MARKS[row][: place + 1])
            num = round(len(extra_of(row, place, 3)) / max(1, len(filler)))
            most = max(most, num)
            each = np.r_[0 : place + 1, np.repeat(filler, num)]
            expected = plain(
                query[row, :, place : place + 1],
                *(own[row, :, each] for own in (key, value)),
                torch.tensor(True),
            )
            assert equal(found[row, :, place : place + 1], expected)
    assert most >= 3


def test_nothing_later_padded_or_of_a_record_is_seen_of_another_sample():
    query, key, value = tensors()
    value.requires_grad_()
    given = batch(MARKS)
    change = controls.OtherSamples(num_samples=3)
    found = attend(change, query, key, value, given["attention_mask"], given["position_ids"])
    for row, positions in enumerate(POSITIONS):
        for place in range(len(positions)):
            (moved,) = torch.autograd.grad(found[row, :, place].sum(), value, retain_graph=True)
            seen = {tuple(each) for each in moved.sum((1, 3)).nonzero().tolist()}
            own = {(row, each) for each in range(place + 1)}
            assert seen == own | set(extra_of(row, place, 3))


def test_filler_is_what_stands_in_sentences_without_a_name():
    tokenizer = load_tokenizer(str(tiny.BASE))
    messages = (
        Message("user", "It is a truth. Ada Adler came. She was happy. Who is Ada?"),
        Message("assistant", "Ada Adler."),
    )
    conversation = Conversation(messages, Place("here", 1), "tiny", "1")
    (example,) = Encoder(tokenizer, max_tokens=128).encode(conversation).examples
    marks = controls.FillerMarks().values(example, np.arange(len(example.input_ids)), None)
    filler = tokenizer.decode(example.input_ids[marks > 0])
    assert filler.split() == ["It", "is", "a", "truth.", "She", "was", "happy."]


# ------------------------------------------------------------------------------ nothing


@pytest.mark.parametrize(
    "change",
    [None, controls.Temperature(1.0), controls.Noise(by_head=True, by_layer=True, std=0)],
    ids=repr,
)
@pytest.mark.parametrize("masked", [False, True])
def test_no_change_changes_no_bit(change, masked: bool):
    query, key, value = (each.float() for each in tensors())
    mask = causal().expand(ROWS, 1, -1, -1) if masked else None
    expected = ALL_ATTENTION_FUNCTIONS["sdpa"](module(), query, key, value, mask, scaling=SCALING)
    found = attend(change, query, key, value, mask, skipped())
    assert torch.equal(found, expected[0].transpose(1, 2))


@pytest.mark.parametrize("name", ["other-samples", "repeated-keys"])
@pytest.mark.parametrize("num_samples", [0, 3])
def test_without_further_samples_marks_change_no_bit(name: str, num_samples: int):
    query, key, value = (each.float() for each in tensors())
    given = batch(MARKS)
    mask = given["attention_mask"]
    seen = mask > torch.finfo(mask.dtype).min
    expected = ALL_ATTENTION_FUNCTIONS["sdpa"](module(), query, key, value, seen, scaling=SCALING)
    change = type(controls.ROWS[name].change)(num_samples=num_samples)
    found = attend(change, query, key, value, mask, given["position_ids"])
    off = (found - expected[0].transpose(1, 2)).abs().amax((1, 2, 3))
    assert (off[:3] == 0).all() == (num_samples == 0)
    assert off[3] < (1e-6 if num_samples else 1e-12), "the last row does not skip"


def test_the_change_is_gone_afterwards_also_after_an_error():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with controls.changed_attention(controls.Temperature(2.0)):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with pytest.raises(KeyError), controls.changed_attention(controls.Temperature(2.0)):
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_a_change_of_training_alone_leaves_passes_without_gradients():
    query, key, value = tensors()
    change = controls.Temperature(2.0)
    unchanged = plain(query, key, value, causal())
    given = (change, query, key, value, None, skipped())
    assert not equal(attend(*given, only_with_gradients=True), unchanged)
    with torch.no_grad():
        assert equal(attend(*given, only_with_gradients=True), unchanged)


# ------------------------------------------------------------------------------ rows


def test_the_recipe_is_that_of_the_controls_with_the_cuts_of_the_confirmation():
    own, bias, confirmed = (
        recipe.load(controls.RECIPE.with_name(f"{name}-tiny.yaml"))
        for name in ("attention-controls", "bias-controls", "confirmation")
    )
    assert own.tasks == bias.tasks
    assert own.seeds == bias.seeds == (0, 1, 2)
    for method in ("cuts", "noise-1"):
        settings = own.methods[method]
        assert settings == confirmed.methods[method]
        trainer = {**settings.trainer, "learning_rate": 5.0e-3}
        assert trainer == bias.methods[method].trainer


def test_every_row_says_what_changes_and_lies_in_a_folder_of_its_own(tmp_path):
    trainings = recipe.load(controls.RECIPE).trainings()
    cuts = next(each for each in trainings if (each.method, each.seed) == ("cuts", 1))
    own = [name for name in controls.ROWS if name not in ("cuts", "noise-1")]
    made = [controls.training_of(name, cuts, tmp_path) for name in own]
    assert len({each.directory for each in made}) == len(own) == 14
    said = [each.settings()["attention"] for each in made]
    assert len({str(each) for each in said}) == 14
    assert all(each["seed"] == 1 for each in said if each["name"] == "Noise")
    for name, training in zip(own, made, strict=True):
        assert training.train == (not name.endswith("-inference"))
        assert (training.key_bias is not None) == (name in ("other-samples", "repeated-keys"))
    tested = {*FACTORS, *(f"{name}-inference" for name in FACTORS), *NOISE}
    assert {*own} <= tested | {"other-samples", "repeated-keys"}


@pytest.mark.long
def test_rows_train_evaluate_and_are_not_done_again(tmp_path, monkeypatch):
    shorter = ["trainer.max_steps=2", "evaluation.needle.lengths=[128]"]
    shorter += ["evaluation.needle.depths=1", "evaluation.needle.trials=1"]
    shorter += ["evaluation.perplexity.lengths=[128]", "evaluation.perplexity.documents=2"]
    only = "other-samples,noise-head-layer,ssmax-inference"
    page = controls.work(shorter, only, "0", tmp_path)
    assert page.exists()
    run_dir = page.parent
    found = {path.parents[1].name: path for path in run_dir.glob("*/seed-0/training.json")}
    assert {*found} == {*only.split(","), "cuts"}
    times = [path.stat().st_mtime_ns for path in found.values()]
    controls.work(shorter, only, "0", tmp_path)
    assert times == [path.stat().st_mtime_ns for path in found.values()]
    with pytest.raises(controls.RecipeError, match="no 'noise-heads'"):
        controls.work(shorter, "noise-heads", None, tmp_path)
