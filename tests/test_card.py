"""The model card says what a model is made of, and shows hostile names as text."""

from pathlib import Path

import pytest

from skipalign.card import RESULTS_BLOCK, license_of, write_card

TRAINING = {
    "method": "skipalign",
    "seed": 3,
    "base": {"path": "org/base|model"},
    "train": True,
    "steps": 1200,
    "max_row_tokens": 128,
    "strategies": {"chats": {"name": "skipalign", "max_position": 8192}},
    "key_bias": {"name": "gap", "cap": None},
    "rope": {"type": "ntk", "factor": 8.0},
    "trainer": {"learning_rate": 0.001},
    "sources": [{"name": "chats", "path": "a/<script>.jsonl"}],
}
COUNTS = {"rows_read": 10, "used": 7, "rejected": {"not_json": 2}, "dropped": {"too_long": 1}}


def test_card_names_base_data_strategy_settings_and_versions(tmp_path: Path):
    accounting = {"sources": {"chats": {**COUNTS, "tokens": 900}}}
    write_card(tmp_path, TRAINING, accounting=accounting)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert 'base_model: "org/base|model"' in card
    for part in (
        "10 rows read = 7 used + 2 rejected + 1 dropped",
        "strategies.chats.max\\_position | 8192",
        "rope.factor | 8.0",
        "with the key bias `gap` (in training only), 1,200 steps",
        "1,200 steps, rows of at most 128 tokens",
        "transformers 5.0 or newer",
        RESULTS_BLOCK,
    ):
        assert part in card, part
    assert "<script>" not in card


def test_card_lists_data_by_hash_and_carries_the_licence_of_the_base(tmp_path: Path):
    accounting = {"sources": {"chats": {**COUNTS, "tokens": 900}}}
    found = {
        "data_sha256": {"chats": {"<script>.jsonl": "0123abcd" * 8}},
        "base_license": {"license": "other", "license_name": "llama3", "license_link": "LICENSE"},
    }
    write_card(tmp_path, {**TRAINING, **found}, accounting=accounting)
    card = (tmp_path / "README.md").read_text()
    header = card.split("---\n")[1]
    assert 'license: "other"\nlicense_name: "llama3"\nlicense_link: "LICENSE"\n' in header
    assert "That of the base: llama3 (LICENSE)." in card
    assert f"| chats/\\<script\\>.jsonl | {'0123abcd' * 8} |" in card


def test_a_card_says_where_digests_and_the_licence_are_not_known(tmp_path: Path):
    accounting = {"sources": {"chats": {**COUNTS, "tokens": 900}}}
    write_card(tmp_path, TRAINING, accounting=accounting)
    card = (tmp_path / "README.md").read_text()
    assert 'license: "unknown"\n' in card.split("---\n")[1]
    assert "look them up before you share it" in card
    assert "No digest was kept." in card


@pytest.mark.parametrize(
    ("card", "terms"),
    [
        ("---\nlicense: apache-2.0\nbase_model: x\n---\ntext", {"license": "apache-2.0"}),
        ("---\nlicense: 'mit'\n---\n", {"license": "mit"}),
        ("---\nbase_model: x\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ('---\nlicense: "mit\\n# forged"\n---\n', None),
    ],
)
def test_the_licence_is_what_the_header_of_the_base_says(tmp_path: Path, card, terms):
    (tmp_path / "README.md").write_text(card)
    assert license_of(str(tmp_path)) == terms


@pytest.mark.parametrize("base", ["not-a-model/that-is-cached", "no such: place", "."])
def test_a_base_without_a_card_has_no_known_licence(tmp_path: Path, base: str, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert license_of(base) is None


def test_the_embedded_base_has_its_licence():
    from skipalign import tiny

    assert license_of(str(tiny.BASE)) == {"license": "apache-2.0"}


def test_an_untrained_base_says_so(tmp_path: Path):
    write_card(tmp_path, {**TRAINING, "train": False})
    assert "no weight was changed" in (tmp_path / "README.md").read_text()


def test_packing_and_logit_scale_are_named(tmp_path: Path):
    packing = {"max_tokens": 1024, "attention": "block_diagonal", "loss": "sample"}
    training = {**TRAINING, "key_bias": None, "packing": packing, "logit_scale": 0.7}
    write_card(tmp_path, training)
    card = (tmp_path / "README.md").read_text()
    assert (
        "with attention logits multiplied by 0.7 (in training only), samples packed into rows of "
        "1,024 tokens, each sample for itself, 1,200 steps" in card
    )
    assert "packing.loss | sample" in card
    assert "logit\\_scale | 0.7" in card
    write_card(tmp_path, {**training, "packing": {**packing, "attention": "causal"}})
    assert "as one text" in (tmp_path / "README.md").read_text()
