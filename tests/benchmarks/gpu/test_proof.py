"""Proves that the proofs fail where something is wrong; that they pass is proved by the rehearsal."""

import pytest
import torch

from scripts.benchmarks.gpu.proof import Models, check_autocast, check_left_padding, check_logits, check_losses
from scripts.benchmarks.peer_benchmark import TINY
from scripts.benchmarks.peer_models import Task, draw_weights


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    task = Task(**TINY | {"layers": 1}, rows=2, length=8, folder=str(tmp_path_factory.mktemp("weights")))
    draw_weights(task, seed=0)
    return task


def other_weights(models, scale):
    """Make our model another one than that of the peer."""
    made = models.ours

    def ours(*arguments, **options):
        model = made(*arguments, **options)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(scale)
        return model

    models.ours = ours
    return models


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_model_is_seen(task, dtype):
    assert check_logits(Models(task, "cpu"), "sdpa", dtype).figures["control"] > 0.5
    with pytest.raises(ValueError, match="at most"):
        check_logits(other_weights(Models(task, "cpu"), 10.0), "sdpa", dtype)


def test_logits_that_ignore_the_tokens_are_seen(task, monkeypatch):
    """The control of the proof itself."""
    models = Models(task, "cpu")
    monkeypatch.setattr("scripts.benchmarks.gpu.proof.logits_by", lambda *_: models.expected)
    with pytest.raises(ValueError, match=r"other tokens 0\.0"):
        check_logits(models, "sdpa", "float32")


def test_a_mask_that_is_not_heeded_is_seen(task):
    models = Models(task, "cpu")
    made = models.ours

    def ours():
        model = made()
        forward = model.forward
        model.forward = lambda ids, attention_mask=None: forward(ids)
        return model

    models.ours = ours
    with pytest.raises(ValueError, match="without the mask"):
        check_left_padding(models)


@pytest.mark.parametrize("fused", [True, False])
def test_a_wrong_gradient_is_seen(task, fused, monkeypatch):
    """A loss of half the size has gradients of half the size."""
    halved = {True: "hf_gpt_scratch.model.linear_cross_entropy.fused_causal_lm_loss",
              False: "hf_gpt_scratch.model.GPTScratchForCausalLM.chunked_loss_function"}[fused]  # fmt: skip
    check_losses(Models(task, "cpu"), fused)
    from hf_gpt_scratch.model.loss_gpt_scratch import chunked_causal_lm_loss

    def half(*arguments, **options):
        return chunked_causal_lm_loss(*arguments, **options) / 2

    monkeypatch.setattr(halved, half if fused else staticmethod(half))
    with pytest.raises(ValueError, match="gradients 5.0e-01"):
        check_losses(Models(task, "cpu"), fused)


def test_gradients_of_other_direction_are_seen(task, monkeypatch):
    models = Models(task, "cpu")
    check_autocast(models, torch.bfloat16)
    real, calls = torch.autocast, []

    def autocast(*arguments):
        calls.append(1)
        models.ids = models.ids.roll(1, dims=1)
        return real(*arguments)

    monkeypatch.setattr(torch, "autocast", autocast)
    with pytest.raises(ValueError, match="lowest cosine"):
        check_autocast(models, torch.bfloat16)
    assert calls
