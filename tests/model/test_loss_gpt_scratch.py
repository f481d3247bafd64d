"""Proves the losses of the shipped files: against transformers' own, whole and a chunk of tokens at a time."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss, ForSequenceClassificationLoss, ForTokenClassification
from transformers.models.auto import modeling_auto

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.model.loss_gpt_scratch import (
    CHUNK_SIZE,
    causal_lm_loss,
    chunked_causal_lm_loss,
    classification_loss,
)


VOCAB, WIDTH = 211, 32
TOLERANCE = 1e-6
LENGTH = 2 * CHUNK_SIZE // 3 + 5  # three rows are two chunks and some


def batch() -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    """Hidden states [3, T, C], labels [3, T] of which some do not count, and a head."""
    torch.manual_seed(0)
    labels = torch.randint(VOCAB, (3, LENGTH))
    labels[0, 5:9] = labels[2, -4:] = -100
    return torch.randn(3, LENGTH, WIDTH, requires_grad=True), labels, nn.Linear(WIDTH, VOCAB)


@pytest.mark.parametrize("labelled", ["labels", "shift_labels"])
@pytest.mark.parametrize("num_items", [None, 77, torch.tensor(77)], ids=["mean", "int", "tensor"])
def test_whole_and_chunked_are_the_librarys(labelled: str, num_items: object) -> None:
    hidden, labels, head = batch()
    options = {"labels": None, "vocab_size": VOCAB, "num_items_in_batch": num_items} | {labelled: labels}
    expected = ForCausalLMLoss(head(hidden), **options)
    wanted = torch.autograd.grad(expected, (hidden, head.weight))
    for loss in (causal_lm_loss(head(hidden), **options), chunked_causal_lm_loss(head, hidden, **options)):
        torch.testing.assert_close(loss, expected, rtol=TOLERANCE, atol=0)
        for one, other in zip(torch.autograd.grad(loss, (hidden, head.weight)), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=TOLERANCE)


def test_labels_that_are_not_shifted_would_be_seen() -> None:
    """The control of the test above."""
    hidden, labels, head = batch()
    expected = ForCausalLMLoss(head(hidden), labels, VOCAB)
    assert abs(causal_lm_loss(head(hidden), None, VOCAB, shift_labels=labels) - expected) > 1e-3


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
def test_a_batch_without_a_label_has_no_mean_and_a_gradient_of_zeros(num_items: object) -> None:
    hidden, labels, head = batch()
    loss = chunked_causal_lm_loss(head, hidden, labels.fill_(-100), VOCAB, num_items_in_batch=num_items)
    assert loss.isnan()
    assert not torch.autograd.grad(loss, hidden)[0].any()


class LargestTensor(TorchDispatchMode):
    """While entered, notes the most elements that any new tensor has."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(result) if torch.is_tensor(leaf)]
        self.most = max([self.most, *sizes])
        return result


def test_no_tensor_of_tokens_by_vocabulary_is_ever_made() -> None:
    hidden, labels, head = batch()
    with LargestTensor() as largest:
        chunked_causal_lm_loss(head, hidden, labels, VOCAB).backward()
    assert largest.most <= CHUNK_SIZE * VOCAB
    with LargestTensor() as largest:
        causal_lm_loss(head(hidden), labels, VOCAB).backward()
    assert largest.most >= 3 * LENGTH * VOCAB


@pytest.mark.parametrize(
    ("num_labels", "problem", "labels"),
    [
        (3, None, torch.tensor([2, 0])),
        (1, None, torch.tensor([0.5, -1.0])),
        (1, None, torch.tensor([[0.5], [-1.0]])),
        (3, None, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
        (3, "regression", torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.5, 1.0]])),
    ],
)
def test_labels_of_texts_are_scored_as_the_library_does(
    num_labels: int, problem: str | None, labels: torch.Tensor
) -> None:
    logits = torch.randn(2, num_labels, generator=torch.Generator().manual_seed(0))
    config = SimpleNamespace(num_labels=num_labels, problem_type=problem)
    theirs = SimpleNamespace(num_labels=num_labels, problem_type=problem)
    assert classification_loss(logits, labels, config) == ForSequenceClassificationLoss(labels, logits, theirs)
    assert config.problem_type == problem, "it is not written down"


def test_labels_of_tokens_are_scored_as_the_library_does() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, -100, 0], [2, 2, 1, 0, -100]])
    config = SimpleNamespace(num_labels=3, problem_type=None)
    assert classification_loss(logits, labels, config) == ForTokenClassification(logits, labels, config)


def loss_of_a_step(model: GPTScratchForCausalLM, input_ids: torch.Tensor, folder: Path) -> float:
    options = {"max_steps": 1, "per_device_train_batch_size": 3, "use_cpu": True, "save_strategy": "no"}
    arguments = TrainingArguments(str(folder), label_smoothing_factor=0.1, report_to=[], disable_tqdm=True, **options)
    rows = [{"input_ids": row, "labels": row} for row in input_ids]
    return Trainer(model, arguments, train_dataset=rows).train().training_loss


def test_label_smoothing_of_trainer_is_of_the_next_token(
    build_model: Callable[..., GPTScratchForCausalLM],
    input_ids: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(dropout=0.0)
    with torch.no_grad():
        rows, targets = model(input_ids).logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()
    expected = nn.functional.cross_entropy(rows, targets, label_smoothing=0.1).item()
    assert loss_of_a_step(copy.deepcopy(model), input_ids, tmp_path) == pytest.approx(expected, rel=1e-5)
    # What Trainer does with a class that it does not know: it compares each score with the token it was made from.
    monkeypatch.delitem(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "gpt_scratch")
    assert loss_of_a_step(model, input_ids, tmp_path) != pytest.approx(expected, rel=1e-3)
