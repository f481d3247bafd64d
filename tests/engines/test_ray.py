"""The README's way past one machine, word for word, on a real Ray of two nodes: the bytes are those of one process.

The nodes are two sessions of processes on this machine, with a core each.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hf_gpt_scratch.data.document_sources import file_sources
from hf_gpt_scratch.data.preparation.prepare import Choices, prepare
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from tests.data.plain_tokens import folder_bytes
from tests.engines.environments import RAY, python_of


pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

START_TIMEOUT = 120  # seconds, of a node
RUN_TIMEOUT = 300


@pytest.fixture(scope="session")
def script(project_root: Path) -> str:
    readme = (project_root / "hf_gpt_scratch" / "data" / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n(# tokenize_on_ray\.py\n.*?)```", readme, re.DOTALL)
    return found


@pytest.fixture
def work(script: str, tmp_path: Path) -> Path:
    """The shared folder: six files, of which each takes a core some seconds."""
    (tmp_path / "corpus").mkdir()
    story = bundled_text_path().read_text(encoding="utf-8")
    for number in range(6):
        rows = (json.dumps({"text": f"{number} {row} {story[row * 7 :]}"}) for row in range(120))
        (tmp_path / "corpus" / f"{number}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    build_tokenizer().save_pretrained(tmp_path / "gpt2-tokenizer")
    (tmp_path / "tokenize_on_ray.py").write_text(script, encoding="utf-8")
    return tmp_path


class Cluster:
    """Nodes of Ray with one core each, every one with its processes in a session of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.python = python_of(RAY)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON", "RAY_"))}
        self.environment = inherited | {
            "HOME": str(folder), "RAY_TMPDIR": str(folder), "RAY_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def add_node(self) -> None:
        """Start a node and wait until it belongs to the cluster."""
        _, port = self.address.split(":")
        where = ("--address", self.address) if self.nodes else ("--head", "--port", port, "--include-dashboard=false")
        log = self.folder / f"node-{len(self.nodes)}.log"
        command = [self.python.with_name("ray"), "start", "--num-cpus", "1", "--block", *where]
        with log.open("w") as output:
            self.nodes.append(
                subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            )
        deadline = time.monotonic() + START_TIMEOUT
        while "Ray runtime started" not in log.read_text(encoding="utf-8"):
            if self.nodes[-1].poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no node of Ray:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.1)

    def processes_of(self, number: int) -> Iterator[psutil.Process]:
        """All processes of a node: they share its session, while Ray gives each worker a group of its own."""
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) == self.nodes[number].pid:
                    yield process

    def is_tokenizing(self, number: int) -> bool:
        """Return True if a process of a node has tokens under way."""
        with contextlib.suppress(psutil.NoSuchProcess):
            files = (file.path for process in self.processes_of(number) for file in process.open_files())
            return any(path.endswith(".ds") for path in files)
        return False

    def kill_node(self, number: int) -> None:
        """End all processes of a node at once, as where a machine loses its power."""
        while processes := list(self.processes_of(number)):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.nodes[number].wait()

    def start_script(self, folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, "-I", folder / "tokenize_on_ray.py"], cwd=folder, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # The paths of Ray's sockets must be short, and pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.add_node()
            cluster.add_node()
            yield cluster
        finally:
            for number in reversed(range(len(cluster.nodes))):
                cluster.kill_node(number)


def prepared(source: Path, output: Path) -> dict[str, bytes]:
    sources = file_sources([source], None, 1, lambda num_bytes: None)
    prepare(output, sources, Choices(shard_tokens=300_000), 1, lambda line: None)
    return {name: content for name, content in folder_bytes(output).items() if name != "index.json"}


@pytest.mark.works("ray", "datatrove on two nodes, one of which dies: the shards of one process, to the byte")
def test_a_node_dies_and_the_shards_are_those_of_one_process(work: Path, cluster: Cluster) -> None:
    tokens = work / "datatrove-tokens"
    process = cluster.start_script(work)
    while not cluster.is_tokenizing(1) and process.poll() is None:
        time.sleep(0.05)
    cluster.kill_node(1)
    said, _ = process.communicate(timeout=RUN_TIMEOUT)
    assert process.returncode == 0, said
    assert re.search("failed with (retriable error|RayActorError)", said), said  # the task that ran there
    assert "All Ray tasks have finished" in said
    expected = prepared(work / "corpus", work / "ours")
    assert len(expected) > 3
    assert prepared(tokens, work / "tokens") == expected


def test_a_failed_task_is_told_and_made_good(work: Path, cluster: Cluster) -> None:
    broken = work / "corpus" / "3.jsonl"
    whole = broken.read_text(encoding="utf-8")
    broken.write_text(f'{whole}\n{{"text": 3}}\n', encoding="utf-8")
    said, _ = (process := cluster.start_script(work)).communicate(timeout=RUN_TIMEOUT)
    assert process.returncode == 1, said
    assert "tasks [3] failed, logs/logs says why" in said
    assert "has no len()" in (work / "logs" / "logs" / "task_00003.log").read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"00003_unshuffled\.ds\.(index|metadata)"):
        prepared(work / "datatrove-tokens", work / "refused")
    broken.write_text(whole, encoding="utf-8")
    said, _ = (process := cluster.start_script(work)).communicate(timeout=RUN_TIMEOUT)
    assert process.returncode == 0, said
    assert "Will run pipeline on 1 incomplete ranks out of 6" in said
    assert prepared(work / "datatrove-tokens", work / "tokens") == prepared(work / "corpus", work / "ours")
