"""Proves on two processes what holds on one: killed, signalled, resumed bit for bit, and on another number of them."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.training.resilience import faults
from tests.training.resilience.harness import (
    MAX_STEPS,
    RUN,
    SAVE_STEPS,
    SCRIPT,
    fork,
    history,
    last_step,
    leftovers,
    outcome,
    wait,
)


pytestmark = [pytest.mark.resilience, pytest.mark.timeout(900)]
WORLD = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork_world(arguments: list, folder: Path, count: int = WORLD) -> list[int]:
    """Start a run of several processes, as torchrun does, each with its digests written at the end."""
    port = free_port()
    digests = partial(faults.digests_of_each_process, folder / "digests")
    return [
        fork(arguments, folder / f"log{index}", [partial(faults.as_process, index, count, port), digests])
        for index in range(count)
    ]


def digests(folder: Path, count: int = WORLD) -> list[str]:
    """Of weights, optimizer state and generator of each process."""
    return [(folder / f"digests.{index}").read_text() for index in range(count)]


def run_world(folder: Path, arguments: list) -> tuple[dict, list[str], float]:
    folder.mkdir(parents=True)
    begun = time.perf_counter()
    codes = [wait(pid) for pid in fork_world([*arguments, "--output_dir", folder / "run"], folder)]
    assert codes == [0] * WORLD, (folder / "log0").read_text()
    return outcome(folder / "run"), digests(folder), time.perf_counter() - begun


@pytest.fixture(scope="module")
def whole_world(pool: ProcessPoolExecutor, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple:
    return pool.submit(run_world, tmp_path_factory.mktemp("world") / "whole", arguments).result()


def kill_world(folder: Path, arguments: list, expected: tuple, delay: float) -> tuple[int, str]:
    """Kill both processes at once, resume both: steps repeated, and what was said if anything differs."""
    folder.mkdir()
    run = folder / "run"
    arguments = [*arguments, "--output_dir", run]
    pids = fork_world(arguments, folder)
    time.sleep(delay)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait(pid)
    reached = last_step(run)
    began = (run / ".lock").exists()
    codes = [wait(pid) for pid in fork_world([*arguments, "--resume"] if began else arguments, folder)]
    said = [(folder / f"log{index}").read_text(errors="replace") for index in range(WORLD)]
    at = re.findall(r"resumed from .*step-(\d+)", said[0])
    is_same = codes == [0, 0] and (outcome(run), digests(folder)) == expected[:2] and not leftovers(run)
    return reached - (int(at[-1]) if at else 0), "" if is_same else f"{codes}\n{''.join(said)}"


def test_kill_two_processes_at_random_moments(
    pool: ProcessPoolExecutor, whole_world: tuple, arguments: list[str], tmp_path: Path, table: Callable[[str], None]
) -> None:
    """Losses, weights, optimizer state and generators, of each process."""
    assert len(set(whole_world[1])) == WORLD  # their generators differ, so it is seen if they are mixed up
    draw = random.Random(3)
    jobs = [
        pool.submit(kill_world, tmp_path / str(n), arguments, whole_world, draw.uniform(0.2, whole_world[2]))
        for n in range(12)
    ]
    results = [job.result() for job in jobs]
    table(
        f"{len(results)} kills, at most {max(repeated for repeated, _ in results)} of {SAVE_STEPS} steps repeated, "
        f"{sum(bool(said) for _, said in results)} different"
    )
    different = "\n".join(said for _, said in results if said)
    assert not different, different
    assert max(repeated for repeated, _ in results) <= SAVE_STEPS


def go_on_otherwise(folder: Path, arguments: list, changed: list, begin: int, end: int) -> tuple[list, list, str]:
    """Begin on some processes, stop at a checkpoint, go on on others: all steps, and what was said."""
    folder.mkdir()
    run = folder / "run"
    arguments = [*arguments, "--output_dir", run]
    codes = [wait(pid) for pid in fork_world(arguments, folder, begin)]
    assert codes == [0] * begin, (folder / "log0").read_text(errors="replace")
    whole = history(run)
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > 2 * SAVE_STEPS:
            shutil.rmtree(path)
    codes = [wait(pid) for pid in fork_world([*arguments, *changed, "--resume"], folder, end)]
    assert codes == [0] * end, (folder / "log0").read_text(errors="replace")
    return whole, history(run), (folder / "log0").read_text(errors="replace")


@pytest.mark.parametrize(("begin", "end"), [(2, 1), (1, 2)])
def test_another_number_of_processes(
    pool: ProcessPoolExecutor, text: Path, tmp_path: Path, table: Callable[[str], None], begin: int, end: int
) -> None:
    """The same windows in the same order and the same batch: equal losses, to rounding, without dropout."""
    arguments = [*RUN, "--dropout", "0", "--train_file", str(text), "--save_total_limit", "9"]
    split = {1: ["--gradient_accumulation_steps", "4"], 2: ["--gradient_accumulation_steps", "2"]}
    job = (go_on_otherwise, tmp_path / "run", [*arguments, *split[begin]], split[end], begin, end)
    whole, resumed, said = pool.submit(*job).result()
    losses = [[row["loss"] for row in rows if row["event"] == "step"] for rows in (whole, resumed)]
    tokens = [[row["tokens_seen"] for row in rows if row["event"] == "step"] for rows in (whole, resumed)]
    apart = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    table(f"{begin} then {end} processes: largest difference of a loss {apart:.1e}")
    assert len(losses[0]) == MAX_STEPS
    assert losses[0][: 2 * SAVE_STEPS] == losses[1][: 2 * SAVE_STEPS]
    assert tokens[0] == tokens[1]
    assert apart < 1e-6
    assert f"a step was {begin} processes x 2 windows" in said


def test_another_batch_is_refused_by_all_with_one_line(
    pool: ProcessPoolExecutor, whole: dict, arguments: list[str], tmp_path: Path
) -> None:
    codes, outputs = pool.submit(resume_world, tmp_path / "run", whole["run"], arguments).result()
    assert codes == [1, 1]
    said = [line for output in outputs for line in output.splitlines() if "a step had 1 processes x 2 windows" in line]
    assert said
    assert "Traceback" not in "".join(outputs)


def resume_world(folder: Path, source: Path, arguments: list) -> tuple[list[int], list[str]]:
    folder.mkdir()
    shutil.copytree(source, folder / "run")
    codes = [wait(pid) for pid in fork_world([*arguments, "--output_dir", folder / "run", "--resume"], folder)]
    return codes, [(folder / f"log{index}").read_text(errors="replace") for index in range(WORLD)]


def torchrun(arguments: list, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("a") as output:
        return subprocess.Popen(
            [*command, *map(str, arguments)], env=environment, stdout=output, stderr=output, start_new_session=True
        )


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_real_launcher(pool: ProcessPoolExecutor, text: Path, tmp_path: Path, table: Callable[[str], None]) -> None:
    """Torchrun: SIGTERM to the launcher saves on both processes; then kill -9 of all; then to the end, bit for bit."""
    steps = ["--max_steps", "120", "--save_steps", "20", "--eval_steps", "15", "--train_file", str(text)]
    arguments = [*RUN, *steps]
    run, log = tmp_path / "run", tmp_path / "log"
    stopped = torchrun([*arguments, "--output_dir", run], log)
    wait_for_step(run, 10, stopped)
    stopped.send_signal(signal.SIGTERM)
    stopped.wait(60)
    assert re.search(r"stopped by signal: saved .*/step-\d+ at step \d+", log.read_text()), log.read_text()
    killed = torchrun([*arguments, "--output_dir", run, "--resume"], log)
    wait_for_step(run, last_step(run) + 25, killed)
    for pid in [killed.pid, *children(killed.pid)]:
        os.kill(pid, signal.SIGKILL)
    killed.wait(60)
    resumed = torchrun([*arguments, "--output_dir", run, "--resume"], log)
    assert resumed.wait(120) == 0, log.read_text()
    expected = pool.submit(run_long, tmp_path / "whole", arguments).result()
    table("SIGTERM, kill -9 and resume under torchrun: equal to the unbroken run")
    assert [row["loss"] for row in history(run) if row["event"] == "step"] == expected


def run_long(folder: Path, arguments: list) -> list[float]:
    folder.mkdir()
    codes = [wait(pid, 120) for pid in fork_world([*arguments, "--output_dir", folder / "run"], folder)]
    assert codes == [0, 0]
    return [row["loss"] for row in history(folder / "run") if row["event"] == "step"]


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while last_step(run) < step:
        assert process.poll() is None, "the run ended before it could be broken"
        assert time.monotonic() < deadline
        time.sleep(0.02)
