"""What is asked of files that must not be lost or mistaken: to be on the disk, and to have a known hash."""

import hashlib
import os
from pathlib import Path


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


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
