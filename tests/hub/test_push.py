"""Proves the push against a Hub on this machine, with the client that users have.

One commit holds the whole folder; what is there is not sent again; what is stale goes; no fault makes a second commit;
nothing hangs; the token is in no output. The steps are proved in test_upload.py, errors in test_errors.py.
"""

import json
import os
import re
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
)
from hf_gpt_scratch.runtime.remote_code import CODE_FILES
from tests.hub.pushes import REPO, content, local, num_commits
from tests.loopback_hub import LoopbackHub


FIRST_PUSH = ["GET refs", "POST create", "GET refs", "GET tree", "POST validate_yaml", "POST preupload"]


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
        ("toy", {}, "'toy' is not the name of a repository"),
        ("alice/to y", {}, "'alice/to y' is not the name of a repository"),
        ("a/b/c", {}, "'a/b/c' is not the name of a repository"),
        ("alice/x.git", {}, "'alice/x.git' is not the name of a repository"),
        (REPO, {"revision": "a..b"}, "'a..b' is not a name for a branch"),
        (REPO, {"revision": "refs/"}, "'refs/' is not a name for a branch"),
        (REPO, {"revision": "0123abcd" * 5}, "is a commit, and nothing can be pushed to that: name a branch"),
        (REPO, {"tag": "v 1"}, "'v 1' is not a name for a tag"),
        (REPO, {"tag": "-v1"}, "'-v1' is not a name for a tag"),
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
