"""Proves that only the wanted text is ever kept, against a real server that gives it, another one or none."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hf_gpt_scratch.data.sample_texts import (
    VERDICT_SHA256,
    bundled_text_path,
    cache_folder,
    fetch_verified,
)


TEXT = b"I HAD always thought"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback: /good gives TEXT, /wrong another text, anything else 404. Yields its URL and its log."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            body = {"/good": TEXT, "/wrong": b"<html>"}.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()
        thread.join()


def test_text_is_fetched_once_and_kept(server: tuple[str, list[str]], tmp_path: Path) -> None:
    url, requests = server
    path = tmp_path / "cache" / "text.txt"
    for _ in range(2):
        assert fetch_verified(f"{url}/good", path, hashlib.sha256(TEXT).hexdigest()).read_bytes() == TEXT
    assert requests == ["/good"]
    path.write_bytes(b"damaged")
    assert fetch_verified(f"{url}/good", path, hashlib.sha256(TEXT).hexdigest()).read_bytes() == TEXT
    assert [file.name for file in path.parent.iterdir()] == ["text.txt"]


KILLED_FETCH = """
import os, signal, sys
from pathlib import Path
from hf_gpt_scratch.data.sample_texts import fetch_verified
sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGKILL) if event == "os.rename" else None)
url, path, sha256 = sys.argv[1:]
fetch_verified(url, Path(path), sha256)
"""


def test_killed_fetch_leaves_nothing_under_the_name(server: tuple[str, list[str]], tmp_path: Path) -> None:
    url, path, digest = f"{server[0]}/good", tmp_path / "text.txt", hashlib.sha256(TEXT).hexdigest()
    environment = {**os.environ, "HF_GPT_SCRATCH_REGISTER": "0", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", KILLED_FETCH, url, str(path), digest]
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL
    assert not path.exists()
    assert fetch_verified(url, path, digest).read_bytes() == TEXT
    assert os.listdir(tmp_path) == ["text.txt"]


@pytest.mark.parametrize(("path", "reason"), [("/wrong", "gave another file"), ("/none", "404")])
def test_anything_else_is_refused_and_not_kept(
    server: tuple[str, list[str]], tmp_path: Path, path: str, reason: str
) -> None:
    with pytest.raises(OSError, match=reason) as caught:
        fetch_verified(server[0] + path, tmp_path / "text.txt", hashlib.sha256(TEXT).hexdigest())
    assert "fetch it by hand and give it with --train_file" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot fetch http://127.0.0.1:9/"):
        fetch_verified("http://127.0.0.1:9/", tmp_path / "text.txt", hashlib.sha256(TEXT).hexdigest())


def test_the_verdict_is_pinned(shared_data: Path) -> None:
    assert hashlib.sha256((shared_data / "the-verdict.txt").read_bytes()).hexdigest() == VERDICT_SHA256


def test_bundled_story_is_plain_text_of_about_twenty_kilobytes() -> None:
    content = bundled_text_path().read_bytes()
    assert 18_000 < len(content) < 24_000
    assert content.isascii()
    assert b"\r" not in content


def test_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a path it would be the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_GPT_SCRATCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    assert cache_folder() == tmp_path / ".cache" / "hf_gpt_scratch"
