"""Checkpoints: written beside and renamed when complete, verified when read.

A checkpoint is a folder `step-00000120`:
    model.safetensors       each parameter once, by name
    optimizer.safetensors   optimizer state, named <parameter index>.<key>
    rng_<process>.safetensors   random state of each process
    state.json              progress, and what of the optimizer is no tensor
    manifest.json           SHA-256 of each file, settings, processes, versions; without it a checkpoint does not count
"""

import re
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
from hf_gpt_scratch.training.distributed import gather, on_main_process, shard_like, spread_optimizer_state


PREFIX = "step-"
NAME = re.compile(rf"{PREFIX}[0-9]{{8,}}")
IN_MANIFEST = ("settings", "num_processes", "environment", "text_sha256", "model_sha256")


@dataclass
class Progress:
    """Where a run is. Together with the settings it determines the data that comes next."""

    global_step: int = 0  # completed optimizer steps
    epoch: int = 0  # epoch of the next step
    step_in_epoch: int = 0  # completed steps of that epoch
    tokens_seen: int = 0  # labels that counted in all completed steps
    order_seed: int | None = None  # of the window order of this epoch
    history_bytes: int = 0  # size of history.jsonl
    best_step: int | None = None  # step with the lowest validation loss, where the settings ask for it
    best_validation_loss: float | None = None  # nats per token
    skipped_steps: int = 0  # completed steps that were not applied
    is_step_open: bool = False  # evaluation and sample after the last step were left at a signal, and are still due
    skipped_in_a_row: int = 0  # of them, the newest without an applied one in between
    recent_steps: list[list[float]] = field(default_factory=list)  # loss and gradient norm, if spikes are looked for
    whole_losses: list[float] | None = None  # training and validation loss of these weights, if known over all text
    history_sha256: str | None = None  # of history.jsonl; None: written by a version that did not hash it


@dataclass
class SavedState:
    """Everything of a checkpoint that is no tensor; the part in IN_MANIFEST says which run it is of."""

    progress: Progress
    settings: dict[str, Any]
    num_processes: int
    optimizer_groups: list[dict[str, Any]] = field(default_factory=list)
    grad_scaler: dict[str, Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)  # versions and device
    text_sha256: str = ""  # of the token ids of training and validation
    model_sha256: str = ""  # of what its config says of the model; empty: written by a version that did not hash it


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the generators that draw in a step (dropout): that of the CPU and that of the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def restore_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back.

    Raises:
        ValueError: the state is that of another kind of device, so that dropout would go another way.
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
        ValueError: it is none.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def save_checkpoint(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, saved: SavedState
) -> Path:
    """Write a checkpoint of the whole run; to be called by all processes. It is there in whole or not at all.

    Args:
        folder: where checkpoints lie; the new one is named by its step.
        accelerator: of the run.
        model: the bare model, not wrapped.
        optimizer: the bare optimizer.
        saved: what is no tensor; the optimizer's part is filled in here.

    Raises:
        OSError: the disk does not take it; it names the file, and all older checkpoints are as they were.
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
    """All checkpoints, newest step first, whole or damaged; a file of such a name is none, and is left alone."""
    found = [path for path in folder.glob(f"{PREFIX}*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (-step_of(path), path.name))


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name.removeprefix(PREFIX))


def remove_old_checkpoints(newest: Path, keep: int, best_step: int | None = None) -> None:
    """Delete all checkpoints but some; to be called when the newest is complete.

    Args:
        newest: the checkpoint just written. Later ones are damaged leftovers that a resume passed over: they go too.
        keep: how many to keep, the newest among them.
        best_step: step of one more to keep.
    """
    past = [path for path in find_checkpoints(newest.parent) if step_of(path) <= step_of(newest) and is_ours(path)]
    for path in find_checkpoints(newest.parent):
        if path not in past[:keep] and step_of(path) != best_step and is_ours(path):
            discard(path)


def is_ours(path: Path) -> bool:
    """Whether a folder holds anything of a checkpoint, whole or damaged."""
    return any((path / name).exists() for name in (MANIFEST, "state.json", "model.safetensors"))


def newest_valid_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """Find the newest checkpoint whose files are all as they were written.

    Returns:
        The checkpoint, and a warning for each newer one that is damaged and for files in it that do not belong there.

    Raises:
        FileNotFoundError: there is no checkpoint, or all are damaged.
    """
    warnings: list[str] = []
    for path in find_checkpoints(folder):
        fault = find_corruption(path)
        if fault is None:
            warnings += [
                f"{path / name} does not belong to the checkpoint: not read" for name in unexpected_files(path)
            ]
            return path, warnings
        warnings.append(f"{path} is left out: {fault}")
    found = f" ({'; '.join(warnings)})" if warnings else ""
    raise FileNotFoundError(f"{folder} holds no valid checkpoint{found}: start anew in another --output_dir")


def read_state(path: Path) -> SavedState:
    """Read what is no tensor of a checkpoint that `newest_valid_checkpoint` gave.

    Raises:
        ValueError: it is not what `save_checkpoint` writes.
    """
    try:
        values = read_json(path / "state.json")
        facts = {name: value for name, value in read_manifest(path).items() if name in IN_MANIFEST}
        return SavedState(**facts, **{**values, "progress": Progress(**values["progress"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / 'state.json'} cannot be read: {error}") from None


def dtype_of_weights(path: Path) -> torch.dtype:
    """Read from the header in which dtype a checkpoint has the weights, all alike."""
    with safe_open(path / "model.safetensors", "pt") as file:
        name = next(iter(file.keys()))
        return file.get_slice(name)[:0].dtype


def load_weights(path: Path, model: nn.Module) -> None:
    """Put the weights of a checkpoint into a bare model, in place.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    saved = load_tensors(path / "model.safetensors")
    parameters = dict(model.named_parameters())
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in parameters.items()}:
        raise ValueError(f"{path} is the checkpoint of another model: its weights have other names or shapes")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(shard_like(saved[name], parameter))


def load_checkpoint(path: Path, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> None:
    """Put weights and optimizer state back, in place. The random state comes later: `load_random_state`.

    Raises:
        ValueError: the checkpoint is of another model or optimizer.
    """
    load_weights(path, model)
    state = read_state(path)
    tensors = load_tensors(path / "optimizer.safetensors")
    try:
        optimizer_state = unpack_optimizer(tensors, state.optimizer_groups)
        optimizer_state["state"] = spread_optimizer_state(optimizer_state["state"], optimizer)
        optimizer.load_state_dict(optimizer_state)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path / 'optimizer.safetensors'} is of another optimizer: {error}") from None
    if accelerator.scaler is not None and state.grad_scaler is not None:
        accelerator.scaler.load_state_dict(state.grad_scaler)


def load_random_state(path: Path, accelerator: Accelerator) -> None:
    """Put the generators of this process back; the last thing before the first step, since much else draws.

    Raises:
        ValueError: that is not possible, so that the run would silently be another one.
    """
    file = path / f"rng_{accelerator.process_index}.safetensors"
    restore_random_state(load_tensors(file), accelerator.device)
