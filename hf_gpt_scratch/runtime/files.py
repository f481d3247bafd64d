"""What is asked of files that must not be lost or mistaken: to be on the disk, to be whole, to have a known hash."""

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
    """Have the kernel put a file, or the names in a folder, on the disk before going on."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def update_hash(path: Path, digest: "hashlib._Hash") -> "hashlib._Hash":
    """Add a file of any size to a hash of hashlib; return that."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file of any size."""
    return update_hash(path, hashlib.sha256()).hexdigest()


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Have an error of writing inside say which file it was, and in the system's words what.

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


def json_text(content: dict[str, Any]) -> str:
    """Return JSON as transformers writes it: keys sorted, two spaces, a newline at the end."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of `json_text`."""
    path.write_text(json_text(content), encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, as UTF-8."""
    write_whole(path, text.encode())


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts of a file of any size whole or not at all, its name in the folder included.

    Raises:
        OSError: it cannot be written; what was there before stays, and nothing is left of it.
    """
    with atomic_file(path) as unfinished, unfinished.open("wb") as file:
        for part in parts:
            file.write(part)


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
    output.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(output, waits=False) as path:
        is_there = output.exists() or output.is_symlink()
        if is_there and not replace:
            raise FileExistsError(f"{output} exists already: choose another folder, or remove it")
        path.mkdir()
        yield path
        for written in (*path.iterdir(), path):
            flush(written)
        if is_there:
            output.rename(replaced_path(output))
        path.rename(output)
        flush(output.parent)
        remove(replaced_path(output))


@contextmanager
def sole_writer(output: Path, waits: bool) -> Iterator[Path]:
    """Give the hidden path beside `output` at which this process alone writes it; what is left there is removed.

    Its name says what it is of, and its lock dies with the process. So what a killed one left is known by a free lock,
    and the next writer of the same output removes it.

    Raises:
        BlockingIOError: another process is writing it, and this one shall not wait.
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
        with suppress(OSError):  # what it was about is more than a leftover, which the next writer removes
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


def is_unfinished(path: Path) -> bool:
    """Whether a name is one that only this package gives, to what it has not finished."""
    return path.name.startswith(".") and UNFINISHED_MARK in path.name


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes left half written in a folder; what another one is writing now stays."""
    for name in {path.name for path in folder.glob(f".*{UNFINISHED_MARK}*")}:
        output = folder / name[1 : name.rindex(UNFINISHED_MARK)]
        with suppress(BlockingIOError), sole_writer(output, waits=False):
            pass
