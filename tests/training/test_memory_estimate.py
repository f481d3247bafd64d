"""Proves the count of memory: tensors while they live, and of a rehearsed step what can be said beforehand."""

import pytest
import torch

from hf_gpt_scratch.training.memory_estimate import MemoryCount, estimate_memory
from hf_gpt_scratch.training.settings import TrainingSettings


CPU = torch.device("cpu")


def test_tensors_count_while_they_live_and_views_count_nothing() -> None:
    with MemoryCount() as count:
        first = torch.zeros(1000)
        view = first[:500].view(2, 250)
        second = view + 1
        assert (count.now, count.peak) == (6000, 6000)
        del first, view
        assert count.now == 2000
        third = torch.ones(500, dtype=torch.bfloat16)
        assert (count.now, count.peak) == (3000, 6000)
        del second, third
    assert count.now == 0


def peak(precision: str = "no", **changes: object) -> int:
    values = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.0, **changes}
    settings = TrainingSettings(**values)
    return estimate_memory(settings.model_config(), settings, CPU, precision)


def test_parameters_take_four_times_their_size_and_logits_three_times_theirs() -> None:
    """Weights, gradients, two moments; log-probabilities, their gradient and that of the logits."""
    parameters = 50257 * 32 + 128 * 32 + 2 * 12 * 32**2
    logits = 128 * 50257
    four, eight = (peak(per_device_train_batch_size=size, chunked_loss=False) for size in (4, 8))
    assert eight - four == pytest.approx(3 * 4 * 4 * logits, rel=0.05)
    assert four == pytest.approx(4 * 4 * parameters + 3 * 4 * 4 * logits, rel=0.1)
    assert peak(per_device_train_batch_size=8) < 0.8 * eight


def test_what_saves_memory_is_seen_to() -> None:
    deep = {"num_hidden_layers": 6, "hidden_size": 64, "per_device_train_batch_size": 16, "vocabulary": "bytes"}
    plain = peak(**deep)
    assert peak(**deep, gradient_checkpointing=True) < 0.8 * plain
    assert peak(**deep, attn_implementation="eager") > 1.1 * plain
    assert peak("bf16", **deep) < plain
    few_tokens = {"hidden_size": 256, "num_hidden_layers": 8, "vocabulary": "bytes", "block_size": 8}
    in_backward = {"max_grad_norm": 0.0, "optimizer_in_backward": True}
    assert peak(**few_tokens, **in_backward) < 0.8 * peak(**few_tokens)  # three copies of the weights in place of four
    wide = {"hidden_size": 256, "vocabulary": "bytes", "block_size": 8}
    assert peak(**wide, optim="muon") < 0.9 * peak(**wide)  # one moment for the matrices in place of two
