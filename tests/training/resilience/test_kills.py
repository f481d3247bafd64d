"""Proves that after kill -9 at any moment the same command goes on to the run that was never stopped, bit for bit."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.training.resilience import faults
from tests.training.resilience.harness import SAVE_STEPS, Survived, survive


pytestmark = pytest.mark.timeout(2400)  # 500 kills, or one at each sixth of 307 file events
EVERY = 6


def survive_all(pool: ProcessPoolExecutor, folder: Path, cases: list[dict], **shared: object) -> list[Survived]:
    jobs = [pool.submit(survive, folder=folder / str(n), **shared, **case) for n, case in enumerate(cases)]
    results = []
    for number, job in enumerate(jobs):
        results.append(job.result())
        if results[-1].is_good:
            shutil.rmtree(folder / str(number))
    return results


def bad(results: list[Survived]) -> list[Survived]:
    return [result for result in results if not result.is_good]


def summary(results: list[Survived]) -> str:
    killed = sum(result.broken_code < 0 for result in results)
    return (
        f"{len(results)} points, {killed} killed, {sum(result.manual for result in results)} manual steps, "
        f"at most {max(result.repeated for result in results)} of {SAVE_STEPS} steps repeated, "
        f"{sum(not result.is_same for result in results)} different, "
        f"{sum(bool(result.left) for result in results)} with leftovers"
    )


@pytest.mark.parametrize(
    "first",
    [pytest.param(0, marks=pytest.mark.resilience)]
    + [pytest.param(first, marks=pytest.mark.nightly) for first in range(1, EVERY)],
)
def test_kill_at_every_file_event(
    pool: ProcessPoolExecutor,
    whole: dict,
    arguments: list[str],
    tmp_path: Path,
    table: Callable[[str], None],
    first: int,
) -> None:
    """From the first file to the end of the run: three saves, one of which deletes an old one, the plot, the model.

    CI takes every sixth of about 300 events, each a run of a second or two; the nightly tests take the others.
    """
    cases = [
        {"name": f"{number} {event}", "faults": (partial(faults.kill_at_event, root=None, number=number),)}
        for number, event in list(enumerate(whole["events"]))[first::EVERY]
    ]
    kinds = Counter(event.split()[0] for event in whole["events"])
    assert min(kinds[kind] for kind in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")) > 0
    results = survive_all(pool, tmp_path, cases, arguments=arguments, expected=whole["expected"])
    table(f"{summary(results)} ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})")
    assert bad(results) == []
    assert all(result.broken_code == -9 for result in results)


@pytest.mark.resilience
def test_kill_at_bytes_of_the_tensors(
    pool: ProcessPoolExecutor, whole: dict, arguments: list[str], tmp_path: Path, table: Callable[[str], None]
) -> None:
    """In the first save, before which there is nothing, and in the third, which makes an old one go."""
    files = {path.name: path.stat().st_size for path in (whole["run"] / "checkpoints").glob("*14/*.safetensors")}
    cases = [
        {"name": f"{name} {offset}", "faults": (partial(faults.kill_at_byte, name, save, offset),)}
        for save in (0, 2)
        for name, size in files.items()
        for offset in range(1, size, 15_000)
    ]
    results = survive_all(pool, tmp_path, cases, arguments=arguments, expected=whole["expected"])
    table(f"{summary(results)} (every 15 kB of {sum(files.values()):,} bytes)")
    assert bad(results) == []
    assert all(result.broken_code < 0 for result in results)


def random_kills(pool, whole, arguments, folder, count: int, seed: int) -> list[Survived]:
    """As many as really struck: a moment may fall behind the end of a run that was faster than the timed one."""
    draw, results, longest = random.Random(seed), [], whole["seconds"]
    while (missing := count - sum(result.broken_code == -9 for result in results)) > 0:
        assert len(results) < 3 * count
        longest = min([longest, *(result.delay for result in results if result.broken_code != -9)])
        moments = [draw.uniform(0, longest) for _ in range(missing)]
        cases = [{"name": f"after {moment:.4f} s", "kill_after": moment} for moment in moments]
        round_folder = folder / f"from {len(results)}"
        results += survive_all(pool, round_folder, cases, arguments=arguments, expected=whole["expected"])
    return results


@pytest.mark.resilience
def test_kill_at_random_moments(
    pool: ProcessPoolExecutor, whole: dict, arguments: list[str], tmp_path: Path, table: Callable[[str], None]
) -> None:
    results = random_kills(pool, whole, arguments, tmp_path, count=40, seed=1)
    table(summary(results))
    assert bad(results) == []


@pytest.mark.nightly
def test_500_kills_at_random_moments(
    pool: ProcessPoolExecutor, whole: dict, arguments: list[str], tmp_path: Path, table: Callable[[str], None]
) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    results = random_kills(pool, whole, arguments, tmp_path, count=500, seed=seed)
    table(f"{summary(results)} (seed {seed})")
    assert bad(results) == []


@pytest.mark.resilience
def test_checkpoint_written_in_place_would_not_survive(
    pool: ProcessPoolExecutor, whole: dict, arguments: list[str], tmp_path: Path, table: Callable[[str], None]
) -> None:
    """The control: without renaming and hashes, a kill in the middle of a save breaks the run."""
    size = next((whole["run"] / "checkpoints").glob("*14/optimizer.safetensors")).stat().st_size
    kill = partial(faults.kill_at_byte, "optimizer.safetensors", 1, size // 2)
    cases = [{"name": "control", "faults": (faults.without_renaming, kill), "later": (faults.without_renaming,)}]
    (result,) = survive_all(pool, tmp_path, cases, arguments=arguments, expected=whole["expected"])
    table("not survived, as it must be")
    assert result.broken_code < 0
    assert not result.is_good
