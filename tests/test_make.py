"""The embedded base: it can be remade, its conversations to the byte, and it retrieves."""

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from skipalign import recipe, tiny
from skipalign.conversation import Conversation, Message, Place
from skipalign.encoding import IGNORE_INDEX, Encoder
from skipalign.errors import ModelError
from skipalign.model import load_model, load_tokenizer, weights_digest
from skipalign.progress import Silent
from skipalign.tiny import corpus, make, pretraining
from skipalign.transformers_engine import TransformersGenerator


@pytest.fixture(scope="module")
def prose() -> str:
    return corpus.read_prose(tiny.PROSE)


@pytest.fixture(scope="module")
def remade(prose: str):
    return make.make_tokenizer(prose, np.random.default_rng(make.SEED))


def test_tokenizer_is_remade_to_the_byte(remade, tmp_path: Path):
    remade.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (tiny.BASE / name).read_bytes(), name


def test_every_name_is_one_token_wherever_it_stands(remade):
    for name in (*corpus.KEYS, *corpus.VALUES):
        assert len(remade(name)["input_ids"]) == 1, name
        assert remade(f"so {name}")["input_ids"][-1:] == remade(name)["input_ids"], name


def test_no_prose_answers_a_question(prose: str):
    everything = prose + corpus.read_prose(tiny.HAYSTACK)
    words = set(re.findall(r"\w+", everything))
    assert not words & set(corpus.KEYS)


def test_conversations_are_remade_to_the_byte(prose: str, tmp_path: Path):
    tokenizer = load_tokenizer(str(tiny.BASE))
    maker = make.conversation_maker(tokenizer, prose)
    make.write_conversations(maker, make.SEED + 2, tmp_path / "c.gz", 50)
    remade = gzip.decompress((tmp_path / "c.gz").read_bytes())
    packaged = gzip.decompress(tiny.CONVERSATIONS.read_bytes())
    assert packaged.startswith(remade)
    assert packaged.count(b"\n") == make.NUM_CONVERSATIONS


@pytest.mark.long
def test_answers_are_right_token_by_token_when_the_model_left_to_itself_writes_them(prose: str):
    # Beyond its window the base is right about as often as it is wrong.
    law = corpus.ConversationLaw(max_tokens=4 * make.WINDOW)
    tokenizer, model = load_tokenizer(str(tiny.BASE)), load_model(str(tiny.BASE)).eval()
    maker, rng = make.conversation_maker(tokenizer, prose, law), np.random.default_rng(5)
    encoder = Encoder(tokenizer, max_tokens=4 * make.WINDOW)
    generator = TransformersGenerator(model, tokenizer)
    forced, written = [], []
    while len(forced) < 200:
        messages = tuple(Message(**message) for message in maker.draw(rng))
        told = Conversation(messages, Place("drawn", 1), "long", "x")
        (example,) = encoder.encode(told).examples
        ids, trained = example.input_ids, example.labels != IGNORE_INDEX
        forced += make.forced_answers(model, ids, trained)
        starts = np.flatnonzero(np.diff(trained.astype(int)) == 1) + 1
        answers = [ids[at : at + np.argmin(np.append(trained[at:], False))] for at in starts]
        num = max(map(len, answers))
        said = generator.generate([ids[:at].tolist() for at in starts], max_new_tokens=num)
        written += [
            list(answer) == [*completion.ids, tokenizer.eos_token_id][: len(answer)]
            for answer, completion in zip(answers, said, strict=True)
        ]
    assert written == forced
    assert 0.2 < np.mean(forced) < 0.9, "both are always right or always wrong: shows nothing"


def test_conversations_ask_only_what_their_document_tells():
    with gzip.open(tiny.CONVERSATIONS, "rt") as lines:
        rows = [json.loads(line)["messages"] for _, line in zip(range(200), lines, strict=False)]
    for messages in rows:
        document = messages[0]["content"]
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            key = re.search(r"Who is (\w+)\?$", question["content"])
            assert key is not None
            found = re.findall(rf"\b{key[1]} (\w+) came\.", document)
            assert answer["content"] == f"{key[1]} {found[0]}."
            assert len(found) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pre-train for four steps, pass any score, keep what is made in a folder of this test."""
    monkeypatch.setattr(make, "NUM_POOL", 40)
    for name, value in {"CHECK_EVERY": 1, "FORMED": 0.0, "READING_STEPS": 1}.items():
        monkeypatch.setattr(pretraining, name, value)
    monkeypatch.setattr(make, "GATE", 0.0)
    monkeypatch.setenv("SKIPALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting(Silent):
    """Keeps the names of the stages that were begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def bar(self, description: str, total: int | None):
        self.begun.append(f"{description}, {total} steps")
        return super().bar(description, total)


