"""Throw-away prose, tokenizers, models and generators for the tests of evaluation."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skipalign.generation import Completion

TEMPLATE = (
    "<s>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = (
    "the a river house letter garden morning evening walked wrote saw heard their his her cousin "
    "sister carriage quite rather slowly and but near under stood answered weather"
)
CHINESE_WORDS = "早上 河边 老人 慢慢 走过 花园 看见 一封 旧信 姐姐 没有 说话 很冷 他们 回家"
SPECIAL = ["<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>"]


def prose(num_sentences: int = 300, seed: int = 0) -> str:
    """Sentences of 4 to 14 words, some with titles, quotes and other marks."""
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    sentences: list[str] = []
    for number in range(num_sentences):
        chosen = [str(word) for word in rng.choice(words, size=int(rng.integers(4, 15)))]
        if number % 7 == 0:
            chosen.insert(2, "Mr. Darcy")
        text = " ".join([chosen[0].capitalize(), *chosen[1:]]) + str(
            rng.choice([".", "!", "?", ".", "."])
        )
        sentences.append(f"“{text}”" if number % 5 == 0 else text)
        if number % 11 == 0:
            sentences[-1] += "\n\n"
    return " ".join(sentences)


def write_haystack(folder: Path, num_sentences: int) -> str:
    """Write two texts of prose and a file that is none; return the folder."""
    (folder / "b.txt").write_text(prose(num_sentences, seed=1), encoding="utf-8")
    (folder / "a.txt").write_text(prose(num_sentences, seed=2), encoding="utf-8")
    (folder / "c.md").write_text("Not this.", encoding="utf-8")
    return str(folder)


def chinese_prose(num_sentences: int = 300, seed: int = 0) -> str:
    """Sentences of Chinese words, some quoted, with a line end and an indent now and then."""
    rng = np.random.default_rng(seed)
    words = CHINESE_WORDS.split()
    sentences: list[str] = []
    for number in range(num_sentences):
        chosen = [str(word) for word in rng.choice(words, size=int(rng.integers(3, 9)))]
        text = "".join(chosen[:2]) + "，" + "".join(chosen[2:]) + str(rng.choice(list("。！？。")))
        sentences.append(f"“{text}”" if number % 5 == 0 else text)
        if number % 7 == 0:
            sentences[-1] += "\n\u3000\u3000"
    return "".join(sentences)


def train_tokenizer(
    kind: str = "bytes", template: str | None = TEMPLATE
) -> PreTrainedTokenizerFast:
    """Train on the prose: byte-level BPE ("bytes"; "newlines" joins marks with the line breaks
    after them, as Llama-3 does) or "unigram" with a mark for spaces (as Llama-2 has).
    """
    corpus = [prose(), " ".join(f"The secret number of {n} is {n * 7919}." for n in range(200))]
    if kind != "unigram":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "newlines":
            words = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(words, behavior="isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({*"".join(corpus), *map(chr, range(33, 127)), "\n"})
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    tokenizer.train_from_iterator(corpus, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", pad_token="<pad>"
    )
    made.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    made.chat_template = template
    return made


def tiny_llama(vocab_size: int = 600, *, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """A random Llama whose attention matters: large weights, float64 against ties."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.generation_config.eos_token_id = None
    return model


class Reader:
    """Finds the needle by reading the prompt; blind where it is told to be."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        longest: int = 10**9,
        farthest: int = 10**9,
        identity: str = "reader",
        dies_after: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.longest, self.farthest, self.dies_after = longest, farthest, dies_after
        self.identity = identity
        self.prompts: list[str] = []
        self.positions: list[np.ndarray] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        position_ids: Sequence[np.ndarray] | None = None,
    ) -> list[Completion]:
        self.positions += list(position_ids or [])
        return [
            self._answer(prompt, None if position_ids is None else position_ids[index])
            for index, prompt in enumerate(prompts)
        ]

    def _answer(self, prompt: Sequence[int], positions: np.ndarray | None) -> Completion:
        if self.dies_after is not None and len(self.prompts) >= self.dies_after:
            raise KeyboardInterrupt
        text = self.tokenizer.decode(prompt)
        self.prompts.append(text)
        key = re.search(r"What is the secret number of (\w+)\?", text).group(1)
        found = re.findall(rf"The secret number of {key} is (\w+)\.", text)
        assert len(found) == 1, text
        blind = len(prompt) > self.longest or (
            positions is not None and positions[-1] > self.farthest
        )
        return Completion([], "I cannot find it." if blind else f"It is {found[0]}.")
