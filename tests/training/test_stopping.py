"""Proves that work stops at a signal, and only then; several processes: tests/runtime/test_signals.py."""

import signal

import pytest
import torch
from accelerate import Accelerator

from hf_gpt_scratch.runtime.signals import StopSignals
from hf_gpt_scratch.training.stopping import SignalCriterion, WorkStopped, agreed_signal, stop_at_signal, until_signal


def test_items_are_yielded_until_a_signal() -> None:
    accelerator, signals = Accelerator(cpu=True), StopSignals()
    assert list(until_signal(accelerator, signals, range(5))) == list(range(5))
    signals.received = signal.SIGTERM
    with pytest.raises(WorkStopped) as stop:
        list(until_signal(accelerator, signals, range(5)))
    assert stop.value.signal_number == agreed_signal(accelerator, signals) == signal.SIGTERM


def test_work_goes_on_without_a_signal() -> None:
    accelerator, signals = Accelerator(cpu=True), StopSignals()
    stop_at_signal(accelerator, signals)
    signals.received = signal.SIGINT
    with pytest.raises(WorkStopped, match="signal 2"):
        stop_at_signal(accelerator, signals)


def test_generation_ends_for_all_rows() -> None:
    signals = StopSignals()
    criterion, ids = SignalCriterion(signals), torch.zeros(3, 4, dtype=torch.long)
    assert criterion(ids, torch.zeros(3, 9)).tolist() == [False] * 3
    signals.received = signal.SIGTERM
    assert criterion(ids, torch.zeros(3, 9)).tolist() == [True] * 3
