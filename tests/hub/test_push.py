"""Proves the push against a Hub on this machine, with the client that users have.

One commit holds the whole folder; what is there is not sent again; what is stale goes; no fault makes a second commit;
nothing hangs; the token is in no output. Errors are proved as users see them in scripts/test_push_to_hub_script.py.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from packaging.version import Version

from hf_gpt_scratch.hub.push import (
    PushProcess,
    PushResult,
    check_names,
    load_line,
    prepare_push,
    push_folder,
    update_code,
)
from hf_gpt_scratch.runtime.shipped_code import CODE_FILES
from tests.loopback_hub import File, LoopbackHub, Request
from tests.older_release import DROPPED, ENTRIES, make_older


REPO = "alice/toy"
FIRST_PUSH = ["GET refs", "POST create", "GET refs", "GET tree", "POST validate_yaml", "POST preupload"]


@pytest.fixture
def folder(finished_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_folder, tmp_path / "model")


@pytest.fixture
def alice(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub, with the variables of Alice for every process that a push starts; by LFS, which sends what it says."""
    for name, value in hub.environment(tmp_path / "home", hub.token_of("alice"), xet=False).items():
        monkeypatch.setenv(name, value)
    return hub


def content(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    """What a reader gets, without the file that the Hub makes itself."""
    repository = hub.repo(REPO)
    files = repository.resolve(revision).files
    return {
        name: repository.uploads[file.sha256] if file.content is None else file.content
        for name, file in files.items()
        if name != ".gitattributes"
    }


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def num_commits(hub: LoopbackHub) -> int:
    """Without the one that the Hub begins with."""
    return len(hub.repo(REPO).commits) - 1


def test_one_commit_holds_the_whole_folder_and_is_verified(alice: LoopbackHub, folder: Path) -> None:
    pushed = push_folder(folder, REPO)
    assert num_commits(alice) == 1
    assert pushed.commit == alice.repo(REPO).head().sha
    assert content(alice, pushed.commit) == local(folder)
    assert set(local(folder)) >= {*CODE_FILES, "README.md", "model-00001-of-00002.safetensors"}
    assert ".gitattributes" in alice.repo(REPO).head().files
    transfers = {"POST lfs_batch", "PUT lfs_upload", "POST lfs_verify"}
    others = [route for route in alice.routes_asked() if route not in transfers]
    assert others == [*FIRST_PUSH, "POST commit", "GET tree"]
    assert alice.requests[-1].path.endswith(f"/tree/{pushed.commit}")
    assert not alice.unknown


@pytest.mark.skipif(Version(huggingface_hub.__version__) < Version("1.33"), reason="it uploads as for LFS there")
def test_xet_makes_one_commit_too(alice: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    pushed = push_folder(folder, REPO)
    assert num_commits(alice) == 1
    assert set(alice.repo(REPO).resolve(pushed.commit).files) == {*local(folder), ".gitattributes"}
    assert alice.routes_asked() == [*FIRST_PUSH, "GET xet_write_token", "POST commit", "GET tree"]


def test_an_unchanged_folder_is_not_sent_and_makes_no_commit(alice: LoopbackHub, folder: Path) -> None:
    first = push_folder(folder, REPO)
    asked = len(alice.requests)
    assert push_folder(folder, REPO) == PushResult(first.commit, sent=[], removed=[])
    assert alice.routes_asked(asked) == ["GET refs", "GET tree"]


def test_only_what_changed_is_sent_and_what_is_stale_goes(alice: LoopbackHub, folder: Path) -> None:
    first = push_folder(folder, REPO)
    asked = len(alice.requests)
    before = local(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# other\n", encoding="utf-8")
    (folder / "LICENSE").write_text("MIT", encoding="utf-8")
    second = push_folder(folder, REPO)
    assert (second.sent, second.removed) == (["LICENSE", "README.md"], [])
    assert "PUT lfs_upload" not in alice.routes_asked(asked)
    assert content(alice) == local(folder)

    # From two shards to one file: the shards and their index go in the same commit.
    from safetensors.numpy import load_file, save_file

    shards = sorted(folder.glob("model-*.safetensors"))
    save_file({name: tensor for shard in shards for name, tensor in load_file(shard).items()}, folder / "joined")
    (folder / "joined").rename(folder / "model.safetensors")
    for path in (*shards, folder / "model.safetensors.index.json", folder / "LICENSE"):
        path.unlink()
    third = push_folder(folder, REPO)
    assert third.sent == ["model.safetensors"]
    assert third.removed == ["LICENSE", *(shard.name for shard in shards), "model.safetensors.index.json"]
    assert content(alice) == local(folder)
    assert ".gitattributes" in alice.repo(REPO).head().files
    assert num_commits(alice) == 3
    # What was pinned stays as it was.
    assert content(alice, first.commit) == before


def test_branch_tag_and_privacy(alice: LoopbackHub, folder: Path) -> None:
    pushed = push_folder(folder, REPO, revision="try/1", private=True, tag="v0.1", message="First try")
    repository = alice.repo(REPO)
    assert repository.private
    assert repository.branches["try/1"] == repository.tags["v0.1"] == pushed.commit
    assert set(repository.head().files) == {".gitattributes"}
    assert repository.resolve("try/1").title == "First try"
    # Again, with the tag where it is; to main the same files go as they are.
    assert push_folder(folder, REPO, revision="try/1", tag="v0.1").commit == pushed.commit
    (folder / "README.md").write_text("# other", encoding="utf-8")
    asked = len(alice.requests)
    with pytest.raises(OSError, match=f"the tag v0.1 exists at another commit, {pushed.commit}: choose another tag"):
        push_folder(folder, REPO, revision="try/1", tag="v0.1")
    assert not [route for route in alice.routes_asked(asked) if route.startswith(("POST", "PUT"))]
    assert num_commits(alice) == 1


@pytest.mark.parametrize("kind", ["500", "reset", "lost", "cut", "hang"])
def test_no_fault_at_the_commit_makes_a_second_one(alice: LoopbackHub, folder: Path, kind: str) -> None:
    """The client gives up at each of these."""
    fault = alice.fault("POST commit", kind)
    pushed = push_folder(folder, REPO, tag="v1", timeout=20)
    assert len(fault.hits) == 1
    assert num_commits(alice) == 1
    assert pushed.sent == sorted(local(folder))  # said also by the attempt that found it done
    assert alice.repo(REPO).head().sha == alice.repo(REPO).tags["v1"] == pushed.commit
    assert content(alice) == local(folder)
    # What had arrived was not sent again.
    assert alice.routes_asked().count("PUT lfs_upload") == len(list(folder.glob("*.safetensors")))


def test_somebody_elses_push_is_not_overwritten(alice: LoopbackHub, folder: Path) -> None:
    def push_in_between(request: Request) -> None:
        repository = alice.repo(REPO)
        repository.add_commit("main", repository.head().files, "theirs", "", "alice")

    alice.fault("POST commit", push_in_between)
    with pytest.raises(OSError, match="somebody else pushed to main meanwhile: look at that, then push again"):
        push_folder(folder, REPO)
    assert alice.repo(REPO).head().title == "theirs"
    push_folder(folder, REPO)
    assert content(alice) == local(folder)


def test_what_arrives_damaged_is_found(alice: LoopbackHub, folder: Path) -> None:
    def damage(request: Request) -> None:
        repository = alice.repo(REPO)
        if num_commits(alice):
            name = "generation_config.json"
            files = repository.head().files
            files[name] = type(files[name]).regular(files[name].content[:-2] + b" }")

    alice.fault("GET tree", damage, times=9)
    with pytest.raises(OSError, match="did not arrive as it was sent.*generation_config.json"):
        push_folder(folder, REPO)


def test_a_repository_with_other_files_is_left_alone(alice: LoopbackHub, folder: Path) -> None:
    repository = alice.add_repository(REPO)
    file = repository.head().files[".gitattributes"]
    repository.add_commit("main", {**repository.head().files, "pytorch_model.bin": file}, "theirs", "", "alice")
    with pytest.raises(OSError, match="it holds pytorch_model.bin, which no push of ours writes or removes"):
        push_folder(folder, REPO)
    assert num_commits(alice) == 1


@pytest.mark.parametrize("route", ["GET refs", "PUT lfs_upload"])
def test_nothing_hangs(alice: LoopbackHub, folder: Path, route: str) -> None:
    alice.fault(route, "hang", times=99)
    started = time.monotonic()
    with pytest.raises(OSError, match="had not taken it after 2 seconds, so it was stopped: push .* again"):
        push_folder(folder, REPO, timeout=2)
    assert time.monotonic() - started < 4
    alice.heal()
    push_folder(folder, REPO)
    assert content(alice) == local(folder)


def test_a_push_ends_with_the_process_that_started_it(alice: LoopbackHub, folder: Path) -> None:
    fault = alice.fault("POST commit", "hang", times=99)
    code = "import sys; from hf_gpt_scratch.hub.push import push_folder; push_folder(*sys.argv[1:])"
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder), REPO])
    while not fault.hits:
        time.sleep(0.01)
    (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert num_commits(alice) == 0


def test_stopping_leaves_no_process(alice: LoopbackHub, folder: Path) -> None:
    alice.fault("GET refs", "hang", times=99)
    push = PushProcess(prepare_push(folder, REPO))
    assert push.is_running
    push.stop()
    assert not push.is_running
    assert push.process.returncode == -signal.SIGKILL


@pytest.fixture
def older(alice: LoopbackHub, folder: Path, tmp_path: Path) -> Path:
    """What the repository holds: code of an older release on two branches, files of its owner, and weights."""
    older = make_older(shutil.copytree(folder, tmp_path / "older"))
    repository = alice.add_repository(REPO)
    files = {path.name: File.regular(path.read_bytes()) for path in older.iterdir()}
    for name in [name for name in files if name.endswith(".safetensors")]:
        data = files[name].content
        sha256 = hashlib.sha256(data).hexdigest()
        repository.uploads[sha256] = data
        files[name] = File.large(sha256, len(data))
    files |= {"notes/own.txt": File.regular(b"own"), ".gitattributes": repository.head().files[".gitattributes"]}
    repository.add_commit("main", files, "older", "", "alice")
    repository.branches["v0"] = repository.head().sha
    (older / "notes").mkdir()
    (older / "notes" / "own.txt").write_text("own", encoding="utf-8")
    return older


def test_only_the_code_of_a_repository_is_brought_up_to_date(
    alice: LoopbackHub, older: Path, finished_folder: Path
) -> None:
    repository = alice.repo(REPO)
    before = content(alice)
    asked = len(alice.requests)
    said = update_code(REPO, revision="v0")
    head = repository.resolve("v0")
    names = f"{', '.join(ENTRIES)}, config.json"
    assert said == f"updated {REPO}, commit {head.sha}: wrote {names}; removed {DROPPED}"
    assert (head.title, content(alice)) == ("Update code", before)
    assert repository.history("v0")[1].sha == repository.branches["main"]
    changed = {*ENTRIES, "config.json", DROPPED}
    kept = {name: data for name, data in before.items() if name not in changed}
    assert content(alice, "v0") == kept | {
        name: data for name, data in local(finished_folder).items() if name in changed
    }
    # The weights went neither way.
    assert all("safetensors" not in request.path for request in alice.requests)
    routes = alice.routes_asked(asked)
    assert [route for route in routes if route.startswith(("POST", "PUT"))] == ["POST preupload", "POST commit"]
    downloaded = {Path(request.path).name for request in alice.requests if "/resolve/" in request.path}
    assert downloaded == {"config.json", "tokenizer_config.json"}

    commits = len(repository.commits)
    assert update_code(REPO, revision="v0") == f"{REPO}, commit {head.sha} is up to date already"
    assert len(repository.commits) == commits
    assert not alice.unknown


@pytest.mark.parametrize("kind", ["500", "reset", "lost"])
def test_no_fault_makes_a_second_update(alice: LoopbackHub, older: Path, kind: str) -> None:
    alice.fault("POST commit", kind)
    commits = len(alice.repo(REPO).commits)
    said = update_code(REPO, timeout=20)
    assert f"removed {DROPPED}" in said
    assert len(alice.repo(REPO).commits) == commits + 1
    assert alice.repo(REPO).head().sha in said


def test_a_push_removes_the_code_of_an_older_release(
    alice: LoopbackHub, older: Path, folder: Path, tmp_path: Path
) -> None:
    repository = alice.repo(REPO)
    files = {name: file for name, file in repository.head().files.items() if name != "notes/own.txt"}
    repository.add_commit("main", files, "without notes", "", "alice")
    assert push_folder(folder, REPO).removed == [DROPPED]
    assert content(alice) == local(folder)
    shutil.rmtree(older / "notes")
    with pytest.raises(ValueError, match=f"{DROPPED} is code of another release, bring it up to date by --update-"):
        push_folder(older, REPO)
    update_code(str(older))
    push_folder(older, REPO)


def test_pushing_needs_no_torch() -> None:
    code = "import sys, hf_gpt_scratch.hub.push; print('torch' in sys.modules or 'transformers' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "False\n"


def test_nothing_in_the_working_folder_is_run(
    alice: LoopbackHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('run')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    push_folder(folder, REPO)


@pytest.mark.parametrize("xet", ["0", "1"])
def test_the_token_is_in_no_output_whatever_the_verbosity(
    alice: LoopbackHub, folder: Path, xet: str, project_root: Path, tmp_path: Path
) -> None:
    token = alice.token_of("alice")
    loud = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "RUST_LOG": "trace", "HF_GPT_SCRATCH_TRACEBACK": "1"}
    outputs = []
    for fault in (None, "403"):
        if fault:
            alice.fault("POST commit", fault)
            (folder / "README.md").write_text(fault, encoding="utf-8")
        script = [sys.executable, project_root / "scripts" / "push_to_hub.py", folder, REPO]
        environment = {**os.environ, **loud, "HF_HUB_DISABLE_XET": xet}
        result = subprocess.run(script, env=environment, capture_output=True, timeout=60)
        assert result.returncode == (1 if fault == "403" else 0), result.stderr[-2000:]
        outputs.append(result.stdout + result.stderr)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.log"))
    # Debugging was on, and the requests went with the token.
    assert all(b"authorization" in output for output in outputs)
    assert {request.token for request in alice.requests if request.route == "POST commit"} == {token}
    assert token.encode() not in b"".join(outputs) + written


@pytest.mark.parametrize(
    ("repo_id", "options", "words"),
    [
        ("toy", {}, "'toy' is no name of a repository"),
        ("alice/to y", {}, "'alice/to y' is no name of a repository"),
        ("a/b/c", {}, "'a/b/c' is no name of a repository"),
        ("alice/x.git", {}, "'alice/x.git' is no name of a repository"),
        (REPO, {"revision": "a..b"}, "'a..b' is no name for a branch"),
        (REPO, {"revision": "refs/"}, "'refs/' is no name for a branch"),
        (REPO, {"revision": "0123abcd" * 5}, "is a commit, and nothing can be pushed to that: name a branch"),
        (REPO, {"tag": "v 1"}, "'v 1' is no name for a tag"),
        (REPO, {"tag": "-v1"}, "'-v1' is no name for a tag"),
        (REPO, {"timeout": 0}, "cannot be done in 0 seconds"),
        (REPO, {"timeout": float("nan")}, "cannot be done in nan seconds"),
    ],
)
def test_what_no_hub_would_take_is_refused_here(
    finished_folder: Path, repo_id: str, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        prepare_push(finished_folder, repo_id, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["main", "v0.1", "try/1", "a_b-c", "0123abc"])
def test_usual_names_are_taken(name: str) -> None:
    check_names(REPO, name, name)


def test_the_line_that_loads_names_class_commit_and_trust(finished_folder: Path, tmp_path: Path) -> None:
    line = load_line(finished_folder, REPO, "c0ffee")
    assert line == 'AutoModelForCausalLM.from_pretrained("alice/toy", revision="c0ffee", trust_remote_code=True)'
    config = json.loads((finished_folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["GPTScratchForTokenClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_line(tmp_path, REPO, "c0ffee").startswith("AutoModelForTokenClassification.")
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}', encoding="utf-8")
    assert (
        load_line(tmp_path, REPO, "c0ffee") == 'AutoModelForCausalLM.from_pretrained("alice/toy", revision="c0ffee")'
    )
