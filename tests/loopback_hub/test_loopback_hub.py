"""Proves that the real client finds in the loopback Hub what the real Hub has: files, rights, names, and errors.

The exceptions are those of the client's own documentation; the client is the installed one, over real HTTP.
"""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from . import LoopbackHub


REPO = "alice/toy"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Regular files and large ones, one of them in a folder below."""
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# toy\n", encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    generator = random.Random(1)
    (folder / "model.safetensors").write_bytes(generator.randbytes(300_000))
    (folder / "below" / "plot.png").write_bytes(generator.randbytes(1_000))
    return folder


@pytest.fixture(params=["lfs", "xet"])
def transfer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways in which the client sends large files."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


@pytest.fixture
def lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def api_of(hub: LoopbackHub, user: str, role: str = "write") -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token_of(user, role))


def push(api: HfApi, folder: Path) -> str:
    api.create_repo(REPO, exist_ok=True)
    return api.upload_folder(repo_id=REPO, folder_path=folder).oid


def files_of(folder: Path) -> dict[str, bytes]:
    """The files that git would keep, but for the one that the Hub makes."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def test_a_folder_comes_back_byte_for_byte(hub: LoopbackHub, folder: Path, transfer: str, tmp_path: Path) -> None:
    """And the second push sends nothing; the client's own comparison of checksums finds the same."""
    api = api_of(hub, "alice")
    sha = push(api, folder)
    assert "GET xet_write_token" in hub.routes_asked() or transfer == "lfs"
    assert "PUT lfs_upload" in hub.routes_asked() or transfer == "xet"
    pulled = Path(api.snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    assert pulled.name == sha
    assert files_of(pulled) == files_of(folder)
    number = len(hub.requests)
    assert push(api, folder) == sha
    assert not {"PUT lfs_upload", "POST commit"} & set(hub.routes_asked(number))
    assert len(hub.repo(REPO).commits) == 2
    verified = api.verify_repo_checksums(REPO, local_dir=folder)
    assert (verified.checked_count, verified.mismatches) == (4, [])
    assert hub.unknown == []


def test_only_one_file_that_changed_is_sent(hub: LoopbackHub, folder: Path, transfer: str, tmp_path: Path) -> None:
    api = api_of(hub, "alice")
    first = push(api, folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[::-1])
    second = push(api, folder)
    commits = hub.repo(REPO).commits
    assert [commit.sha for commit in commits[1:]] == [first, second]
    changed = {path for path, file in commits[2].files.items() if commits[1].files[path] != file}
    assert changed == {"model.safetensors"}
    for sha, expected in ((first, content), (second, content[::-1])):
        path = api.hf_hub_download(REPO, "model.safetensors", revision=sha, cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == expected


@pytest.mark.usefixtures("lfs")
def test_a_large_upload_comes_in_parts(hub: LoopbackHub, folder: Path) -> None:
    hub.part_size = 100_001
    hub.offers_verify = False
    push(api_of(hub, "alice"), folder)
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert hub.repo(REPO).uploads[sha256] == (folder / "model.safetensors").read_bytes()
    assert hub.routes_asked().count("PUT lfs_upload_part") == 3
    assert "POST lfs_verify" not in hub.routes_asked()


@pytest.mark.usefixtures("lfs")
def test_the_token_is_not_shown_to_the_second_origin(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    api = api_of(hub, "alice")
    push(api, folder)
    hub.repo(REPO).private = True
    api.snapshot_download(REPO, cache_dir=tmp_path / "cache")
    tokens = {origin: {r.token for r in hub.requests if r.origin == origin} for origin in ("hub", "cdn")}
    assert tokens == {"hub": {hub.token_of("alice")}, "cdn": {None}}
    assert {request.method for request in hub.requests if request.origin == "cdn"} == {"PUT", "GET"}


def refused(status: int) -> Callable[[HfHubHTTPError], bool]:
    return lambda error: error.response.status_code == status


def test_rights_are_those_of_the_hub(hub: LoopbackHub, folder: Path) -> None:
    push(api_of(hub, "alice"), folder)
    nobody, wrong = HfApi(endpoint=hub.url, token=False), HfApi(endpoint=hub.url, token="hf_wrong")
    bob, reader = api_of(hub, "bob"), api_of(hub, "alice", "read")
    assert api_of(hub, "alice").whoami()["orgs"][0]["name"] == "lab"
    api_of(hub, "alice").create_repo("lab/toy")
    for api, status in ((nobody, 401), (wrong, 401), (bob, 403), (reader, 403)):
        with pytest.raises(HfHubHTTPError, check=refused(status)):
            api.create_repo("alice/other")
        with pytest.raises(HfHubHTTPError, check=refused(status)):
            api.upload_file(repo_id=REPO, path_in_repo="x.txt", path_or_fileobj=b"x")
    with pytest.raises(HfHubHTTPError, match="already created", check=refused(409)):
        api_of(hub, "alice").create_repo(REPO)
    for api in (nobody, bob, reader):
        assert api.model_info(REPO).sha == hub.repo(REPO).head().sha
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header"):
        wrong.model_info(REPO)
    hub.repo(REPO).private = True
    assert reader.model_info(REPO).private
    for api in (nobody, bob):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(REPO)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("alice/none")
    assert hub.unknown == []


def test_a_gated_repository_is_known_to_all_and_read_by_some(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    push(api_of(hub, "alice"), folder)
    hub.repo(REPO).gated = True
    for user in ("bob", None):
        api = api_of(hub, user) if user else HfApi(endpoint=hub.url, token=False)
        assert api.model_info(REPO).gated == "manual"
        with pytest.raises(GatedRepoError):
            api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path / "cache")
    hub.repo(REPO).readers.add("bob")
    api_of(hub, "bob").hf_hub_download(REPO, "config.json", cache_dir=tmp_path / "cache")


def test_branches_tags_and_history(hub: LoopbackHub, folder: Path) -> None:
    api = api_of(hub, "alice")
    first = push(api, folder)
    api.create_branch(REPO, branch="with/slash", revision=first)
    (folder / "config.json").write_text('{"a": 1}', encoding="utf-8")
    second = api.upload_folder(repo_id=REPO, folder_path=folder, revision="with/slash").oid
    api.create_tag(REPO, tag="v0.1", revision=second, tag_message="first")
    assert [api.model_info(REPO, revision=name).sha for name in (None, "with/slash", "v0.1", first)] == [
        *(first, second, second, first)
    ]
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "with/slash": second}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v0.1": second}
    titles = [commit.title for commit in api.list_repo_commits(REPO, revision="v0.1")]
    assert titles == ["Upload folder using huggingface_hub"] * 2 + ["initial commit"]
    with pytest.raises(HfHubHTTPError, check=refused(409)):
        api.create_tag(REPO, tag="v0.1")
    with pytest.raises(HfHubHTTPError, check=refused(409)):
        api.create_branch(REPO, branch="main")
    api.delete_tag(REPO, tag="v0.1")
    api.delete_branch(REPO, branch="with/slash")
    for revision in ("with/slash", "v0.1"):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision=revision)
    assert hub.unknown == []


def test_a_commit_on_a_parent_that_is_gone_is_refused(hub: LoopbackHub, folder: Path, transfer: str) -> None:
    api = api_of(hub, "alice")
    first = push(api, folder)
    (folder / "config.json").write_text('{"a": 1}', encoding="utf-8")
    push(api, folder)
    (folder / "config.json").write_text('{"a": 2}', encoding="utf-8")
    with pytest.raises(HfHubHTTPError, check=refused(412)):
        api.upload_folder(repo_id=REPO, folder_path=folder, parent_commit=first)
    assert len(hub.repo(REPO).commits) == 3


def test_what_is_not_there_is_told_apart(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    api = api_of(hub, "alice")
    push(api, folder)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "none.txt", cache_dir=tmp_path / "cache")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "none"))
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "config.json", revision="none", cache_dir=tmp_path / "cache")
    assert [entry.path for entry in api.list_repo_tree(REPO, "below")] == ["below/plot.png"]
    assert {entry.path for entry in api.list_repo_tree(REPO)} == {
        *(".gitattributes", "README.md", "config.json", "model.safetensors", "below")
    }


def test_a_card_with_errors_is_refused(hub: LoopbackHub, folder: Path, transfer: str) -> None:
    hub.card_errors = lambda content: ["license must be one of ..."] if "apache" in content else []
    api = api_of(hub, "alice")
    with pytest.raises(ValueError, match="license must be one of"):
        push(api, folder)
    assert len(hub.repo(REPO).commits) == 1


def test_a_process_finds_the_hub_by_its_environment(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repository(REPO)
    code = f"import huggingface_hub as h; h.upload_folder(repo_id='{REPO}', folder_path={str(folder)!r})"
    environment = os.environ | hub.environment(tmp_path / "home", hub.token_of("alice"))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert hub.repo(REPO).head().files["config.json"].content == b"{}"


def test_an_unknown_route_is_told_and_written_down(hub: LoopbackHub) -> None:
    with pytest.raises(HfHubHTTPError, check=refused(404)):
        api_of(hub, "alice").get_collection("alice/some-collection")
    assert hub.unknown == ["unknown: GET /api/collections/alice/some-collection"]
