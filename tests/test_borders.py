"""The visibility promise of rows without padding, and of biases beside the mask."""

from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from made_attention import flash_stood_in
from skipalign.batch import Batch, pack, pad
from skipalign.bias_attention import biased_keys
from skipalign.borders import (
    block_mask,
    mask_dtype,
    refuse_large_mask,
    sequence_lengths,
    visibility,
)
from skipalign.errors import ModelError, VisibilityError
from skipalign.example_file import ExampleFile
from skipalign.files import read_json
from skipalign.key_bias import GapBias
from skipalign.model import load_model, load_tokenizer
from skipalign.packing import Packing
from skipalign.positions import SkipAlign
from skipalign.probe import probe, require
from skipalign.training import train
from test_batch import FAMILIES, collator, packed_rows, pieces, reference_logits
from test_training import make_base, make_data

BIASED = pytest.mark.parametrize("biased", [False, True], ids=["mask", "key_bias"])


def family_model(family: str):
    torch.manual_seed(0)
    make, config = FAMILIES[family]
    return make(config()).train()


@contextmanager
def flex_stood_in(model):
    """Set the model to flex attention, not compiled, which would take half a minute here."""
    model.config._attn_implementation = "flex_attention"
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield


STANDS_IN = {"flash": flash_stood_in, "flex": flex_stood_in}


def inputs_of(batch: Batch, model) -> dict:
    kept = {name: batch[name] for name in ("input_ids", "position_ids", "labels", "key_bias")
            if name in batch}  # fmt: skip
    return {**kept, **visibility(batch, model.config._attn_implementation, torch.float32)}


@BIASED
@pytest.mark.parametrize("attention", STANDS_IN)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_without_padding_shows_each_sample_all_of_itself_and_nothing_else(
    family: str, attention: str, biased: bool
):
    model = family_model(family)
    rows = packed_rows(collator(GapBias() if biased else None))
    batch = pack(rows, 0, "block_diagonal", float_mask=False)
    samples = [sample for row in rows for sample in row]
    assert batch["input_ids"].shape == (1, sum(len(each.position_ids) for each in samples))
    assert "attention_mask" not in batch
    with STANDS_IN[attention](model), biased_keys(model):
        logits = model(**inputs_of(batch, model)).logits[0]
    for found, expected in zip(
        pieces(logits, samples), reference_logits(model, samples), strict=True
    ):
        assert torch.allclose(found.double(), expected, atol=4e-6)


@pytest.mark.parametrize("attention", STANDS_IN)
def test_padded_rows_carry_their_bias_beside_the_mask(attention: str):
    model = family_model("llama")
    samples = packed_rows(collator(GapBias()))[1]
    batch = pad(samples, 0, float_mask=False)
    assert batch["attention_mask"].dim() == 2
    with STANDS_IN[attention](model), biased_keys(model):
        logits = model(**inputs_of(batch, model)).logits
    for row, expected in enumerate(reference_logits(model, samples)):
        assert torch.allclose(logits[row, : len(expected)].double(), expected, atol=4e-6)


@BIASED
def test_rows_without_padding_train_like_packs_with_a_mask(biased: bool):
    """Loss and gradients, also under checkpointing; flash attention stood in for."""
    model = family_model("llama").double()
    rows = packed_rows(collator(GapBias() if biased else None))
    found = []
    for float_mask in (True, False):
        batch = pack(rows, 0, "block_diagonal", float_mask=float_mask)
        model.zero_grad()
        if float_mask:
            batch["attention_mask"] = batch["attention_mask"].double()
            batch.pop("sample_ids")
            loss = model(**batch).loss
            loss.backward()
        else:
            model.gradient_checkpointing_enable()
            with flash_stood_in(model), biased_keys(model):
                loss = model(**inputs_of(batch, model)).loss
                loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-10, rtol=0)


def test_flash_attention_keeps_a_sliding_window_inside_borders():
    torch.manual_seed(0)
    config = MistralConfig(**FAMILIES["mistral"][1]().to_dict() | {"sliding_window": 7})
    model = MistralForCausalLM(config).eval()
    rows = packed_rows(collator(GapBias()))
    samples = rows[0] + rows[1]
    batch = pack(rows, 0, "block_diagonal", float_mask=False)
    with torch.no_grad(), flash_stood_in(model), biased_keys(model):
        found = pieces(model(**inputs_of(batch, model)).logits[0], samples)
    model.set_attn_implementation("eager")
    for sample, logits in zip(samples, found, strict=True):
        length = len(sample.position_ids)
        seen = torch.ones(length, length).tril().triu(-6).bool()
        bias = torch.tensor(sample.key_bias)
        mask = torch.where(seen, bias, torch.finfo(torch.float32).min)[None, None]
        with torch.no_grad():
            expected = model(
                input_ids=torch.tensor(sample.example.input_ids)[None],
                position_ids=torch.tensor(sample.position_ids)[None],
                attention_mask=mask,
            ).logits[0]
        assert torch.allclose(logits, expected, atol=4e-6)


@BIASED
@pytest.mark.parametrize("attention", STANDS_IN)
@pytest.mark.parametrize("packed", [None, "block_diagonal"])
def test_the_probe_passes_borders_and_biases_that_arrive(attention: str, biased: bool, packed):
    model = family_model("llama")
    with STANDS_IN[attention](model), biased_keys(model):
        verdict = probe(model, max_position=4096, with_key_bias=biased, packed=packed)
    require(verdict)
    assert len(verdict["checks"]) == 4 + biased


