"""Starts vLLM in a process that cannot import this package: its library, by vllm_child.py, and its server."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import CONTEXT
from tests.engines.environments import VLLM, python_of


START_TIMEOUT = 1200  # seconds; of a process that finds others at work, and compiles


def settings(folder: Path, workers: int) -> dict[str, str]:
    """The environment variables of somebody who never used vLLM and has no network; each worker has a core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < workers:
        pytest.skip(f"{workers} workers of vLLM want a core each")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON", "VLLM_"))}
    return inherited | {
        "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CACHE_ROOT": str(folder / "vllm"), "VLLM_CONFIG_ROOT": str(folder / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, cores[:workers])),
    }  # fmt: skip


def run_child(folder: Path, engine: dict[str, Any], calls: dict[str, Any]) -> tuple[int, str]:
    """Start a `LLM` with these arguments and make the calls; return how the process ended and what it printed."""
    workers = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    engine = {"dtype": "float32", "max_model_len": CONTEXT, "max_num_seqs": 8, **engine}
    log = folder / "log.txt"
    command = [python_of(VLLM), "-I", Path(__file__).with_name("vllm_child.py"), folder / "report.json"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=settings(folder, workers), stdin=subprocess.PIPE, stdout=output,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            process.communicate(json.dumps({"engine": engine, "calls": calls}), timeout=START_TIMEOUT)
        except BaseException:
            end(process)  # a broken engine waits for its workers for ever
            print(log.read_text(encoding="utf-8")[-8000:])
            raise
    return process.returncode, log.read_text(encoding="utf-8")


def start(folder: Path, engine: dict[str, Any], calls: dict[str, Any]) -> dict[str, Any]:
    """Return the report of the child, and its log; an engine that does not start fails the test."""
    code, log = run_child(folder, engine, calls)
    if code != 0:
        pytest.fail(f"vLLM ended with {code}:\n{log[-8000:]}")
    return json.loads((folder / "report.json").read_text(encoding="utf-8")) | {"log": log}


@contextmanager
def serve(folder: Path, *options: object) -> Iterator[str]:
    """Start the server with these options; its address on loopback. It is ended whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log.txt"
    command = [python_of(VLLM), "-I", "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", port, "--dtype", "float32", "--max-model-len", CONTEXT, "--max-num-seqs", 8, *options]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command)], cwd=folder, env=settings(folder, 1), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            end(process)


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"no server:\n{log.read_text(encoding='utf-8')[-8000:]}")


def end(process: subprocess.Popen) -> None:
    """End a process and its workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
