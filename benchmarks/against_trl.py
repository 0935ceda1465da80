"""Tokens per second and preparation against TRL: the same model, data and tokens of a batch.

Promise: at least as many tokens per second as TRL's SFTTrainer, padded and packed; preparation is
measured beside TRL's, which finds no turns. Runs alternate and differ in their seed; each pair
gives a ratio. One thread, and the seconds are the process's own, so that other load on the machine
counts little; ratios by the clock on the wall stand beside them.

Where the padded ratio comes from: less padding (`tokens_share`), and the head. TRL computes it in
tiles that are computed again on the way back, so that logits never stand whole, and entropy and
accuracy with it; in a model this small the head is most of the work. Expect less of a large one.

    python benchmarks/against_trl.py [FILE of conversations]
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import copy
import itertools
import json
import logging
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils import logging as transformers_logging

from skipalign import ExampleFile, Packing, SkipAlign, Source, tiny, train
from skipalign.conversation import Conversation, read_conversations
from skipalign.origin import sha256_of_files, write_result
from skipalign.packing import Attention
from skipalign.prepare import prepare

ROOT = Path(__file__).parents[1]
OPEN_ASSISTANT = ROOT.parent / "shared/data/instructions/openassistant_messages.jsonl"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}{% else %}"
    "{{ m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_TOKENS, ROWS, STEPS, PAIRS = 512, 4, 5, 6
PREPARED_CONVERSATIONS, PREPARED_PAIRS = 800, 5


def hush() -> None:
    """Take one thread, and let the libraries say nothing."""
    torch.set_num_threads(1)
    datasets.disable_caching()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    there = OPEN_ASSISTANT if OPEN_ASSISTANT.exists() else tiny.CONVERSATIONS
    parser.add_argument("file", nargs="?", type=Path, default=there)
    file = parser.parse_args().file
    hush()
    chats = conversations(file)
    tokenizer = make_tokenizer([turn["content"] for chat in chats for turn in chat])
    results: dict[str, Any] = {"data": file.name, "conversations": len(chats)}
    results |= {"rows": ROWS, "max_tokens": MAX_TOKENS, "steps": STEPS - 1, "pairs": PAIRS}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(chats, tokenizer, Path(folder))
        attention: Attention = "block_diagonal"
        packing = Packing(max_tokens=MAX_TOKENS, attention=attention)
        results["padded"] = compare(bench.ours, bench.theirs, PAIRS)
        results["packed"] = compare(
            lambda seed: bench.ours(seed, packing), lambda seed: bench.theirs(seed, True), PAIRS
        )
        results["preparation"] = compare(bench.prepare_ours, bench.prepare_theirs, PREPARED_PAIRS)
        bench.leave_markers_out()
        results["preparation_without_markers"] = compare(
            bench.prepare_ours, bench.prepare_theirs, PREPARED_PAIRS
        )
    for name, found in results.items():
        if not isinstance(found, dict) or "ratios" not in found:
            continue
        unit = "conversations" if name.startswith("preparation") else "tokens"
        print(
            f"{name:27s} {found['ours']:8,.0f} {unit}/s against TRL's {found['trl']:8,.0f}: "
            f"ratio {found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}], "
            f"by the wall {found['wall_ratio']:.2f}",
            {key: value for key, value in found.items() if key.startswith(("tokens", "with"))}
            or "",
        )
    write_result(
        Path(__file__).parent / "results/trl.json",
        results,
        seeds=range(PAIRS),
        data=sha256_of_files([file]),
        exact=(),
        measured=("ours", "trl", "ratio", "ratios", "low", "high", "wall_ratio"),
    )


Measured = dict[str, float]


def compare(
    ours: Callable[[int], Measured], theirs: Callable[[int], Measured], pairs: int
) -> dict[str, Any]:
    """Run the two in turn; return medians, and the median and range of the pairs' ratios."""
    found: dict[str, list[Measured]] = {"ours": [], "trl": []}
    arms = {"ours": ours, "trl": theirs}
    for seed in range(pairs):
        for arm in sorted(arms, reverse=bool(seed % 2)):
            found[arm].append(arms[arm](seed))
    rates = {arm: np.array([each["rate"] for each in runs]) for arm, runs in found.items()}
    ratios = rates["ours"] / rates["trl"]
    low, high = np.quantile(ratios, [0.025, 0.975])
    wall = [ours["wall"] / trl["wall"] for ours, trl in zip(*found.values(), strict=True)]
    result: dict[str, Any] = {arm: round(float(np.median(rates[arm])), 1) for arm in arms}
    result |= {"ratio": round(float(np.median(ratios)), 3), "ratios": ratios.round(3).tolist()}
    result |= {"low": round(float(low), 3), "high": round(float(high), 3)}
    result["wall_ratio"] = round(float(np.median(wall)), 3)
    for arm, name in itertools.product(arms, ("tokens_share", "with_padding")):
        if name in found[arm][0]:
            value = float(np.median([each[name] for each in found[arm]]))
            result[f"{name}_{arm}"] = round(value, 3)
    return result


