"""Proves that whatever goes wrong once during a push, the Hub holds the old state or the new one, never a mixture.

Every request that a push makes meets every fault once, on both ways of sending. The push then succeeds by trying
again, or ends in one line, and never hangs. What a reader could see was old or new at any time. Pushing again
completes it. No commit is made twice, also not where only the answer got lost. Waits between attempts are shortened.

The real client runs in this process, against a real server. All of it, with a table: python -m pytest -m hub.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._xet import abort_xet_session

from hf_gpt_scratch.hub.push_worker import PushRequest, push
from tests.loopback_hub import Commit, File, LoopbackHub, Repository
from tests.sharing.comparing import content, history, state


KINDS = ["500", "503", "reset", "hang", "cut", "lost"]
FOR_GOOD = 1000  # times
TABLE = "Faults of a push", ["way", "push", "request", "fault", "outcome", "remote", "commits asked", "s"]
TIMEOUT = 5.0  # seconds for a push, a tenth of it for an answer
SHORTER = 50  # how much faster time passes between attempts
SLOW_DISK = 30.0  # seconds that a push may take on a machine that is busy with something else


def make_state(folder: Path, seed: int) -> Path:
    """A folder with the names of a model in two shards; nothing here reads what is in the files."""
    generator = random.Random(seed)
    folder.mkdir()
    for name in ("README.md", "config.json", "tokenizer.json", "modeling_gpt_scratch.py"):
        (folder / name).write_text(f"{name} of state {seed}\n", encoding="utf-8")
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n# state {seed}\n", encoding="utf-8")
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(generator.randbytes(5_000 * number))
    return folder


@dataclass
class Scene:
    """A Hub, a client that goes there, and the two states of a model."""

    hub: LoopbackHub
    old: Path
    new: Path
    numbers: Iterator[int]

    @property
    def states(self) -> dict[str, dict[str, bytes]]:
        return {"old": content(self.old), "new": content(self.new)}

    def request(self, scenario: str) -> PushRequest:
        """A push to a new branch of a repository that holds the old state, with a tag; or to none, a private one."""
        repo_id = f"alice/toy-{next(self.numbers)}"
        if scenario == "first":
            return PushRequest(str(self.new), repo_id, private=True, timeout=TIMEOUT)
        self.hub.copy_repository("alice/old", repo_id)
        return PushRequest(str(self.new), repo_id, revision="next", tag="v0.1", timeout=TIMEOUT)

    def seen(self, request: PushRequest) -> list[str]:
        """The states of the branch so far."""
        repository = self.hub.repositories.get(request.repo_id)
        if repository is None or request.revision not in repository.branches:
            return []
        return history(repository, request.revision, self.states)

    def requests(self, scenario: str) -> list[tuple[str, int]]:
        """Return what an undisturbed push asks for: route, and how often it was asked for before."""
        number = len(self.hub.requests)
        push(self.request(scenario))
        routes = self.hub.routes_asked(number)
        return [(route, routes[:position].count(route)) for position, route in enumerate(routes)]


@pytest.fixture(params=["lfs", "xet"])
def scene(
    request: pytest.FixtureRequest, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("HF_TOKEN", hub.token_of("alice"))
    # As push_folder sets it for its process. The session of this process must be a new one to see that.
    monkeypatch.setenv("HF_XET_CLIENT_READ_TIMEOUT", f"{TIMEOUT / 10:g}s")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "20ms")
    abort_xet_session()
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / SHORTER))
    old, new = make_state(tmp_path / "old", 1), make_state(tmp_path / "new", 2)
    (old / "LICENSE").write_text("a file that the new state does not have\n", encoding="utf-8")
    push(PushRequest(str(old), "alice/old"))
    yield Scene(hub, old, new, itertools.count())
    huggingface_hub.close_session()  # with its limit on silence
    abort_xet_session()


def push_into(scene: Scene, scenario: str, route: str, earlier: int, kind: str, times: int = 1) -> list[str]:
    """One push with one fault, all that must hold, and a row of the table."""
    request = scene.request(scenario)
    fault = scene.hub.fault(route, kind, times, skip=earlier)
    start, number = time.monotonic(), len(scene.hub.requests)
    try:
        push(request)
        outcome = "succeeded"
    except OSError as error:
        outcome = str(error)
        assert "\n" not in outcome
        assert scene.hub.token_of("alice") not in outcome
    seconds = time.monotonic() - start
    asked = scene.hub.routes_asked(number)
    scene.hub.heal()
    name = f"{scenario}, {kind} at {route} number {earlier + 1}"
    assert 1 <= len(fault.hits) <= times, name
    assert seconds < SLOW_DISK, name

    before = ["empty"] if scenario == "first" else ["empty", "old"]
    seen = scene.seen(request)
    assert seen in ([], before, [*before, "new"]), f"{name}: {outcome}, {seen}"
    if outcome == "succeeded":
        assert seen == [*before, "new"], name
    else:
        assert times > 1, f"{name}: {outcome}"
        assert "push again" in outcome, name
    again = push(request)
    assert scene.seen(request) == [*before, "new"], name
    repository = scene.hub.repo(request.repo_id)
    assert again.commit == repository.head(request.revision).sha
    assert repository.private == request.private
    assert repository.tags == ({"v0.1": again.commit} if request.tag else {}), name
    remote = "new" if seen[-1:] == ["new"] else "old"
    kind = f"{kind}, for good" if times > 1 else kind
    return [
        scenario,
        f"{route} ({earlier + 1})",
        kind,
        outcome,
        remote,
        str(asked.count("POST commit")),
        f"{seconds:.1f}",
    ]


@pytest.mark.parametrize("kind", ["500", "reset", "lost"])
def test_one_fault_at_each_route_of_a_push(scene: Scene, kind: str) -> None:
    for route, earlier in scene.requests("next"):
        if earlier == 0:
            push_into(scene, "next", route, earlier, kind)
    assert scene.hub.unknown == []


def test_a_commit_that_never_succeeds_ends_in_one_line(scene: Scene) -> None:
    for kind in ("503", "reset"):
        row = push_into(scene, "next", "POST commit", 0, kind, times=FOR_GOOD)
        assert row[3].startswith("cannot push to alice/toy-")
        assert row[4] == "old"


@pytest.mark.hub
@pytest.mark.parametrize("kind", ["500", "reset", "lost"])
def test_a_fault_that_stays_ends_in_one_line(
    scene: Scene, kind: str, request: pytest.FixtureRequest, table: Callable[..., None]
) -> None:
    """At every request of a push; only what the client itself does without ends well."""
    transfer = request.node.callspec.params["scene"]
    for route, earlier in scene.requests("next"):
        table(*TABLE, [transfer, *push_into(scene, "next", route, earlier, kind, times=FOR_GOOD)])


@pytest.mark.hub
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", ["next", "first"])
def test_every_fault_at_every_request_of_a_push(
    scene: Scene, scenario: str, kind: str, request: pytest.FixtureRequest, table: Callable[..., None]
) -> None:
    transfer = request.node.callspec.params["scene"]
    for route, earlier in scene.requests(scenario):
        table(*TABLE, [transfer, *push_into(scene, scenario, route, earlier, kind)])
    assert scene.hub.unknown == []


def test_the_check_sees_a_mixed_commit(scene: Scene) -> None:
    """The control: a Hub that made a commit of half the changes, or two of one push, would be found out."""
    request = scene.request("next")
    push(request)
    repository = scene.hub.repo(request.repo_id)
    old, new = repository.head("main").files, repository.head("next").files
    weights = "model-00001-of-00002.safetensors"
    repository.add_commit("next", new | {weights: old[weights]}, "half", "", "alice")
    repository.add_commit("next", new, "again", "", "alice")
    assert scene.seen(request) == ["empty", "old", "new", "mixed", "new"]
    broken = Commit("0" * 40, None, "", "", "", {"README.md": File.regular(b"another")})
    assert state(broken, scene.states) == "mixed"
    assert isinstance(repository, Repository)
