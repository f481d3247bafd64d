"""Proves the range of pyproject.toml: the tests pass with its lowest versions, some in the middle, and the newest."""

import os
import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.pyproject import PYPROJECT


ROOT = Path(__file__).parents[2]
MYPY = "tests/test_architecture.py::test_linters_find_nothing[mypy]"
ALLOWED = {need.name: need.specifier for need in map(Requirement, PYPROJECT["project"]["dependencies"])}


def pins_of(name: str) -> dict[str, str]:
    lines = (ROOT / ".ci" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_lowest_pins_are_the_floors() -> None:
    assert {name: f">={pin}" for name, pin in pins_of("lowest").items()} == {
        name: str(specifier) for name, specifier in ALLOWED.items()
    }


def test_all_pins_are_allowed_and_the_middle_is_between() -> None:
    lowest, middle, newest = (pins_of(name) for name in ("lowest", "middle", "constraints"))
    for name, pin in (*middle.items(), *newest.items()):
        assert pin in ALLOWED.get(name, [pin]), name
    for name, pin in middle.items():
        assert Version(lowest[name]) < Version(pin) < Version(newest[name])


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("pins", ["lowest", "middle", ""], ids=["lowest", "middle", "newest"])
def test_the_suite_passes(pins: str, tmp_path: Path) -> None:
    """In an environment that pip makes for it. Python and torch, gigabytes from most registries, are those in use."""
    lines = [f"{name}=={pin}\n" for name, pin in pins_of(pins).items() if name != "torch"] if pins else []
    (tmp_path / "pins.txt").write_text("".join([*lines, f"torch=={version('torch')}\n"]), encoding="utf-8")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    # Not the pins of CI, and not what xdist tells its workers.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_CONSTRAINT", "PYTEST_XDIST"))
    }
    untyped = ["--deselect", MYPY] if pins else []  # older libraries have fewer types
    for arguments in (
        ["pip", "install", "-q", "-c", tmp_path / "pins.txt", "-e", ".[test]"],
        ["pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", *untyped],
    ):
        command = [python, "-m", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
