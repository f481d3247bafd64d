"""What is asked of files that must not be lost or mistaken: to be on the disk, to be whole, to have a known hash."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def hash_file(path: Path, digest: "hashlib._Hash") -> "hashlib._Hash":
    """Add a file of any size to a hash of hashlib; return that."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file of any size."""
    return hash_file(path, hashlib.sha256()).hexdigest()


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
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
    """Write a text file whole or not at all: beside, flushed, then given its name."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with errors_name(path):
        unfinished.write_text(text, encoding="utf-8")
        flush(unfinished)
        unfinished.replace(path)


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts of a file of any size whole or not at all, its name in the folder included.

    Raises:
        OSError: it cannot be written; what was there before stays, and nothing is left of it.
    """
    partial = path.with_name(f"{path.name}.partial")
    with errors_name(path):
        try:
            with partial.open("wb") as file:
                for part in parts:
                    file.write(part)
            flush(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        flush(path.parent)
