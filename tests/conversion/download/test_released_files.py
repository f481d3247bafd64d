"""Proves that a download ends with the right files or with one line, whatever the server does.

The server is real, on loopback (misbehaving_server.py); the files are a tiny checkpoint. The faults are tried once and
for ever, with and without known hashes, on the index and on the data.
"""

import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.conversion.download.released_files import base_urls, download_gpt2, file_url
from hf_gpt_scratch.conversion.download.transfer import RetryPolicy
from hf_gpt_scratch.conversion.gpt2_sizes import (
    CONTEXT_LENGTH,
    DATA_FILE,
    HPARAMS_FILE,
    INDEX_FILE,
    MIRROR_URLS,
    OPENAI_URL,
    VOCAB_SIZE,
    GPT2Size,
    find_size,
)
from hf_gpt_scratch.conversion.readers.tensor_bundle import open_tensor_bundle
from tests.conversion.bundle_writer import gpt2_tensors, write_bundle
from tests.conversion.download.misbehaving_server import ALWAYS, MisbehavingServer


NAME = "13K"
CHUNK = 1024
POLICY = RetryPolicy(
    connect_timeout=2, read_timeout=0.2, retries=2, first_wait=0.01, longest_wait=0.05, chunk_bytes=CHUNK
)


@dataclass
class Release:
    """A size, its files, and the same size with nothing known that is not known of every real one."""

    size: GPT2Size
    files: dict[str, bytes]

    @property
    def unpinned(self) -> GPT2Size:
        unknown = dict.fromkeys((INDEX_FILE, "model.ckpt.meta"))
        return replace(self.size, files={**self.size.files, **unknown}, sha256={})

    def paths(self) -> dict[str, bytes]:
        """What a server of it serves."""
        return {f"/models/{NAME}/{name}": content for name, content in self.files.items()}


def make_release(folder: Path, tensors: dict[str, np.ndarray]) -> Release:
    write_bundle(folder / "model.ckpt", tensors)
    size = GPT2Size(NAME, 8, 2, 2, sum(array.size for array in tensors.values()), {})
    assert size.hparams["n_vocab"] == VOCAB_SIZE
    assert size.hparams["n_ctx"] == CONTEXT_LENGTH
    files = {
        "checkpoint": b'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n',
        HPARAMS_FILE: (json.dumps(size.hparams, indent=2) + "\n").encode(),
        "encoder.json": b'{"!": 0}',
        "vocab.bpe": b"#version: 0.2\nh e\n",
        INDEX_FILE: (folder / INDEX_FILE).read_bytes(),
        "model.ckpt.meta": b"\x0a" + bytes(200),
        DATA_FILE: (folder / DATA_FILE).read_bytes(),
    }
    lengths = {name: len(content) for name, content in files.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return Release(replace(size, files=lengths, sha256=hashes), files)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("release"), gpt2_tensors(8, 2, 101, 24))


@pytest.fixture
def server(release: Release) -> Iterator[MisbehavingServer]:
    with MisbehavingServer(release.paths()) as server:
        yield server


@pytest.fixture
def mirror(release: Release) -> Iterator[MisbehavingServer]:
    """Another server, which behaves."""
    with MisbehavingServer(release.paths()) as server:
        yield server


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: every file is synced, and hundreds of files would wait for the disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder)


def base(server: MisbehavingServer) -> str:
    return f"{server.url}/models"


def fetch(size: GPT2Size, folder: Path, *servers: MisbehavingServer, policy: RetryPolicy = POLICY) -> list[str]:
    """Download without bars; returns what was logged."""
    lines: list[str] = []
    download_gpt2(size, folder, [base(server) for server in servers], policy=policy, log=lines.append)
    return lines


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_complete(release: Release, folder: Path) -> None:
    assert {name: (folder / name).read_bytes() for name in release.files} == release.files
    assert names_in(folder) == {*release.files, ".lock"}


def assert_nothing_wrong(release: Release, folder: Path) -> None:
    """What has a final name is right."""
    for name in names_in(folder) & set(release.files):
        assert (folder / name).read_bytes() == release.files[name], name


# What must happen when all goes well


