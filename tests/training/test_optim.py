"""Proves the schedule against its formula and transformers', and the decay groups against the model's leaves."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.training.optim import build_optimizer, learning_rate_at, set_learning_rate
from hf_gpt_scratch.training.settings import TrainingSettings


def test_warm_up_rises_to_the_peak_and_the_cosine_falls_to_the_minimum() -> None:
    settings = TrainingSettings(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4)
    rates = [learning_rate_at(step, 20, settings) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=1e-12)
    assert rates[4] == 1.0
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert learning_rate_at(20, 20, settings) == pytest.approx(0.1)
    assert learning_rate_at(12, 20, settings) == pytest.approx(0.55)  # the middle of the cosine


@pytest.mark.parametrize(
    ("course", "schedule"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
def test_course_equals_the_schedule_of_transformers(
    course: Literal["cosine", "linear"], schedule: Callable[..., LambdaLR]
) -> None:
    """From the peak on, with a minimum of 0."""
    settings = TrainingSettings(learning_rate=3e-4, min_learning_rate=0.0, warmup_steps=0, lr_scheduler_type=course)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = schedule(optimizer, 0, 50)
    for step in range(50):
        assert learning_rate_at(step, 50, settings) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_linear_course_after_a_warm_up_ends_at_its_minimum_and_stays() -> None:
    settings = TrainingSettings(
        learning_rate=3e-4, min_learning_rate=1e-4, warmup_steps=10, lr_scheduler_type="linear"
    )
    rates = [learning_rate_at(step, 50, settings) for step in (10, 30, 50, 70)]
    assert rates == pytest.approx([3e-4, 2e-4, 1e-4, 1e-4])


def test_constant_schedule_and_no_warm_up() -> None:
    settings = TrainingSettings(learning_rate=4e-4, min_learning_rate=0, lr_scheduler_type="constant", warmup_steps=0)
    assert {learning_rate_at(step, 90, settings) for step in range(90)} == {4e-4}


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_of_the_layers_and_an_untied_head_decay(tiny_config: GPTScratchConfig, tied: bool) -> None:
    tiny_config.tie_word_embeddings = tied
    model = GPTScratchForCausalLM(tiny_config)
    optimizer = build_optimizer(model, TrainingSettings(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith(("_proj.weight", "lm_head.weight"))
        assert decay[id(parameter)] == (0.3 if is_matrix else 0.0), name


def test_all_parameters_decay_when_asked(tiny_config: GPTScratchConfig) -> None:
    optimizer = build_optimizer(GPTScratchForCausalLM(tiny_config), TrainingSettings(decay_all_parameters=True))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


def test_a_step_is_that_of_adamw_by_its_formula(tiny_config: GPTScratchConfig) -> None:
    """Algorithm 2 of arXiv:1711.05101 for one parameter, first step."""
    torch.manual_seed(0)
    model = GPTScratchForCausalLM(tiny_config)
    settings = TrainingSettings(weight_decay=0.2, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6)
    optimizer = build_optimizer(model, settings)
    set_learning_rate(optimizer, 0.01)
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone().double()
    ids = torch.randint(0, 101, (2, 8))
    model(ids, labels=ids).loss.backward()
    gradient = weight.grad.double()
    optimizer.step()
    moment, variance = 0.2 * gradient / (1 - 0.8), 0.1 * gradient**2 / (1 - 0.9)
    expected = before * (1 - 0.01 * 0.2) - 0.01 * moment / (variance.sqrt() + 1e-6)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-7)
    assert not math.isclose((weight.detach().double() - before).abs().max().item(), 0.0)
