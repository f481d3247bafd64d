"""Checkpoints: written beside and renamed when complete, verified when read.

A checkpoint is a folder `step-00000120`:
    model.safetensors       each parameter once, by name
    optimizer.safetensors   optimizer state, named <parameter index>.<key>
    rng_<process>.safetensors   random state of each process
    state.json              progress, settings, versions, and what of the optimizer is no tensor
    manifest.json           SHA-256 of each file; written last, so without it a checkpoint does not count
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from hf_gpt_scratch.files import flush, sha256_of


MANIFEST = "manifest.json"
PREFIX = "step-"
UNFINISHED = ".unfinished-"


@dataclass
class Progress:
    """Where a run is. Together with the settings it determines the data that comes next."""

    global_step: int = 0  # completed optimizer steps
    epoch: int = 0  # epoch of the next step
    step_in_epoch: int = 0  # completed steps of that epoch
    tokens_seen: int = 0  # labels that counted in all completed steps
    order_seed: int | None = None  # of the window order of this epoch
    history_bytes: int = 0  # size of history.jsonl


@dataclass
class SavedState:
    """state.json: everything of a checkpoint that is no tensor."""

    progress: Progress
    settings: dict[str, Any]
    num_processes: int
    optimizer_groups: list[dict[str, Any]]
    grad_scaler: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)


def random_state() -> dict[str, torch.Tensor]:
    """The state of the generators that draw in a step (dropout): CPU and every CUDA device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_state(states: dict[str, torch.Tensor]) -> None:
    """Put the generators back.

    Raises:
        ValueError: the state is that of another number of devices, so that dropout would go another way.
    """
    expected = set(random_state())
    if set(states) != expected:
        raise ValueError(f"the checkpoint has random state of {sorted(states)}, this machine has {sorted(expected)}")
    torch.set_rng_state(states.pop("cpu"))
    if states:
        torch.cuda.set_rng_state_all([states[f"cuda.{index}"] for index in range(len(states))])


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Split an optimizer's state into tensors (for safetensors) and groups (for JSON)."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{key}": value.contiguous()
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, state["param_groups"]


def unpack_optimizer(tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Undo `pack_optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": groups}


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
    """
    path = folder / f"{PREFIX}{saved.progress.global_step:08d}"
    unfinished = folder / f"{UNFINISHED}{path.name}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_file(random_state(), unfinished / f"rng_{accelerator.process_index}.safetensors")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        parameters = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
        save_file(parameters, unfinished / "model.safetensors")
        tensors, saved.optimizer_groups = pack_optimizer(optimizer)
        save_file(tensors, unfinished / "optimizer.safetensors")
        (unfinished / "state.json").write_text(json.dumps(asdict(saved), indent=2), encoding="utf-8")
        publish(unfinished, path)
    accelerator.wait_for_everyone()
    return path


def publish(unfinished: Path, path: Path) -> None:
    """Add the manifest and give a finished checkpoint its name; each stage is on the disk before the next."""
    digests = {file.name: sha256_of(file) for file in sorted(unfinished.iterdir())}
    for name in digests:
        flush(unfinished / name)
    (unfinished / MANIFEST).write_text(json.dumps(digests, indent=2), encoding="utf-8")
    flush(unfinished / MANIFEST)
    flush(unfinished)
    if path.exists():  # the same step, saved again after a resume
        shutil.rmtree(path)
    unfinished.rename(path)
    flush(path.parent)


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and what an interrupted save left behind."""
    checkpoints = sorted(folder.glob(f"{PREFIX}*"))
    for path in [*checkpoints[:-keep], *folder.glob(f"{UNFINISHED}*")]:
        shutil.rmtree(path)


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint, or None if every file has the hash of the manifest."""
    try:
        digests = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            if sha256_of(path / name) != digest:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def newest_valid_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """Find the newest checkpoint whose files are all as they were written.

    Returns:
        The checkpoint, and a warning for each newer one that is damaged.

    Raises:
        FileNotFoundError: there is no checkpoint, or all are damaged.
    """
    warnings: list[str] = []
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        fault = damage(path)
        if fault is None:
            return path, warnings
        warnings.append(f"{path} is left out: {fault}")
    found = f" ({'; '.join(warnings)})" if warnings else ""
    raise FileNotFoundError(f"{folder} holds no valid checkpoint{found}: start anew in another --output_dir")


def read_state(path: Path) -> SavedState:
    """Read state.json of a checkpoint that `newest_valid_checkpoint` gave."""
    values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return SavedState(**{**values, "progress": Progress(**values["progress"])})


def load_checkpoint(path: Path, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> None:
    """Put weights and optimizer state back, in place. The random state comes later: `load_random_state`.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    parameters = dict(model.named_parameters())
    try:
        saved = load_file(path / "model.safetensors")
        tensors = load_file(path / "optimizer.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in parameters.items()}:
        raise ValueError(f"{path} is the checkpoint of another model: its weights have other names or shapes")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    state = read_state(path)
    optimizer.load_state_dict(unpack_optimizer(tensors, state.optimizer_groups))
    if accelerator.scaler is not None and state.grad_scaler is not None:
        accelerator.scaler.load_state_dict(state.grad_scaler)


def load_random_state(path: Path, process_index: int) -> None:
    """Put the generators of this process back; the last thing before the first step, since much else draws."""
    restore_random_state(load_file(path / f"rng_{process_index}.safetensors"))
