"""Proves what a step is taken to cost, on our real command; nanoGPT itself is not part of the tests."""

import functools

import pytest

from scripts.benchmarks.measuring import Measurement
from scripts.benchmarks.small_steps import SETTINGS, measure_steps, train_our_model


def test_start_and_end_are_not_in_the_steps():
    """Seven seconds beside the steps, 0.5 s of CPU and 0.25 s of wall time for each of them."""
    setting = SETTINGS["tiny"]
    cost = measure_steps(setting, lambda steps: Measurement(7 + 0.5 * steps, 7 + 0.25 * steps, 100.0 + steps))
    assert cost == Measurement(pytest.approx(50.0), pytest.approx(25.0), 100.0 + setting.many_steps)


def test_our_command_is_measured_and_leaves_nothing(tmp_path, short_text):
    train = functools.partial(train_our_model, SETTINGS["tiny"], short_text, tmp_path / "run", 1, "muon")
    assert train(2).wall > 0.5
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="failed with exit code"):
        train(0.5)
