"""Files, folders and datasets as a list of sources, each with its identity."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_gpt_scratch.data.compressed_files import is_packed
from hf_gpt_scratch.data.datatrove import read_datatrove
from hf_gpt_scratch.data.documents import (
    DatasetName,
    SkippedRows,
    read_dataset,
    read_json_lines,
    read_parquet,
    read_text_file,
)
from hf_gpt_scratch.data.pieces import Piece
from hf_gpt_scratch.runtime.files import file_sha256


# The kinds of files that are found in folders, by the end of the name in any case; text and JSON lines may be packed.
KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".parquet": "parquet",
    ".ds": "datatrove",
}


@dataclass(frozen=True)
class Source:
    """A file or a dataset to read documents from, and the split they go to (None: shared out by document)."""

    name: str
    kind: str
    split: str | None
    num_bytes: int = 0  # 0: not known
    sha256: str | None = None
    dataset: DatasetName | None = None

    def read(self, text_column: str, skipped: SkippedRows) -> Iterator[Piece]:
        """Read its documents, in pieces; ValueError or OSError names it where that cannot be done."""
        path = Path(self.name)
        if self.dataset is not None:
            return read_dataset(self.dataset, text_column, skipped)
        if self.kind == "text":
            return read_text_file(path)
        if self.kind == "datatrove":
            return read_datatrove(path)
        reader = read_json_lines if self.kind == "JSON lines" else read_parquet
        return reader(path, text_column, skipped)

    def identity(self) -> dict[str, Any]:
        """Return its entry in an index, JSON-ready."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def silent(line: str) -> None:
    """Say nothing."""


def kind_of(path: Path) -> str | None:
    """Return the kind of a file by its name; None if that is not known."""
    unpacked = path.with_suffix("") if is_packed(path) else path
    kind = KINDS.get(unpacked.suffix.lower())
    return kind if unpacked is path or kind in ("text", "JSON lines") else None


def find_files(
    paths: Sequence[str | Path],
    kinds: Collection[str] = frozenset(KINDS.values()),
    *,
    others_are_text: bool = False,
    say: Callable[[str], None] = silent,
) -> list[Path]:
    """List, each once, the given files and, sorted by path, the files of the given kinds below the given folders.

    Args:
        paths: files and folders. What is hidden in a folder, by a dot before its name, is not looked at.
        kinds: those of `KINDS` that are wanted.
        others_are_text: take a file that is named itself and of no kind as text, with a warning.
        say: is told of each folder how many files were taken and which were not, of such a warning, and of files that
            are named again, or by a link.

    Raises:
        OSError: a path does not exist, or a folder cannot be listed.
        ValueError: a file is of another kind or cannot be read as one, or a folder holds none that is wanted.
    """
    endings = ", ".join(ending for ending, kind in KINDS.items() if kind in kinds)
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += search_folder(path, kinds, endings, say)
            continue
        refuse_unreadable(path)
        kind = kind_of(path)
        if kind is None and others_are_text:
            if path.suffix:
                say(f"warning: {path} is read as plain text as it stands, its name ends with none of {endings}")
        elif kind not in kinds:
            raise ValueError(f"{path} is of no known kind: its name must end with one of {endings}")
        files.append(path)
    counts = Counter(path.resolve() for path in files)
    once = {path.resolve(): path for path in reversed(files)}
    for place, count in counts.items():
        if count > 1:
            say(f"warning: {once[place]} is named {count} times: taken once")
    return [once[place] for place in counts]


def hashes_of_equal_size(files: Sequence[Path], others: Sequence[Path]) -> set[str]:
    """Return the SHA-256 of those files that have the size of one of the others: only they can be copies."""
    sizes = {path.stat().st_size for path in others}
    return {file_sha256(path) for path in files if path.stat().st_size in sizes}


