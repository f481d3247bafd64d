"""Storage of the Hub: repositories with commits, branches and tags, and the files in them."""

import hashlib
import itertools
from dataclasses import dataclass, field

from .messages import Refusal


# The Hub begins every repository with this file. Names that match are stored as large files.
GIT_ATTRIBUTES = b"".join(
    b"*.%s filter=lfs diff=lfs merge=lfs -text\n" % suffix
    for suffix in (b"bin", b"pt", b"pth", b"safetensors", b"png")
)
LARGE_SUFFIXES = (".bin", ".pt", ".pth", ".safetensors", ".png")
LARGE_SIZE = 10 * 1024 * 1024  # bytes; above it any file is a large one

# One for all hubs, so that no two commits ever have the same hash.
_commit_numbers = itertools.count()


def git_hash(content: bytes) -> str:
    """Return the name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """Return what git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Return True if the Hub wants a file as a large one: by name, by size, or because it is binary."""
    return size > 0 and (path.endswith(LARGE_SUFFIXES) or size > LARGE_SIZE or b"\0" in sample)


@dataclass(frozen=True)
class File:
    """A file of a commit: regular ones with their content, large ones by their sha256."""

    size: int
    oid: str  # git's hash, of a large file that of its pointer
    content: bytes | None = None
    sha256: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> "File":
        return cls(len(content), git_hash(content), content=content)

    @classmethod
    def large(cls, sha256: str, size: int) -> "File":
        return cls(size, git_hash(pointer(sha256, size)), sha256=sha256)

    @property
    def etag(self) -> str:
        """Return what the client compares to know whether it has the file."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """All files as of one moment."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    files: dict[str, File]


@dataclass
class Repository:
    """Commits in the order of their arrival, and the names that point to them."""

    repo_id: str
    author: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)  # users who got access to a gated repository
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)  # large files that came by LFS, by sha256

    def __post_init__(self) -> None:
        if not self.commits:
            files = {".gitattributes": File.regular(GIT_ATTRIBUTES)}
            self.add_commit("main", files, "initial commit", "", self.author)

    def head(self, branch: str = "main") -> Commit:
        return self.commit(self.branches[branch])

    def commit(self, sha: str) -> Commit:
        return next(commit for commit in self.commits if commit.sha == sha)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a whole hash means."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.sha == sha:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def file(self, revision: str, path: str) -> tuple[Commit, File]:
        commit = self.resolve(revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
        return commit, commit.files[path]

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits behind a revision, newest first."""
        commits = [self.resolve(revision)]
        while commits[-1].parent:
            commits.append(self.commit(commits[-1].parent))
        return commits

    def add_commit(self, branch: str, files: dict[str, File], title: str, message: str, author: str) -> Commit:
        """All of `files` at once: nobody sees a part of them."""
        sha = hashlib.sha1(f"{self.repo_id} {next(_commit_numbers)}".encode()).hexdigest()
        commit = Commit(sha, self.branches.get(branch), title, message, author, dict(files))
        self.commits.append(commit)
        self.branches[branch] = sha
        return commit