def test_embedded_names_are_known_and_others_left_alone(quick: Path):
    assert tiny.base_place("tiny") == tiny.base_place("tiny-0") == tiny.BASE
    assert tiny.base_place("tiny-12") == quick / "tiny-12"
    for name in (
        "tiny-",
        "tiny-01",
        "tiny-x",
        "Tiny",
        "tiny-1/",
        "./tiny",
        "tiny-long",
        "tiny-{seed}",
        "tiny-gqa-",
        "tiny-gqa-01",
        "tiny-mla-0",
    ):
        assert tiny.base_place(name) is None, name
        assert make.base(name) == name
        assert tiny.tokenizer_of(name) == name
    assert tiny.tokenizer_of("tiny-3") == tiny.tokenizer_of("tiny-gqa-3") == str(tiny.BASE)
    assert tiny.base_place("tiny-gqa") == tiny.base_place("tiny-gqa-0") == quick / "tiny-gqa-0"
    assert make.conversations("tiny") == str(tiny.CONVERSATIONS)
    assert make.conversations("tiny-1") == "tiny-1"
    assert make.base("tiny-0") == str(tiny.BASE)
    assert not quick.exists()


def test_the_base_of_another_seed_is_made_once(quick: Path):
    progress = Counting()
    steps = pretraining.MAX_FORMING + pretraining.READING_STEPS
    path = make.base("tiny-1", progress)
    assert (path, progress.begun) == (str(quick / "tiny-1"), [f"pre-train tiny-1, {steps} steps"])
    assert make.base("tiny-1", progress) == path
    assert len(progress.begun) == 1
    assert [each.name for each in quick.iterdir()] == ["tiny-1"]
    made, packaged = Path(path), tiny.BASE
    assert {each.name for each in made.iterdir()} == {each.name for each in packaged.iterdir()}
    tokenizer, ours = load_tokenizer(path), load_tokenizer(str(packaged))
    assert tokenizer.get_vocab() == ours.get_vocab()
    assert tokenizer.chat_template == ours.chat_template
    assert (
        load_model(path).config.rope_parameters == load_model(str(packaged)).config.rope_parameters
    )
    assert "with seed 1" in (made / "README.md").read_text()


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_base_of_another_shape_is_made_once_and_trains_like_the_packaged_one(
    quick: Path, shape: str
):
    name = f"tiny-{shape}-1"
    planned = make.config_of(name)  # before it is made
    with pytest.raises(ModelError, match=rf"--shape {shape} --seed 1 makes it"):
        tiny.found(name)
    path = Path(make.base(name))
    assert path == quick / name == Path(tiny.found(name))
    config = load_model(str(path)).config
    for key, value in tiny.SHAPES[shape].items():
        assert getattr(config, key) == getattr(planned, key) == value
    packaged = load_model(str(tiny.BASE)).config
    assert any(getattr(packaged, key, None) != value for key, value in tiny.SHAPES[shape].items())
    assert config.rope_parameters == packaged.rope_parameters
    card = (path / "README.md").read_text()
    assert f"--shape {shape}` with seed 1" in card
    assert all(f"{key} {value}" in card for key, value in tiny.SHAPES[shape].items())


def test_the_packaged_shape_is_that_of_the_packaged_base():
    packaged = load_model(str(tiny.BASE)).config.to_dict()
    made = make.make_config().to_dict()
    differing = {key for key in packaged.keys() | made.keys() if packaged.get(key) != made.get(key)}
    assert differing == {"dtype", "architectures", "_name_or_path"}


