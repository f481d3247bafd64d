"""Proves that whatever keeps a push from succeeding ends the script with one line that names the way out.

Every case is typed as a user types it and meets a Hub on this machine, or none; exit code 1, no traceback, no token.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hf_gpt_scratch.runtime.remote_code import CODE_FILES
from tests.loopback_hub import File, LoopbackHub
from tests.older_release import DROPPED, ENTRIES, make_older


@dataclass
class Case:
    """What is typed and set, what the Hub does, and words of the line; {url} is the address of the Hub."""

    words: list[str]
    repo_id: str = "alice/toy"
    options: list[str] = field(default_factory=list)
    user: str | None = "alice"
    role: str = "write"
    env: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[LoopbackHub], object] = lambda hub: None
    asks: bool = True  # whether the Hub is asked anything


def fault(route: str, kind: str) -> Callable[[LoopbackHub], object]:
    return lambda hub: hub.fault(route, kind, times=99)


NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}
LFS = {"HF_HUB_DISABLE_XET": "1"}
CASES = {
    "no token": Case(
        ["no token for {url} (none is stored or set)", "hf auth login", "HF_TOKEN", "{url}/settings/tokens"],
        user=None,
        asks=False,
    ),
    "wrong token": Case(
        ["{url} does not accept the token (Invalid credentials", "{url}/settings/tokens"],
        env={"HF_TOKEN": "hf_" + "wrong" * 7},
    ),
    "foreign namespace": Case(["may not make a repository under nobody", "use your own name"], repo_id="nobody/toy"),
    "of somebody else": Case(
        ["bob/toy", "it exists, but the token may not write to it", "choose a name of your own"],
        repo_id="bob/toy",
        prepare=lambda hub: hub.add_repository("bob/toy"),
    ),
    "private of somebody else": Case(
        ["may not make a repository under bob", "use your own name"],
        repo_id="bob/toy",
        prepare=lambda hub: hub.add_repository("bob/toy", private=True),
    ),
    "token that may only read": Case(
        ["may not write to it", "token with the right to write"],
        role="read",
        prepare=lambda hub: hub.add_repository("alice/toy"),
    ),
    "no name": Case(["'toy' is not the name of a repository", "give USER/NAME"], repo_id="toy", asks=False),
    "token for a name": Case(["'<TOKEN>' is not the name of a repository"], repo_id="hf_" + "aB3" * 11, asks=False),
    "offline mode": Case(["offline mode is on", "unset HF_HUB_OFFLINE"], env={"HF_HUB_OFFLINE": "1"}, asks=False),
    "nobody listens": Case(["http://127.0.0.1:9 cannot be reached", "check the network"], env=NOWHERE, asks=False),
    "no such host": Case(
        # The domain .invalid never exists (RFC 2606).
        ["http://hub.invalid cannot be reached"],
        env={"HF_ENDPOINT": "http://hub.invalid", "NO_PROXY": "*"},
        asks=False,
    ),
    "public already": Case(
        ["it is public already", "leave out --private"],
        options=["--private"],
        prepare=lambda hub: hub.add_repository("alice/toy"),
    ),
    "payment": Case(["{url} has no room for it (Fault 402)", "quota"], prepare=fault("POST create", "402")),
    "too large": Case(["{url} has no room for it (Fault 413)", "quota"], prepare=fault("POST commit", "413")),
    "too often": Case(["too many requests for {url}", "push again"], prepare=fault("POST commit", "429")),
    "refused": Case(["{url} refused it (Fault 422)"], prepare=fault("POST commit", "422")),
    "server down": Case(["{url} failed again and again (Fault 503)"], prepare=fault("GET refs", "503")),
    "connection lost": Case(["the connection to {url} was lost again and again"], prepare=fault("GET refs", "reset")),
    "upload expired": Case(["(Fault 403)", "use a token"], env=LFS, prepare=fault("PUT lfs_upload", "403")),
    "xet refused": Case(["403 Forbidden", "HF_HUB_DISABLE_XET=1"], prepare=fault("GET xet_write_token", "403")),
    "card refused": Case(
        ["no such license", "correct that"],
        prepare=lambda hub: setattr(hub, "card_errors", lambda content: ["no such license"]),
    ),
}


@pytest.fixture
def push(hub: LoopbackHub, finished_folder: Path, project_root: Path, tmp_path: Path) -> Callable:
    def run(case: Case, folder: Path = finished_folder) -> subprocess.CompletedProcess:
        token = hub.token_of(case.user, case.role) if case.user else None
        variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment = variables | hub.environment(tmp_path / "home", token) | case.env
        command = [sys.executable, project_root / "scripts" / "push_to_hub.py", folder, case.repo_id, *case.options]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("name", CASES)
def test_each_error_is_one_line_with_the_way_out(push: Callable, hub: LoopbackHub, name: str) -> None:
    case = CASES[name]
    case.prepare(hub)
    result = push(case)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for words in case.words:
        assert words.format(url=hub.url) in line
    assert result.returncode == 1
    assert result.stdout == ""
    assert bool(hub.requests) == case.asks
    assert not any(len(repository.commits) > 1 for repository in hub.repositories.values())
    for token in (*hub.accounts.tokens, case.env.get("HF_TOKEN", "hf_aB3")):
        assert token not in line
    assert "huggingface.co" not in line.replace("huggingface.co/docs", "")


def test_a_folder_that_is_not_fit_is_refused_before_anything_is_asked(
    push: Callable, hub: LoopbackHub, finished_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished_folder, tmp_path / "model")
    (folder / ".env").write_text("HF_TOKEN=1", encoding="utf-8")
    result = push(Case([]), folder)
    assert (
        result.stderr == f"error: cannot push {folder}: .env does not belong into a model repository, move it away\n"
    )
    assert (result.returncode, hub.requests) == (1, [])


def test_the_output_folder_of_a_run_is_told_from_its_model(
    push: Callable, update: Callable, hub: LoopbackHub, finished_folder: Path, tmp_path: Path
) -> None:
    """No advice makes the user delete checkpoints or history."""
    run = tmp_path / "run"
    shutil.copytree(finished_folder, run / "model")
    (run / "checkpoints" / "step-00000002").mkdir(parents=True)
    (run / "history.jsonl").write_text("{}\n", encoding="utf-8")
    result = push(Case([]), run)
    expected = f"error: cannot push {run}: it is the output folder of a run: push {run / 'model'}\n"
    assert (result.returncode, result.stderr, hub.requests) == (1, expected, [])
    assert update("--update-code", run).stderr.endswith(f"did you mean {run / 'model'}?\n")


def test_a_refused_update_writes_nothing(update: Callable, finished_folder: Path, tmp_path: Path) -> None:
    folder = make_older(shutil.copytree(finished_folder, tmp_path / "model"))
    (folder / ENTRIES[0]).unlink()
    (folder / ENTRIES[0]).mkdir()
    before = {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()}
    result = update("--update-code", folder)
    expected = f"error: cannot update {folder}: {ENTRIES[0]} is not a regular file, move it away\n"
    assert (result.returncode, result.stderr) == (1, expected)
    assert {path.name: path.is_file() and path.read_bytes() for path in folder.iterdir()} == before


def test_a_push_prints_the_commit_and_the_line_that_loads_it(push: Callable, hub: LoopbackHub) -> None:
    result = push(Case([], options=["--private", "--revision", "b", "--tag", "v0.1", "--timeout", "50"]))
    assert (result.returncode, result.stderr) == (0, "")
    repository = hub.repo("alice/toy")
    commit = repository.branches["b"]
    first, second = result.stdout.splitlines()
    assert first.startswith(
        f"pushed to alice/toy: commit {commit}, sent {8 + len(CODE_FILES)} files, removed 0; every file compared"
    )
    call = f'AutoModelForCausalLM.from_pretrained("alice/toy", revision="{commit}", trust_remote_code=True)'
    assert second == f"load it: {call}"
    assert repository.tags == {"v0.1": commit}
    assert repository.private


@pytest.fixture
def update(hub: LoopbackHub, project_root: Path, tmp_path: Path) -> Callable:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment = variables | hub.environment(tmp_path / "home", hub.token_of("alice"))
        command = [sys.executable, project_root / "scripts" / "push_to_hub.py", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def test_the_code_of_a_folder_and_of_a_repository_is_updated(
    push: Callable, update: Callable, hub: LoopbackHub, finished_folder: Path, tmp_path: Path
) -> None:
    push(Case([]))
    result = update("--update-code", "alice/toy")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"alice/toy, commit {hub.repo('alice/toy').head().sha} is up to date already\n"
    make_older(shutil.copytree(finished_folder, tmp_path / "alice" / "toy"))
    asked = len(hub.requests)
    for said in (
        f"updated alice/toy: wrote {', '.join(ENTRIES)}, config.json; removed {DROPPED}\n",
        "alice/toy is up to date already\n",
    ):
        result = update("--update-code", "alice/toy")
        assert (result.returncode, result.stderr, result.stdout) == (0, "", said)
    # A folder of that name comes first, as with from_pretrained.
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["alice/none"], "no folder of that name is here, and {url} shows this token no such repository"),
        (["alice/toy", "--revision", "v9"], "cannot update alice/toy: it has no branch v9, only main"),
        (["alice/toy"], "cannot update alice/toy: its config.json has the model_type 'gpt2', not 'gpt_scratch'"),
        (["alice/bare"], "cannot update alice/bare: it holds no config.json"),
        (["bob/toy"], "the token may not write to it"),
        (["runs/no/folder"], "'runs/no/folder' is not the name of a repository"),
        (["stock"], "cannot update stock: its config.json has the model_type 'gpt2', not 'gpt_scratch'"),
        (["."], "cannot update .: it holds no config.json"),
        (["stock/config.json"], "cannot update stock/config.json: it is a file"),
        (["stock", "--revision", "v1"], "stock is a folder, which has no revision v1"),
        (["alice/toy", "--timeout", "0"], "argument --timeout: must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_updated_is_told_in_one_line(
    update: Callable, hub: LoopbackHub, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    hub.add_repository("alice/bare")
    for repo_id, model_type in (("alice/toy", "gpt2"), ("bob/toy", "gpt_scratch")):
        repository = hub.add_repository(repo_id)
        config = {"config.json": File.regular(json.dumps({"model_type": model_type}).encode())}
        repository.add_commit("main", repository.head().files | config, "first", "", "x")
    result = update("--update-code", *arguments)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words.format(url=hub.url) in line
    assert (result.returncode, result.stdout) == (1, "")
    assert {len(repository.commits) for repository in hub.repositories.values()} == {1, 2}


@pytest.mark.parametrize(
    "arguments", [[], ["folder"], ["folder", "a/b", "--update-code", "a/b"], ["--update-code", "a/b", "--private"]]
)
def test_a_push_and_an_update_are_not_mixed(update: Callable, hub: LoopbackHub, arguments: list[str]) -> None:
    result = update(*arguments)
    assert (result.returncode, hub.requests) == (1, [])
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
