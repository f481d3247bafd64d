"""A pool of warm processes, the unbroken runs that all others are compared with, and the tables at the end."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[3]
TABLES: list[tuple[str, str]] = []


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two workers, forked from a process that has loaded everything; each test hands them whole attempts."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), path]))
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # A process group asks for the name of 127.0.0.1, and waits 10 s and more where no name server answers.
    os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.resilience.warm"])
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        yield executor


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 640 tokens of the bundled story: 36 training windows of 16."""
    from hf_gpt_scratch.data.sample_texts import bundled_text_path

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(bundled_text_path().read_text(encoding="utf-8")[:640], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def arguments(text: Path) -> list[str]:
    """Of scripts/train.py, but for the output folder."""
    from tests.training.resilience.harness import RUN

    return [*RUN, "--train_file", str(text)]


@pytest.fixture(scope="session")
def whole(pool: ProcessPoolExecutor, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The unbroken run: its folder, what it left, its file events and its seconds."""
    from tests.training.resilience.harness import run_whole

    return pool.submit(run_whole, tmp_path_factory.mktemp("whole"), arguments).result()


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Add a line to the tables printed at the end: what was tried, how often, with which result."""
    begun = time.perf_counter()

    def add(result: str) -> None:
        TABLES.append((request.node.name.removeprefix("test_"), f"{result}, {time.perf_counter() - begun:.0f} s"))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TABLES:
        terminalreporter.section("what training survived")
        for name, result in TABLES:
            terminalreporter.line(f"{name.replace('_', ' ')}: {result}")
