"""A folder to push, and a Hub on this machine that takes it from Alice."""

import shutil
from pathlib import Path

import pytest

from tests.loopback_hub import LoopbackHub


@pytest.fixture
def folder(finished_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_folder, tmp_path / "model")


@pytest.fixture
def alice(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub, with the variables of Alice for every process that a push starts; by LFS, which sends what it says."""
    for name, value in hub.environment(tmp_path / "home", hub.token_of("alice"), xet=False).items():
        monkeypatch.setenv(name, value)
    return hub
