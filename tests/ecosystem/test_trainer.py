"""What good engineers believe of transformers' `Trainer`, with our model: its defaults, resume, and the loss."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

from hf_gpt_scratch import GPTScratchForCausalLM


pytestmark = pytest.mark.ecosystem

ROWS = [{"input_ids": row, "labels": row} for row in torch.randint(
    300, (8, 16), generator=torch.Generator().manual_seed(0))]  # fmt: skip


class Stream(IterableDataset):
    """Rows in the order in which they come."""

    def __iter__(self) -> Iterator[dict]:
        for seed in range(1000):
            ids = torch.randint(300, (16,), generator=torch.Generator().manual_seed(seed))
            yield {"input_ids": ids, "labels": ids}


class Recorder(Trainer):
    """Keeps the batches that it trains on."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.batches = []

    def training_step(self, model, inputs, *arguments, **options) -> torch.Tensor:
        self.batches.append({name: tensor.tolist() for name, tensor in inputs.items()})
        return super().training_step(model, inputs, *arguments, **options)


@pytest.fixture
def model(repository: Path) -> GPTScratchForCausalLM:
    return GPTScratchForCausalLM.from_pretrained(repository)


def settings(folder: Path, **options) -> TrainingArguments:
    return TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, logging_steps=1, **options)


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_defaults_and_resume_of_a_stream(model: GPTScratchForCausalLM, tmp_path: Path) -> None:
    """Batches and weights are those of the run in one go, to the last bit."""
    trainers = []
    for folder, resumed in (("whole", None), ("resumed", tmp_path / "whole" / "checkpoint-3")):
        options = {"max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        arguments = settings(tmp_path / folder, **options)
        trainers.append(Recorder(copy.deepcopy(model), arguments, train_dataset=Stream()))
        trainers[-1].train(resume_from_checkpoint=resumed and str(resumed))
    whole, resumed = trainers
    assert len(whole.batches) == 12
    assert resumed.batches == whole.batches[6:]
    weights = [dict(trainer.model.named_parameters()) for trainer in trainers]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not torch.equal(model.model.norm.weight, whole.model.model.norm.weight)  # the control: it learns

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert not names & {"save_safetensors", "group_by_length"}
    assert "train_sampling_strategy" in names
    assert (arguments.average_tokens_across_devices, arguments.report_to) == (True, [])
    assert arguments.optim == "adamw_torch_fused"
    assert whole.optimizer.optimizer.defaults["fused"]


def test_noise_and_groups_of_lengths(model: GPTScratchForCausalLM, repository: Path, tmp_path: Path) -> None:
    """`neftune_noise_alpha` changes the losses and leaves no hook; rows of like lengths come together."""
    tokenizer = AutoTokenizer.from_pretrained(repository)
    rows = [{"input_ids": list(range(100, 100 + length))} for length in range(4, 36)]
    trainers = []
    for options in ({}, {"neftune_noise_alpha": 5.0}, {"train_sampling_strategy": "group_by_length"}):
        arguments = settings(
            tmp_path, max_steps=6, per_device_train_batch_size=4, learning_rate=5e-3, save_strategy="no", **options
        )
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainers.append(Recorder(copy.deepcopy(model), arguments, train_dataset=rows, data_collator=collate))
        trainers[-1].train()
    plain, noisy, grouped = trainers
    assert noisy.batches == plain.batches
    assert losses(noisy)[0] != losses(plain)[0]
    assert not noisy.model.get_input_embeddings()._forward_hooks
    assert not hasattr(noisy.model.get_input_embeddings(), "neftune_noise_alpha")
    for trainer in (noisy, grouped):
        assert losses(trainer)[-1] < losses(trainer)[0]

    def padding(trainer: Recorder) -> int:
        return sum(row.count(0) for batch in trainer.batches for row in batch["attention_mask"])

    assert padding(grouped) < 0.6 * padding(plain)


class Ignoring(GPTScratchForCausalLM):
    """Our model as one that takes `num_items_in_batch` and forgets it."""

    def forward(self, input_ids, labels=None, num_items_in_batch=None, **kwargs):
        return super().forward(input_ids, labels=labels, **kwargs)


def test_loss_does_not_grow_with_the_accumulation(repository: Path, tmp_path: Path) -> None:
    """`Trainer` leaves the division to a model that takes `**kwargs`."""
    found = {}
    for model_class in (GPTScratchForCausalLM, Ignoring):
        for steps in (1, 2, 8):
            arguments = settings(
                tmp_path, max_steps=1, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps,
                save_strategy="no",
            )  # fmt: skip
            trainer = Trainer(model_class.from_pretrained(repository), arguments, train_dataset=ROWS)
            trainer.train()
            found[model_class, steps] = [trainer.state.log_history[0][name] for name in ("loss", "grad_norm")]
    for model_class, steps in found:
        factor = steps if model_class is Ignoring else 1
        assert found[model_class, steps] == pytest.approx([factor * one for one in found[model_class, 1]], rel=1e-5)
    assert found[Ignoring, 1] == found[GPTScratchForCausalLM, 1]
