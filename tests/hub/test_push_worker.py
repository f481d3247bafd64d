"""Proves the steps of a push: branches and tags, one commit whatever fails, and what arrived is compared.

Every request of it fails in tests/sharing.
"""

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from packaging.version import Version

from hf_gpt_scratch.hub.push import push_folder, update_code
from tests.hub.pushes import REPO, content, local, num_commits
from tests.loopback_hub import File, LoopbackHub, Request
from tests.older_release import DROPPED, ENTRIES, make_older


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


@pytest.mark.skipif(Version(huggingface_hub.__version__) < Version("2.4"), reason="not looked at below 2.4")
def test_what_the_client_alone_does_at_a_commit(alice: LoopbackHub, folder: Path) -> None:
    """It makes no empty one, and tries again what the server could not do."""
    api = HfApi(endpoint=alice.url, token=alice.token_of("alice"))
    api.create_repo(REPO)
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert num_commits(alice) == 1
    for count, status in enumerate(("500", "503"), 2):
        fault = alice.fault("POST commit", status)
        (folder / "README.md").write_text(f"# {status}", encoding="utf-8")
        api.upload_folder(repo_id=REPO, folder_path=folder)
        assert (len(fault.hits), num_commits(alice)) == (1, count)


UPLOAD = """
import sys
from huggingface_hub import HfApi

HfApi().create_repo(sys.argv[1])
HfApi().upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
"""


@pytest.mark.skipif(Version(huggingface_hub.__version__) < Version("2.4"), reason="not looked at below 2.4")
def test_the_client_sends_by_xet_and_takes_no_deadline(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    environment = os.environ | hub.environment(tmp_path / "home", hub.token_of("alice"))
    del environment["HF_HUB_DISABLE_XET"]
    subprocess.run([sys.executable, "-c", UPLOAD, REPO, folder], env=environment, check=True, timeout=120)
    assert "GET xet_write_token" in hub.routes_asked()
    assert "PUT lfs_upload" not in hub.routes_asked()
    assert num_commits(hub) == 1
    assert not {"timeout", "deadline"} & set(inspect.signature(HfApi.upload_folder).parameters)


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
    with pytest.raises(OSError, match="it holds pytorch_model.bin, which a push does not write or remove"):
        push_folder(folder, REPO)
    assert num_commits(alice) == 1


@pytest.fixture
def older(alice: LoopbackHub, folder: Path, tmp_path: Path) -> Path:
    """Fill the repository with code of an older release on two branches, files of its owner, and weights."""
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
    line = f"{DROPPED} is code of another release, bring it up to date by --update_code"
    with pytest.raises(ValueError, match=line):
        push_folder(older, REPO)
    update_code(str(older))
    push_folder(older, REPO)
