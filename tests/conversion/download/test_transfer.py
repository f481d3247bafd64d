"""Proves what one transfer promises apart from its faults: how it resumes, waits and gives up.

The faults are in test_released_files.py, through the whole download; here the server behaves or changes its mind.
"""

import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import requests

from hf_gpt_scratch.conversion.download.transfer import (
    BadResponse,
    RetryPolicy,
    ServerError,
    Transfer,
    content_range,
    retry_after,
)
from tests.conversion.download.misbehaving_server import MisbehavingServer


CONTENT = bytes(range(256)) * 40
POLICY = RetryPolicy(read_timeout=0.3, retries=3, first_wait=0.01, longest_wait=0.05, chunk_bytes=1000)


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer({"/file": CONTENT}) as server:
        yield server


def make_transfer(server: MisbehavingServer, folder: Path, size: int | None = len(CONTENT), **changes) -> Transfer:
    def verify(part: Path, md5: str) -> None:
        if part.read_bytes() != server.files["/file"]:
            raise BadResponse("it is something else")

    values = {
        "session": requests.Session(),
        "url": f"{server.url}/file",
        "part": folder / "file.part",
        "size": size,
        "verify": verify,
        "policy": POLICY,
        "report": lambda done, total: None,
        "log": lambda line: None,
    }
    return Transfer(**values | changes)


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_progress_is_reported(server, tmp_path, size):
    reports = []
    server.faults["/file"] = ["cut 50"]
    make_transfer(server, tmp_path, size, report=lambda *report: reports.append(report)).run()
    assert reports[0] == (0, len(CONTENT))
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(reports) == reports
    assert (tmp_path / "file.part").read_bytes() == CONTENT


def test_file_that_changed_between_two_runs(server, tmp_path):
    """If-Range: the new file comes whole instead of a mixture. Same length, so nothing else would tell."""
    server.faults["/file"] = ["cut 50", "404"]
    with pytest.raises(ServerError, match="404 Not Found"):
        make_transfer(server, tmp_path).run()
    assert json.loads((tmp_path / "file.part.json").read_text())["validator"].startswith('"')
    server.files["/file"] = CONTENT[::-1]
    make_transfer(server, tmp_path).run()
    assert (tmp_path / "file.part").read_bytes() == CONTENT[::-1]
    assert server.log[-1].offset == 5000  # was asked for, and not given


def test_waits_double_and_progress_starts_them_anew(server, tmp_path):
    lines: list[str] = []
    policy = RetryPolicy(retries=4, first_wait=0.02, longest_wait=0.05, chunk_bytes=100)
    server.faults["/file"] = ["500", "500", "500", "cut 50", "500", "500", "500"]
    begin = time.monotonic()
    make_transfer(server, tmp_path, policy=policy, log=lines.append).run()
    assert 2 * (0.02 + 0.04 + 0.05) < time.monotonic() - begin < 2
    assert [line.partition(";")[0] for line in lines] == [
        *["file: 500 Internal Server Error"] * 3,
        lines[3].partition(";")[0],
        *["file: 500 Internal Server Error"] * 3,
    ]
    assert "broke off" in lines[3]


def test_gives_up_after_so_many_tries_without_a_byte(server, tmp_path):
    server.faults["/file"] = ["503"] * 10
    with pytest.raises(ServerError, match="503 Service Unavailable, 4 times in a row"):
        make_transfer(server, tmp_path).run()
    assert len(server.log) == 4


def test_what_fails_to_verify_is_not_kept(server, tmp_path):
    def refuse(part: Path, md5: str) -> None:
        raise BadResponse("it is not liked")

    with pytest.raises(ServerError, match="it is not liked"):
        make_transfer(server, tmp_path, verify=refuse).run()
    assert list(tmp_path.iterdir()) == []
    assert len(server.log) == 2


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("bytes 10-19/20", (10, 20)),
        ("bytes 10-19/*", (10, None)),
        ("bytes */20", (None, 20)),
        ("", (None, None)),
        ("bytes ten-19/20", (None, None)),
        ("items 1-2/3", (None, None)),
    ],
)
def test_content_range(field, expected):
    response = requests.Response()
    response.headers["Content-Range"] = field
    assert content_range(response) == expected


@pytest.mark.parametrize(
    ("field", "low", "high"),
    # The date is made in the test: its text in a parameter would give each worker of pytest-xdist other test names.
    [("7", 7, 7), ("in an hour", 3000, 3601), ("soon", 0, 0), ("-3", 0, 0), ("", 0, 0)],
)
def test_retry_after(server, field, low, high):
    if field == "in an hour":
        field = formatdate(time.time() + 3600, usegmt=True)
    server.files["/wait"] = b""
    server.faults["/wait"] = [f"503 {field}"]
    with requests.get(f"{server.url}/wait", stream=True, timeout=5) as response:
        assert low <= retry_after(response) <= high
