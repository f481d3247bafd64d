"""Proves that a run takes fewer threads where they are clearly faster, says so, and keeps its number when resumed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from hf_gpt_scratch.training.build import build_model
from hf_gpt_scratch.training.checkpoints.checkpoint import find_checkpoints, read_state
from hf_gpt_scratch.training.cpu import threads
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows


class Clock:
    """Goes on by the work that is said to be done, so that a busy machine changes no choice."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        self.seconds += 1e-4  # real work takes no time here, and its measurement has to end
        return self.seconds


CLOCK = Clock()


def work_of(seconds: dict[int, float]) -> Callable[[], None]:
    """Work that takes the given seconds with each number of threads."""

    def work() -> None:
        CLOCK.seconds += seconds[torch.get_num_threads()]

    return work


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements by that clock, where no number of threads was asked for."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads, "time", CLOCK)
    monkeypatch.setattr(threads, "MEASURED_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({4: 0.020, 3: 0.030, 2: 0.040, 1: 0.060}, 4),
        ({4: 0.060, 3: 0.010, 2: 0.020, 1: 0.030}, 3),  # a core is taken by somebody else
        ({4: 0.060, 3: 0.050, 2: 0.030, 1: 0.010}, 1),  # a small model
        ({4: 0.025, 3: 0.030, 2: 0.030, 1: 0.020}, 4),  # nearly as good: the number that every run takes
    ],
)
def test_fewer_threads_are_taken_only_where_they_are_clearly_faster(seconds: dict[int, float], chosen: int) -> None:
    torch.set_num_threads(4)
    line = threads.take_fastest(work_of(seconds))
    assert torch.get_num_threads() == chosen
    assert line is not None
    assert line.startswith(f"threads: {chosen} of 4, since a micro-batch takes ")
    assert all(f" ms with {number}" in line for number in seconds)


def test_one_bad_moment_does_not_decide() -> None:
    """As when another process is busy for the first measurement only."""
    torch.set_num_threads(2)
    left = [0.1, 0.1]  # warming up, and the first that counts

    def work() -> None:
        CLOCK.seconds += 0.005 + (left.pop() if left and torch.get_num_threads() == 2 else 0.0)

    threads.take_fastest(work)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("reason", ["asked for", "large", None])
def test_a_number_that_was_asked_for_and_that_of_a_large_model_stay(
    tiny_settings: Callable[..., TrainingSettings], monkeypatch: pytest.MonkeyPatch, reason: str | None
) -> None:
    """The control is the same model without a reason."""
    if reason == "asked for":
        monkeypatch.setenv(threads.VARIABLE, "2")
    if reason == "large":
        monkeypatch.setattr(threads, "MOST_FLOPS", 1e6)
    monkeypatch.setattr(threads, "compute_gradients", lambda *_: work_of({2: 0.010, 1: 0.001})())
    torch.set_num_threads(2)
    settings = tiny_settings()
    model = build_model(settings, 0)
    line = threads.choose_threads(model, settings, Accelerator())
    assert (torch.get_num_threads(), line is None) == ((2, True) if reason else (1, False))


@pytest.mark.parametrize("cpu_speedups", [True, False])
def test_the_flag_of_the_cpu_speedups_leaves_all_threads(
    tiny_settings: Callable[..., TrainingSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cpu_speedups: bool,
) -> None:
    """The control is the same run with them."""
    monkeypatch.setattr(threads, "compute_gradients", lambda *_: work_of({2: 0.010, 1: 0.001})())
    torch.set_num_threads(2)
    train(tiny_settings(max_steps=1, warmup_steps=0, cpu_speedups=cpu_speedups))
    assert ("threads: 1 of 2" in capsys.readouterr().out) == cpu_speedups
    assert torch.get_num_threads() == (1 if cpu_speedups else 2)


def test_measuring_changes_nothing_of_the_run(tiny_settings: Callable[..., TrainingSettings]) -> None:
    torch.set_num_threads(2)
    settings = tiny_settings(dropout=0.1)
    model, draws = build_model(settings, 0), torch.get_rng_state()
    assert threads.choose_threads(model, settings, Accelerator())
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_resumed_run_keeps_the_number_it_began_with(
    tiny_settings: Callable[..., TrainingSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Whatever the machine would choose now."""
    wanted = {2: 0.010, 1: 0.001}
    monkeypatch.setattr(threads, "compute_gradients", lambda *_: work_of(wanted)())
    torch.set_num_threads(2)
    train(tiny_settings(max_steps=4, save_steps=4))
    assert capsys.readouterr().out.startswith("threads: 1 of 2, since a micro-batch takes ")
    (path,) = find_checkpoints(tmp_path / "run" / "checkpoints")
    assert read_state(path).num_threads == 1

    wanted.update({2: 0.001, 1: 0.010})
    torch.set_num_threads(2)
    train(tiny_settings(max_steps=8, save_steps=4, resume=True))
    assert "threads:" not in capsys.readouterr().out
    first, second = (row["device"] for row in rows(tmp_path / "run", "run"))
    assert first == second == "cpu (1 threads)"
