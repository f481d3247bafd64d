"""One push, step by step, as a process of its own: `hub.push` starts it and kills it when time is up.

A process whose uploads hang cannot end by itself, since the client joins their threads; a training run would hang with
it. The price is 0.5 s of CPU time and 40 MB.

Each attempt looks at what the Hub has and does what is left to do. So after an error, a lost answer or a kill, it is
simply done again.
"""

import hashlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OIDCError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging
from huggingface_hub.utils.sha import git_hash

from hf_gpt_scratch.hub.code_update import update_config
from hf_gpt_scratch.hub.errors import explain, is_transient, redact
from hf_gpt_scratch.hub.pushable_files import foreign_files, may_be_pushed
from hf_gpt_scratch.runtime.files import file_sha256
from hf_gpt_scratch.runtime.remote_code import is_code, read_code


if TYPE_CHECKING:
    from httpx2 import Request

WAITS = (1, 2, 4)  # seconds before the second, third and fourth attempt
CONFIG = "config.json"
GIT_ATTRIBUTES = ".gitattributes"  # made by the Hub; says which files are large ones


@dataclass(frozen=True)
class PushRequest:
    """A model folder, and the repository that it is pushed to."""

    folder: str | None  # None: only the code files of this package, into a repository that exists
    repo_id: str
    revision: str = "main"
    private: bool = False
    tag: str | None = None
    message: str = "Upload model"
    timeout: float = 6 * 3600.0  # seconds for the whole push: silence ends it earlier, a slow line takes long

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"a push cannot be done in {self.timeout:g} seconds: allow more")

    @property
    def answer_timeout(self) -> float:
        """Seconds of silence after which a request counts as lost: short enough for some attempts."""
        return min(120.0, self.timeout / 10)


@dataclass(frozen=True)
class PushResult:
    """The commit of a push, and what it changed."""

    commit: str
    sent: list[str]  # names of files
    removed: list[str]

    @property
    def is_new(self) -> bool:
        """Return True if the branch was not already what it should be."""
        return bool(self.sent or self.removed)


class Refusal(OSError):
    """A push that is not done; the message says what to do instead."""


