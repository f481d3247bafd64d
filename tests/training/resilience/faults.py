"""Faults inside a training process, set up before it begins; each is armed in a fork and dies with it."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hf_gpt_scratch.training import loop
from hf_gpt_scratch.training import run as run_module
from hf_gpt_scratch.training.checkpoints import checkpoint


# Each is raised before the file is touched.
EVENTS = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.link", "os.symlink", "os.chmod"}


def watch_files(root: Path, act: Callable[[str, str], None]) -> None:
    """Call `act` before each file event below a folder: opening to write, renaming, making, deleting."""
    prefix = str(root)

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            if not isinstance(args[0], str | bytes) or not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in EVENTS:
            return
        path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
        # rmtree works with names relative to an open folder.
        if path.startswith(prefix) or (path and not os.path.isabs(path) and event in ("os.remove", "os.rmdir")):
            act(event, path)

    sys.addaudithook(hook)


def die() -> None:
    """As `kill -9` does: nothing of the process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def record_events(root: Path, record: Path) -> None:
    """Write every file event into a file elsewhere, one a line."""
    descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    watch_files(root, lambda event, path: os.write(descriptor, f"{event} {path}\n".encode()) and None)


def kill_at_event(root: Path, number: int) -> None:
    """Die right before the file event of that number, from 0."""
    seen = iter(range(number))

    def count(event: str, path: str) -> None:
        if next(seen, None) is None:
            die()

    watch_files(root, count)


def kill_at_byte(name: str, save: int, offset: int) -> None:
    """Have the kernel kill the process in the middle of writing a file of a checkpoint, at that byte.

    Args:
        name: the file, such as `model.safetensors`.
        save: which save of the run, from 0.
        offset: bytes that still get written.
    """
    write, seen = checkpoint.save_tensors, iter(range(save))

    def limited(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name == name and next(seen, None) is None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (offset, offset))
        write(tensors, path)

    checkpoint.save_tensors = limited


def without_verification() -> None:
    """A negative control: no hash is looked at."""
    checkpoint.find_corruption = lambda path: None


def without_renaming() -> None:
    """A negative control: checkpoints are written in their place, and count from the first byte."""

    @contextmanager
    def in_place(output: Path, replace: bool) -> Iterator[Path]:
        output.mkdir(parents=True, exist_ok=replace)
        yield output

    checkpoint.atomic_folder = in_place
    run_module.remove_old_checkpoints = lambda *_: None
    without_verification()


def linger_in_step_after_signal() -> None:
    """Let a step that is under way when a signal comes take a minute."""
    optimizer_step = loop.optimizer_step

    def lingering(run: run_module.Run, *arguments: object) -> tuple[float, float, bool]:
        result = optimizer_step(run, *arguments)
        time.sleep(0.3)
        time.sleep(60 if run.signals.received else 0)
        return result

    loop.optimizer_step = lingering


def hang_in_step() -> None:
    """Let the first step never end."""

    def hanging(*_: object) -> None:
        time.sleep(3600)

    loop.optimizer_step = hanging


def as_process(index: int, count: int, port: int) -> None:
    """Be one of several processes that find each other through gloo, as torchrun starts them."""
    os.environ |= {
        **{"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }


def digests_of_each_process(record: Path) -> None:
    """Before the run ends, every process writes the hashes of its own weights, optimizer state and generator."""
    from hf_gpt_scratch.training.checkpoints.manifest import file_sha256

    finish = loop.finish

    def digest_and_finish(run: run_module.Run) -> object:
        mine = record.with_name(f"{record.name}.{run.accelerator.process_index}")
        weights = {f"model.{k}": v.detach().contiguous() for k, v in run.bare_model.named_parameters()}
        state, _ = checkpoint.pack_optimizer(run.optimizer)
        checkpoint.save_file({**weights, **state, "draws": torch.get_rng_state()}, mine)
        text = file_sha256(mine)
        mine.write_text(text)
        return finish(run)

    loop.finish = digest_and_finish
