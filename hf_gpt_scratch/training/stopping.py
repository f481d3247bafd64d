"""Stop long work at a signal that any process of the run got: all processes stop at the same place."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from transformers import StoppingCriteria

from hf_gpt_scratch.runtime.signals import StopSignals


Item = TypeVar("Item")

ASK_SECONDS = 0.5  # between two exchanges with the other processes during the work


class WorkStopped(Exception):
    """Work that all processes stopped because one of them got a signal.

    Args:
        signal_number: that signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped at signal {signal_number}")
        self.signal_number = signal_number


def largest(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Return the largest of each value over all processes. Collective: call on every process."""
    return accelerator.gather(torch.tensor([values], device=accelerator.device)).max(dim=0).values.tolist()


def agreed_signal(accelerator: Accelerator, signals: StopSignals) -> int:
    """Return the signal that any process got, 0 for none. Collective: call on every process."""
    return int(largest(accelerator, [float(signals.received)])[0])


def stop_at_signal(accelerator: Accelerator, signals: StopSignals) -> None:
    """Raise WorkStopped on all processes if any of them got a signal. Collective: call on every process."""
    if number := agreed_signal(accelerator, signals):
        raise WorkStopped(number)


def until_signal(accelerator: Accelerator, signals: StopSignals, items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, as many on every process, until one of the processes got a signal.

    The processes exchange signals every `ASK_SECONDS`, after the same number of items: an exchange after each item
    would cost more than a small model's batch.

    Raises:
        WorkStopped: a process got a signal.
    """
    between = left = 1
    asked = time.perf_counter()
    for item in items:
        left -= 1
        if left == 0:
            number, seconds = largest(accelerator, [float(signals.received), time.perf_counter() - asked])
            if number:
                raise WorkStopped(int(number))
            between = max(1, min(2 * between, int(between * ASK_SECONDS / max(seconds, 1e-6))))
            left, asked = between, time.perf_counter()
        yield item


class SignalCriterion(StoppingCriteria):
    """Ends `generate()` after a signal to this process; the others are not asked, because texts may differ in length.

    Args:
        signals: of the run.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        """Return True for each row that is done, bool [B]."""
        return torch.full((len(input_ids),), self.signals.received > 0, device=input_ids.device)