def test_the_probe_stops_a_bias_that_does_not_arrive():
    """transformers' attention functions swallow keywords that they do not know."""
    model = family_model("llama")
    with flash_stood_in(model):
        verdict = probe(model, max_position=4096, with_key_bias=True)
    with pytest.raises(VisibilityError, match="the key bias changes nothing"):
        require(verdict)


def test_the_probe_stops_borders_that_do_not_arrive(monkeypatch: pytest.MonkeyPatch):
    model = family_model("llama")
    whole = {"cu_seq_lens_q": None, "cu_seq_lens_k": None}
    monkeypatch.setattr("skipalign.borders.sequence_lengths", lambda _: whole)
    with flash_stood_in(model):
        verdict = probe(model, max_position=4096, packed="block_diagonal")
    with pytest.raises(VisibilityError, match="sees another"):
        require(verdict)


IDS = torch.tensor([[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]])


def test_lengths_end_at_borders_rows_and_padding():
    found = sequence_lengths(IDS)
    assert found["cu_seq_lens_q"].tolist() == found["cu_seq_lens_k"].tolist() == [0, 3, 5, 7, 10]
    assert found["max_length_q"] == found["max_length_k"] == 3
    alone = sequence_lengths(torch.zeros(1, 4, dtype=torch.long))
    assert alone["cu_seq_lens_q"].tolist() == [0, 4]
    same = sequence_lengths(torch.zeros(2, 4, dtype=torch.long))
    assert same["cu_seq_lens_q"].tolist() == [0, 4, 8], "rows never join, whatever their ids"


def test_a_block_mask_is_causal_inside_a_sample():
    mask = block_mask(IDS)
    rows, queries, keys = np.indices((2, 5, 5))
    found = mask.mask_mod(*map(torch.from_numpy, (rows, np.zeros_like(rows), queries, keys)))
    assert found[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert found[1].any(-1).all(), "no softmax is empty"


def test_batches_that_tell_no_borders_are_refused():
    ids = {"input_ids": IDS}
    with pytest.raises(VisibilityError, match="neither attention_mask nor sample_ids"):
        visibility(ids, "flash_attention_2", torch.float32)
    for attention in ("sdpa", "eager", "paged|eager"):
        with pytest.raises(VisibilityError, match="float_mask=True"):
            visibility({**ids, "sample_ids": IDS}, attention, torch.float32)


def test_a_mask_is_cast_beforehand_only_where_each_layer_would_cast_it():
    half, whole = torch.bfloat16, torch.float32
    assert mask_dtype("sdpa", whole, half) == half
    assert mask_dtype("eager", whole, half) == whole, "eager adds it to logits in full precision"
    assert mask_dtype("sdpa", whole, None) == whole
    assert mask_dtype("sdpa", half, None) == half


def test_masks_beyond_a_quarter_of_the_memory_are_refused():
    refuse_large_mask(2, 1024, 32 * 2**20, "packing")
    with pytest.raises(VisibilityError, match=r"2 x 1,025 x 1,025 numbers, 0\.0 GiB.*flash_atten"):
        refuse_large_mask(2, 1025, 32 * 2**20, "packing")
    with pytest.raises(VisibilityError, match=r"16\.0 GiB, more than a quarter of the 60\.0 GiB"):
        refuse_large_mask(1, 65536, 60 * 2**30, "packing")


# -------------------------------------------------------------------------------- through train()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, base: Path) -> ExampleFile:
    return make_data(tmp_path_factory.mktemp("data"), base, rows=40)


OPTIONS = {
    "strategies": {"chats": SkipAlign(max_position=512, cuts_within=2, cut_at="token")},
    "key_bias": GapBias(),
    "trainer": {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "optim": "sgd",
        "learning_rate": 0.1,
    },
}
PACKS = Packing(max_tokens=90, attention="block_diagonal", loss="sample")


@pytest.mark.parametrize("packing", [None, PACKS], ids=["rows", "packs"])
def test_a_run_by_flash_attention_ends_where_one_by_float_masks_does(
    base: Path, data: ExampleFile, tmp_path: Path, packing: Packing | None
):
    """Flash attention is stood in for by a plain one with its call."""
    tokenizer = load_tokenizer(str(base))
    weights, rows = [], []
    for name in ("mask", "flash"):
        model = load_model(str(base))
        attend = flash_stood_in(model) if name == "flash" else nullcontext()
        with attend:
            outcome = train(model, tokenizer, data, tmp_path / name, packing=packing, **OPTIONS)
        verdict = read_json(tmp_path / name / "probe.json")
        assert verdict["attn_implementation"] == {"mask": "sdpa"}.get(name, "flash_attention_2")
        weights.append([parameter.detach() for parameter in model.parameters()])
        rows.append({**vars(outcome), "seconds": 0})
    assert rows[0] == rows[1]
    moved = load_model(str(base)).parameters()
    for one, other, before in zip(*weights, moved, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=0)
        assert not torch.equal(one, before)


def test_flex_attention_is_refused_where_torch_cannot_train_with_it(
    base: Path, data: ExampleFile, tmp_path: Path
):
    model = load_model(str(base), attn_implementation="flex_attention")
    with pytest.raises(ModelError, match="'flex_attention' on a CPU"):
        train(model, load_tokenizer(str(base)), data, tmp_path, **OPTIONS)


def test_a_run_whose_mask_would_fill_the_memory_is_refused(
    base: Path, data: ExampleFile, tmp_path: Path
):
    wide = Packing(max_tokens=2**20, attention="block_diagonal")
    with pytest.raises(VisibilityError, match="block_diagonal needs a float mask of 4 x 1,048,576"):
        train(
            load_model(str(base)),
            load_tokenizer(str(base)),
            data,
            tmp_path,
            **{**OPTIONS, "packing": wide, "key_bias": None},
        )
