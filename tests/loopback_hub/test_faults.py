"""Proves that each fault does what it says: on the wire, and to what the Hub keeps.

The tests of pushing and pulling rest on this; a fault that did nothing would make them pass without proving anything.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from . import LoopbackHub, Request


REPO = "alice/toy"


@pytest.fixture
def hub(hub: LoopbackHub) -> LoopbackHub:
    """The Hub with one repository."""
    hub.add_repository(REPO)
    return hub


@pytest.fixture
def connection(hub: LoopbackHub) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=2)
    yield connection
    connection.close()


def commit(connection: http.client.HTTPConnection, hub: LoopbackHub) -> http.client.HTTPResponse:
    """One empty commit by hand: one request, and nothing repeats it."""
    header = {"key": "header", "value": {"summary": "by hand"}}
    headers = {"Authorization": f"Bearer {hub.token_of('alice')}"}
    connection.request("POST", f"/api/models/{REPO}/commit/main", json.dumps(header), headers)
    return connection.getresponse()


@pytest.mark.parametrize("status", ["500", "503", "429"])
def test_an_error_is_answered_and_nothing_done(
    hub: LoopbackHub, connection: http.client.HTTPConnection, status: str
) -> None:
    fault = hub.fault("POST commit", status)
    answer = commit(connection, hub)
    assert (str(answer.status), json.loads(answer.read())) == (status, {"error": f"Fault {status}"})
    assert len(hub.repo(REPO).commits) == 1
    # The connection goes on, and so does the Hub.
    assert commit(connection, hub).status == 200
    assert len(hub.repo(REPO).commits) == 2
    assert [request.fault for request in fault.hits] == [status]


@pytest.mark.parametrize(("kind", "commits"), [("reset", 1), ("lost", 2)])
def test_a_connection_is_reset_before_or_after_the_work(
    hub: LoopbackHub, connection: http.client.HTTPConnection, kind: str, commits: int
) -> None:
    hub.fault("POST commit", kind)
    with pytest.raises(ConnectionResetError):
        commit(connection, hub)
    assert len(hub.repo(REPO).commits) == commits


def test_a_hang_is_no_answer(hub: LoopbackHub, connection: http.client.HTTPConnection) -> None:
    connection.timeout = 0.2
    hub.fault("POST commit", "hang")
    with pytest.raises(socket.timeout):
        commit(connection, hub)
    assert len(hub.repo(REPO).commits) == 1


def test_an_answer_is_cut_after_the_work(hub: LoopbackHub, connection: http.client.HTTPConnection) -> None:
    hub.fault("POST commit", "cut")
    answer = commit(connection, hub)
    assert answer.status == 200
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    assert len(hub.repo(REPO).commits) == 2


def test_an_answer_without_a_body_is_cut_in_its_header(hub: LoopbackHub) -> None:
    hub.fault("HEAD resolve", "cut")
    host, port = hub.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        connection.sendall(f"HEAD /{REPO}/resolve/main/.gitattributes HTTP/1.1\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\n\r\n" not in answer


def test_a_bit_is_flipped_and_the_checksums_tell(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client takes the file for good; its comparison with the checksums of the repository does not."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    api = HfApi(endpoint=hub.url, token=hub.token_of("alice"))
    content = bytes(range(256)) * 20
    api.upload_file(repo_id=REPO, path_in_repo="model.safetensors", path_or_fileobj=content)
    for folder, kind in (("good", None), ("bad", "flip")):
        if kind:
            hub.fault("GET download", kind)
        path = Path(api.snapshot_download(REPO, cache_dir=tmp_path / folder)) / "model.safetensors"
        assert (path.read_bytes() == content) == (kind is None)
        verified = api.verify_repo_checksums(REPO, cache_dir=tmp_path / folder)
        assert [mismatch["path"] for mismatch in verified.mismatches] == ["model.safetensors"] * (kind is not None)


def test_a_fault_can_be_of_one_path_and_can_call(hub: LoopbackHub, connection: http.client.HTTPConnection) -> None:
    called: list[Request] = []
    hub.fault("(GET|HEAD) resolve", called.append, times=2, path="[.]gitattributes$")
    for path in ("none", ".gitattributes", ".gitattributes", ".gitattributes"):
        connection.request("GET", f"/{REPO}/resolve/main/{path}")
        connection.getresponse().read()
    assert [request.path.split("/")[-1] for request in called] == [".gitattributes"] * 2
    assert [request.status for request in hub.requests] == [404, 200, 200, 200]


def test_a_fault_that_does_not_exist_is_refused(hub: LoopbackHub) -> None:
    with pytest.raises(ValueError, match="no fault 'typo'; there are 500, 503, reset, hang, cut, lost, flip"):
        hub.fault("POST commit", "typo")


@pytest.mark.parametrize(
    ("range_header", "status", "content"),
    [
        ("bytes=3-", 206, b"3456789"),
        ("bytes=3-5", 206, b"345"),
        ("bytes=99-", 416, b""),
        ("nonsense", 200, b"0123456789"),
    ],
)
def test_ranges(
    hub: LoopbackHub, connection: http.client.HTTPConnection, range_header: str, status: int, content: bytes
) -> None:
    api = HfApi(endpoint=hub.url, token=hub.token_of("alice"))
    api.upload_file(repo_id=REPO, path_in_repo="digits.txt", path_or_fileobj=b"0123456789")
    connection.request("GET", f"/{REPO}/resolve/main/digits.txt", headers={"Range": range_header})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (status, content)
