"""The record of what works with which version of transformers, and the texts that are written from it.

The record needs this folder in the command; then the texts are written:

python -m pytest -m versions tests/versions --versions-results tests/versions/results.json
python tests/versions/table.py
"""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version


RESULTS = Path(__file__).with_name("results.json")
TABLE = Path(__file__).with_name("README.md")
ROOT = Path(__file__).parents[2]
# Recorded by hand, because the suite is not part of a wheel: see test_suite_of_transformers.py.
SUITE = """
transformers' own tests of a model, of its release 5.15.1, run on 2026-11-29: 154 passed and none failed with the
exported folder, 154 passed with its GPT-2. `TRANSFORMERS_SOURCE=FOLDER python -m pytest -m nightly
tests/versions/test_suite_of_transformers.py` runs them with a checkout of the installed release (and `parameterized`).
"""
# README.md and the cards say the range in these words.
SENTENCE = re.compile(r"tested with transformers \d+\.\d+ to \d+\.\d+")
TEMPLATES = [ROOT / "hf_gpt_scratch" / "assets" / name for name in ("model_card.md", "cards/converted.md")]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "model_cards").glob("*.md")), *TEMPLATES]
HEAD = """\
# One exported folder, every transformers

Written by `table.py` from `results.json`: what `python -m pytest -m versions tests/versions` found. Each version is
laid over the same environment, and makes {probes} probes of one exported folder in an interpreter of its own, without
this package. Equal: token ids and texts are the same as with {reference}, floats to 1e-5. What cannot be had raises an
error, which is tested too; it never computes something else.

{environment}

| transformers | tokenizers | huggingface_hub | probes | seconds | installed in seconds | MB |
|---|---|---|---|---|---|---|
"""

Record = dict[str, Any]


class Recorder:
    """Keep what test_versions.py finds, and write it at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.versions: dict[str, Record] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        says = dict(report.user_properties)
        if report.when != "call" or "probe" not in says:
            return
        row = {"release": says["release"], **says["facts"], "equal": [], "failed": [], "exceptions": {}}
        row = self.versions.setdefault(says["version"], row)
        if report.failed:
            row["failed"].append(says["probe"])
        elif says["reason"]:
            row["exceptions"][says["probe"]] = says["reason"]
        else:
            row["equal"].append(says["probe"])

    def pytest_sessionfinish(self) -> None:
        packages = ("torch", "numpy", "accelerate", "safetensors")
        environment = {"Python": platform.python_version(), **{name: version(name) for name in packages}}
        record = {"environment": environment, "versions": self.versions}
        self.path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--versions-results", help="JSON file for what the tests of this folder found to work")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("versions_results", None)
    if path:
        config.pluginmanager.register(Recorder(Path(path)))


def known(record: Record) -> dict[str, Record]:
    """The rows with a version of their own: "newest" may be one of the others."""
    rows = {row["release"]: row for row in record["versions"].values()}
    return dict(sorted(rows.items(), key=lambda item: Version(item[0])))


def range_of(record: Record) -> tuple[str, str]:
    """The first and last of the newest versions in a row with which nothing failed, without the patch number.

    Raises:
        ValueError: there is no such version.
    """
    passed: list[Version] = []
    for release, row in reversed(known(record).items()):
        if not row["failed"]:
            passed.append(Version(release))
        elif passed:
            break
    if not passed:
        raise ValueError("something failed with every version: nothing can be said to be tested")
    return tuple(f"{version.major}.{version.minor}" for version in (passed[-1], passed[0]))


def table(record: Record, reference: str) -> str:
    """The text of tests/versions/README.md."""
    rows = known(record)
    environment = ", ".join(f"{name} {number}" for name, number in record["environment"].items())
    probes = max(len(row["equal"]) + len(row["failed"]) + len(row["exceptions"]) for row in rows.values())
    text = HEAD.format(probes=probes, reference=reference, environment=f"The environment: {environment}.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for release, row in rows.items():
        said = f"{len(row['equal'])} equal"
        said += f", {len(row['exceptions'])} cannot be had" * bool(row["exceptions"])
        if row["failed"]:
            shown = [*row["failed"][:6], *["..."] * (len(row["failed"]) > 6)]
            said += f", **{len(row['failed'])} failed**: {', '.join(shown)}"
        packages = row.get("packages", {})
        cells = [release, packages.get("tokenizers", "?"), packages.get("huggingface_hub", "?"), said]
        cells += [str(row.get(name, "?")) for name in ("probe_seconds", "seconds", "mb")]
        text += f"| {' | '.join(cells)} |\n"
        for name, reason in row["exceptions"].items():
            reasons.setdefault((name, reason), []).append(release)
    text += "\n| what cannot be had | with | why |\n|---|---|---|\n" * bool(reasons)
    for (name, reason), releases in reasons.items():
        text += f"| {name} | {', '.join(releases)} | {reason} |\n"
    return text + SUITE


def with_sentence(text: str, record: Record) -> str:
    """A text of README or of a card that says the range of the record."""
    first, last = range_of(record)
    return SENTENCE.sub(f"tested with transformers {first} to {last}", text)


if __name__ == "__main__":
    from tests.versions.overlays import REFERENCE

    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    TABLE.write_text(table(recorded, REFERENCE), encoding="utf-8")
    for path in TEXTS:
        path.write_text(with_sentence(path.read_text(encoding="utf-8"), recorded), encoding="utf-8")
