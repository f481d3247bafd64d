"""The base of benchmarks in which this project and its peers work with the same weights, setting by setting."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .benchmark import Benchmark
from .measuring import measure
from .workers import PACKAGE_PARENT, Candidate


if TYPE_CHECKING:
    import argparse

GPT2_124M: dict[str, Any] = {"layers": 12, "width": 768, "heads": 12, "context": 1024}
TINY: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "context": 64}  # for trying the benchmark itself
DRAW_WEIGHTS = """
import json
import sys
from scripts.benchmarks.peer_models import Task, draw_weights
draw_weights(Task(**json.loads(sys.argv[1])), seed=0)
"""


@dataclass(frozen=True)
class Entry:
    """A candidate: the function that makes it, an option of the command line that it needs, and a limit."""

    make: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None
    limit: float | None = 1.0  # its time over ours

    def is_missing(self, arguments: "argparse.Namespace") -> bool:
        """Return True if the option that it needs is not given."""
        return self.needs is not None and getattr(arguments, self.needs) is None

    def candidate(self, name: str, module: str, options: dict[str, Any], arguments: "argparse.Namespace") -> Candidate:
        """Return the candidate that a module of this package makes."""
        options = options | self.options
        if self.needs == "nanogpt":
            options["source"] = str(arguments.nanogpt)
        needs = self.needs or ""
        python = getattr(arguments, needs) if needs.endswith("_python") else Path(sys.executable)
        source = arguments.before.resolve() if needs == "before" else PACKAGE_PARENT
        return Candidate(name, f"{__package__}.{module}:{self.make}", options, python, source)


def left_out(entries: Mapping[str, Entry], arguments: "argparse.Namespace") -> list[str]:
    """Return the candidates that cannot take part, each with the option that it needs."""
    return [f"{name}, without --{entry.needs}" for name, entry in entries.items() if entry.is_missing(arguments)]


class PeerBenchmark(Benchmark):
    """Settings of a model and of its work, each with a report of its own.

    Attributes:
        settings: each has `task_fields(folder)`, the fields of `peer_models.Task`.
        default_settings: those that run without `--settings`.
        entries: the candidates that `--only` can name.
    """

    settings: ClassVar[Mapping[str, Any]]
    default_settings: ClassVar[Sequence[str]]
    entries: ClassVar[Mapping[str, Entry]] = {}

    def add_arguments(self, parser: "argparse.ArgumentParser") -> None:
        """Add `--settings`, and `--only` where there are peers."""
        known, default = ", ".join(self.settings), " ".join(self.default_settings)
        parser.add_argument(
            "--settings",
            nargs="+",
            metavar="NAME",
            default=self.default_settings,
            help=f"{known} (default: {default})",
        )
        if self.entries:
            parser.add_argument(
                "--only", nargs="+", metavar="PEER", help="compare ours with these alone, of all that it prints"
            )

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Draw the weights of each setting, then measure it.

        Yields:
            The report of each setting.

        Raises:
            ValueError: a candidate fails or does other work, or an option is wrong.
        """
        for option, known in (("settings", self.settings), ("only", self.entries)):
            if unknown := [name for name in getattr(arguments, option, None) or [] if name not in known]:
                raise ValueError(f"unknown {unknown[0]!r}: choose from {'; '.join(known)}")
        for name in arguments.settings:
            with tempfile.TemporaryDirectory(prefix="hf_gpt_scratch-") as folder:
                task_fields = self.settings[name].task_fields(folder)
                measure([sys.executable, "-c", DRAW_WEIGHTS, json.dumps(task_fields)])
                yield self.report(name, task_fields, arguments)

    def report(self, name: str, task_fields: dict[str, Any], arguments: "argparse.Namespace") -> dict[str, Any]:
        """Measure a setting; the folder of the task has the weights, and may hold more."""
        raise NotImplementedError
