"""Whether a resumed run is the run that was saved: to the last bit, to rounding, or not at all."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_gpt_scratch.training.checkpoints.checkpoint import SavedState, load_random_state


def split_of(state: SavedState) -> tuple[int, int, int]:
    """How a step is split: processes, windows of a micro-batch, micro-batches of a step."""
    settings = state.settings
    return state.num_processes, settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]


def windows_of_step(state: SavedState) -> int:
    """Windows of an optimizer step, over all processes and micro-batches."""
    processes, micro_batch, accumulated = split_of(state)
    return processes * micro_batch * accumulated


def incompatibilities(saved: SavedState, now: SavedState, num_windows: int) -> Iterator[str]:
    """Name what would make the resumed run another one, besides changed settings.

    A step has at most the `num_windows` of the training text.
    """
    if saved.text_sha256 != now.text_sha256:
        yield "the training or validation text has changed (its tokens are others, whatever its path)"
    if saved.model_sha256 not in ("", now.model_sha256):
        yield "the model is another one: --model_name_or_path has another config"
    if min(windows_of_step(saved), num_windows) != min(windows_of_step(now), num_windows):
        yield (
            f"a step had {described(saved)}, has {described(now)}: choose --per_device_train_batch_size and "
            "--gradient_accumulation_steps so that the product stays"
        )
    draws_order = now.settings["data_order"] == "torch_dataloader" and now.settings["dropout"] > 0
    if draws_order and split_of(saved) != split_of(now):
        yield "--data_order torch_dataloader draws the window order after dropout, so a step cannot be split otherwise"


def nondeterminism_warnings(saved: SavedState, now: SavedState) -> Iterator[str]:
    """Name what leaves the run the same, but not to the last bit."""
    if split_of(saved) != split_of(now):
        dropout = "; dropout draws other numbers from here on" if now.settings["dropout"] > 0 else ""
        yield (
            f"a step was {described(saved)}, is {described(now)}: windows, order and batch stay the same, sums of "
            f"floats are rounded otherwise{dropout}"
        )
    changed = [
        f"{name} was {saved.environment[name]}, is {value}"
        for name, value in now.environment.items()
        if saved.environment.get(name, value) != value  # an older version did not write down all
    ]
    if changed:
        yield f"{', '.join(changed)}: losses may differ in their last digits"


def described(state: SavedState) -> str:
    """Write a split as a person would."""
    processes, micro_batch, accumulated = split_of(state)
    return f"{processes} processes x {micro_batch} windows x {accumulated} micro-batches"


def restore_draws(path: Path, saved: SavedState, accelerator: Accelerator) -> None:
    """Put the generators back; on another number of processes, where none is to be put back, seed them anew.

    The new seed is a pure function of the run's seed, the step and the process. The main process always goes on from
    where it was, because a window order may be drawn from its generator.

    Raises:
        ValueError: the random state cannot be restored.
    """
    if saved.num_processes == accelerator.num_processes or accelerator.is_main_process:
        load_random_state(path, accelerator)
    else:
        origin = f"{saved.settings['seed']}:{saved.progress.global_step}:{accelerator.process_index}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8], "big") >> 1)
