"""Make the tiny base models and their conversations from nothing: python -m skipalign.tiny.make

1. a byte-level BPE tokenizer, trained on the prose and on records, in which a name is one token;
2. a Llama of half a million parameters, pre-trained at a window of 128 tokens (`pretraining`);
3. a gate: retrieval of at least 0.99 at the window, or nothing is written;
4. the conversations of the tiny recipe.

`--seed N` pre-trains another base of the same kind, with the packaged tokenizer, `--shape` one with
other heads or layers; `base` makes it where a recipe asks for `tiny-N` or `tiny-SHAPE-N` and it is
not there yet, `conversations` likewise `tiny-long` and `tiny-prose`.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from skipalign.conversation import Conversation, Message, Place
from skipalign.encoding import IGNORE_INDEX, Encoder
from skipalign.errors import ModelError, SkipalignError
from skipalign.files import write_gzip, write_text
from skipalign.model import Config, load_config, load_tokenizer, save_model
from skipalign.progress import Progress, Silent, Terminal, counted
from skipalign.tiny import (
    BASE,
    CONVERSATIONS,
    LONG,
    PROSE,
    SHAPES,
    TEXT,
    base_place,
    data_place,
    embedded,
    name_of,
    tokenizer_of,
)
from skipalign.tiny.corpus import (
    KEYS,
    NEEDLE,
    QUESTION,
    VALUES,
    ConversationLaw,
    ConversationMaker,
    read_prose,
    sentences,
)
from skipalign.tiny.pretraining import RowMaker, pretrain

SEED = 0
WINDOW = 128
VOCABULARY = 1280
ROLES = ("user", "assistant", "system", "tool")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROPE_THETA = 10_000.0
NUM_POOL = 6000
NUM_CONVERSATIONS = 3200
# 1.45 million tokens in all: what the demo's trainings see.
NUM_LONG_CONVERSATIONS = 2560
LONG_LAW = ConversationLaw(min_tokens=WINDOW, max_tokens=8 * WINDOW)
GATE = 0.99
_SILENT = Silent()


def make_tokenizer(
    prose: str, rng: np.random.Generator, *, vocabulary: int = VOCABULARY, window: int = WINDOW
) -> PreTrainedTokenizerFast:
    """Train the tokenizer; every text begins as after a space, so a name has one id anywhere."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", *(f"<|{role}|>" for role in ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    names = [rng.choice(KEYS, 60_000), rng.choice(VALUES, 60_000)]
    records = (
        f"{NEEDLE} {QUESTION}".format(key=key, value=value)
        for key, value in zip(*names, strict=True)
    )
    inner.train_from_iterator([prose, " ".join(records)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<|pad|>",  # noqa: S106 - no password
        eos_token="<|end|>",  # noqa: S106
        additional_special_tokens=special[2:],
        chat_template=TEMPLATE,
        model_max_length=window,
        clean_up_tokenization_spaces=False,
    )


def make_config(shape: str = "") -> PreTrainedConfig:
    """Return the config of an embedded base: 0.5 million parameters, or another of `SHAPES`."""
    settings: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": WINDOW,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    return AutoConfig.for_model(**(settings | dict(SHAPES.get(shape, {}))))


def config_of(base: str, *, revision: str | None = None) -> Config:
    """Return the config of an embedded base, made or not, of a local folder or a hub id.

    Raises:
        ModelError: there is none, or it would need code of the checkpoint.
    """
    shape, _ = embedded(base) or ("", 0)
    return make_config(shape) if shape else load_config(tokenizer_of(base), revision=revision)


def _conversation_pool(
    tokenizer: Any, prose: str, rng: np.random.Generator, count: int
) -> list[tuple[Int[np.ndarray, " T"], Any]]:
    maker = conversation_maker(tokenizer, prose)
    encoder = Encoder(tokenizer, max_tokens=WINDOW)
    pool: list[tuple[Int[np.ndarray, " T"], Any]] = []
    for number in range(count):
        messages = tuple(Message(**message) for message in maker.draw(rng))
        place = Place("drawn", number + 1)
        (example,) = encoder.encode(Conversation(messages, place, "tiny", str(number))).examples
        pool.append((example.input_ids, example.labels != IGNORE_INDEX))
    return pool


def conversation_maker(
    tokenizer: Any, prose: str, law: ConversationLaw | None = None
) -> ConversationMaker:
    """Return what draws conversations; by default those of the tiny recipe."""

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts))["input_ids"]]

    return ConversationMaker(sentences(prose), count, law or ConversationLaw(max_tokens=WINDOW))


