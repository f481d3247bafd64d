"""Proves which changes make a resumed run another one, which only other digits, and how draws go on."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hf_gpt_scratch.training.checkpoints.checkpoint import Progress, SavedState, random_state
from hf_gpt_scratch.training.checkpoints.resume import incompatibilities, nondeterminism_warnings, restore_draws


def state(processes: int = 2, windows: int = 4, accumulated: int = 1, **changes: object) -> SavedState:
    settings = {
        "per_device_train_batch_size": windows,
        "gradient_accumulation_steps": accumulated,
        "dropout": 0.0,
        "data_order": "seeded",
        "seed": 7,
        **changes,
    }
    environment = {"torch": "2.13.0", "device": "cpu (1 threads)"}
    return SavedState(Progress(global_step=5), settings, processes, environment=environment, text_sha256="a")


def test_nothing_is_said_of_the_same_run() -> None:
    assert list(incompatibilities(state(), state(), 99)) == []
    assert list(nondeterminism_warnings(state(), state())) == []


@pytest.mark.parametrize("split", [(1, 8, 1), (1, 4, 2), (8, 1, 1), (4, 2, 1), (2, 2, 2)])
def test_same_batch_split_otherwise_is_the_same_run_but_for_rounding(split: tuple[int, int, int]) -> None:
    assert list(incompatibilities(state(), state(*split), 99)) == []
    (line,) = nondeterminism_warnings(state(), state(*split))
    assert line.startswith("a step was 2 processes x 4 windows x 1 micro-batches, is ")
    assert "dropout" not in line
    (line,) = nondeterminism_warnings(state(dropout=0.1), state(*split, dropout=0.1))
    assert line.endswith("dropout draws other numbers from here on")


def test_another_batch_is_another_run() -> None:
    (line,) = incompatibilities(state(2), state(1), 99)
    assert "a step had 2 processes x 4 windows x 1 micro-batches, has 1 processes x 4 windows" in line
    assert "--gradient_accumulation_steps" in line


def test_step_of_all_windows_is_the_same_whatever_was_asked_for() -> None:
    """An older version did not cut the batch, and two processes cut it to another product."""
    assert list(incompatibilities(state(2, 5000), state(1, 47), 47)) == []
    assert list(incompatibilities(state(1, 47), state(2, 24), 47)) == []
    assert len(list(incompatibilities(state(1, 46), state(2, 24), 47))) == 1


def test_order_drawn_after_dropout_does_not_survive_another_split() -> None:
    drawn = {"data_order": "torch_dataloader"}
    assert list(incompatibilities(state(**drawn), state(1, 8, **drawn), 99)) == []
    (line,) = incompatibilities(state(**drawn, dropout=0.1), state(1, 8, **drawn, dropout=0.1), 99)
    assert "--data_order torch_dataloader" in line


def test_other_text_and_other_versions_are_named() -> None:
    other = state()
    other.text_sha256, other.environment = "b", {"torch": "2.14.0", "device": "cpu (1 threads)"}
    assert list(incompatibilities(state(), other, 99)) == [
        "the training or validation text has changed (its tokens are others, whatever its path)"
    ]
    assert list(nondeterminism_warnings(state(), other)) == [
        "torch was 2.13.0, is 2.14.0: losses may differ in their last digits"
    ]


def test_another_kind_of_processor_is_named_where_the_old_one_is_known() -> None:
    before, now = state(), state()
    before.environment, now.environment = {"processor": "AVX512 x"}, {"processor": "AVX2 x"}
    (line,) = nondeterminism_warnings(before, now)
    assert line == "processor was AVX512 x, is AVX2 x: losses may differ in their last digits"
    before.environment = {}  # of an older version
    assert list(nondeterminism_warnings(before, now)) == []


def test_another_model_is_another_run_where_its_hash_is_known() -> None:
    first, second = state(), state()
    first.model_sha256, second.model_sha256 = "a", "b"
    (line,) = incompatibilities(first, second, 99)
    assert line == "the model is another one: --model_name_or_path has another config"
    first.model_sha256 = ""
    assert list(incompatibilities(first, second, 99)) == []


class Process:
    """As much of an Accelerator as says which process this is."""

    def __init__(self, index: int, count: int) -> None:
        self.process_index, self.num_processes, self.is_main_process = index, count, index == 0
        self.device = torch.device("cpu")


def test_draws_go_on_or_begin_anew_differently_on_each_process(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_file(random_state(torch.device("cpu")), tmp_path / "rng_0.safetensors")
    expected = torch.rand(3)
    restore_draws(tmp_path, state(1), Accelerator())
    assert torch.equal(torch.rand(3), expected)
    draws = []
    for process in (0, 1, 2, 1):
        restore_draws(tmp_path, state(1), Process(process, 3))
        draws.append(torch.rand(3).tolist())
    assert draws[0] == expected.tolist()
    assert draws[1] == draws[3]  # a pure function of seed, step and process
    assert len({tuple(draw) for draw in draws}) == 3


def test_missing_random_state_of_the_same_number_of_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="rng_1.safetensors"):
        restore_draws(tmp_path, state(2), Process(1, 2))
