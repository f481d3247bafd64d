"""Atomic, durable writes of files and folders, JSON files, and SHA-256 hashes.

What is written lies beside its place under a hidden name that only this package gives, is brought to the disk, and is
then renamed. A killed process leaves at most that hidden name, which the next writer of the same output removes.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


# Ends the hidden name of what is being written, here and nowhere else.
UNFINISHED_MARK = ".hf_gpt_scratch-unfinished"


def flush(path: Path) -> None:
    """Bring the content of a file, or the names in a folder, to the disk (fsync).

    Raises:
        OSError: the disk does not take it; the error names the path.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        with name_file_in_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing, and bring their names to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def update_hash(path: Path, digest: "hashlib._Hash") -> "hashlib._Hash":
    """Add a file of any size to a hash of hashlib; return that."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file of any size."""
    return update_hash(path, hashlib.sha256()).hexdigest()


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Put the name of the file and the system's own words into an error of writing.

    Python leaves the path out where a write fails, as on a full disk; safetensors and tokenizers, which are written in
    Rust, raise no OSError at all.

    Raises:
        OSError: with `filename`, for any error of the operating system inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else; one line that names the file.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def json_text(content: dict[str, Any], sort_keys: bool = True) -> str:
    """Return JSON as transformers writes it: keys sorted, two spaces, a newline at the end."""
    return json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n"


def write_json(path: Path, content: dict[str, Any], sort_keys: bool = True) -> None:
    """Write `json_text` atomically; see `write_file`."""
    write_file(path, json_text(content, sort_keys))


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically; text as UTF-8.

    Raises:
        OSError: it cannot be written; what was there before stays, and nothing is left of the new file.
    """
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def atomic_file(output: Path) -> Iterator[Path]:
    """Give a path to write a file at, which takes the place of `output` when the block ends well.

    Where another process writes the same file, this one waits for it.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    with name_file_in_errors(output), sole_writer(output, waits=True) as path:
        yield path
        flush(path)
        path.replace(output)
        flush(output.parent)


@contextmanager
def atomic_folder(output: Path, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `output`, which takes its name when the block ends well.

    Args:
        output: the folder to make.
        replace: put it in the place of one that is there already.

    Raises:
        FileExistsError: `output` is there, and `replace` is not set.
        BlockingIOError: another process is making it.
        OSError: it cannot be written; what was there before stays.
    """
    make_folder(output.parent)
    with sole_writer(output, waits=False) as path:
        is_there = output.exists() or output.is_symlink()
        if is_there and not replace:
            raise FileExistsError(f"{output} exists already: choose another folder, or remove it")
        path.mkdir()
        yield path
        for written in (*path.rglob("*"), path):
            flush(written)
        if is_there:
            output.rename(replaced_path(output))
        path.rename(output)
        flush(output.parent)
        remove(replaced_path(output))


def discard(path: Path) -> None:
    """Delete a file or folder, which is never seen half deleted under its name."""
    with sole_writer(path, waits=False) as doomed:
        path.rename(doomed)


@contextmanager
def sole_writer(output: Path, waits: bool) -> Iterator[Path]:
    """Give the hidden path beside `output` at which only this process writes it, and remove what is left there.

    The lock dies with its process: where it is free, what lies at the hidden path was left by a killed one.

    Raises:
        BlockingIOError: another process is writing it, and `waits` is False.
    """
    path = output.with_name(f".{output.name}{UNFINISHED_MARK}")
    lock_path = path.with_name(f"{path.name}.lock")
    lock = FileLock(lock_path)
    try:
        lock.acquire(blocking=waits)
    except Timeout:
        raise BlockingIOError(f"another process is writing {output}: wait for it, or choose another name") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(output)) from error  # not the name of the lock
    try:
        remove(path)
        give_back(output)
        yield path
    finally:
        with suppress(OSError):  # the error of the block is more than a leftover, which the next writer removes
            remove(path)
            lock_path.unlink()
        lock.release()


def replaced_path(output: Path) -> Path:
    """Return where a folder lies for the moment in which another one takes its place."""
    return output.with_name(f".{output.name}{UNFINISHED_MARK}-replaced")


def give_back(output: Path) -> None:
    """Put a folder back that a killed process had moved away, unless the new one is in its place already."""
    replaced = replaced_path(output)
    if replaced.exists() and not output.exists():
        replaced.rename(output)
    remove(replaced)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def model_of_run(folder: Path, file: str = "config.json") -> Path | None:
    """Return the `model/` of a run whose output folder was named in its place: the file is there and not above it."""
    model = folder / "model"
    return model if (model / file).is_file() and not (folder / file).exists() else None


def is_unfinished(path: Path) -> bool:
    """Return True if this package alone gives such a name, to what it has not finished."""
    return path.name.startswith(".") and UNFINISHED_MARK in path.name


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes left half written in a folder; what another one is writing now stays."""
    for name in {path.name for path in folder.glob(f".*{UNFINISHED_MARK}*")}:
        output = folder / name[1 : name.rindex(UNFINISHED_MARK)]
        with suppress(BlockingIOError), sole_writer(output, waits=False):
            pass
