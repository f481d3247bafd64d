"""Resume a run from a checkpoint, if it is the same run: to the last bit, up to rounding, or not at all."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_gpt_scratch.runtime.files import read_json
from hf_gpt_scratch.training.checkpoints.checkpoint import (
    SavedState,
    dtype_of_weights,
    find_checkpoints,
    load_checkpoint,
    load_random_state,
    newest_valid_checkpoint,
    read_state,
)
from hf_gpt_scratch.training.distributed import on_main_process
from hf_gpt_scratch.training.minutes.time_budget import note_start
from hf_gpt_scratch.training.run import Run


def find_resumable(run: Run) -> Path | None:
    """Choose the checkpoint to resume from, the same for all processes; corrupt ones are named.

    Returns:
        None if the run was stopped before its first checkpoint: it begins at the first step again.

    Raises:
        FileNotFoundError: all checkpoints are corrupt or were deleted.
    """

    def look() -> tuple[Path | None, list[str]]:
        interval = run.settings.save_steps or run.num_steps
        if not find_checkpoints(run.checkpoint_dir) and run.history.count("step") <= interval:
            return None, []
        return newest_valid_checkpoint(run.checkpoint_dir)

    path, warnings = on_main_process(run.accelerator, look)
    for warning in warnings:
        run.say(f"warning: {warning}")
    if path is None:
        run.say(f"{run.checkpoint_dir} holds no checkpoint yet: starting from the first step")
    return path


def resume(run: Run, path: Path) -> None:
    """Restore the run from a valid checkpoint.

    Raises:
        ValueError: settings, text, processes or random state would make it another run.
    """
    saved, now = read_state(path), run.saved_state()
    steps_before, is_bounded = steps_of(saved, len(run.samplers.train)), run.settings.minutes is not None
    differences = run.settings.differences(saved.settings)
    differences += incompatibilities(saved, now, run.samplers.train.num_windows)
    if run.num_steps < steps_before and not is_bounded:
        differences.append(f"the run had {steps_before:,} steps, has {run.num_steps:,}: it can only become longer")
    if differences:
        raise ValueError(
            f"cannot resume {path}: {'; '.join(differences)}; resume with the old values (they are in "
            f"{run.output_dir / 'settings.json'}, for --config) or start again in another --output_dir"
        )
    load_checkpoint(path, run.accelerator, run.bare_model, run.optimizer)
    stored = dtype_of_weights(path)
    if stored != run.bare_model.dtype:
        run.say(
            f"warning: {path} has weights in {stored}, as an older version trained them: they continue in "
            f"{run.bare_model.dtype}"
        )
    run.progress.restore(saved.progress)
    run.progress.plan_steps(None, None)
    if is_bounded:
        run.progress.plan_steps(run.expected_steps, steps_before)
        note_start(run)
    is_longer = run.num_steps > steps_before and not (is_bounded and run.progress.global_step < steps_before)
    if is_longer:
        run.progress.schedule_steps = saved.progress.schedule_steps or steps_before
    is_changed = is_longer or run.settings.minutes != saved.settings.get("minutes")
    on_main_process(run.accelerator, lambda: restore_records(run, write_settings=is_changed))
    run.say(f"resumed from {path}")
    if is_longer:
        run.say(longer_line(run, steps_before))
    for notice in nondeterminism_warnings(saved, now):
        run.say(f"warning: {notice}")
    restore_draws(path, saved, run.accelerator)


def with_its_warmup(run: Run, path: Path) -> Run:
    """Return the run with the warm-up that it began with, which was fitted to the steps that it had then.

    Evaluations and checkpoints are as far apart as suits its steps now. A run of fewer steps is left as it is: it is
    refused.
    """
    warmup_steps = read_state(path).settings.get("warmup_steps")
    if warmup_steps is None or warmup_steps >= run.num_steps:
        return run
    return replace(run, settings=replace(run.settings, warmup_steps=warmup_steps))


def expected_before(run: Run, path: Path) -> int:
    """Return the optimizer steps that were expected of the run that a checkpoint is of, before its first one."""
    saved = read_state(path)
    return saved.progress.expected_steps or steps_of(saved, len(run.samplers.train))


def steps_of(state: SavedState, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the run that a checkpoint is of, as far as it is planned."""
    if state.progress.planned_steps is not None:
        return state.progress.planned_steps
    max_steps = state.settings["max_steps"]
    return max_steps if max_steps > 0 else state.settings["num_train_epochs"] * steps_per_epoch


