"""Several CPU processes from `accelerate launch --cpu --num_processes N`.

Accelerate 1.15 starts a single process for that command line and says nothing: only with an MPI hostfile, or on GPUs,
does it start several. Training would go on with an N-th of the batch that was asked for. What the launcher does leave
in the environment is the address at which N processes were to meet; from that we know, and start them with torchrun.
"""

import argparse
import os
import sys

import psutil


def processes_asked_for() -> int:
    """Read from the launcher's command line how many processes were asked for; 1 if there is no launcher.

    Raises:
        ValueError: several were asked for, by a config file; one line says how to start them.
    """
    launched_alone = "MASTER_PORT" in os.environ and "RANK" not in os.environ
    if not launched_alone or os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return 1
    launcher = psutil.Process().parent()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    found, _ = parser.parse_known_args(launcher.cmdline() if launcher else [])
    if found.num_processes is None:
        raise ValueError(
            "accelerate launch started one process where its config asks for several on the CPU: use "
            "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node N scripts/train.py"
        )
    return found.num_processes


def start_all_processes() -> None:
    """Replace this process by torchrun with as many processes as were asked for; return if it is one."""
    num_processes = processes_asked_for()
    if num_processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        # torchrun finds a free port itself; the launcher's would clash with a second run on this machine.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
        os.execve(sys.executable, [*torchrun, *sys.argv], environment)
