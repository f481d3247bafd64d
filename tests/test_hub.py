"""Proves that a push which cannot reach the Hub ends in one line that says why, with the folder named and left alone.

That a push arrives is not proved here.
"""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh_interpreter import Calls, Outcome, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing of it is read before the Hub has answered."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def closed_endpoint() -> Iterator[str]:
    """An address at which nobody listens; holding the port keeps others from it."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{port.getsockname()[1]}"


@pytest.fixture(scope="module")
def pushes(folder: Path, closed_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """One interpreter for each state of the network; registration, which takes seconds, is not needed."""
    root = tmp_path_factory.mktemp("pushes")
    calls: Calls = {
        "push": ("push", {"path": str(folder), "repo_id": "me/x"}),
        "invalid name": ("push", {"path": str(folder), "repo_id": "no such name"}),
    }
    networks = {
        "offline mode": {"HF_HUB_OFFLINE": "1"},
        "connection refused": {"HF_ENDPOINT": closed_endpoint},
        # The domain .invalid never exists (RFC 2606).
        "host unknown": {"HF_ENDPOINT": "http://hub.invalid"},
    }
    return {
        network: run(root / network, calls, package=True, env={"HF_GPT_SCRATCH_REGISTER": "0", **settings})
        for network, settings in networks.items()
    }


NETWORKS = ["offline mode", "connection refused", "host unknown"]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_push_without_the_hub_is_refused_in_one_line(pushes: dict[str, Outcome], folder: Path, network: str) -> None:
    classes, message = pushes[network].raised("push")
    assert "OSError" in classes
    assert len(message.splitlines()) == 1
    assert "me/x" in message
    assert str(folder) in message
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_the_reason_is_told(pushes: dict[str, Outcome]) -> None:
    assert "HF_HUB_OFFLINE" in pushes["offline mode"].raised("push")[1]
    assert "refused" in pushes["connection refused"].raised("push")[1]


@pytest.mark.parametrize("network", NETWORKS)
def test_an_invalid_name_is_refused_before_the_network_is_asked(pushes: dict[str, Outcome], network: str) -> None:
    classes, message = pushes[network].raised("invalid name")
    assert "OSError" in classes
    assert len(message.splitlines()) == 1
    assert "no such name" in message
