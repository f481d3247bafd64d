"""Push a model folder to the Hub: checked before, one commit, verified after, in a process that can be ended."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_gpt_scratch.hub.code_update import update_folder
from hf_gpt_scratch.hub.errors import redact
from hf_gpt_scratch.hub.push_worker import PushRequest, PushResult
from hf_gpt_scratch.hub.pushable_files import check_folder, read_if_valid


BRANCH_OR_TAG = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$|[./]$))[A-Za-z0-9_][\w./-]{0,99}", flags=re.ASCII)
# As `python -P` does from 3.11 on: what lies in the working directory is not imported.
UPLOAD = "import sys; sys.path = list(filter(None, sys.path)); from hf_gpt_scratch.hub.push_worker import main; main()"


def push_folder(folder: str | Path, repo_id: str, **options: Any) -> PushResult:
    """Push a model folder as one commit, so that no reader ever sees half of it, and compare what arrived.

    Afterwards the branch holds the files of the folder and no others. What it held before stays in its history. An
    unchanged folder makes no commit, and no file that the Hub has is sent again.

    Args:
        folder: what `build_repository` or the converter made.
        repo_id: USER/NAME; the repository is made if it does not exist.
        options: see `prepare_push`.

    Returns:
        The commit, for `from_pretrained(repo_id, revision=...)`, and how many files were sent and removed.

    Raises:
        ValueError: a name or the folder is not fit for a push; nothing was asked of the network.
        OSError: the push failed; one line says why and what to do. The branch is as before, or as after.
    """
    return PushProcess(prepare_push(folder, repo_id, **options)).wait()


def prepare_push(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str = "main",
    private: bool = False,
    tag: str | None = None,
    message: str = "Upload model",
    timeout: float = PushRequest.timeout,
) -> PushRequest:
    """Check everything that can be checked without the network.

    Args:
        folder: see `push_folder`.
        repo_id: see `push_folder`.
        revision: branch; it is made, from main, if it does not exist.
        private: make the repository a private one; one that is public already is refused.
        tag: name to give to the commit.
        message: title of the commit.
        timeout: seconds after which the push is given up.

    Raises:
        ValueError, OSError: see `push_folder`.
    """
    check_names(repo_id, revision, tag)
    check_folder(folder)
    return PushRequest(str(Path(folder).resolve()), repo_id, revision, private, tag, message, timeout)


def update_code(target: str, revision: str = "main", timeout: float = PushRequest.timeout) -> str:
    """Replace the code files of a repository on the Hub, or of a local folder, by those of this package.

    config.json is brought up to date where it names the code and the class of the tokenizer. Everything else stays as
    it is, and weights are neither downloaded nor uploaded. On the Hub it is one commit; a folder can be loaded also
    after a kill.

    Args:
        target: a folder, or else USER/NAME.
        revision: branch of the repository.
        timeout: seconds after which an update on the Hub is given up.

    Returns:
        What was changed, for the user.

    Raises:
        ValueError, OSError: it is not a model of this project, or cannot be written; one line.
    """
    folder = Path(target)
    if folder.is_dir():
        if revision != "main":
            raise ValueError(f"{target} is a folder, which has no revision {revision}: leave that out")
        where = target
        written, removed = update_folder(folder)
    elif folder.exists():
        raise NotADirectoryError(f"cannot update {target}: it is a file, name the folder that holds it")
    else:
        check_names(target, revision)
        pushed = PushProcess(PushRequest(None, target, revision, message="Update code", timeout=timeout)).wait()
        where = f"{target}, commit {pushed.commit}"
        written, removed = pushed.sent, pushed.removed
    done = [f"{verb} {', '.join(names)}" for verb, names in (("wrote", written), ("removed", removed)) if names]
    return f"updated {where}: {'; '.join(done)}" if done else f"{where} is up to date already"


def check_names(repo_id: str, revision: str = "main", tag: str | None = None) -> None:
    """Raise ValueError for a name that the Hub would not take."""
    try:
        validate_repo_id(repo_id)
        problem = "" if repo_id.count("/") == 1 else "it takes USER/NAME"
    except HFValidationError as error:
        problem = redact(str(error), None)
    if problem:
        raise ValueError(f"{redact(repr(repo_id), None)} is not the name of a repository ({problem}): give USER/NAME")
    for kind, name in (("branch", revision), ("tag", tag)):
        if name is not None and not BRANCH_OR_TAG.fullmatch(name):
            raise ValueError(f"{name!r} is not a name for a {kind}: use letters, digits, '-', '_', '.' and '/'")
    if re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"revision {revision} is a commit, and nothing can be pushed to that: name a branch")


class PushProcess:
    """A checked push in a process of its own, which can be ended however it hangs, and ends with this one."""

    def __init__(self, request: PushRequest, shows_progress: bool = True) -> None:
        self.request = request
        self.deadline = time.monotonic() + request.timeout
        environment = {**os.environ}
        environment.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{request.answer_timeout:g}s")
        if not (shows_progress and sys.stderr.isatty()):
            environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-c", UPLOAD, json.dumps(vars(request))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process to decide on
        )

    @property
    def is_running(self) -> bool:
        """Return True while it has neither succeeded nor failed, and has time left."""
        return self.process.poll() is None and time.monotonic() < self.deadline

    def wait(self) -> PushResult:
        """Wait until it has ended or its time is up; see `push_folder` for what is raised."""
        repo_id, folder, timeout = self.request.repo_id, self.request.folder, self.request.timeout
        try:
            self.process.wait(max(0.0, self.deadline - time.monotonic()))
            answer = read_answer(self.process.stdout)
        except subprocess.TimeoutExpired:
            again = f"push {folder} again" if folder else "update it again"
            raise OSError(
                f"cannot push to {repo_id}: {HfApi().endpoint} had not taken it after {timeout:g} seconds, so it was "
                f"stopped: {again}, what has arrived is not sent twice, or allow more time"
            ) from None
        finally:
            self.stop()
        if "error" in answer:
            raise OSError(answer["error"])
        return PushResult(**answer)

    def stop(self) -> None:
        """End it at once, if it has not ended: the branch is as before, or as after."""
        self.process.kill()
        with self.process:  # waits, and closes the pipes
            pass


def read_answer(output: IO[bytes] | None) -> dict[str, Any]:
    """Parse the last line that the process printed; one that was killed, or crashed, printed none."""
    lines = output.readlines() if output else []
    try:
        return json.loads(lines[-1])
    except (ValueError, IndexError):
        return {"error": "the push ended before it was done: push again, what has arrived is not sent twice"}


def load_line(folder: str | Path, repo_id: str, commit: str) -> str:
    """Return the line of Python that loads what was pushed, and nothing that is pushed later."""
    config = read_if_valid(Path(folder) / "config.json")
    auto_map = config.get("auto_map") or {}
    architecture = (config.get("architectures") or [""])[0]
    fitting = [name for name, reference in auto_map.items() if str(reference).endswith(f".{architecture}")]
    auto_class = (fitting or ["AutoModelForCausalLM"])[0]
    trust = ", trust_remote_code=True" if auto_map else ""
    return f'{auto_class}.from_pretrained("{repo_id}", revision="{commit}"{trust})'


def describe_push(pushed: PushResult, folder: str | Path, repo_id: str) -> list[str]:
    """Return the lines that tell the user what was pushed and how to load it."""
    done = f"sent {len(pushed.sent)} files, removed {len(pushed.removed)}" if pushed.is_new else "nothing had changed"
    return [
        f"pushed to {repo_id}: commit {pushed.commit}, {done}; every file compared with the Hub's",
        f"load it: {load_line(folder, repo_id, pushed.commit)}",
    ]
