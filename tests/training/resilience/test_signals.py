"""Proves that a signal ends a run after its step, with a checkpoint and the right code, and that nothing is lost."""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from hf_gpt_scratch.runtime.signals import REPEAT_SECONDS
from tests.training.resilience import faults
from tests.training.resilience.harness import MAX_STEPS, fork, go_on, history, last_step, leftovers, same, wait


pytestmark = [pytest.mark.resilience, pytest.mark.timeout(1200)]


def signal_once(
    folder: Path, arguments: list, expected: dict, number: int, after_step: int, delay: float, twice: bool
) -> dict[str, object]:
    """Signal a run some seconds after a step (0: after its first evaluation), and resume it."""
    folder.mkdir()
    run, log = folder / "run", folder / "log"
    arguments = [*arguments, "--output_dir", run]
    pid = fork(arguments, log, [faults.linger_in_step_after_signal] if twice else [])
    # Once there is an evaluation, signals are being noted.
    while last_step(run) < after_step or not any(row["event"] == "evaluation" for row in history(run)):
        time.sleep(0.001)
    time.sleep(delay + 0.1 * twice)  # into the next step, which lingers
    os.kill(pid, signal.SIGSTOP)  # so that the step under way is known
    while Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.001)  # it stops a moment later
    reached = last_step(run)
    os.kill(pid, number)
    sent = time.perf_counter()
    os.kill(pid, signal.SIGCONT)
    if twice:
        time.sleep(REPEAT_SECONDS + 0.1)
        os.kill(pid, signal.SIGINT)
    code = wait(pid)
    seconds = time.perf_counter() - sent
    said = re.search(r"stopped by signal: saved .* at step (\d+)", log.read_text(errors="replace"))
    resumed, manual, repeated = go_on(arguments, run, log)
    return {
        "code": code,
        "seconds": seconds,
        "late": int(said[1]) - reached if said else None,
        "repeated": repeated,
        "is_good": not manual and same(run, expected) and not leftovers(run),
        "is_unsaved": "stopped without saving" in log.read_text(errors="replace"),
        "output": resumed.output[-2000:],
    }


def moment(draw: random.Random) -> tuple[int, float]:
    """A step at random, and seconds after it: drawn in steps, so that slow and fast machines are hit alike."""
    return draw.randrange(MAX_STEPS - 1), draw.uniform(0, 0.01)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signal_at_random_times(
    pool: ProcessPoolExecutor,
    whole: dict,
    arguments: list[str],
    tmp_path: Path,
    table: Callable[[str], None],
    name: str,
) -> None:
    number, draw = getattr(signal, name), random.Random(name)
    jobs = [
        pool.submit(signal_once, tmp_path / str(n), arguments, whole["expected"], number, *moment(draw), twice=False)
        for n in range(20)
    ]
    results = [job.result() for job in jobs]
    codes = Counter(result["code"] for result in results)
    late = max(result["late"] or 0 for result in results)
    slowest = max(result["seconds"] for result in results)
    bad = [result for result in results if not result["is_good"]]
    table(
        f"20 times, exit codes {dict(codes)}, checkpoint at most {late} step later, at most {slowest:.1f} s, "
        f"{len(bad)} resumed otherwise"
    )
    assert bad == []
    assert set(codes) <= {128 + number, 0}  # 0: it came after the last step
    assert codes[128 + number] >= 10
    assert late <= 1
    assert slowest < 30
    assert all(result["repeated"] == 0 for result in results if result["late"] is not None)


def test_second_ctrl_c_ends_at_once_and_harms_nothing(
    pool: ProcessPoolExecutor, whole: dict, arguments: list[str], tmp_path: Path, table: Callable[[str], None]
) -> None:
    draw = random.Random(2)
    jobs = [
        pool.submit(
            signal_once,
            tmp_path / str(n),
            arguments,
            whole["expected"],
            signal.SIGINT,
            *moment(draw),
            twice=True,
        )
        for n in range(10)
    ]
    results = [job.result() for job in jobs]
    codes = Counter(result["code"] for result in results)
    unsaved = sum(result["is_unsaved"] for result in results)
    table(f"{unsaved} of 10 unsaved, {sum(not result['is_good'] for result in results)} resumed otherwise")
    assert [result for result in results if not result["is_good"]] == []
    assert unsaved >= 3  # the others were in an evaluation, or saved already
    assert set(codes) <= {130, 0}
