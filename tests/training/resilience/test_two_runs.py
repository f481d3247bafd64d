"""Proves that two processes never write into one output folder, whoever comes first and however close."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.training.resilience.harness import fork, history, same, start, wait


pytestmark = [pytest.mark.resilience, pytest.mark.timeout(600)]


def race(folder: Path, arguments: list, expected: dict) -> tuple[list[int], list[str], bool]:
    """Start two runs into the same new folder at once."""
    folder.mkdir()
    run, logs = folder / "run", [folder / "log0", folder / "log1"]
    pids = [fork([*arguments, "--output_dir", run], log) for log in logs]
    codes = [wait(pid) for pid in pids]
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if "error: " in line]
    return codes, lines, same(run, expected)


def test_race_of_two_runs(
    pool: ProcessPoolExecutor, whole: dict, arguments: list[str], tmp_path: Path, table: Callable[[str], None]
) -> None:
    jobs = [pool.submit(race, tmp_path / str(n), arguments, whole["expected"]) for n in range(20)]
    results = [job.result() for job in jobs]
    said = Counter(line.split(str(tmp_path))[1].split("/run ")[1].split(":")[0][:13] for _, (line,), _ in results)
    table(f"20 races, one winner in each, the other refused: {dict(said)}")
    for codes, lines, is_same in results:
        assert sorted(codes) == [0, 1]
        assert len(lines) == 1
        assert "is in use by" in lines[0] or "holds another run" in lines[0]
        assert is_same


def second_process(folder: Path, arguments: list) -> list[tuple[int, float, str]]:
    """While a run goes on, start a fresh one and a resumed one into its folder."""
    run = folder / "run"
    pid = fork([*arguments, "--output_dir", run, "--max_steps", "400"], folder / "log")
    while not history(run):
        time.sleep(0.002)
    others = []
    for extra in ([], ["--resume"]):
        ended = start([*arguments, "--output_dir", run, "--max_steps", "400", *extra], folder / "other")
        others.append((ended.code, ended.seconds, ended.output.strip()))
    others.append((pid, 0.0, ""))
    wait(pid)
    return others


def test_second_process_is_refused_in_under_a_second(
    pool: ProcessPoolExecutor, whole: dict, arguments: list[str], tmp_path: Path, table: Callable[[str], None]
) -> None:
    *others, (pid, _, _) = pool.submit(second_process, tmp_path, arguments).result()
    table(f"refused after {', '.join(f'{seconds:.2f}' for _, seconds, _ in others)} s")
    for code, seconds, output in others:
        assert code == 1
        assert len(output.splitlines()) == 1
        assert f"is in use by process {pid} on" in output
        assert seconds < 1
