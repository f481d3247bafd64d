"""Find out which state of a model a folder or a commit holds: byte for byte, by name and by hash."""

import hashlib
from pathlib import Path

from tests.loopback_hub import Commit, File, Repository


MADE_BY_THE_HUB = ".gitattributes"


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for the one that the Hub makes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MADE_BY_THE_HUB}


def differing(folder: Path, other: Path) -> list[str]:
    """Names of files that are not byte for byte the same in both folders."""
    ours, theirs = content(folder), content(other)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def is_same(file: File, expected: bytes) -> bool:
    """Return True if a file on the Hub, large or not, has this content."""
    return file.content == expected if file.sha256 is None else file.sha256 == hashlib.sha256(expected).hexdigest()


def state(commit: Commit, states: dict[str, dict[str, bytes]]) -> str:
    """The name of the state that a commit holds in whole, "empty", or "mixed" for anything else."""
    files = {name: file for name, file in commit.files.items() if name != MADE_BY_THE_HUB}
    if not files:
        return "empty"
    for name, expected in states.items():
        if files.keys() == expected.keys() and all(is_same(files[path], expected[path]) for path in files):
            return name
    return "mixed"


def history(repository: Repository, branch: str, states: dict[str, dict[str, bytes]]) -> list[str]:
    """The states that a branch went through, oldest first: all that a reader can ever have seen."""
    return [state(commit, states) for commit in reversed(repository.history(branch))]
