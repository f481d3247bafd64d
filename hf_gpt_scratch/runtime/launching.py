"""Carry out what `accelerate launch` was asked for and leaves undone: processes, threads and shared settings.

Accelerate 1.15 starts a single process for `--cpu --num_processes N` without a word: it starts several only with an
MPI hostfile, or on GPUs. Training would continue with an N-th of the batch that was asked for. But the launcher leaves
the address at which N processes were to meet in the environment; where it is set, they are started with torchrun, also
on several machines. The launcher gives a process one thread where nobody asked for a number, however many cores there
are, and forwards micro-batches and clipping to DeepSpeed alone.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

from hf_gpt_scratch.runtime.cli import say, say_once
from hf_gpt_scratch.runtime.signals import SignalListener


LOOK_SECONDS = 0.5  # between two looks at the launcher

# Settings that the launcher has too, and the variables in which it forwards what it was asked for.
SHARED_SETTINGS = {
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "max_grad_norm": "ACCELERATE_GRADIENT_CLIPPING",
    "mixed_precision": "ACCELERATE_MIXED_PRECISION",
}
# What the launcher forwards to torchrun where it starts several processes itself.
TORCHRUN_OPTIONS = ("max_restarts", "monitor_interval", "tee", "log_dir", "role", "rdzv_backend", "rdzv_conf")


@dataclass(frozen=True)
class LaunchRequest:
    """The options that a user gave to `accelerate launch`; None for those not given."""

    num_processes: int | None = None  # on all machines
    num_threads: int | None = None
    num_machines: int | None = None
    machine_rank: int | None = None
    gradient_accumulation_steps: int | None = None
    gradient_clipping: float | None = None
    torchrun_options: tuple[str, ...] = ()


def read_request() -> LaunchRequest | None:
    """Read what the launcher was asked for from its command line and environment; None without a launcher."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    try:
        launcher = psutil.Process(os.getppid())
        command, threads = launcher.cmdline(), launcher.environ().get("OMP_NUM_THREADS")
    except psutil.Error:  # the launcher is gone, or may not be looked at
        return None
    # Imported here, so that --help without a launcher does not wait for it.
    from accelerate.commands.launch import launch_command_parser

    words = launcher_words(command)
    if words is None:  # what started this process is not the launcher: that one started a torchrun, or mpirun
        return None if "RANK" in os.environ else LaunchRequest()
    parser = launch_command_parser()
    found = parser.parse_args(words)
    threads = threads or found.num_cpu_threads_per_process
    config = read_config(found.config_file)
    return LaunchRequest(
        found.num_processes or config.get("num_processes"),
        int(str(threads).split(",")[0]) if threads else None,  # a list has a number for each level of nesting
        found.num_machines or config.get("num_machines"),
        config.get("machine_rank") if found.machine_rank is None else found.machine_rank,
        found.gradient_accumulation_steps,
        found.gradient_clipping,
        tuple(
            f"--{name}={getattr(found, name)}"
            for name in TORCHRUN_OPTIONS
            if getattr(found, name) != parser.get_default(name)
        ),
    )


def launcher_words(command: list[str]) -> list[str] | None:
    """Return the launcher's arguments from its command line, with the script and without the script's own.

    None if it is not a command line of `accelerate launch`.
    """
    end = len(command) - len(sys.argv[1:])
    if command[end:] != sys.argv[1:]:
        return None
    words = command[:end]
    for place, word in enumerate(words):
        if word in ("launch", "accelerate.commands.launch") or Path(word).name == "accelerate-launch":
            return words[place + 1 :]
    return None


def read_config(config_file: str | None) -> dict[str, Any]:
    """Read a launcher's config file, by default the one that `accelerate config` wrote."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    path = config_file or default_config_file
    return vars(load_config_from_file(path)) if Path(path).is_file() else {}


def settings_of_launcher(given: Mapping[str, Any], parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that only the launcher was given; `parse` turns a flag into a setting.

    Raises:
        ValueError: the script was given another value.
    """
    found = {}
    for name, variable in SHARED_SETTINGS.items():
        asked = os.environ.get(variable)
        if asked is None or (name == "mixed_precision" and asked == "no"):  # also where nothing was said
            continue
        value = parse(f"--{name}={asked}")[name]
        if given.get(name, value) != value:
            raise ValueError(
                f"accelerate launch has {variable.removeprefix('ACCELERATE_').lower()} {asked} and --{name} is "
                f"{given[name]}: give one of them"
            )
        if name != "mixed_precision":  # which Accelerate takes from there itself
            found[name] = value
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if given.get("torch_compile") and backend.upper() != "NO":
        raise ValueError(
            f"accelerate launch has dynamo_backend {backend.lower()} and --torch_compile compiles the model too: give "
            "one of them"
        )
    return found


