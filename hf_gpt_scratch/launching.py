"""What `accelerate launch` takes away on a CPU, given back: processes and threads.

Accelerate 1.15 starts a single process for `--cpu --num_processes N` and says nothing: only with an MPI hostfile, or
on GPUs, does it start several. Training would go on with an N-th of the batch that was asked for. What the launcher
does leave in the environment is the address at which N processes were to meet; from that we know, and start them with
torchrun. And it gives a process one thread where nobody asked for a number, however many cores there are.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from .cli import say, say_once
from .interrupts import SignalListener


LOOK_SECONDS = 0.5  # between two looks at the launcher


@dataclass(frozen=True)
class LaunchRequest:
    """What the user asked `accelerate launch` for; None where nothing was said."""

    num_processes: int | None = None
    num_threads: int | None = None


def read_request() -> LaunchRequest | None:
    """Read what the launcher was asked for from its command line and environment; None without a launcher."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "RANK" in os.environ:
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--num_cpu_threads_per_process", "--num-cpu-threads-per-process", type=int)
    parser.add_argument("--config_file", "--config-file")
    try:
        launcher = psutil.Process().parent()
        found, _ = parser.parse_known_args(launcher.cmdline())
        threads = launcher.environ().get("OMP_NUM_THREADS", found.num_cpu_threads_per_process)
    except (psutil.Error, AttributeError):  # the launcher is gone, or may not be looked at
        return None
    # OMP_NUM_THREADS may be a list, one number for each level of nesting.
    threads = int(str(threads).split(",")[0]) if threads else None
    return LaunchRequest(found.num_processes or configured_processes(found.config_file), threads)


def configured_processes(config_file: str | None) -> int | None:
    """Number of processes of a launcher's config file, by default the one that `accelerate config` wrote."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    path = config_file or default_config_file
    return load_config_from_file(path).num_processes if Path(path).is_file() else None


def stop_with_launcher() -> None:
    """Have this process told to stop, by SIGTERM, when the launcher that started it is gone.

    A launcher that is killed hands nothing on: the process would go on unseen and hold the output folder. Where a
    shell started it there is none, and it outlives the shell.
    """
    launcher = os.getppid()
    if "TORCHELASTIC_RUN_ID" not in os.environ and not is_accelerate(launcher):
        return

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(LOOK_SECONDS)
        say_once("the launcher is gone")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()


def is_accelerate(process_id: int) -> bool:
    """Whether a process is `accelerate launch`; what that leaves in the environment, users set too."""
    try:
        return any("accelerate" in word for word in psutil.Process(process_id).cmdline())
    except psutil.Error:  # it is gone, or may not be looked at
        return False


def start_as_asked() -> None:
    """On a CPU, use the processes and threads that were asked for, all cores if nobody asked.

    With several processes this one starts them, waits for them and exits; otherwise the function returns.

    Raises:
        ValueError: several processes were asked for in a way that cannot be read; one line says how to start them.
    """
    request = read_request()
    if request is None:
        return
    import torch  # here and below, because --help shall not wait seconds for it

    if torch.accelerator.is_available():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "MASTER_PORT" not in os.environ:  # set by the launcher for several processes only
        torch.set_num_threads(request.num_threads or cores)
        return
    if request.num_processes is None:
        raise ValueError(
            "accelerate launch started one process where its config asks for several on the CPU: use "
            "torchrun --standalone --nproc_per_node N scripts/train.py"
        )
    # torchrun finds a free port itself; the launcher's would clash with a second run on this machine.
    for name in [name for name in os.environ if name.startswith("MASTER_")]:
        del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(request.num_threads or max(1, cores // request.num_processes))
    run_torchrun(["--standalone", f"--nproc_per_node={request.num_processes}", *sys.argv])


def run_torchrun(arguments: list[str]) -> NoReturn:
    """Start processes as `torchrun` does and leave with their exit code; a killed one is reported in one line."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")  # it would kill after 30 seconds
    names = [name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)]
    # What is ignored stays so, as SIGHUP under nohup.
    heeded = [name for name in names if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
    try:
        with SignalListener():  # in place of one that would end the program while the others save
            run(parse_args([f"--signals-to-handle={','.join(heeded)}", *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # it has said itself what was wrong
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        say(f"process {rank} was killed by {name} and the others stopped: continue with the same command and --resume")
        sys.exit(128 - failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)


def leave_process_group() -> None:
    """Let the threads of a group of processes finish, if there is one; the last thing before its model is freed.

    Freeing a DDP model in PyTorch 2.13 joins gloo's threads while it holds Python's lock. One that has just ended a
    broadcast and waits for that lock, to free a tensor, would wait for ever, and the process with it.
    """
    import torch

    if torch.distributed.is_initialized():
        time.sleep(0.2)