def rows_of(tokenizer: Any, prose: str, rng: np.random.Generator) -> RowMaker:
    """Return what draws the rows that a base is pre-trained on."""
    keys, values = (
        np.array([tokenizer(name)["input_ids"][0] for name in names]) for names in (KEYS, VALUES)
    )
    pool = _conversation_pool(tokenizer, prose, rng, NUM_POOL)
    return RowMaker(np.array(tokenizer(prose)["input_ids"]), (keys, values), pool, WINDOW, rng)


def retrieval(model: Any, tokenizer: Any, prose: str, num_conversations: int = 300) -> float:
    """Return the share of answers, at the window, whose every token the model predicts."""
    pool = _conversation_pool(tokenizer, prose, np.random.default_rng(SEED + 1), num_conversations)
    found = (right for ids, trained in pool for right in forced_answers(model, ids, trained))
    return float(np.mean(list(found)))


def forced_answers(
    model: Any, ids: Int[np.ndarray, " T"], trained: Bool[np.ndarray, " T"]
) -> list[bool]:
    """Return, for each answer, whether every token is the likeliest after the true ones before it.

    That is so exactly when the model, left to itself, writes the answer to its end: the first
    token that differs is the same either way.

    Args:
        model: a causal language model.
        ids: a conversation.
        trained: which of its tokens are answers.
    """
    row = torch.from_numpy(ids).long()[None]
    with torch.no_grad():
        found = model(row, attention_mask=torch.ones_like(row)).logits[0].argmax(-1).numpy()
    wrong = trained[1:] & (found[:-1] != ids[1:])
    edges = np.flatnonzero(np.diff(trained.astype(int)) == 1)
    ends = np.append(edges[1:], len(ids) - 1)
    return [not wrong[start:stop].any() for start, stop in zip(edges, ends, strict=True)]


def write_conversations(
    maker: ConversationMaker,
    seed: int,
    path: Path,
    count: int,
    progress: Progress = _SILENT,
) -> None:
    """Write conversations as gzipped JSON lines, the same bytes every time."""
    rng = np.random.default_rng(seed)
    made = counted(progress, "make conversations", range(count))
    rows = ({"messages": maker.draw(rng)} for _ in made)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_gzip(path, text)


def make_base(
    tokenizer: Any,
    prose: str,
    folder: Path,
    *,
    seed: int,
    shape: str = "",
    keep: bool = False,
    progress: Progress = _SILENT,
) -> float:
    """Pre-train a base into `folder`, whole or not at all; return its retrieval at the window.

    Args:
        tokenizer: of the base.
        prose: what it reads.
        folder: where it goes.
        seed: of weights and rows.
        shape: one of `SHAPES`, or "" for the packaged base's.
        keep: leave what another process has put into `folder` meanwhile.
        progress: where to report steps.

    Raises:
        ModelError: it retrieves less than 0.99, or never came to retrieve.
    """
    name = name_of(shape, seed)
    rows = rows_of(tokenizer, prose, np.random.default_rng(seed))
    model = pretrain(make_config(shape), rows, seed=seed, name=name, progress=progress).eval()
    score = retrieval(model, tokenizer, prose)
    if score < GATE:
        raise ModelError(
            f"{name}: the share of right answers at {WINDOW} tokens is {score:.3f} and must "
            f"be at least {GATE}; nothing was written - take another seed"
        )
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        save_model(model, tokenizer, aside)
        write_text(aside / "README.md", _card(score, seed, shape))
        if not (keep and folder.exists()):
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return score


