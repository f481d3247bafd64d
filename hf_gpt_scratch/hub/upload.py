"""One push, step by step, as a process of its own: `hub.push_folder` starts it and ends it when time is up.

Each attempt looks at what the Hub has and does what is left to do. So after an error, after an answer that got lost or
a kill, it is simply done again.
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
from hf_gpt_scratch.hub.folder import foreign_files, may_be_pushed
from hf_gpt_scratch.runtime.files import file_sha256
from hf_gpt_scratch.runtime.shipped_code import is_code, read_code


if TYPE_CHECKING:
    from httpx2 import Request

WAITS = (1, 2, 4)  # seconds before the second, third and fourth attempt
CONFIG = "config.json"
GIT_ATTRIBUTES = ".gitattributes"  # made by the Hub; says which files are large ones


@dataclass(frozen=True)
class PushRequest:
    """What to push, and where to.

    Raises:
        ValueError: no push is done in so short a time.
    """

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
    """What came of it."""

    commit: str
    sent: list[str]  # names of files
    removed: list[str]

    @property
    def is_new(self) -> bool:
        """Whether the branch was not already what it should be."""
        return bool(self.sent or self.removed)


class Refusal(OSError):
    """A push that we do not do; the line says what to do instead."""


class Push:
    """A push under way; `attempt` may be called again after an error.

    Args:
        order: what to do.
        token: the user's; it goes into the Authorization header and nowhere else.
    """

    def __init__(self, order: PushRequest, token: str) -> None:
        self.order = order
        self.api = HfApi(token=token, library_name="hf_gpt_scratch")
        self.files = self.read_files()
        self.repo_exists = False
        self.first_head: str | None = None  # of the branch; only we may move it
        self.changes: tuple[list[str], list[str]] | None = None  # as first seen

    def read_files(self) -> dict[str, Path | bytes]:
        """What the branch is to hold: name -> file or its content."""
        folder = self.order.folder
        paths = sorted(Path(folder).iterdir())
        # The folder was checked, but it may have changed since.
        if foreign := foreign_files(paths):
            raise Refusal(f"cannot push {folder}: {'; '.join(foreign)}")
        return {path.name: path for path in paths}

    def attempt(self) -> PushResult:
        """Bring the repository to what the folder is, in one commit, and see that it is.

        Raises:
            OSError: the Hub or the rules below refuse it; one line.
            HTTPError, RuntimeError, ValueError: what the client raises.
        """
        order = self.order
        limit_silence(order.answer_timeout)
        branches, tags = self.open_repository()
        head = branches.get(order.revision)
        if head is None:
            self.api.create_branch(order.repo_id, branch=order.revision, exist_ok=True)
            head = self.api.repo_info(order.repo_id, revision=order.revision).sha
        self.first_head = self.first_head or head
        changed, stale = self.differences(head)
        self.changes = self.changes or (changed, stale)
        if order.tag in tags:
            self.check_tag(head if not (changed or stale) else None)
        commit = self.commit(head, changed, stale) if changed or stale else head
        if order.tag is not None and order.tag not in tags:
            self.api.create_tag(order.repo_id, tag=order.tag, revision=commit)
        return PushResult(commit, *self.changes)

    def open_repository(self) -> tuple[dict[str, str], set[str]]:
        """Make the repository if there is none; its branches with their commits, and its tags."""
        order = self.order
        try:
            refs = self.list_refs()
        except RepositoryNotFoundError:
            self.api.create_repo(order.repo_id, private=order.private or None, exist_ok=True)
            refs = self.list_refs()
        if order.private and not self.api.repo_info(order.repo_id).private:
            raise Refusal(
                f"cannot push to {order.repo_id}: it is public already: leave out --private, make it private in its "
                "settings, or choose another name"
            )
        return refs

    def list_refs(self) -> tuple[dict[str, str], set[str]]:
        """The branches with their commits, and the tags."""
        refs = self.api.list_repo_refs(self.order.repo_id)
        self.repo_exists = True
        return {branch.name: branch.target_commit for branch in refs.branches}, {tag.name for tag in refs.tags}

    def differences(self, commit: str) -> tuple[list[str], list[str]]:
        """Compare every file of a commit that is ours to write by its hash: (new or changed, to be removed)."""
        remote = self.our_files(commit)
        changed = [name for name, file in self.files.items() if name not in remote or not is_same(remote[name], file)]
        return changed, sorted(remote.keys() - self.files.keys())

    def list_files(self, commit: str) -> dict[str, RepoFile]:
        """All files of a commit, but for the one that the Hub makes."""
        tree = self.api.list_repo_tree(self.order.repo_id, recursive=True, revision=commit)
        return {item.path: item for item in tree if isinstance(item, RepoFile) and item.path != GIT_ATTRIBUTES}

    def our_files(self, commit: str) -> dict[str, RepoFile]:
        """The files of a commit that a push writes or removes: all, or it is refused."""
        remote = self.list_files(commit)
        foreign = sorted(name for name in remote if not (may_be_pushed(name) or is_code(name)))
        if foreign:
            raise Refusal(
                f"cannot push to {self.order.repo_id}: it holds {', '.join(foreign[:8])}, which no push of ours "
                "writes or removes: delete that there, or choose another name"
            )
        return remote

    def check_tag(self, wanted: str | None) -> None:
        """Refuse to go on if the tag exists, unless it stands at `wanted` already."""
        order = self.order
        found = self.api.repo_info(order.repo_id, revision=order.tag).sha
        if found != wanted:
            raise Refusal(
                f"cannot push to {order.repo_id}: the tag {order.tag} exists at another commit, {found}: choose "
                "another tag, or delete it there"
            )

    def commit(self, head: str, changed: list[str], stale: list[str]) -> str:
        """One commit of all changes, then a look at what it holds.

        It names its parent, so the Hub refuses it if anything was committed meanwhile: also if that was ours, whose
        answer got lost. The next attempt sees which it was.
        """
        order = self.order
        if head != self.first_head:
            raise Refusal(
                f"cannot push to {order.repo_id}: somebody else pushed to {order.revision} meanwhile: look at that, "
                "then push again"
            )
        operations = [
            *(CommitOperationAdd(name, self.files[name]) for name in changed),
            *(CommitOperationDelete(name, is_folder=False) for name in stale),
        ]
        commit = self.api.create_commit(
            order.repo_id,
            operations,
            commit_message=order.message,
            revision=order.revision,
            parent_commit=head,
        ).oid
        wrong, left = self.differences(commit)
        if wrong or left:
            raise Refusal(
                f"the push to {order.repo_id} did not arrive as it was sent: commit {commit} differs from "
                f"{order.folder or 'this package'} in {', '.join([*wrong, *left])}: push again, and do not use that "
                "commit"
            )
        return commit


class CodeUpdate(Push):
    """A push of the code files alone, and of config.json where it names them; see `hub.update_code`."""

    def read_files(self) -> dict[str, Path | bytes]:
        """The code; config.json comes to it when that of the repository has been read."""
        return dict(read_code())

    def open_repository(self) -> tuple[dict[str, str], set[str]]:
        """The branches with their commits, and the tags, of a repository that has to be there."""
        order = self.order
        try:
            branches, tags = self.list_refs()
        except RepositoryNotFoundError:
            raise Refusal(
                f"cannot update {order.repo_id}: no folder of that name is here, and {self.api.endpoint} shows this "
                "token no such repository: check the name"
            ) from None
        if order.revision not in branches:
            raise Refusal(
                f"cannot update {order.repo_id}: it has no branch {order.revision}, only {', '.join(sorted(branches))}"
            )
        return branches, tags

    def our_files(self, commit: str) -> dict[str, RepoFile]:
        """The code files and config.json."""
        remote = self.list_files(commit)
        if CONFIG not in self.files:
            self.files[CONFIG] = self.read_config(commit, remote.keys())
        return {name: file for name, file in remote.items() if is_code(name) or name == CONFIG}

    def read_config(self, commit: str, names: Collection[str]) -> bytes:
        """What config.json is to be; it and the settings of the tokenizer are all that is downloaded."""
        repo_id = self.order.repo_id
        if CONFIG not in names:
            raise Refusal(f"cannot update {repo_id}: it holds no {CONFIG}, so it is no model repository")
        config, tokenizer_config = (
            Path(self.api.hf_hub_download(repo_id, name, revision=commit)).read_bytes() if name in names else None
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
    """What in the environment makes any push fail, and what to do; None if nothing does."""
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


def push(order: PushRequest) -> PushResult:
    """Try until it is done, a few times where the next attempt may succeed.

    Raises:
        OSError: what is wrong and what to do; one line, without the token.
    """
    problem = why_no_push()
    if problem:
        raise OSError(f"cannot push to {order.repo_id}: {problem}")
    token, endpoint = get_token(), HfApi().endpoint
    under_way = (CodeUpdate if order.folder is None else Push)(order, token)
    waits = iter(WAITS)
    while True:
        try:
            return under_way.attempt()
        except Exception as error:  # the client raises whatever comes: also RuntimeError, KeyError
            wait = next(waits, None)
            if wait is None or not (is_transient(error) or is_conflict(error)):
                if os.environ.get("HF_GPT_SCRATCH_TRACEBACK") == "1":
                    traceback.print_exc()
                is_ours = isinstance(error, Refusal)
                line = str(error) if is_ours else explain(error, order.repo_id, endpoint, under_way.repo_exists)
                raise OSError(redact(line, token)) from None
        time.sleep(wait)


def limit_silence(seconds: float) -> None:
    """Let no request of the client wait longer for the next byte; it would wait for ever, and some calls ask for that.

    A client made after a connection failed has no limit, so this is to be done before each attempt.
    """

    def limit(request: "Request") -> None:
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)

    get_session().event_hooks["request"].append(limit)


def is_conflict(error: Exception) -> bool:
    """Whether the branch has moved since it was looked at, or a tag or branch came into being: look again."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)


def end_with_parent() -> None:
    """Stop at once when the process that started this one is gone: its end of our standard input closes."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Take an order as JSON from the command line; answer with JSON on standard output."""
    end_with_parent()
    if "HF_DEBUG" not in os.environ and "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    try:
        pushed = push(PushRequest(**json.loads(sys.argv[1])))
        answer = vars(pushed)
    except OSError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    # Threads of an upload that hangs would keep an orderly end waiting.
    os._exit(0)


if __name__ == "__main__":
    main()