class Push:
    """A push under way; `attempt` may be called again after an error. The token goes into a header alone."""

    def __init__(self, request: PushRequest, token: str) -> None:
        self.request = request
        self.api = HfApi(token=token, library_name="hf_gpt_scratch")
        self.files = self.read_files()
        self.repo_exists = False
        self.first_head: str | None = None  # of the branch; only this push may move it
        self.changes: tuple[list[str], list[str]] | None = None  # as first seen

    def read_files(self) -> dict[str, Path | bytes]:
        """Return what the branch is to hold: name -> file or its content."""
        folder = Path(str(self.request.folder))
        paths = sorted(folder.iterdir())
        # The folder was checked, but it may have changed since.
        if foreign := foreign_files(paths):
            raise Refusal(f"cannot push {folder}: {'; '.join(foreign)}")
        return {path.name: path for path in paths}

    def attempt(self) -> PushResult:
        """Bring the repository to what the folder is, in one commit, and verify it.

        Raises:
            OSError: the Hub or the rules below refuse it; one line.
            HTTPError, RuntimeError, ValueError: what the client raises.
        """
        request = self.request
        limit_silence(request.answer_timeout)
        branches, tags = self.open_repository()
        head = branches.get(request.revision)
        if head is None:
            self.api.create_branch(request.repo_id, branch=request.revision, exist_ok=True)
            head = self.commit_of(request.revision)
        self.first_head = self.first_head or head
        changed, stale = self.differences(head)
        self.changes = self.changes or (changed, stale)
        if request.tag is not None and request.tag in tags:
            self.check_tag(request.tag, head if not (changed or stale) else None)
        commit = self.commit(head, changed, stale) if changed or stale else head
        if request.tag is not None and request.tag not in tags:
            self.api.create_tag(request.repo_id, tag=request.tag, revision=commit)
        return PushResult(commit, *self.changes)

    def open_repository(self) -> tuple[dict[str, str], set[str]]:
        """Make the repository if there is none; return its branches with their commits, and its tags."""
        request = self.request
        try:
            refs = self.list_refs()
        except RepositoryNotFoundError:
            self.api.create_repo(request.repo_id, private=request.private or None, exist_ok=True)
            refs = self.list_refs()
        if request.private and not self.api.repo_info(request.repo_id).private:
            raise Refusal(
                f"cannot push to {request.repo_id}: it is public already: leave out --private, make it private in its "
                "settings, or choose another name"
            )
        return refs

    def list_refs(self) -> tuple[dict[str, str], set[str]]:
        """Return the branches with their commits, and the tags."""
        refs = self.api.list_repo_refs(self.request.repo_id)
        self.repo_exists = True
        return {branch.name: branch.target_commit for branch in refs.branches}, {tag.name for tag in refs.tags}

    def differences(self, commit: str) -> tuple[list[str], list[str]]:
        """Compare the files that this push writes with a commit, by hash: (new or changed, to be removed)."""
        remote = self.writable_files(commit)
        changed = [name for name, file in self.files.items() if name not in remote or not is_same(remote[name], file)]
        return changed, sorted(remote.keys() - self.files.keys())

    def list_files(self, commit: str) -> dict[str, RepoFile]:
        """Return all files of a commit but the one that the Hub makes."""
        tree = self.api.list_repo_tree(self.request.repo_id, recursive=True, revision=commit)
        return {item.path: item for item in tree if isinstance(item, RepoFile) and item.path != GIT_ATTRIBUTES}

    def writable_files(self, commit: str) -> dict[str, RepoFile]:
        """Return the files of a commit that this push may write or remove: all, or it is refused."""
        remote = self.list_files(commit)
        foreign = sorted(name for name in remote if not (may_be_pushed(name) or is_code(name)))
        if foreign:
            raise Refusal(
                f"cannot push to {self.request.repo_id}: it holds {', '.join(foreign[:8])}, which a push does not "
                "write or remove: delete that there, or choose another name"
            )
        return remote

    def commit_of(self, revision: str) -> str:
        """Return the commit that a branch or tag points to."""
        return str(self.api.repo_info(self.request.repo_id, revision=revision).sha)

    def check_tag(self, tag: str, wanted: str | None) -> None:
        """Raise Refusal if the tag is not at `wanted` already."""
        found = self.commit_of(tag)
        if found != wanted:
            raise Refusal(
                f"cannot push to {self.request.repo_id}: the tag {tag} exists at another commit, {found}: choose "
                "another tag, or delete it there"
            )

    def commit(self, head: str, changed: list[str], stale: list[str]) -> str:
        """Make one commit of all changes, and compare what it holds.

        It names its parent, so the Hub refuses it if anything was committed meanwhile: also if that was this push,
        whose answer got lost. The next attempt sees which it was.
        """
        request = self.request
        if head != self.first_head:
            raise Refusal(
                f"cannot push to {request.repo_id}: somebody else pushed to {request.revision} meanwhile: look at "
                "that, then push again"
            )
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, self.files[name]) for name in changed),
            *(CommitOperationDelete(name, is_folder=False) for name in stale),
        ]
        commit = self.api.create_commit(
            request.repo_id, operations, commit_message=request.message, revision=request.revision, parent_commit=head
        ).oid
        wrong, left = self.differences(commit)
        if wrong or left:
            raise Refusal(
                f"the push to {request.repo_id} did not arrive as it was sent: commit {commit} differs from "
                f"{request.folder or 'this package'} in {', '.join([*wrong, *left])}: push again, and do not use that "
                "commit"
            )
        return commit


