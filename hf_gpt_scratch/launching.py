"""What `accelerate launch` takes away on a CPU, given back: processes and threads.

Accelerate 1.15 starts a single process for `--cpu --num_processes N` and says nothing: only with an MPI hostfile, or
on GPUs, does it start several. Training would go on with an N-th of the batch that was asked for. What the launcher
does leave in the environment is the address at which N processes were to meet; from that we know, and start them with
torchrun. And it gives a process one thread where nobody asked for a number, however many cores there are.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass

import psutil
import torch


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
    try:
        launcher = psutil.Process().parent()
        found, _ = parser.parse_known_args(launcher.cmdline())
        threads = launcher.environ().get("OMP_NUM_THREADS", found.num_cpu_threads_per_process)
    except (psutil.Error, AttributeError):  # the launcher is gone, or may not be looked at
        return None
    # OMP_NUM_THREADS may be a list, one number for each level of nesting.
    return LaunchRequest(found.num_processes, int(str(threads).split(",")[0]) if threads else None)


def start_as_asked() -> None:
    """On a CPU, use the processes and threads that were asked for, all cores if nobody asked.

    With several processes this process is replaced by torchrun; otherwise the function returns.

    Raises:
        ValueError: several processes were asked for in a way that cannot be read; one line says how to start them.
    """
    request = read_request()
    if request is None or torch.accelerator.is_available():
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
    count = request.num_processes
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    # torchrun finds a free port itself; the launcher's would clash with a second run on this machine.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    environment["OMP_NUM_THREADS"] = str(request.num_threads or max(1, cores // count))
    os.execve(sys.executable, [*torchrun, *sys.argv], environment)


def leave_process_group() -> None:
    """Let the threads of a group of processes finish, if there is one; the last thing before its model is freed.

    Freeing a DDP model in PyTorch 2.13 joins gloo's threads while it holds Python's lock. One that has just ended a
    broadcast and waits for that lock, to free a tensor, would wait for ever, and the process with it.
    """
    if torch.distributed.is_initialized():
        time.sleep(0.2)
