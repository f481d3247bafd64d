"""Proves that a push can be killed at any moment: the Hub holds the old state or the new one, and never a mixture.

The kill is SIGKILL, when the server gets a certain request and at random moments. The next push completes it and sends
no file again that the Hub has. All of it, with a table: python -m pytest -m hub.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hf_gpt_scratch.hub.push_worker import PushRequest
from tests.loopback_hub import LoopbackHub
from tests.sharing.comparing import content, history


TABLE = "Kills of a push", ["way", "killed at", "remote"]
NUM_RANDOM = 10  # kills at random moments for each way of sending; each request is one more


@dataclass
class Scene:
    """A Hub that holds the old state, and processes that push the new one in one way."""

    hub: LoopbackHub
    transfer: str
    folders: dict[str, Path]
    root: Path
    project_root: Path
    numbers: Iterator[int]

    def new_repository(self) -> str:
        """One that holds the old state; what other pushes left with Xet is taken away."""
        repo_id = f"alice/toy-{self.transfer}-{next(self.numbers)}"
        shutil.rmtree(self.hub.xet_folder)
        shutil.copytree(self.root / "xet", self.hub.xet_folder)
        self.hub.copy_repository(f"alice/old-{self.transfer}", repo_id)
        return repo_id

    def start(self, command: list[str]) -> subprocess.Popen:
        home = self.root / f"home-{next(self.numbers)}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = self.hub.environment(home, self.hub.token_of("alice"), xet=self.transfer == "xet")
        environment = {**inherited, **settings}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, *command], env=environment, **pipes)

    def start_push(self, repo_id: str, state: str = "sharded") -> subprocess.Popen:
        """The process that does the work; `push_folder` and the scripts start it in just this way."""
        request = PushRequest(str(self.folders[state]), repo_id)
        return self.start(["-m", "hf_gpt_scratch.hub.push_worker", json.dumps(vars(request))])

    def start_script(self, repo_id: str) -> subprocess.Popen:
        script = self.project_root / "scripts" / "push_to_hub.py"
        return self.start([str(script), str(self.folders["sharded"]), repo_id])

    def push(self, repo_id: str, state: str = "sharded") -> None:
        process = self.start_push(repo_id, state)
        output, errors = communicate(process)
        assert "commit" in json.loads(output), (output, errors)

    def seen(self, repo_id: str) -> list[str]:
        states = {"old": content(self.folders["old"]), "new": content(self.folders["sharded"])}
        return history(self.hub.repo(repo_id), "main", states)

    def blocks(self) -> dict[str, int]:
        """The blocks that Xet made of large files: name, and when it was written."""
        paths = self.hub.xet_folder.glob("xet/xorbs/xorbs/*")
        return {path.name: path.stat().st_mtime_ns for path in paths if path.suffix != ".tagset"}


def communicate(process: subprocess.Popen) -> tuple[str, str]:
    """Wait for the end with the standard input open: it ends when that closes."""
    with process.stdin:
        output, errors = process.stdout.read(), process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    process.wait()
    return output.decode(), errors.decode()


@pytest.fixture(scope="module")
def scenes(
    folders: dict[str, Path], project_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Scene]]:
    """By the way of sending."""
    root = tmp_path_factory.mktemp("kills")
    with LoopbackHub(root / "hub") as hub:
        numbers = itertools.count()
        scenes = {way: Scene(hub, way, folders, root, project_root, numbers) for way in ("lfs", "xet")}
        for way, scene in scenes.items():
            hub.add_repository(f"alice/old-{way}")
            scene.push(f"alice/old-{way}", "old")
        shutil.copytree(hub.xet_folder, root / "xet")
        yield scenes


def check_after(scene: Scene, repo_id: str, name: str) -> str:
    """Old or new; pushing again makes it new, once, and sends nothing that was there. Hands back what it was."""
    seen = scene.seen(repo_id)
    assert seen in (["empty", "old"], ["empty", "old", "new"]), f"{name}: {seen}"
    stored, blocks = set(scene.hub.repo(repo_id).uploads), scene.blocks()
    number = len(scene.hub.requests)
    scene.push(repo_id)
    assert scene.seen(repo_id) == ["empty", "old", "new"], name
    sent = {request.path.split("/")[-1] for request in scene.hub.requests[number:] if request.method == "PUT"}
    assert not sent & stored, f"{name}: sent again"
    now = scene.blocks()
    assert {block: now[block] for block in blocks} == blocks, f"{name}: written again"
    count = len(sent) if scene.transfer == "lfs" else len(now) - len(blocks)
    return f"{seen[-1]}; then new with {count} large objects sent"


def kill_at(scene: Scene, route: str, earlier: int) -> list[str]:
    """Kill the process when the server gets a request, and not before."""
    repo_id = scene.new_repository()
    process = None

    def kill(_: object) -> None:
        process.kill()
        process.wait()

    fault = scene.hub.fault(route, kill, skip=earlier)
    process = scene.start_push(repo_id)
    communicate(process)
    scene.hub.heal()
    name = f"{route} ({earlier + 1})"
    assert (len(fault.hits), process.returncode) == (1, -signal.SIGKILL), name
    return [scene.transfer, name, check_after(scene, repo_id, name)]


def requests_of(scene: Scene) -> list[tuple[str, int]]:
    """Return what an undisturbed push asks for: route, and how often it was asked for before."""
    number = len(scene.hub.requests)
    scene.push(scene.new_repository())
    routes = scene.hub.routes_asked(number)
    return [(route, routes[:position].count(route)) for position, route in enumerate(routes)]


@pytest.mark.parametrize(
    ("transfer", "route", "earlier"),
    [("lfs", "PUT lfs_upload", 1), ("lfs", "POST commit", 0), ("xet", "POST commit", 0)],
)
def test_a_push_killed_at_a_request(scenes: dict[str, Scene], transfer: str, route: str, earlier: int) -> None:
    kill_at(scenes[transfer], route, earlier)


@pytest.mark.hub
@pytest.mark.parametrize("transfer", ["lfs", "xet"])
def test_a_push_killed_at_every_request(scenes: dict[str, Scene], transfer: str, table: Callable[..., None]) -> None:
    for route, earlier in requests_of(scenes[transfer]):
        table(*TABLE, kill_at(scenes[transfer], route, earlier))


def start_and_wait(scene: Scene) -> tuple[float, str, subprocess.Popen]:
    """Start the script and wait for its first request: that moment, the repository, the process."""
    repo_id = scene.new_repository()
    asked = threading.Event()
    scene.hub.fault(".*", lambda request: asked.set())
    process = scene.start_script(repo_id)
    assert asked.wait(60)
    begun = time.monotonic()
    scene.hub.heal()
    return begun, repo_id, process


@pytest.mark.hub
@pytest.mark.parametrize("transfer", ["lfs", "xet"])
def test_a_script_killed_at_random_moments(
    scenes: dict[str, Scene], transfer: str, table: Callable[..., None]
) -> None:
    """The script that the user started is killed, not the process that does the work: that one must end with it."""
    scene = scenes[transfer]
    # From the first request on; before it, Python is importing.
    begun, _, process = start_and_wait(scene)
    communicate(process)
    window = time.monotonic() - begun
    generator = random.Random(transfer)
    for _ in range(NUM_RANDOM):
        _, repo_id, process = start_and_wait(scene)
        moment = generator.uniform(0, window)
        time.sleep(moment)
        workers = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        communicate(process)
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert not alive
        state = check_after(scene, repo_id, f"after {moment:.2f} s")
        table(*TABLE, [transfer, f"{moment:.2f} s of {window:.2f} s", state])
