"""Checkpoints, written atomically and verified when they are read.

A checkpoint is a folder `step-00000120`:
    model.safetensors       each parameter once, by name
    optimizer.safetensors   optimizer state, named <parameter index>.<key>
    rng_<process>.safetensors   random state of each process
    state.json              progress, and the optimizer's values other than tensors
    manifest.json           SHA-256 of each file, settings, processes, versions; without it a checkpoint does not count
"""

import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from hf_gpt_scratch.runtime.files import atomic_folder, discard, name_file_in_errors, read_json, write_json
from hf_gpt_scratch.training.checkpoints.manifest import (
    MANIFEST,
    find_corruption,
    read_manifest,
    unexpected_files,
    write_manifest,
)
from hf_gpt_scratch.training.distributed import gather, on_main_process, reshard, shard_like, shard_optimizer_state
from hf_gpt_scratch.training.progress import Progress
from hf_gpt_scratch.training.settings import TrainingSettings


PREFIX = "step-"
NAME = re.compile(rf"{PREFIX}[0-9]{{8,}}")
IN_MANIFEST = ("settings", "num_processes", "environment", "text_sha256", "model_sha256", "vocabulary_sha256")


@dataclass
class SavedState:
    """Everything of a checkpoint except tensors; the fields in IN_MANIFEST identify the run."""

    progress: Progress
    settings: dict[str, Any]
    num_processes: int
    num_threads: int = 0  # of PyTorch on a CPU; 0: written by a version that did not record it
    optimizer_groups: list[dict[str, Any]] = field(default_factory=list)
    grad_scaler: dict[str, Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)  # versions and device
    text_sha256: str = ""  # of the token ids of training and validation
    model_sha256: str = ""  # of the model's config; empty: written by a version that did not hash it
    vocabulary_sha256: str = ""  # empty: not known, as to versions that did not hash it


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the generators that draw in a step (dropout): of the CPU and of the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def restore_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the generators.

    Raises:
        ValueError: the state is of another kind of device, so that dropout would draw other numbers.
    """
    expected = set(random_state(device))
    if set(states) != expected:
        raise ValueError(f"the checkpoint has random state of {sorted(states)}, this run needs {sorted(expected)}")
    try:
        torch.set_rng_state(states["cpu"])
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(states[device.type])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the checkpoint's random state cannot be restored: {error}") from None


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Split an optimizer's state into tensors (for safetensors) and groups (for JSON)."""
    state = optimizer.state_dict()
    tensors = {f"{index}.{key}": value for index, values in state["state"].items() for key, value in values.items()}
    return tensors, state["param_groups"]


