"""Runs scripts in forks of an interpreter that has PyTorch and transformers loaded: seconds less for each of them.

A fork has what a new process has: an environment, a working folder, output and an exit code of its own. What is at
stake in the start of a process itself is tested in new ones, as is each command of the READMEs.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory


PRELOADED = ["hf_gpt_scratch.hub.loading", "hf_gpt_scratch.training.loop", "hf_gpt_scratch.generation.quantization"]


@contextmanager
def environment_variables(environment: Mapping[str, str]):
    """Put exactly these variables in place of those of this process."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_script(
    script: Path, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float
) -> subprocess.CompletedProcess:
    """Run a script as `subprocess.run` does, with its output captured.

    Args:
        script: the Python file.
        arguments: of its command line.
        environment: all variables; the first call decides what PyTorch and the libraries read as they are imported.
        folder: the working folder.
        timeout: seconds.

    Raises:
        TimeoutExpired: it took longer, and was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with environment_variables(environment):
        forkserver.ensure_running()
    with TemporaryDirectory() as name:
        outputs = [Path(name, "stdout"), Path(name, "stderr")]
        process = context.Process(target=be_script, args=(script, list(arguments), dict(environment), folder, outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([script, *arguments], timeout)
        stdout, stderr = (path.read_text(encoding="utf-8") for path in outputs)
        return subprocess.CompletedProcess([script, *arguments], process.exitcode, stdout, stderr)


def be_script(
    script: Path, arguments: list[str], environment: dict[str, str], folder: Path, outputs: list[Path]
) -> None:
    """Become the process of a script, in a fork that has done nothing yet."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=environment.get("PYTHONIOENCODING"))
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    code = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = 1 if isinstance(stop.code, str) else stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