def warn_of_shared(trained: Collection[str], validation_files: Sequence[Path], say: Callable[[str], None]) -> None:
    """Say which files to validate on are, by SHA-256, among those trained on, under whatever name."""
    if shared := [path for path in validation_files if trained and file_sha256(path) in trained]:
        more = f" and {len(shared) - 1} more files" if len(shared) > 1 else ""
        say(f"warning: {shared[0]}{more}: trained on too, so the validation loss does not show overfitting")


def warn_of_copies(files: Sequence[Path], say: Callable[[str], None]) -> None:
    """Say which files have the content of another one, so that their text counts twice."""
    sizes = Counter(path.stat().st_size for path in files)
    first: dict[str, Path] = {}
    for path in files:
        if sizes[path.stat().st_size] > 1:
            original = first.setdefault(file_sha256(path), path)
            if original != path:
                say(f"warning: {path} has the same content as {original}: the text is taken twice")


def refuse_unused_column(files: Sequence[Path], text_column: str) -> None:
    """Raise ValueError for a column other than "text" where no file has columns."""
    if text_column != "text" and not any(kind_of(path) in ("JSON lines", "parquet") for path in files):
        raise ValueError(f"--text_column {text_column} would do nothing without JSON lines or parquet: leave it out")


def refuse_unreadable(path: Path) -> None:
    """Raise for a path that is not a file, with one line that says what it is."""
    if not path.exists():
        what = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: check the path of the source")
    if not path.is_file():
        raise ValueError(f"{path} is a pipe or a device, which cannot be read twice: write the text to a file first")


def search_folder(folder: Path, kinds: Collection[str], endings: str, say: Callable[[str], None]) -> list[Path]:
    """List the files of the given kinds below a folder, sorted by path; say what was taken and what was not."""
    taken: list[Path] = []
    passed_over: Counter[str] = Counter()
    for path in visible_below(folder):
        if path.is_dir():
            passed_over["linked folder"] += 1
        elif kind_of(path) in kinds:
            refuse_unreadable(path)
            taken.append(path)
        elif path.with_suffix("").suffix.lower() != ".ds":  # the index and the metadata of datatrove's tokens
            ending = "".join(path.suffixes[-2:] if is_packed(path) else [path.suffix])  # such as ".csv" or ".csv.gz"
            passed_over[ending.lower() or "without an ending"] += 1
    others = ", ".join(f"{count} {ending}" for ending, count in sorted(passed_over.items()))
    if not taken:
        raise ValueError(
            f"{folder} holds no file that ends with one of {endings}" + f" (it holds {others})" * bool(others)
        )
    say(f"{folder}: {len(taken)} {'file' if len(taken) == 1 else 'files'} taken; passed over: {others or 'none'}")
    return sorted(taken)


def visible_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, and links to other folders, which are not followed; without hidden ones."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in (*files, *links) if not name.startswith("."))


def file_sources(
    paths: Sequence[str | Path], split: str | None, num_workers: int, note_bytes: Callable[[int], Any]
) -> list[Source]:
    """List files and folders as sources, hashed on `num_workers` cores; `note_bytes` hears of each file done.

    Raises:
        ValueError, OSError: a file is missing, unreadable or of no known kind.
    """

    def describe(path: Path) -> Source:
        num_bytes = path.stat().st_size
        source = Source(str(path), kind_of(path) or "text", split, num_bytes, file_sha256(path))
        note_bytes(num_bytes)
        return source

    with ThreadPoolExecutor(num_workers) as threads:
        return list(threads.map(describe, find_files(paths)))


def dataset_source(dataset: DatasetName) -> Source:
    """Make a source of a dataset; one on the Hub is pinned to its newest commit, so that a resumed run reads the same.

    Raises:
        OSError: the Hub does not answer, or has no such dataset.
    """
    if not Path(dataset.path).exists():
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(dataset.path, revision=dataset.revision).sha
        dataset = DatasetName(dataset.path, dataset.name, dataset.split, commit)
    return Source(dataset.path, "dataset", None, dataset=dataset)
