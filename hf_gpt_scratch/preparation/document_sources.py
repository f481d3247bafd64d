"""Which documents are meant: files, folders and datasets as a list of sources, each with its identity."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_gpt_scratch.files import sha256_of

from .datatrove import read_datatrove
from .documents import DatasetName, SkippedRows, read_dataset, read_json_lines, read_parquet, read_text_file
from .pieces import Piece


# The kinds of files that are found in folders, by the end of the name.
KINDS = {
    ".txt": "text",
    ".md": "text",
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
        """Its documents, in pieces.

        Raises:
            ValueError, OSError: it cannot be read or used; the line names it.
        """
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
        """What it is known by in an index, JSON-ready."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """List the given files and, sorted by path, the files of a known kind below the given folders.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is of no known kind, or a folder holds none that is.
    """
    kinds = ", ".join(KINDS)
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in KINDS and file.is_file())
            if not inside:
                raise ValueError(f"{path} holds no file that ends with one of {kinds}")
            files += inside
        elif not path.exists():
            raise FileNotFoundError(f"{path} does not exist: check the path of the source")
        elif path.suffix not in KINDS:
            raise ValueError(f"{path} is of no known kind: its name must end with one of {kinds}")
        else:
            files.append(path)
    return files


def file_sources(
    paths: Sequence[str | Path], split: str | None, num_workers: int, note_bytes: Callable[[int], Any]
) -> list[Source]:
    """The sources in files and folders, hashed on `num_workers` cores; `note_bytes` hears of each file that is done.

    Raises:
        ValueError, OSError: a file is missing, unreadable or of no known kind.
    """

    def describe(path: Path) -> Source:
        num_bytes = path.stat().st_size
        source = Source(str(path), KINDS[path.suffix], split, num_bytes, sha256_of(path))
        note_bytes(num_bytes)
        return source

    with ThreadPoolExecutor(num_workers) as threads:
        return list(threads.map(describe, find_files(paths)))


def dataset_source(dataset: DatasetName) -> Source:
    """A dataset as a source; one on the Hub is pinned to the commit it has now, so that a resumed run reads the same.

    Raises:
        OSError: the Hub does not answer, or has no such dataset.
    """
    if not Path(dataset.path).exists():
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(dataset.path, revision=dataset.revision).sha
        dataset = DatasetName(dataset.path, dataset.name, dataset.split, commit)
    return Source(dataset.path, "dataset", None, dataset=dataset)
