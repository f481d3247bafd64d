"""Proves that measuring a machine changes nothing of the run to come, and that warming up does not count."""

import time
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator

from hf_gpt_scratch.training import speed
from hf_gpt_scratch.training.build import build_model
from hf_gpt_scratch.training.optim import build_optimizer
from hf_gpt_scratch.training.settings import TrainingSettings
from hf_gpt_scratch.training.speed import fastest, measure_speed


@pytest.fixture(autouse=True)
def whole_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user's run makes them; the other tests take a single one."""
    monkeypatch.setattr(speed, "REPEAT_SECONDS", 0.3)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
def test_model_optimizer_and_generators_stay_as_they_were(
    tiny_settings: Callable[..., TrainingSettings], optim: str
) -> None:
    """Also with a rate and weight decay that would move every weight."""
    settings = tiny_settings(dropout=0.1, optim=optim, learning_rate=1.0, weight_decay=0.5)
    accelerator = Accelerator()
    model = build_model(settings, 0)
    optimizer = build_optimizer(model, settings)
    model, prepared = accelerator.prepare(model, optimizer)
    before, draws = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    measured = measure_speed(model, prepared.optimizer, settings, accelerator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)
    assert not optimizer.state
    assert groups == [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert measured.micro_batch > measured.scoring > 0
    assert min(measured.update, measured.sample, measured.checkpoint) > 0


def test_parts_that_a_run_does_not_have_take_no_time(tiny_settings: Callable[..., TrainingSettings]) -> None:
    settings = tiny_settings(optimizer_in_backward=True, max_grad_norm=0.0, sample_tokens=0)
    model = build_model(settings, 0)
    measured = measure_speed(model, build_optimizer(model, settings), settings, Accelerator())
    assert (measured.update, measured.sample) == (0.0, 0.0)
    assert measured.micro_batch > 0


def test_warming_up_does_not_count_unless_it_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, times = [0.0], iter([4.0, 0.1, 0.3, 0.05])

    def work() -> None:
        now[0] += next(times)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert fastest(work, Accelerator()) == pytest.approx(0.05)
    times = iter([speed.LONG_SECONDS + 1])
    assert fastest(work, Accelerator()) == pytest.approx(speed.LONG_SECONDS + 1)