def longer_line(run: Run, steps_before: int) -> str:
    """Describe what becomes of the learning rate in a run that was lengthened."""
    settings, schedule_steps = run.settings, run.progress.schedule_steps
    line = f"the run becomes longer: {run.num_steps:,} steps in place of {steps_before:,}, at the learning rate"
    if settings.lr_scheduler_type == "constant":
        return f"{line} {settings.learning_rate:g}"
    return f"{line} {settings.min_learning_rate:g} from step {schedule_steps:,} on"


def restore_records(run: Run, write_settings: bool) -> None:
    """Restore history and settings.json to the moment of a checkpoint; write what is missing, broken or asked for."""
    progress = run.progress
    run.history.go_back(progress.history_bytes, progress.history_sha256, progress.global_step)
    if write_settings:
        run.write_settings()
    try:
        read_json(run.output_dir / "settings.json")
    except FileNotFoundError:
        run.write_settings()
    except ValueError as error:
        run.say(f"warning: {error}: written again")
        run.write_settings()


def split_of(state: SavedState) -> tuple[int, int, int]:
    """Return how a step is split: processes, windows of a micro-batch, micro-batches of a step."""
    settings = state.settings
    return state.num_processes, settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]


def windows_of_step(state: SavedState) -> int:
    """Return the windows of an optimizer step, over all processes and micro-batches."""
    processes, micro_batch, accumulated = split_of(state)
    return processes * micro_batch * accumulated


def incompatibilities(saved: SavedState, now: SavedState, num_windows: int) -> Iterator[str]:
    """List what would make the resumed run another one, besides changed settings.

    A step has at most the `num_windows` of the training text.
    """
    if saved.vocabulary_sha256 not in ("", now.vocabulary_sha256):
        yield (
            f"--vocabulary was {saved.settings['vocabulary']} with sha256 {saved.vocabulary_sha256}, is "
            f"{now.settings['vocabulary']} with sha256 {now.vocabulary_sha256 or 'unknown'}"
        )
    elif saved.text_sha256 != now.text_sha256:
        yield "the training or validation text has changed (other tokens, whatever its path)"
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
    """List what makes the run differ from the saved one by rounding only."""
    if split_of(saved) != split_of(now):
        dropout = "; dropout draws other numbers from here on" if now.settings["dropout"] > 0 else ""
        yield (
            f"a step was {described(saved)}, is {described(now)}: windows, order and batch stay the same, sums of "
            f"floats are rounded otherwise{dropout}"
        )
    if "fast_dropout" in saved.settings and now.settings["dropout"] > 0:  # a setting of version 0.1.0
        yield "it was saved by version 0.1.0, whose dropout drew other numbers"
    changed = [
        f"{name} was {saved.environment[name]}, is {value}"
        for name, value in now.environment.items()
        if saved.environment.get(name, value) != value  # an older version did not record all of it
    ]
    if changed:
        yield f"{', '.join(changed)}: losses may differ in their last digits"


def described(state: SavedState) -> str:
    """Describe how a step is split."""
    processes, micro_batch, accumulated = split_of(state)
    return f"{processes} processes x {micro_batch} windows x {accumulated} micro-batches"


def restore_draws(path: Path, saved: SavedState, accelerator: Accelerator) -> None:
    """Restore the generators; on another number of processes, reseed them from seed, step and process index.

    The main process always restores its own, because a window order may be drawn from it.

    Raises:
        ValueError: the random state cannot be restored.
    """
    if saved.num_processes == accelerator.num_processes or accelerator.is_main_process:
        load_random_state(path, accelerator)
    else:
        origin = f"{saved.settings['seed']}:{saved.progress.global_step}:{accelerator.process_index}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8], "big") >> 1)
