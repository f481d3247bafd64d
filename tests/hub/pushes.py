"""The files and commits of a repository on the Hub of this machine, for tests of pushes."""

from pathlib import Path

from tests.loopback_hub import LoopbackHub


REPO = "alice/toy"


def content(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    """Return what a reader gets, without the file that the Hub makes itself."""
    repository = hub.repo(REPO)
    files = repository.resolve(revision).files
    return {
        name: repository.uploads[file.sha256] if file.content is None else file.content
        for name, file in files.items()
        if name != ".gitattributes"
    }


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def num_commits(hub: LoopbackHub) -> int:
    """Without the one that the Hub begins with."""
    return len(hub.repo(REPO).commits) - 1
