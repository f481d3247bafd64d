"""The output folder: locked by one process at a time, and cleared of the leftovers of killed ones."""

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from hf_gpt_scratch.runtime.files import clear_unfinished, name_file_in_errors
from hf_gpt_scratch.training.settings import TrainingSettings


LOCK_NAME = ".lock"
UNFINISHED_MODEL = "unfinished-model"  # pushed by --push_steps during the run
VOCABULARY_FOLDER = "vocabulary"  # of a vocabulary that --minutes chose
# Everything that a run writes; the last two are of trackers: tensorboard's, named after the project, and aim's.
WRITTEN = (
    *("settings.json", "history.jsonl", "loss.png", "loss.pdf", "checkpoints", "model", UNFINISHED_MODEL),
    VOCABULARY_FOLDER,
    *("hf_gpt_scratch", ".aim"),
)


class FolderLock:
    """The lock `.lock` in a folder; the kernel frees it with the process, so none is ever left over.

    Leaving the context releases it. Without `take` it does nothing, so that processes beside the main one can enter
    it too.

    Args:
        folder: the output folder of a run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._lock = FileLock(self.path)
        self.is_new = False  # the file was not there before
        self.is_begun = False  # the folder was empty, and is this run's to fill
        self.made: list[Path] = []  # the folder and those above it that were not there before, deepest first

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def take(self) -> None:
        """Take the lock of an existing folder, or keep it if this object has it already.

        Raises:
            BlockingIOError: another process has it; the line names that one.
        """
        if self._lock.is_locked:
            return
        self.is_new = not self.path.exists()
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise BlockingIOError(
                f"{self.path.parent} is in use by {self._owner()}: wait for it, stop it, or name another --output_dir"
            ) from None
        with name_file_in_errors(self.path):
            self.path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def withdraw(self) -> None:
        """Restore the folder after a run that never came to its first step; a resumed run stays.

        Files that somebody else has put there meanwhile stay too.
        """
        if not self._lock.is_locked:
            return
        for path in map(self.path.with_name, WRITTEN if self.is_begun else ()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self.is_new:
            with suppress(OSError):  # Windows does not let a locked file be deleted
                self.path.unlink()
        self._lock.release()
        for folder in self.made:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()

    def _owner(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8") or "another process"
        except (OSError, ValueError):  # Windows does not let a locked file be read
            return "another process"


def refuse_used_folder(settings: TrainingSettings) -> None:
    """Refuse a folder that holds anything, except for a resumed run.

    Raises:
        FileExistsError: it holds another run, or other files.
        FileNotFoundError: `--resume` without a run in the folder.
        NotADirectoryError: it is a file.
    """
    folder = Path(settings.output_dir)
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"--output_dir {folder} is a link to nothing: name a folder")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output_dir {folder} is a file: name a folder")
    refuse_inner_folder(settings)
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if settings.resume:
        if not names & {LOCK_NAME, "checkpoints"}:
            raise FileNotFoundError(f"--output_dir {folder} holds no valid checkpoint: start without --resume")
    elif "history.jsonl" in names:
        raise FileExistsError(
            f"--output_dir {folder} holds another run: continue it with --resume, or name a new folder"
        )
    elif names - ({LOCK_NAME} if is_lock(folder / LOCK_NAME) else set()):
        raise FileExistsError(f"--output_dir {folder} is not empty: name a new folder")


def refuse_inner_folder(settings: TrainingSettings) -> None:
    """Refuse a folder in another run's, which replaces its own, and in a folder of texts, which would grow by it.

    Raises:
        FileExistsError: it lies there.
    """
    folder = Path(settings.output_dir).absolute()
    for outer in () if settings.resume else folder.resolve().parents:  # one that is there already may go on
        if (outer / "history.jsonl").is_file() and is_lock(outer / LOCK_NAME):
            raise FileExistsError(f"--output_dir {folder} lies in that of another run, {outer}: name one beside it")
    for text in (*(settings.train_file or ()), *(settings.validation_file or ())):
        if Path(text).is_dir() and Path(text).resolve() in folder.resolve().parents:
            raise FileExistsError(
                f"--output_dir {folder} lies in {text}, whose files are texts to train on: name a folder elsewhere"
            )


def is_lock(path: Path) -> bool:
    """Return True if a file is the lock of a run, held or left."""
    try:
        content = path.read_text(encoding="utf-8")
        return not content or content.startswith("process ")  # empty: taken, and not written yet
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # Windows does not let a locked file be read
        return True


def claim_folder(settings: TrainingSettings, lock: FolderLock, make: bool) -> None:
    """Lock the output folder and check that this run may write there; main process only.

    Args:
        settings: of the run.
        lock: of the output folder.
        make: create a missing folder; otherwise leave that for later.

    Raises:
        OSError: the folder is in use, holds something else, or cannot be created.
    """
    if lock.is_begun:  # claimed before, and perhaps written into by this run
        return
    if not is_lock(lock.path):
        try:
            refuse_used_folder(settings)  # not even a lock is written into somebody else's folder
        except FileExistsError:
            if not is_lock(lock.path):  # otherwise another run has begun there since: what follows names it
                raise
    folder = lock.path.parent
    if make:
        lock.made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        lock.take()
    refuse_used_folder(settings)
    lock.is_begun = make and not settings.resume


def clear_leftovers(folder: Path) -> None:
    """Delete unfinished files and folders that a killed run left in its output folder."""
    clear_unfinished(folder)
    clear_unfinished(folder / "checkpoints")
    pushed = folder / UNFINISHED_MODEL
    if (pushed / "config.json").is_file() and not pushed.is_symlink():
        shutil.rmtree(pushed)