def unpack_optimizer(tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Undo `pack_optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": groups}


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; an error names it."""
    with name_file_in_errors(path):
        save_file(tensors, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: it is truncated or corrupt.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def save_checkpoint(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, saved: SavedState
) -> Path:
    """Save a checkpoint atomically. Collective: call on every process.

    Args:
        folder: of all checkpoints; the new one is named by its step.
        accelerator: of the run.
        model: the bare model, not wrapped.
        optimizer: the bare optimizer.
        saved: everything except tensors; the optimizer's part is filled in here.

    Raises:
        OSError: a file cannot be written; the line names it, and all older checkpoints stay as they were.
    """
    random_states = gather_object([random_state(accelerator.device)])
    tensors, saved.optimizer_groups = pack_optimizer(optimizer)
    parameters = gather(dict(model.named_parameters()), keep=accelerator.is_main_process)
    tensors = gather(tensors, keep=accelerator.is_main_process)

    def write() -> Path:
        path = folder / f"{PREFIX}{saved.progress.global_step:08d}"
        if path.exists() and not path.is_dir():  # somebody else's
            path.rename(path.with_name(f"{path.name}.file"))
        with atomic_folder(path, replace=True) as unfinished:
            for process, states in enumerate(random_states):
                save_tensors(states, unfinished / f"rng_{process}.safetensors")
            save_tensors(parameters, unfinished / "model.safetensors")
            save_tensors(tensors, unfinished / "optimizer.safetensors")
            write_state(saved, unfinished)
        return path

    return on_main_process(accelerator, write)


def write_state(saved: SavedState, folder: Path) -> None:
    """Write state.json, then the manifest over all files of the folder."""
    values = asdict(saved)
    facts = {name: values.pop(name) for name in IN_MANIFEST}
    write_json(folder / "state.json", values, sort_keys=False)
    progress = saved.progress
    write_manifest(folder, {"global_step": progress.global_step, "tokens_seen": progress.tokens_seen, **facts})


def find_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoint folders, newest step first, valid or corrupt."""
    found = [path for path in folder.glob(f"{PREFIX}*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (-step_of(path), path.name))


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.name.removeprefix(PREFIX))


def remove_old_checkpoints(newest: Path, keep: int, best_step: int | None = None) -> None:
    """Delete all checkpoints but some, once the newest is complete.

    Args:
        newest: the checkpoint just written. Later ones are corrupt leftovers that a resume skipped: they go too.
        keep: number to keep, the newest among them.
        best_step: step of one more to keep.
    """
    past = [
        path for path in find_checkpoints(newest.parent) if step_of(path) <= step_of(newest) and is_checkpoint(path)
    ]
    for path in find_checkpoints(newest.parent):
        if path not in past[:keep] and step_of(path) != best_step and is_checkpoint(path):
            discard(path)


def is_checkpoint(path: Path) -> bool:
    """Return True if a folder holds any file of a checkpoint, valid or corrupt."""
    return any((path / name).exists() for name in (MANIFEST, "state.json", "model.safetensors"))


def newest_valid_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """Find the newest checkpoint whose files are all as they were written, under the name of its step.

    Returns:
        The checkpoint, and a warning for each newer one that is corrupt and for files in it that do not belong there.

    Raises:
        FileNotFoundError: there is no checkpoint, or all are corrupt.
    """
    warnings: list[str] = []
    for path in find_checkpoints(folder):
        fault = find_corruption(path)
        if fault is None and (step := read_manifest(path).get("global_step")) != step_of(path):
            fault = f"it is the checkpoint of step {step}"
        if fault is None:
            warnings += [
                f"{path / name} does not belong to the checkpoint: not read" for name in unexpected_files(path)
            ]
            return path, warnings
        warnings.append(f"{path} is left out: {fault}")
    found = f" ({'; '.join(warnings)})" if warnings else ""
    raise FileNotFoundError(f"{folder} holds no valid checkpoint{found}: start again in another --output_dir")


def read_state(path: Path) -> SavedState:
    """Read everything except tensors from a checkpoint that `newest_valid_checkpoint` found.

    Raises:
        ValueError: `save_checkpoint` did not write it so.
    """
    try:
        values = read_json(path / "state.json")
        facts = {name: value for name, value in read_manifest(path).items() if name in IN_MANIFEST}
        return SavedState(**facts, **{**values, "progress": Progress(**values["progress"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / 'state.json'} cannot be read: {error}") from None


def recorded_state(settings: TrainingSettings) -> SavedState | None:
    """Return what the newest readable checkpoint of the run that `settings` resume has recorded; None without one."""
    for path in find_checkpoints(Path(settings.output_dir) / "checkpoints") if settings.resume else ():
        with suppress(ValueError, OSError):  # a damaged one, which is named when the run is resumed
            return read_state(path)
    return None


def dtype_of_weights(path: Path) -> torch.dtype:
    """Read the dtype of a checkpoint's weights from the header; all have the same."""
    with safe_open(path / "model.safetensors", "pt") as file:
        name = next(iter(file.keys()))
        return file.get_slice(name)[:0].dtype


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a bare model, in place.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    saved = load_tensors(path / "model.safetensors")
    reshard(model)
    parameters = dict(model.named_parameters())
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in parameters.items()}:
        raise ValueError(f"{path} is the checkpoint of another model: its weights have other names or shapes")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(shard_like(saved[name], parameter))


def load_checkpoint(path: Path, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> None:
    """Load weights and optimizer state, in place. `load_random_state` comes later.

    Raises:
        ValueError: the checkpoint is of another model or optimizer.
    """
    load_weights(path, model)
    state = read_state(path)
    tensors = load_tensors(path / "optimizer.safetensors")
    try:
        optimizer_state = unpack_optimizer(tensors, state.optimizer_groups)
        optimizer_state["state"] = shard_optimizer_state(optimizer_state["state"], optimizer)
        optimizer.load_state_dict(optimizer_state)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path / 'optimizer.safetensors'} is of another optimizer: {error}") from None
    if accelerator.scaler is not None and state.grad_scaler is not None:
        accelerator.scaler.load_state_dict(state.grad_scaler)


def load_random_state(path: Path, accelerator: Accelerator) -> None:
    """Restore the generators of this process, as the last thing before the first step, since much else draws.

    Raises:
        ValueError: they cannot be restored, so that the run would silently be another one.
    """
    file = path / f"rng_{accelerator.process_index}.safetensors"
    restore_random_state(load_tensors(file), accelerator.device)