@pytest.mark.parametrize("pinned", [True, False])
def test_all_seven_files(release, server, tmp_path, pinned):
    lines = fetch(release.size if pinned else release.unpinned, tmp_path / "a" / NAME, server)
    assert_complete(release, tmp_path / "a" / NAME)
    assert len(open_tensor_bundle(tmp_path / "a" / NAME)) == 4 + 12 * 2
    hashes = [
        f"{name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
        for name, content in release.files.items()
    ]
    assert lines == ([] if pinned else hashes)


def test_what_is_there_is_not_fetched_again(release, server, tmp_path):
    fetch(release.size, tmp_path, server)
    requests = len(server.log)
    fetch(release.size, tmp_path, server)
    assert len(server.log) == requests == 7


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("name", [HPARAMS_FILE, INDEX_FILE, DATA_FILE])
def test_what_is_there_and_wrong_is_replaced(release, server, tmp_path, name, pinned):
    """A flipped bit that keeps the length, and the error page that OpenAI's own script leaves behind."""
    size = release.size if pinned else release.unpinned
    fetch(size, tmp_path, server)
    content = bytearray(release.files[name])
    content[20] ^= 1
    for wrong in (bytes(content), b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>", b""):
        (tmp_path / name).write_bytes(wrong)
        lines = fetch(size, tmp_path, server)
        assert_complete(release, tmp_path)
        assert any(line.startswith(f"{tmp_path / name} is replaced, since ") for line in lines)


def test_data_that_is_there_before_its_index(release, server, tmp_path):
    """Fetched by hand: it is held against the index as soon as that is there, and not fetched again."""
    (tmp_path / DATA_FILE).write_bytes(release.files[DATA_FILE])
    fetch(release.unpinned, tmp_path, server)
    assert_complete(release, tmp_path)
    assert DATA_FILE not in {request.path.rpartition("/")[2] for request in server.log}


def test_a_mirror_that_is_not_there_is_passed_over(release, server, tmp_path):
    download_gpt2(release.size, tmp_path, ["http://127.0.0.1:9/nobody", base(server)], policy=POLICY, log=print)
    assert_complete(release, tmp_path)


def test_proxy_is_asked(release, tmp_path, monkeypatch):
    """The loopback server stands for the proxy, which gets the whole URL of a host that does not exist."""
    paths = {f"http://gpt2.invalid{path}": content for path, content in release.paths().items()}
    with MisbehavingServer(paths) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        download_gpt2(release.size, tmp_path, ["http://gpt2.invalid/models"], policy=POLICY, log=print)
    assert_complete(release, tmp_path)


# The faults


AT_ONCE = ["404", "403", "410", "401"]
# Done with after one request, or going on at the byte at which it stopped.
PASSING = ["slow", "redirect ELSEWHERE"]
RETRIED = [
    *("500", "502", "503", "503 1", "429", "429 9999", "hang", "reset"),
    *("cut 0", "cut 50", "cut 99", "reset 50", "stall 50"),
    *(
        "short",
        "long",
        "flip",
        "416",
        "redirect",
        "redirect ftp://127.0.0.1",
        "html",
        "html padded",
        "gzip",
        "garbage",
    ),
]
# What only goes wrong when the rest is asked for.
RESUMED = [
    "norange",
    "wrongrange start",
    "wrongrange total",
    "wrongrange silent",
    "416",
    "otheretag",
    "endless",
    "flip",
]


def path_of(name: str) -> str:
    return f"/models/{NAME}/{name}"


@pytest.fixture(params=[INDEX_FILE, DATA_FILE], ids=["index", "data"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["pinned", "unpinned"])
def size(request: pytest.FixtureRequest, release: Release) -> GPT2Size:
    return release.size if request.param == "pinned" else release.unpinned


def outcome(release: Release, size: GPT2Size, folder: Path, *servers: MisbehavingServer) -> tuple[str, float]:
    """Download: "" or the line that says why not, and the seconds it took; what has a final name is right."""
    begin = time.monotonic()
    message = ""
    try:
        fetch(size, folder, *servers)
        assert_complete(release, folder)
    except OSError as error:
        message = str(error)
        assert "\n" not in message
    assert_nothing_wrong(release, folder)
    return message, time.monotonic() - begin


@pytest.mark.parametrize("fault", AT_ONCE)
def test_refused_at_once(release, server, tmp_path, name, size, fault):
    server.faults[path_of(name)] = [fault]
    message, seconds = outcome(release, size, tmp_path, server)
    assert seconds < 2
    assert len([request for request in server.log if request.path == path_of(name)]) == 1
    # Exactly the files that are missing are named, with their URLs and sizes.
    missing = list(release.files)[list(release.files).index(name) :]
    assert f"{base(server)}/{NAME}/{name}: {fault}" in message
    by_hand = message.partition(f"fetch by hand into {tmp_path} and run again: ")[2].split(", ")
    assert [url.partition(" ")[0] for url in by_hand] == [f"{base(server)}/{NAME}/{other}" for other in missing]
    assert [url.partition(" ")[2] for url in by_hand] == [
        f"({size.files[other]} bytes)" if size.files[other] else "" for other in missing
    ]


@pytest.mark.parametrize("fault", [*PASSING, *RETRIED, "endless"])
def test_one_fault(release, server, mirror, tmp_path, name, size, fault):
    server.faults[path_of(name)] = [fault.replace("ELSEWHERE", mirror.url)]
    message, _ = outcome(release, size, tmp_path, server)
    if fault == "redirect ftp://127.0.0.1":
        assert "it cannot be asked (InvalidSchema)" in message
    else:
        assert message == ""


@pytest.mark.parametrize("fault", RESUMED)
def test_one_fault_in_the_rest(release, server, tmp_path, name, size, fault):
    server.faults[path_of(name)] = ["cut 50", fault]
    assert outcome(release, size, tmp_path, server)[0] == ""


@pytest.mark.parametrize(
    ("name", "size"), [(INDEX_FILE, "unpinned"), (DATA_FILE, "pinned")], ids=["index", "data"], indirect=["size"]
)
@pytest.mark.parametrize("fault", [*AT_ONCE, *PASSING, *RETRIED])
def test_the_fault_for_ever(release, server, mirror, tmp_path, name, size, fault):
    server.faults[path_of(name)] = [fault.replace("ELSEWHERE", mirror.url), ALWAYS]
    message, seconds = outcome(release, size, tmp_path, server)
    assert seconds < 4
    # "cut 99" and "stall 50" stop there, and never get any further.
    assert (message == "") == (fault in PASSING)
    # A mirror helps against all of them, and what has come is not lost.
    assert outcome(release, size, tmp_path, server, mirror)[0] == ""


def test_index_of_another_size(release, server, tmp_path, tmp_path_factory):
    """Whole and with good checksums: only what it describes tells, where its hash is not known."""
    other = make_release(tmp_path_factory.mktemp("other"), gpt2_tensors(8, 3, 101, 24))
    server.files[path_of(INDEX_FILE)] = other.files[INDEX_FILE]
    message, _ = outcome(release, release.unpinned, tmp_path, server)
    assert f"it is the index of something else than {NAME}" in message
    assert INDEX_FILE not in names_in(tmp_path)


@pytest.mark.parametrize("name", [INDEX_FILE, DATA_FILE], ids=["index", "data"])
def test_content_md5(release, tmp_path, name):
    """The server's own hash finds what a known hash would; a wrong one is not believed for ever."""
    with MisbehavingServer(release.paths(), sends_md5=True) as server:
        for fault in ("flip", "wrongmd5"):
            server.faults[path_of(name)] = [fault]
            folder = tmp_path / fault
            lines: list[str] = []
            size = release.unpinned
            download_gpt2(size, folder, [base(server)], policy=POLICY, log=lines.append)
            assert_complete(release, folder)
            assert any("it has another MD5 than the server said" in line for line in lines)
        server.faults[path_of(name)] = ["wrongmd5", ALWAYS]
        message, _ = outcome(release, release.size, tmp_path / "always", server)
        assert "it has another MD5 than the server said" in message


def test_md5_survives_a_resume(release, tmp_path):
    """The answer to a range has no Content-MD5 of the whole file; what the first answer said counts."""
    with MisbehavingServer(release.paths(), sends_md5=True) as server:
        meta = path_of("model.ckpt.meta")  # the only file in which nothing but a hash finds damage
        server.faults[meta] = ["cut 50", "flip"]
        lines = fetch(release.unpinned, tmp_path, server, policy=replace(POLICY, chunk_bytes=16))
        assert_complete(release, tmp_path)
    assert any("it has another MD5" in line for line in lines)


def test_retry_after_is_honoured_and_capped(release, server, tmp_path):
    server.faults[path_of(INDEX_FILE)] = ["503 1"]
    begin = time.monotonic()
    fetch(release.size, tmp_path, server, policy=replace(POLICY, longest_wait=5))
    assert 1 < time.monotonic() - begin < 3
    server.faults[path_of(INDEX_FILE)] = ["429 9999"]
    (tmp_path / INDEX_FILE).unlink()
    assert outcome(release, release.size, tmp_path, server)[1] < 1


def test_hardly_any_byte_comes_twice(release, server, tmp_path):
    """A server that gives a tenth and breaks off is asked for the rest; of each piece less than a chunk is lost."""
    server.faults[path_of(DATA_FILE)] = [f"cut {percent}" for percent in range(10, 100, 10)]
    fetch(release.size, tmp_path, server, policy=replace(POLICY, retries=1, chunk_bytes=100))
    assert_complete(release, tmp_path)
    requests = [request for request in server.log if request.path == path_of(DATA_FILE)]
    assert len(requests) == 10
    assert sum(request.sent for request in requests) < len(release.files[DATA_FILE]) + 9 * 100


def test_a_part_of_another_run_is_continued(release, server, tmp_path):
    server.faults[path_of(DATA_FILE)] = ["cut 50", "404"]
    assert "404" in outcome(release, release.size, tmp_path, server)[0]
    kept = (tmp_path / f"{DATA_FILE}.part").stat().st_size
    assert 0 <= len(release.files[DATA_FILE]) // 2 - kept < CHUNK
    fetch(release.size, tmp_path, server)
    assert_complete(release, tmp_path)
    assert server.log[-1].offset == kept


def test_a_part_is_continued_from_a_mirror(release, server, mirror, tmp_path):
    server.faults[path_of(DATA_FILE)] = ["cut 50", "404"]
    fetch(release.size, tmp_path, server, mirror)
    assert_complete(release, tmp_path)
    (request,) = mirror.log
    assert 0 <= len(release.files[DATA_FILE]) // 2 - request.offset < CHUNK


@pytest.mark.parametrize("change", ["flip", "longer", "garbage state", "no state"])
def test_a_part_that_is_damaged(release, server, tmp_path, size, change):
    server.faults[path_of(DATA_FILE)] = ["cut 50", "404"]
    outcome(release, size, tmp_path, server)
    part = tmp_path / f"{DATA_FILE}.part"
    content = bytearray(part.read_bytes())
    if change == "flip":
        content[100] ^= 1
    elif change == "longer":
        content += bytes(2 * len(content))
    part.write_bytes(content)
    state = tmp_path / f"{DATA_FILE}.part.json"
    if change == "garbage state":
        state.write_bytes(b"\xff{")
    elif change == "no state":
        state.unlink()
    assert outcome(release, size, tmp_path, server)[0] == ""


def test_a_wrong_file_that_cannot_be_replaced_is_named(release, server, tmp_path):
    """It has the right length; the line says what to fetch, and the file stays until there is a better one."""
    fetch(release.size, tmp_path, server)
    wrong = bytes(len(release.files["vocab.bpe"]))
    (tmp_path / "vocab.bpe").write_bytes(wrong)
    server.faults[path_of("vocab.bpe")] = ["404"]
    with pytest.raises(OSError, match=r"run again: http://[^ ]*/vocab.bpe \(18 bytes\)$"):
        fetch(release.size, tmp_path, server)
    assert (tmp_path / "vocab.bpe").read_bytes() == wrong


@pytest.mark.parametrize("pinned", [True, False])
def test_a_complete_part_is_not_fetched_again(release, server, tmp_path, pinned):
    """Killed between the last byte and the renaming; of the index, the size may be unknown."""
    for name in (INDEX_FILE, DATA_FILE):
        (tmp_path / f"{name}.part").write_bytes(release.files[name])
    fetch(release.size if pinned else release.unpinned, tmp_path, server)
    assert_complete(release, tmp_path)
    assert not any(request.sent for request in server.log if request.path in (path_of(INDEX_FILE), path_of(DATA_FILE)))


def test_control_without_verification_the_faults_are_silent(release, server, tmp_path, monkeypatch):
    """That the corpus can tell: a flip has the right length, and only what the download verifies finds it."""
    monkeypatch.setattr("hf_gpt_scratch.conversion.download.released_files.Download.verify", lambda *_: None)
    server.faults[path_of(DATA_FILE)] = ["flip"]
    fetch(release.size, tmp_path, server)
    assert (tmp_path / DATA_FILE).read_bytes() != release.files[DATA_FILE]


# Users and machines


def test_without_a_network(release, tmp_path):
    begin = time.monotonic()
    with pytest.raises(OSError, match="no connection .*: fetch by hand into") as raised:
        download_gpt2(release.size, tmp_path, ["http://127.0.0.1:9/models"], log=lambda line: None)
    assert time.monotonic() - begin < 4  # with the patience of the real thing
    for name, content in release.files.items():
        assert f"http://127.0.0.1:9/models/{NAME}/{name} ({len(content)} bytes)" in str(raised.value)


def test_mirrors_that_are_no_urls(tmp_path):
    for mirror in ("example.org/gpt2", "ftp://example.org", "file:///etc", "https://"):
        with pytest.raises(ValueError, match="is not a URL: give one like https://openaipublic"):
            download_gpt2(find_size("124M"), tmp_path / "new", [mirror])
    assert not (tmp_path / "new").exists()


def test_urls():
    assert base_urls(None) == [OPENAI_URL, *MIRROR_URLS]
    size = find_size("124M")
    expected = "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/model.ckpt.data-00000-of-00001"
    assert file_url(OPENAI_URL, size, DATA_FILE) == expected
    assert file_url("http://a:1/b/?sig=x%2Fy", size, "vocab.bpe") == "http://a:1/b/124M/vocab.bpe?sig=x%2Fy"


def test_secrets_of_a_mirror_are_not_shown(release, server, tmp_path):
    server.faults[path_of(HPARAMS_FILE)] = ["404"]
    mirror = base(server).replace("http://", "http://user:hunter2@") + "?sig=hunter3"
    lines: list[str] = []
    with pytest.raises(OSError, match="404") as raised:
        download_gpt2(release.size, tmp_path, [mirror], policy=POLICY, log=lines.append)
    assert not re.search("hunter[23]", str(raised.value) + "".join(lines))


def test_disk_too_small(release, tmp_path):
    size = replace(release.size, files={**release.size.files, DATA_FILE: 10**18})
    with pytest.raises(OSError, match=r"bytes free and 10\d+ are needed: free some, or go elsewhere"):
        download_gpt2(size, tmp_path, ["http://127.0.0.1:9"], log=print)


PROGRAM = """
import json, resource, signal, sys
from hf_gpt_scratch.runtime.cli import run
from hf_gpt_scratch.conversion.download.released_files import download_gpt2
from hf_gpt_scratch.conversion.gpt2_sizes import GPT2Size
from hf_gpt_scratch.conversion.download.transfer import RetryPolicy
size, folder, base, chunk, limit = json.loads(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
run(lambda: download_gpt2(GPT2Size(**size), folder, [base], policy=RetryPolicy(chunk_bytes=chunk)) and None)
"""


def start(
    size: GPT2Size, folder: Path, server: MisbehavingServer, chunk: int = CHUNK, limit: int = 0
) -> subprocess.Popen:
    """A download in a process of its own, which ends as a script would."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps([asdict(size), str(folder), base(server), chunk, limit])],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_full_disk(release, server, tmp_path):
    """A write that fails: one line with the file and the reason; what has come is kept, and a later run goes on."""
    process = start(release.size, tmp_path, server, limit=5000)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines() == [f"error: {tmp_path / DATA_FILE}.part: File too large"]
    assert (tmp_path / f"{DATA_FILE}.part").stat().st_size == 5000
    fetch(release.size, tmp_path, server)
    assert_complete(release, tmp_path)
    assert server.log[-1].offset == 5000


@pytest.fixture(scope="module")
def megabyte(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release whose data take some chunks."""
    values = np.random.default_rng(5).normal(size=(2**18,)).astype(np.float32)
    return make_release(tmp_path_factory.mktemp("megabyte"), {"model/wte": values})


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("percent", [1, 37, 80, 99])
def test_kill_loses_at_most_a_chunk(megabyte, tmp_path, percent):
    chunk = 1 << 16
    content = megabyte.files[DATA_FILE]
    part = tmp_path / f"{DATA_FILE}.part"
    with MisbehavingServer(megabyte.paths()) as server:
        server.faults[path_of(DATA_FILE)] = [f"stall {percent}"]
        process = start(megabyte.size, tmp_path, server, chunk)
        sent = len(content) * percent // 100
        wait_until(lambda: part.exists() and part.stat().st_size > sent - chunk)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        kept = part.stat().st_size
        assert sent - chunk < kept <= sent
        assert part.read_bytes() == content[:kept]
        assert_nothing_wrong(megabyte, tmp_path)
        fetch(megabyte.size, tmp_path, server, policy=RetryPolicy(chunk_bytes=chunk))
        assert_complete(megabyte, tmp_path)
        assert server.log[-1].offset == kept
        wait_until(lambda: server.log[-1].sent == len(content) - kept)  # the server may count later than we receive


KILL_PROGRAM = """
import json, os, signal, sys
from hf_gpt_scratch.conversion.download.released_files import download_gpt2
from hf_gpt_scratch.conversion.gpt2_sizes import GPT2Size
size, folder, base = json.loads(sys.argv[1])
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
def download(target, kill_at):
    events = 0
    def count(event, arguments):
        nonlocal events
        if event in EVENTS and str(arguments[0]).startswith(target):
            events += 1
            if events == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    download_gpt2(GPT2Size(**size), target, [base], log=lambda line: None)
for kill_at in range(1, 1000):
    target = f"{folder}/{kill_at}"
    child = os.fork()
    if not child:
        download(target, kill_at)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(kill_at)
"""


def test_killed_at_every_file_event(release, server, tmp_path):
    """Before each opening, renaming and removing of a file; a later run completes what was left."""
    arguments = json.dumps([asdict(release.size), str(tmp_path), base(server)])
    process = subprocess.run(
        [sys.executable, "-c", KILL_PROGRAM, arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    kills = int(process.stdout) - 1
    assert kills > 40
    for kill_at in range(1, kills + 1):
        folder = tmp_path / str(kill_at)
        if folder.exists():
            assert_nothing_wrong(release, folder)
        fetch(release.size, folder, server)
        assert_complete(release, folder)


def test_two_processes_at_once(megabyte, tmp_path):
    """Both end well, each file is fetched once, and the second says that it waits."""
    with MisbehavingServer(megabyte.paths()) as server:
        server.faults[path_of(DATA_FILE)] = ["slow"]
        server.faults[path_of("checkpoint")] = ["slow"]
        processes = [start(megabyte.size, tmp_path, server) for _ in range(2)]
        errors = [process.communicate(timeout=60)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert len(server.log) == 7
    assert_complete(megabyte, tmp_path)
    waiting = f"another process downloads to {tmp_path}: waiting for it"
    assert sorted(errors, key=len) == ["", f"{waiting}\n"]


def test_a_killed_process_leaves_no_lock(megabyte, tmp_path):
    with MisbehavingServer(megabyte.paths()) as server:
        server.faults[path_of(DATA_FILE)] = ["hang"]
        process = start(megabyte.size, tmp_path, server)
        wait_until(lambda: any(request.fault == "hang" for request in server.log))
        waiting: list[str] = []
        thread = threading.Thread(
            target=download_gpt2, args=(megabyte.size, tmp_path, [base(server)]), kwargs={"log": waiting.append}
        )
        thread.start()
        wait_until(lambda: waiting)
        process.kill()
        process.communicate(timeout=60)
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert_complete(megabyte, tmp_path)


def test_bars_on_a_terminal(release, server, tmp_path):
    """Under a pseudo-terminal there is a bar for each file; a line of the log does not break them."""
    server.faults[path_of(DATA_FILE)] = ["cut 50"]
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    arguments = json.dumps([asdict(release.unpinned), str(tmp_path), base(server), CHUNK, 0])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # EIO: the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    for name in release.files:
        assert re.search(rf"{re.escape(name)}: 100%", text)
    assert re.search(
        rf"^{re.escape(DATA_FILE)}: broke off .*; going on at byte \d+ in 1 s", text.replace("\r", "\n"), re.M
    )