class CodeUpdate(Push):
    """A push of the code files alone, and of config.json where it names them; see `hub.push.update_code`."""

    def read_files(self) -> dict[str, Path | bytes]:
        """Return the code; config.json is added when that of the repository has been read."""
        return dict(read_code())

    def open_repository(self) -> tuple[dict[str, str], set[str]]:
        """Return branches with their commits and tags of a repository that has to be there."""
        request = self.request
        try:
            branches, tags = self.list_refs()
        except RepositoryNotFoundError:
            raise Refusal(
                f"cannot update {request.repo_id}: no folder of that name is here, and {self.api.endpoint} shows this "
                "token no such repository: check the name"
            ) from None
        if request.revision not in branches:
            raise Refusal(
                f"cannot update {request.repo_id}: it has no branch {request.revision}, only "
                f"{', '.join(sorted(branches))}"
            )
        return branches, tags

    def writable_files(self, commit: str) -> dict[str, RepoFile]:
        """Return the code files and config.json."""
        remote = self.list_files(commit)
        if CONFIG not in self.files:
            self.files[CONFIG] = self.read_config(commit, remote.keys())
        return {name: file for name, file in remote.items() if is_code(name) or name == CONFIG}

    def read_config(self, commit: str, names: Collection[str]) -> bytes:
        """Return the new config.json; the old one and the tokenizer's settings are all that is downloaded."""
        repo_id = self.request.repo_id
        if CONFIG not in names:
            raise Refusal(f"cannot update {repo_id}: it holds no {CONFIG}, so it is not a model repository")
        config, tokenizer_config = (
            Path(self.api.hf_hub_download(repo_id, name, revision=commit)).read_bytes() if name in names else b"{}"
            for name in (CONFIG, "tokenizer_config.json")
        )
        try:
            return update_config(config, tokenizer_config, repo_id)
        except ValueError as error:
            raise Refusal(str(error)) from None


def is_same(remote: RepoFile, file: Path | bytes) -> bool:
    """Compare a file with the hash that the Hub has of it: SHA-256 of a large file, git's of any other."""
    if remote.size != (len(file) if isinstance(file, bytes) else file.stat().st_size):
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == (
            hashlib.sha256(file).hexdigest() if isinstance(file, bytes) else file_sha256(file)
        )
    return remote.blob_id == git_hash(file if isinstance(file, bytes) else file.read_bytes())


def why_no_push() -> str | None:
    """Say what in the environment makes any push fail, and what to do; None if nothing does."""
    endpoint = HfApi().endpoint
    if is_offline_mode():
        return "offline mode is on: unset HF_HUB_OFFLINE and push again"
    try:
        reason = "" if get_token() else "none is stored or set"
    except (OIDCError, HTTPError, OSError) as error:  # some tokens are fetched
        reason = redact(str(error), None)
    if not reason:
        return None
    return (
        f"no token for {endpoint} ({reason}): run `hf auth login`, or set HF_TOKEN, with a token of "
        f"{endpoint}/settings/tokens that has the right to write"
    )


def push(request: PushRequest) -> PushResult:
    """Push, with further attempts where the next may succeed; OSError says what is wrong, without the token."""
    problem = why_no_push()
    if problem:
        raise OSError(f"cannot push to {request.repo_id}: {problem}")
    token, endpoint = get_token(), HfApi().endpoint
    push_ = (CodeUpdate if request.folder is None else Push)(request, str(token))
    waits = iter(WAITS)
    while True:
        try:
            return push_.attempt()
        except Exception as error:  # the client raises whatever comes: also RuntimeError, KeyError
            wait = next(waits, None)
            if wait is None or not (is_transient(error) or is_conflict(error)):
                if os.environ.get("HF_GPT_SCRATCH_TRACEBACK") == "1":
                    traceback.print_exc()
                is_refusal = isinstance(error, Refusal)
                line = str(error) if is_refusal else explain(error, request.repo_id, endpoint, push_.repo_exists)
                raise OSError(redact(line, token)) from None
        time.sleep(wait)


def limit_silence(seconds: float) -> None:
    """Limit the silence of every request of the client, of which some set no timeout.

    A client made after a connection failed has no limit: call this before each attempt.
    """

    def limit(request: "Request") -> None:
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)

    get_session().event_hooks["request"].append(limit)


def is_conflict(error: Exception) -> bool:
    """Return True if the branch has moved since it was read, or a tag or branch was made meanwhile."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)


def end_with_parent() -> None:
    """End this process when the one that started it is gone, whose end of standard input closes then."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Take a request as JSON from the command line; answer with JSON on standard output."""
    end_with_parent()
    if "HF_DEBUG" not in os.environ and "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    try:
        answer = vars(push(PushRequest(**json.loads(sys.argv[1]))))
    except OSError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    # Threads of an upload that hangs would keep an orderly end waiting.
    os._exit(0)


if __name__ == "__main__":
    main()
