"""From the path that a user gives to the prefix of a TensorFlow checkpoint's files."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or of a kind that is not read here; the message is one line."""


@contextmanager
def checkpoint_errors(path: Path, place: str = "") -> Iterator[None]:
    """Say in one line that a file cannot be read, or is damaged at some place."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or corrupt{place} ({error}): get it again") from None


def find_checkpoint_prefix(path: str | Path) -> Path:
    """Return the part that the names of a checkpoint's files have in common, such as `124M/model.ckpt`.

    Args:
        path: a folder, the prefix itself, one of the files that begin with it, or the `checkpoint` file that names it.

    Raises:
        CheckpointError, FileNotFoundError: there is no checkpoint, or several and no file that names one.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint" if (path / "checkpoint").is_file() else only_index(path)
    if path.name == "checkpoint" and path.is_file():
        return read_checkpoint_file(path)
    prefix = path.with_name(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name))
    if not Path(f"{prefix}.index").is_file():
        raise FileNotFoundError(
            f"there is no {prefix}.index: give the folder of a TensorFlow checkpoint, or its prefix"
        )
    return prefix


def only_index(folder: Path) -> Path:
    """Return the one .index file of a folder."""
    found = sorted(folder.glob("*.index"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no TensorFlow checkpoint: give the folder with model.ckpt.index")
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds {len(found)} checkpoints: give one of them, such as {found[0]}")
    return found[0]


def read_checkpoint_file(path: Path) -> Path:
    """Return the prefix that a `checkpoint` file names; an absolute one is first looked for beside it."""
    with checkpoint_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r'^model_checkpoint_path: *"([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise CheckpointError(f"{path} names no checkpoint: give the .index file instead")
    stated, beside = path.parent / found[1], path.with_name(re.split(r"[/\\]", found[1])[-1])
    for prefix in (beside, stated) if os.path.isabs(found[1]) else (stated, beside):
        if Path(f"{prefix}.index").is_file():
            return prefix
    raise CheckpointError(f"{path} names {found[1]!r}, which is not there: give the .index file instead")
