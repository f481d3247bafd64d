"""Proves that a run that hangs says where, so that a failure elsewhere can be understood from its log alone."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.training.resilience import faults
from tests.training.resilience.harness import fork, wait


pytestmark = pytest.mark.resilience


def hang(folder: Path, arguments: list[str]) -> int:
    arguments = [*arguments, "--output_dir", str(folder / "run")]
    return wait(fork(arguments, folder / "log", [faults.hang_in_step]), timeout=20)


def test_a_run_that_hangs_writes_its_stacks(pool: ProcessPoolExecutor, arguments: list[str], tmp_path: Path) -> None:
    """In a step: by then the run has handlers of its own for the signals that stop it."""
    assert pool.submit(hang, tmp_path, arguments).result() == 98
    assert "in hanging" in (tmp_path / "log").read_text()