class Bench:
    """The two trainers and the two preparations on the same conversations."""

    def __init__(self, chats: list[Any], tokenizer: Any, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.numbers = itertools.count()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=8 * MAX_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                attn_implementation="sdpa",
            )
        )
        self.rows = datasets.Dataset.from_list([{"messages": chat} for chat in chats])
        self.many = folder / "many.jsonl"
        repeated = itertools.islice(itertools.cycle(chats), PREPARED_CONVERSATIONS)
        self.many.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in repeated))
        source = self.folder / "chats.jsonl"
        source.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
        self.prepared = self.prepare(source, folder / "data")
        self.builder = self.trl_trainer(0, copy.deepcopy(self.model))

    def prepare(self, source: Path, out: Path) -> ExampleFile:
        prepare(
            [Source(path=str(source), name="chats", max_tokens=MAX_TOKENS)], self.tokenizer, out
        )
        return ExampleFile(out / "data")

    def out(self) -> Path:
        return self.folder / str(next(self.numbers))

    def ours(self, seed: int, packing: Packing | None = None) -> Measured:
        """Train some steps with skips."""
        model = copy.deepcopy(self.model)
        seen = watched(model, self.tokenizer.pad_token_id)
        strategy = SkipAlign(max_position=8 * MAX_TOKENS, skip_fraction=1.0)
        trainer = {"max_steps": STEPS, "per_device_train_batch_size": ROWS, "save_strategy": "no"}
        train(
            *(model, self.tokenizer, self.prepared, self.out()),
            strategies={"chats": strategy},
            packing=packing,
            trainer={**trainer, "use_cpu": True},
            seed=seed,
        )
        return rate(seen)

    def theirs(self, seed: int, packing: bool = False) -> Measured:
        """Train some steps with TRL, without skips."""
        model = copy.deepcopy(self.model)
        trainer = self.trl_trainer(seed, model, packing=packing)
        seen = watched(model, self.tokenizer.pad_token_id)
        trainer.train()
        return rate(seen)

    def trl_trainer(self, seed: int, model: Any, *, packing: bool = False) -> Any:
        args = trl.SFTConfig(
            str(self.out()),
            max_steps=STEPS,
            per_device_train_batch_size=ROWS,
            max_length=MAX_TOKENS,
            packing=packing,
            assistant_only_loss=True,
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = trl.SFTTrainer(
            model, args, train_dataset=self.rows, processing_class=self.tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def leave_markers_out(self) -> None:
        """Go on with a template that does not mark answers, as most; TRL then trains on all."""
        marks = re.compile(r"{% (end)?generation %}")
        self.tokenizer.chat_template = marks.sub("", self.tokenizer.chat_template)
        self.builder.args.assistant_only_loss = False

    def prepare_ours(self, _: int) -> Measured:
        """From the file to examples that training reads."""
        began = now()
        self.prepare(self.many, self.out())
        return rates(PREPARED_CONVERSATIONS, began)

    def prepare_theirs(self, _: int) -> Measured:
        """From the file to the rows that TRL trains on."""
        began = now()
        rows = datasets.Dataset.from_json(str(self.many), cache_dir=str(self.out()))
        trainer = self.builder
        trainer._prepare_dataset(rows, self.tokenizer, trainer.args, False, None, "train")
        return rates(PREPARED_CONVERSATIONS, began)


Moment = tuple[float, float]  # of the process's own time, and of the wall's


def now() -> Moment:
    return time.process_time(), time.perf_counter()


def rates(amount: float, began: Moment, ended: Moment | None = None) -> Measured:
    own, wall = (b - a for a, b in zip(began, ended or now(), strict=True))
    return {"rate": amount / own, "wall": amount / wall}


def watched(model: Any, pad_token_id: int) -> list[tuple[Moment, int, int]]:
    """Return a list that fills with when a step began, its tokens, and its tokens with padding."""
    seen: list[tuple[Moment, int, int]] = []

    def keep(_: Any, __: Any, given: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            ids = given["input_ids"]
            seen.append((now(), int((ids != pad_token_id).sum()), ids.numel()))

    model.model.register_forward_pre_hook(keep, with_kwargs=True)
    return seen


def rate(seen: list[tuple[Moment, int, int]]) -> Measured:
    """Return tokens per second from the beginning of the first step to that of the last."""
    assert len(seen) == STEPS
    tokens, padded = (sum(step[field] for step in seen[:-1]) for field in (1, 2))
    found = rates(tokens, seen[0][0], seen[-1][0])
    return {
        **found,
        "tokens_share": tokens / padded,
        "with_padding": found["rate"] * padded / tokens,
    }


def conversations(file: Path) -> list[list[dict[str, str]]]:
    """Return the conversations of a file as lists of messages."""
    items = itertools.islice(read_conversations(str(file), name="chats"), PREPARED_CONVERSATIONS)
    good = [item for item in items if isinstance(item, Conversation)]
    return [[{"role": m.role, "content": m.content} for m in each.messages] for each in good]


def make_tokenizer(texts: list[str]) -> Any:
    """Train a small byte-level BPE on the texts themselves."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=special[2:],
        chat_template=TEMPLATE,
    )


if __name__ == "__main__":
    main()
