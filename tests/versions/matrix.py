"""Runs of the probes with versions of transformers: each in an interpreter of its own, two at a time, once."""

import functools
import shutil
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import fresh_interpreter
from tests.pip import NotInstalledError
from tests.versions import overlays, probes


LIMIT = 300  # seconds for the probes of one version, which take about 25: what is longer hangs


@dataclass
class Run:
    """What became of the calls with one version; without an outcome, the trouble says why."""

    version: str
    facts: dict[str, Any] = field(default_factory=dict)
    outcome: fresh_interpreter.Outcome | None = None
    trouble: str = ""

    def report(self, name: str) -> dict[str, Any]:
        """What a probe returned or raised; that there is no such thing fails the test."""
        if self.outcome is None:
            pytest.fail(f"transformers {self.version}: {self.trouble}", pytrace=False)
        return self.outcome.report[name]

    def found(self, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The values and tensors of a probe; one that raised fails the test."""
        report = self.report(name)
        if "error" in report:
            said = f"transformers {self.version}, probe {name}:\n{report['traceback']}"
            pytest.fail(said, pytrace=False)
        tensors = self.outcome.folder / f"{name}.safetensors"
        return report, load_file(tensors) if tensors.exists() else {}


def run_calls(version: str, folder: Path, exported: Path, calls: probes.Calls, limit: float) -> Run:
    """Install the version if that has not been done, and make the calls with it."""
    run = Run(version)
    try:
        overlay, run.facts = overlays.install(version)
        start = time.monotonic()
        run.outcome = fresh_interpreter.run(
            folder,
            calls,
            hub={"user/model": exported / "bytes", "user/model@older": exported / "older"},
            functions=Path(probes.__file__),
            # Old versions refuse the Keras of this environment where it is not said that PyTorch is meant.
            env={"EXPORTED": str(exported), "USE_TORCH": "1"},
            timeout=limit,
            overlay=overlay,
        )
        run.facts = run.facts | {"probe_seconds": round(time.monotonic() - start, 1)}
    except NotInstalledError as error:
        run.trouble = f"not installed: {error}"
    except subprocess.TimeoutExpired:
        running = folder / "running"
        where = f"in the probe {running.read_text(encoding='utf-8')}" if running.exists() else "at its import"
        run.trouble = f"hangs {where}: no end within {limit} seconds"
    except RuntimeError as error:
        run.trouble = str(error)
    return run


class Matrix:
    """The runs, each made once, two at a time."""

    def __init__(self, folder: Path, exported: Path, versions: list[str]) -> None:
        self.folder, self.exported = folder, exported
        self.pool = ThreadPoolExecutor(2)
        self.jobs: dict[tuple[str, str], Future[Run]] = {}
        for version in versions:
            self.start(version)

    @functools.cached_property
    def newest(self) -> str:
        return overlays.newest_release()

    def start(
        self,
        version: str,
        key: str = "probes",
        exported: Path | None = None,
        calls: probes.Calls = probes.PROBES | probes.STOCK,
        limit: float = LIMIT,
    ) -> Future[Run]:
        if (version, key) not in self.jobs:
            folder = self.folder / key / version
            job = self.pool.submit(run_calls, version, folder, exported or self.exported, calls, limit)
            self.jobs[version, key] = job
        return self.jobs[version, key]

    def run(self, version: str, *arguments: Any, **options: Any) -> Run:
        """The run with a version; "newest" is the newest release, one of the table or not."""
        return self.start(self.newest if version == "newest" else version, *arguments, **options).result()


def changed_copy(source: Path, folder: Path, part: str, code: str) -> Path:
    """A copy of an exported folder with more code at the end of one of its files."""
    shutil.copytree(source, folder)
    with (folder / f"{part}_gpt_scratch.py").open("a", encoding="utf-8") as file:
        file.write(code)
    return folder
