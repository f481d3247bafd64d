"""Proves that a full disk costs nothing: one line, the old checkpoint valid, and the same run once there is room."""

import contextlib
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from hf_gpt_scratch.training.checkpoints.checkpoint import newest_valid_checkpoint
from tests.training.resilience.harness import leftovers, same, start
from tests.training.resilience.test_damage import stop_with_two_checkpoints


pytestmark = [pytest.mark.resilience, pytest.mark.timeout(1200)]
LEVELS = 20


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    """A file system of some bytes, in memory; needs root, which `unshare -rm` gives to anyone."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill_and_go_on(folder: Path, source: Path, arguments: list, expected: dict, free: int) -> dict[str, object]:
    """Resume on a disk with some bytes free, then make room and resume again."""
    folder.mkdir()
    disk, log = folder / "disk", folder / "log"
    with small_disk(disk, 4 << 20):
        run = disk / "run"
        shutil.copytree(source, run)
        room = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(bytes(room - free))
        resume = [*arguments, "--output_dir", run, "--resume"]
        full = start(resume, log)
        newest_valid_checkpoint(run / "checkpoints")
        (disk / "ballast").unlink()
        roomy = start(resume, log)
        return {
            "code": full.code,
            "errors": [line for line in full.output.splitlines() if line.startswith("error: ")],
            "is_traceback": "Traceback" in full.output,
            "is_good": roomy.code == 0 and same(run, expected) and not leftovers(run),
            "output": full.output[-1500:] + roomy.output[-1500:],
        }


def bytes_written(source: Path, whole: Path) -> int:
    return sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())


@pytest.fixture
def small_disks(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "probe", 4096):
            pass
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk cannot be mounted here: run the tests as root, or under unshare -rm")


def test_full_disk(
    small_disks: None,
    pool: ProcessPoolExecutor,
    whole: dict,
    arguments: list[str],
    tmp_path: Path,
    table: Callable[[str], None],
) -> None:
    (tmp_path / "stopped").mkdir()
    pool.submit(stop_with_two_checkpoints, tmp_path / "stopped", arguments, whole["events"]).result()
    source = tmp_path / "stopped" / "run"
    # From nothing to enough for two checkpoints, the plots and the result.
    step = bytes_written(source, whole["run"]) // LEVELS
    jobs = {
        free: pool.submit(fill_and_go_on, tmp_path / str(free), source, arguments, whole["expected"], free)
        for free in range(0, step * LEVELS, step)
    }
    results = {free: job.result() for free, job in jobs.items()}
    codes = Counter(result["code"] for result in results.values())
    files = Counter(
        re.sub(r"^error: .*/|: No space left on device$|-\d+", "", line)
        for result in results.values()
        for line in result["errors"]
    )
    table(
        f"{len(jobs)} levels, exit codes {dict(codes)}, files named {dict(files)}, old checkpoint valid in all, "
        f"{sum(not result['is_good'] for result in results.values())} resumed otherwise"
    )
    for free, result in results.items():
        assert result["is_good"], (free, result)
        assert not result["is_traceback"], (free, result)
        if result["code"] != 0:
            assert result["code"] == 1, (free, result)
            assert len(result["errors"]) == 1, (free, result)
            assert re.fullmatch(r"error: /.*: No space left on device", result["errors"][0]), (free, result)
    assert codes[1] >= 10