def stop_with_launcher() -> None:
    """Send SIGTERM to this process when the launcher that started it is gone.

    A launcher that is killed forwards nothing: the process would continue unseen and hold the output folder. A process
    that a shell started has no launcher, and outlives the shell.
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
    """Return True if a process is `accelerate launch`; the variables that it sets are set by users too."""
    try:
        return launcher_words(psutil.Process(process_id).cmdline()) is not None
    except psutil.Error:  # it is gone, or may not be looked at
        return False


def first_process() -> psutil.Process:
    """Return the process that the user started: the launcher of this one, through torchrun, or this one."""
    process = psutil.Process()
    with contextlib.suppress(psutil.Error):  # it is gone, or may not be looked at
        if "TORCHELASTIC_RUN_ID" in os.environ:
            process = process.parent() or process
        launcher = process.parent()
        if launcher is not None and is_accelerate(launcher.pid):
            process = launcher
    return process


def relaunch_if_needed() -> None:
    """On a CPU, use the processes and threads that were asked for, all cores if nobody asked.

    With several processes this one starts them, waits for them and exits; otherwise the function returns.

    Raises:
        ValueError: several processes were asked for in a way that cannot be read; one line says how to start them.
    """
    request = read_request()
    if request is None:
        return
    # Accelerate itself forwards these to DeepSpeed alone.
    for name in ("gradient_accumulation_steps", "gradient_clipping"):
        if (value := getattr(request, name)) is not None:
            os.environ[f"ACCELERATE_{name.upper()}"] = str(value)
    if "RANK" in os.environ:
        return
    import torch  # here and below, so that --help does not wait seconds for it

    if torch.accelerator.is_available():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "MASTER_PORT" not in os.environ:  # set by the launcher for several processes only
        torch.set_num_threads(request.num_threads or cores)
        if request.num_threads is None:  # the launcher's own: who finds a number there takes it for the user's
            os.environ.pop("OMP_NUM_THREADS", None)
        return
    start_processes(request, cores)


def start_processes(request: LaunchRequest, cores: int) -> NoReturn:
    """Start the processes of this machine, wait for them and exit; see `relaunch_if_needed`."""
    if request.num_processes is None:
        raise ValueError(
            "accelerate launch started one process where its config asks for several on the CPU: use "
            f"torchrun --standalone --nproc_per_node N {' '.join(this_program())}"
        )
    num_machines = request.num_machines or 1
    if request.num_processes % num_machines:
        raise ValueError(
            f"--num_processes {request.num_processes} is not a multiple of --num_machines {num_machines}: it counts "
            "the processes of all machines"
        )
    num_processes = request.num_processes // num_machines
    rendezvous = ["--standalone"]
    if num_machines > 1:
        rendezvous = [f"--nnodes={num_machines}", f"--node_rank={request.machine_rank or 0}"]
        rendezvous += [f"--master_addr={os.environ['MASTER_ADDR']}", f"--master_port={os.environ['MASTER_PORT']}"]
    # torchrun finds a free port itself; the launcher's would clash with a second run on this machine.
    for name in [name for name in os.environ if name.startswith("MASTER_")]:
        del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(request.num_threads or max(1, cores // num_processes))
    options = [*rendezvous, f"--nproc_per_node={num_processes}", *request.torchrun_options]
    run_torchrun([*options, *this_program(), *sys.argv[1:]])


def this_program() -> list[str]:
    """Return the words by which Python or torchrun starts this program: a script, or `-m` and a package."""
    spec = sys.modules["__main__"].__spec__
    return [sys.argv[0]] if spec is None else ["-m", spec.name.removesuffix(".__main__")]


def run_torchrun(arguments: list[str]) -> NoReturn:
    """Start processes as `torchrun` does and leave with their exit code; a killed one is reported in one line."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")  # it would kill after 30 seconds
    names = [name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)]
    # What is ignored stays so, as SIGHUP under nohup.
    handled = [name for name in names if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
    try:
        with SignalListener():  # in place of one that would end the program while the others save
            run(parse_args([f"--signals-to-handle={','.join(handled)}", *arguments]))
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
