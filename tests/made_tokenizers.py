"""Throw-away tokenizers with the special tokens and chat templates of the shapes in use."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from skipalign.conversation import Conversation, Message, Place

TEMPLATES = Path(__file__).parent / "templates"

CORPUS = (
    "The quick brown fox jumps over the lazy dog. What is the answer to the question? "
    "You are a helpful assistant.\n\nShe asked him where the key was; he said: under the stone! "
    "Paris is the capital of France.\n1. First\n2. Second\nsystem user assistant model tool [INST]"
)


class Shape(NamedTuple):
    """A chat format: its template, its special tokens and what ends an answer in it."""

    template: str
    bos: str | None
    eos: str
    end_of_turn: str
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    kwargs: dict[str, Any] | None = None
    system: bool = True


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
QWEN = ("<think>", "</think>", "<tool_response>", "</tool_response>")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}

SHAPES = {
    "llama2": Shape("llama2", "<s>", "</s>", "</s>"),
    "llama31": Shape(
        "llama31",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "mistral": Shape("mistral", "<s>", "</s>", "</s>", system=False),
    "qwen25": Shape("qwen25", None, "<|im_end|>", "<|im_end|>", CHATML, QWEN),
    "qwen3": Shape("qwen3", None, "<|im_end|>", "<|im_end|>", CHATML, QWEN),
    "qwen3-off": Shape(
        "qwen3", None, "<|im_end|>", "<|im_end|>", CHATML, QWEN, {"enable_thinking": False}
    ),
    "gemma": Shape(
        "gemma",
        "<bos>",
        "<eos>",
        "<end_of_turn>",
        ("<start_of_turn>", "<end_of_turn>"),
        ("\n", "\n\n"),
        system=False,
    ),
    "chatml": Shape("chatml", "<|startoftext|>", "<|im_end|>", "<|im_end|>", CHATML),
    "tools": Shape("tools", None, "<|im_end|>", "<|im_end|>", CHATML, QWEN, {"tools": [WEATHER]}),
    "generation": Shape("generation", None, "<|im_end|>", "<|im_end|>", CHATML),
}


@cache
def _trained(kind: str) -> str:
    if kind == "byte_level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:  # as SentencePiece: a space before the first word, bytes for what is unknown
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        )
    backend.train_from_iterator([CORPUS], trainer)
    spec = json.loads(backend.to_str())
    # Vocabularies made by SentencePiece hold their bytes as ordinary entries.
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(spec)


def tokenizer(shape: str | None, kind: str = "byte_level") -> PreTrainedTokenizerFast:
    """Return a new tokenizer of a shape; of none, one without a template that has an EOS."""
    backend = Tokenizer.from_str(_trained(kind))
    if shape is None:
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    made = SHAPES[shape]
    backend.add_tokens([AddedToken(token, normalized=False) for token in made.added])
    tokens = {"eos_token": made.eos, "additional_special_tokens": list(made.special)}
    if made.bos:
        tokens["bos_token"] = made.bos
    if kind == "metaspace":
        tokens["unk_token"] = "<unk>"
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    fast.chat_template = template(made.template)
    return fast


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def conversation(*turns: tuple[str, str], name: str = "s") -> Conversation:
    messages = tuple(Message(role, content) for role, content in turns)
    return Conversation(messages, Place("made.jsonl", 1), name, "0" * 32)


def dicts(made: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in made.messages]
