"""What each sample of a pack weighs in an optimizer step, by hand and through the Trainer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from skipalign.batch import Collator, PackCollator, pack, pad
from skipalign.checkpoints import Counts
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.engine import (
    Named,
    SkipTrainer,
    mean_over_samples,
    skipped_tokens,
    trained_per_sample,
)
from skipalign.errors import RunError
from skipalign.key_bias import GapBias
from skipalign.packing import Attention
from skipalign.positions import Contiguous, SkipAlign
from skipalign.visits import PackDataset, PackSampler, Visit, VisitDataset, VisitSampler

LENGTHS = (12, 9, 17, 8, 21, 10, 14, 9, 11, 13)
SKIPS = SkipAlign(max_position=512, skip_fraction=1.0, cuts_within=1, cut_at="token")


def example(length: int, number: int) -> Example:
    """A question and an answer whose length has nothing to do with that of the question."""
    ids = np.random.default_rng(number).integers(0, 41, length)
    answer = length - 1 - number % 6
    segments = (
        Segment(0, answer, "user", 1, answer),
        Segment(answer, length, "assistant", answer, length),
    )
    labels = np.where(np.arange(length) >= answer, ids, IGNORE_INDEX)
    return Example(ids, labels, segments, np.zeros(0, int), f"s{number}", "a")


EXAMPLES = [example(length, number) for number, length in enumerate(LENGTHS)]


def tiny_model(num_layers: int = 1) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=41,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).double()


def collator() -> Collator:
    return Collator({"a": SKIPS}, seed=0, pad_token_id=0)


def one_step(out: Path, batch_size: int, accumulation: int, *, by_sample: bool) -> dict:
    """Return how far one step of plain gradient descent moves every weight."""
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    visits = VisitDataset(EXAMPLES)
    engine = SkipTrainer(
        model=model,
        args=args,
        train_dataset=PackDataset(visits),
        data_collator=PackCollator(collator(), "block_diagonal"),
    )
    walk = VisitSampler(np.array(LENGTHS), ["a"] * len(LENGTHS), {}, batch_size=None, seed=0)
    engine.sampler = PackSampler(walk, 40, num_epochs=lambda num_packs: 1)
    assert len(engine.sampler) == 4
    engine.counts = Counts()
    engine.samples_weigh_the_same = by_sample
    engine.train()
    assert engine.counts.num_sequences == len(EXAMPLES)
    return {name: before[name] - value for name, value in model.state_dict().items()}


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    engine = SkipTrainer(model=tiny_model(), args=args)
    engine.require_finite_weights()
    with torch.no_grad():
        engine.model.model.norm.weight[3] = torch.nan
    with pytest.raises(RunError, match=r"model\.norm\.weight is no longer a number after step 0"):
        engine._save_checkpoint(engine.model, None)
    assert not list(tmp_path.iterdir())


def test_losses_apart_are_those_of_each_sample_alone(tmp_path: Path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    engine = SkipTrainer(model=tiny_model(), args=args)
    natural = Collator({"a": Contiguous()}, seed=0, pad_token_id=0)
    rows = [[collator().place(Visit(EXAMPLES[0], 0)), natural.place(Visit(EXAMPLES[1], 0))]]
    rows += [[natural.place(Visit(EXAMPLES[2], 0))]]
    batch = pack(rows, 0, "block_diagonal")
    skipped = skipped_tokens(batch["position_ids"], batch["sample_ids"])
    expected = torch.zeros(2, 21, dtype=torch.bool)
    expected[0, :12] = True
    assert torch.equal(skipped, expected)
    logits = torch.randn(2, 21, 41, generator=torch.Generator().manual_seed(0))
    engine._tell_apart(logits, batch["labels"], skipped)
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    total, count = engine._losses["skipped"]
    assert total == pytest.approx(float(losses[0, :11].sum()))
    assert count == int((EXAMPLES[0].labels[1:] != IGNORE_INDEX).sum())
    total, _ = engine._losses["natural"]
    assert total == pytest.approx(float(losses[0, 11:].sum() + losses[1].sum()))
    padded = pad([rows[0][0], rows[1][0]], 0)["position_ids"]
    assert skipped_tokens(padded, None).any(dim=1).tolist() == [True, False]


def half_precision_step(out: Path) -> tuple[int, list[torch.Tensor]]:
    """Return the bytes of masks that a step keeps for its backward pass, and its gradients."""
    model = tiny_model(num_layers=3).float()
    args = TrainingArguments(output_dir=str(out), use_cpu=True, report_to="none", bf16=True)
    engine = SkipTrainer(model=model, args=args)
    engine.counts = Counts()
    model = engine._wrap_model(engine.accelerator.prepare(model))
    collate = Collator({"a": SKIPS}, seed=0, pad_token_id=0, key_bias=GapBias())
    inputs = engine._prepare_inputs(collate([Visit(EXAMPLES[n], 0) for n in (0, 2)]))
    masks: dict[int, int] = {}

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (17, 17):
            masks[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        loss = engine.compute_loss(model, inputs)
    loss.backward()
    return sum(masks.values()), [parameter.grad for parameter in model.parameters()]


def test_all_layers_share_one_mask_in_half_precision_with_the_same_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    num_bytes, found = half_precision_step(tmp_path)
    assert num_bytes == 2 * 17 * 17 * 2, "two rows of bfloat16"
    monkeypatch.setattr("skipalign.engine.mask_dtype", lambda _, weights, __: weights)
    of_each_layer, expected = half_precision_step(tmp_path)
    assert of_each_layer == 3 * num_bytes
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_rows_that_a_batch_joins_are_as_long_as_before(tmp_path: Path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    engine = SkipTrainer(model=tiny_model(), args=args)
    engine.model.config._attn_implementation = "flash_attention_2"
    engine.counts = Counts()
    plain = Collator({"a": SKIPS}, seed=0, pad_token_id=0, float_mask=False)
    packs = [[Visit(EXAMPLES[n], 0) for n in pack] for pack in ((0, 1, 2), (3, 4))]
    batch = engine._prepare_inputs(Named(PackCollator(plain, "block_diagonal"))(packs))
    assert batch["input_ids"].shape == (1, sum(LENGTHS[:5]))
    assert engine.counts.max_row_tokens == sum(LENGTHS[:3])
    assert "row_tokens" not in batch


def gradients(loss_of: dict[int, torch.Tensor], model: LlamaForCausalLM) -> dict:
    model.zero_grad()
    torch.stack(list(loss_of.values())).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def alone(model: LlamaForCausalLM, number: int) -> tuple[torch.Tensor, int]:
    """Return the mean token loss of one example in a row of its own, and its trained tokens."""
    visit = Visit(EXAMPLES[number], 0)
    batch = pad([collator().place(visit)], 0)
    count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    return model(**batch).loss, count


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (2, 2), (1, 4), (3, 2)])
def test_every_sample_of_a_step_weighs_the_same_however_packs_fall_into_batches(
    tmp_path: Path, batch_size: int, accumulation: int
):
    moved = one_step(tmp_path, batch_size, accumulation, by_sample=True)
    model = tiny_model()
    losses = {n: alone(model, n)[0] / len(EXAMPLES) for n in range(len(EXAMPLES))}
    for name, expected in gradients(losses, model).items():
        assert torch.allclose(moved[name], expected, rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (1, 4)])
def test_every_trained_token_of_a_step_weighs_the_same_by_default(
    tmp_path: Path, batch_size: int, accumulation: int
):
    moved = one_step(tmp_path, batch_size, accumulation, by_sample=False)
    model = tiny_model()
    found = {n: alone(model, n) for n in range(len(EXAMPLES))}
    total = sum(count for _, count in found.values())
    losses = {n: loss * count / total for n, (loss, count) in found.items()}
    for name, expected in gradients(losses, model).items():
        assert torch.allclose(moved[name], expected, rtol=1e-5, atol=1e-7), name


def test_the_scaling_is_that_of_longalign():
    """K / (N_i M) on the loss of sequence i, then the mean over the K packs."""
    packs = [(0, 1, 2), (3, 4)]
    visits = [[Visit(EXAMPLES[n], 0) for n in pack] for pack in packs]
    batch = PackCollator(collator(), "block_diagonal")(visits)
    logits = torch.randn(*batch["input_ids"].shape, 41, generator=torch.Generator().manual_seed(0))
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    num_packs, num_samples = 2, 5
    per_pack = []
    for row, numbers in enumerate(packs):
        total = 0.0
        for place, number in enumerate(numbers):
            own = batch["sample_ids"][row, 1:] == place
            trained = int((EXAMPLES[number].labels[1:] != IGNORE_INDEX).sum())
            total += losses[row][own].sum() * num_packs / (trained * num_samples)
        per_pack.append(total)
    expected = sum(per_pack) / num_packs
    found = mean_over_samples(
        {"logits": logits}, batch["labels"], num_samples, sample_ids=batch["sample_ids"]
    )
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("attention", ["causal", "block_diagonal"])
def test_trained_tokens_are_counted_by_sample(attention: Attention):
    collate = Collator({"a": SkipAlign(max_position=512, skip_fraction=0)}, seed=0, pad_token_id=0)
    visits = [[Visit(EXAMPLES[n], 0) for n in pack] for pack in ((0, 1, 2), (3, 4))]
    batch = PackCollator(collate, attention)(visits)
    counts, places = trained_per_sample(batch["labels"], batch["sample_ids"])
    width = batch["labels"].shape[1]
    assert [int(counts[place]) for place in (0, 1, 2, width, width + 1)] == [1, 2, 3, 4, 5]
    assert int((counts > 0).sum()) == 5
    assert places[1, 0] == width