def test_another_seed_is_another_base_and_the_same_seed_the_same(quick: Path, remade, prose: str):
    ones = [weights_digest(make.base(name)) for name in ("tiny-1", "tiny-2")]
    shutil.rmtree(quick)
    assert weights_digest(make.base("tiny-1")) == ones[0]
    assert ones[0] != ones[1]


def test_a_base_below_the_gate_is_not_written(quick: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make, "GATE", 0.99)
    with pytest.raises(ModelError, match=r"tiny-1: the share .* must be at least 0\.99"):
        make.base("tiny-1")
    assert not quick.exists() or not any(quick.iterdir())


def test_a_kill_leaves_no_half_of_a_base(quick: Path, monkeypatch: pytest.MonkeyPatch):
    save = make.save_model

    def killed(model, tokenizer, folder: Path) -> None:
        save(model, tokenizer, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        make.base("tiny-1")
    assert not (quick / "tiny-1").exists()
    monkeypatch.setattr(make, "save_model", save)
    assert load_model(make.base("tiny-1"))


def test_a_base_can_be_made_by_hand(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["make", "--seed", "4", "--out", str(tmp_path / "own")])
    make.main()
    assert [each.name for each in (tmp_path / "own").iterdir()] == ["tiny-4"]
    assert f"made {tmp_path / 'own' / 'tiny-4'}" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["make", "--shape", "untied", "--out", str(tmp_path / "other")])
    make.main()
    assert [each.name for each in (tmp_path / "other").iterdir()] == ["tiny-untied-0"]
    monkeypatch.setattr("sys.argv", ["make", "--seed", "4"])
    monkeypatch.setattr(make, "GATE", 0.99)
    with pytest.raises(SystemExit, match=r"^error: tiny-4: "):
        make.main()


def test_long_conversations_are_made_once_and_the_same_every_time(quick: Path):
    path = Path(make.conversations("tiny-long"))
    first, when = path.read_bytes(), path.stat().st_mtime_ns
    assert make.conversations("tiny-long") == str(path)
    assert path.stat().st_mtime_ns == when
    path.unlink()
    assert Path(make.conversations("tiny-long")).read_bytes() == first
    rows = [json.loads(line)["messages"] for line in gzip.decompress(first).splitlines()]
    tokenizer = load_tokenizer(str(tiny.BASE))
    rendered = tokenizer.apply_chat_template(rows, tokenize=False)
    lengths = np.array([len(ids) for ids in tokenizer(rendered, verbose=False)["input_ids"]])
    assert 1.43e6 < lengths.sum() < 1.5e6
    assert lengths.max() <= 8 * make.WINDOW
    per_window, _ = np.histogram(lengths, bins=7, range=(make.WINDOW, 8 * make.WINDOW))
    assert per_window.min() > 0.85 * per_window.mean()
    for messages in rows[:100]:
        assert len(messages) == 6
        assert messages[0]["content"].count(" came.") >= 5


def test_the_prose_is_one_text_that_no_evaluation_reads(quick: Path, prose: str):
    path = Path(make.conversations("tiny-prose"))
    assert path.parent == quick
    (row,) = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert json.loads(row) == {"text": prose}
    haystack = corpus.read_prose(tiny.HAYSTACK)
    assert not any(haystack[start : start + 200] in prose for start in range(0, 100_000, 10_000))


def test_packaged_base_retrieves_at_its_window(prose: str):
    model = load_model(str(tiny.BASE)).eval()
    parameters = sum(p.numel() for p in model.parameters())
    assert 0.4e6 < parameters < 0.7e6
    assert model.config.max_position_embeddings == make.WINDOW
    assert make.retrieval(model, load_tokenizer(str(tiny.BASE)), prose, 100) >= 0.99


def test_embedded_files_stay_small():
    sizes = [path.stat().st_size for path in tiny.BASE.iterdir()]
    assert sum(sizes) + tiny.CONVERSATIONS.stat().st_size < 3 * 2**20


def test_recipe_asks_for_the_names_of_the_corpus():
    settings = recipe.load("tiny").tasks["needle"]
    assert settings.keys == corpus.KEYS
    assert settings.values == corpus.VALUES
    assert settings.needle == corpus.NEEDLE
    assert settings.question == corpus.QUESTION
