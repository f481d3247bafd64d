"""Long work of a run left at a signal that any of its processes got: all leave it at the same place."""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import StoppingCriteria

from hf_gpt_scratch.runtime.interrupts import StopSignals


if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_gpt_scratch.training.run import Run


Item = TypeVar("Item")

ASK_SECONDS = 0.5  # between two questions to the other processes, while work goes on


class WorkLeft(Exception):
    """Work that all processes left because one of them got a signal.

    Args:
        signal_number: that signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"left at signal {signal_number}")
        self.signal_number = signal_number


def largest(accelerator: "Accelerator", values: list[float]) -> list[float]:
    """The largest of each value over all processes; every process calls this."""
    return accelerator.gather(torch.tensor([values], device=accelerator.device)).max(dim=0).values.tolist()


def agreed_signal(run: "Run") -> int:
    """The signal that any process got, 0 for none; every process calls this."""
    return int(largest(run.accelerator, [float(run.signals.received)])[0])


def leave_at_signal(run: "Run") -> None:
    """Raise WorkLeft on all processes if any of them got a signal; every process calls this."""
    if number := agreed_signal(run):
        raise WorkLeft(number)


def until_signal(run: "Run", items: Iterable[Item]) -> Iterator[Item]:
    """Hand on items, as many on every process, until one of them got a signal.

    The processes ask each other every `ASK_SECONDS`, after a number of items that is the same on all: asking after
    each would cost more than a small model's batch.

    Raises:
        WorkLeft: a process got a signal.
    """
    between = left = 1
    asked = time.perf_counter()
    for item in items:
        left -= 1
        if left == 0:
            number, seconds = largest(run.accelerator, [float(run.signals.received), time.perf_counter() - asked])
            if number:
                raise WorkLeft(int(number))
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

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Whether each row is done, bool [B]."""
        return torch.full((len(input_ids),), self.signals.received > 0, device=input_ids.device)
