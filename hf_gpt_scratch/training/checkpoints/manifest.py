"""The manifest of a checkpoint: the hash of every file, and facts that identify the run and the moment.

It is written last and carries a hash of itself, so a folder without it, or with a changed one, does not count.
"""

import hashlib
import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hf_gpt_scratch.runtime.files import file_sha256, read_json, write_json


MANIFEST = "manifest.json"


def digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, independent of white space and order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Hash all files of a folder, then write its manifest.

    Args:
        folder: holds everything but the manifest.
        facts: JSON-ready; written beside the hashes.
    """
    files = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
    content = {**facts, "files": files}
    write_json(folder / MANIFEST, {**content, "sha256": digest(content)}, sort_keys=False)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest: the facts, and under `files` the hash of each file.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it was changed, or names a file outside the folder.
    """
    try:
        content = read_json(folder / MANIFEST)
        if content.pop("sha256") != digest(content):
            raise ValueError("hash mismatch")
        names = list(content["files"])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{MANIFEST} is truncated or corrupt") from None
    for name in names:
        if name in ("", ".", "..") or PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
            raise ValueError(f"{MANIFEST} names {name!r}, which is not a file of this folder")
    return content


def find_corruption(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file has the hash of the manifest."""
    try:
        for name, expected in read_manifest(folder)["files"].items():
            if file_sha256(folder / name) != expected:
                return f"{name} is corrupt"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    return None


def unexpected_files(folder: Path) -> list[str]:
    """Return the files of a valid checkpoint that its manifest does not list; nothing ever reads them."""
    return sorted({file.name for file in folder.iterdir()} - set(read_manifest(folder)["files"]) - {MANIFEST})