def base(name: str, progress: Progress = _SILENT) -> str:
    """Return the path of a base: an embedded one's, made first if need be, or `name` itself.

    Raises:
        ModelError: the base that was made retrieves less than 0.99.
    """
    folder, known = base_place(name), embedded(name)
    if folder is None or known is None:
        return name
    if not folder.exists():
        tokenizer, prose, (shape, seed) = load_tokenizer(str(BASE)), read_prose(PROSE), known
        make_base(tokenizer, prose, folder, seed=seed, shape=shape, keep=True, progress=progress)
    return str(folder)


def conversations(name: str, progress: Progress = _SILENT) -> str:
    """Return the path of data: embedded ones', made first if need be, or `name` itself."""
    path = data_place(name)
    if path is None:
        return name
    if name == LONG and not path.exists():
        maker = conversation_maker(load_tokenizer(str(BASE)), read_prose(PROSE), LONG_LAW)
        write_conversations(maker, SEED + 3, path, NUM_LONG_CONVERSATIONS, progress)
    if name == TEXT and not path.exists():
        write_gzip(path, json.dumps({"text": read_prose(PROSE)}, ensure_ascii=False) + "\n")
    return str(path)


def main() -> None:
    """Remake base and conversations in place or in --out, or make the base of another seed."""
    parser = argparse.ArgumentParser(description="Remake the tiny base and its conversations.")
    parser.add_argument("--out", type=Path, help="folder; by default the packaged files")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="from 1 on: the base tiny-SEED alone"
    )
    parser.add_argument("--shape", choices=SHAPES, default="", help="make tiny-SHAPE-SEED")
    given = parser.parse_args()
    if given.seed < 0:
        parser.error(f"--seed is {given.seed}; it must be 0 or more")
    try:
        if given.shape or given.seed != SEED:
            _another(given.out, given.seed, given.shape)
        else:
            _remake(given.out, given.seed)
    except SkipalignError as error:
        raise SystemExit(f"error: {error}") from None


def _remake(out: Path | None, seed: int) -> None:
    folder = out / "base" if out else BASE
    prose = read_prose(PROSE)
    tokenizer = make_tokenizer(prose, np.random.default_rng(seed))
    score = make_base(tokenizer, prose, folder, seed=seed, progress=Terminal())
    path = out / CONVERSATIONS.name if out else CONVERSATIONS
    write_conversations(conversation_maker(tokenizer, prose), SEED + 2, path, NUM_CONVERSATIONS)
    print(f"made {folder} (retrieval {score:.3f}) and {path}; next: skipalign run tiny")


def _another(out: Path | None, seed: int, shape: str) -> None:
    place = base_place(name_of(shape, seed))
    assert place is not None, "tiny-N and tiny-SHAPE-N name embedded bases"
    folder = out / place.name if out else place
    tokenizer = load_tokenizer(str(BASE))
    prose = read_prose(PROSE)
    score = make_base(tokenizer, prose, folder, seed=seed, shape=shape, progress=Terminal())
    print(f"made {folder} (retrieval {score:.3f}); next: a recipe with base: {place.name}")


def _card(score: float, seed: int, shape: str) -> str:
    made = "A Llama of half a million parameters"
    if shape:
        differs = ", ".join(f"{key} {value}" for key, value in SHAPES[shape].items())
        made = f"The packaged base with {differs}"
    with_shape = f" --shape {shape}" if shape else ""
    return (
        "---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n\n"
        "# The tiny base of skipalign\n\n"
        f"{made}, trained at a window of {WINDOW} tokens on chapters "
        "1 to 50 of Pride and Prejudice (public domain) and on records hidden in them, by "
        f"`python -m skipalign.tiny.make{with_shape}` with seed {seed}. Retrieval at the window: "
        f"{score:.3f} of 900 answers. It exists to show position strategies, and knows nothing "
        "else.\n"
    )


if __name__ == "__main__":
    main()
