"""Documents out of text files, JSON lines, parquet files and Hugging Face datasets, one after the other.

Nothing is read ahead: in memory are a piece of a text file, a line, or a row group. Text files are one document each.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hf_gpt_scratch.data.compressed_files import is_packed, open_unpacked
from hf_gpt_scratch.data.pieces import Piece, cut_string, cut_text


BLOCK_BYTES = 1 << 20
PARQUET_ROWS = 256  # rows that are decoded at a time


@dataclass
class SkippedRows:
    """Rows that cannot be used: counted and the first one named, or refused."""

    stops: bool
    count: int = 0
    first: str | None = None

    def add(self, reason: str) -> None:
        """Note an unusable row; ValueError says that such rows are to stop the work."""
        if self.stops:
            raise ValueError(
                f"{reason}; repair it, or leave such rows out with hf-gpt-scratch prepare --bad_rows skip"
            )
        self.count += 1
        self.first = self.first or reason


def read_text(path: Path) -> str:
    """Read one UTF-8 text file.

    Raises:
        ValueError: the file has no text, is binary or not UTF-8; the line names it and says what to do.
    """
    # Line ends become \n on every system, so that a text has the same tokens everywhere.
    text = "".join(decoded_blocks(path))
    if not text.strip():
        refuse_blank(path)
    return text


def refuse_blank(path: Path) -> NoReturn:
    """Raise ValueError for a file without text."""
    what = "holds nothing but white space" if path.stat().st_size else "is empty"
    raise ValueError(f"{path} {what}: give a file with text in it")


def read_text_file(path: Path) -> Iterator[Piece]:
    """Read a UTF-8 text file of any size; Windows line ends become plain ones, as where a text is read whole.

    Raises:
        ValueError: it is binary or not UTF-8.
    """
    packed_bytes = path.stat().st_size if is_packed(path) else None
    for text, is_last in cut_text(decoded_blocks(path)):
        yield Piece(text, is_last, len(text.encode("utf-8")) if packed_bytes is None else packed_bytes * is_last)


def decoded_blocks(path: Path) -> Iterator[str]:
    """Decode a file, packed or not, block by block."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    num_read, held_back = 0, ""
    with open_unpacked(path) as (content, _):
        while True:
            block = content.read(BLOCK_BYTES)
            num_read += len(block)
            if b"\0" in block:
                raise ValueError(f"{path} is a binary file (it holds zero bytes): give plain text in UTF-8")
            try:
                text = held_back + decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = num_read - len(error.object) + error.start
                raise ValueError(
                    f"{path} is not UTF-8 at byte {place}: convert it, for example with iconv -f LATIN1 -t UTF-8"
                ) from None
            # \r may be the first half of a line end.
            held_back = "\r" if text.endswith("\r") and block else ""
            yield text.removesuffix(held_back).replace("\r\n", "\n")
            if not block:
                return


def read_json_lines(path: Path, text_column: str, skipped: SkippedRows) -> Iterator[Piece]:
    """Read a file with one JSON object a line, whose `text_column` is a document; empty lines are none."""
    with open_unpacked(path) as (content, file):
        num_read = 0
        for number, line in enumerate(content, 1):
            share, num_read = file.tell() - num_read, file.tell()
            place = f"{path} line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                skipped.add(f"{place} is not UTF-8")
            except (ValueError, RecursionError):
                skipped.add(f"{place} is not JSON")
            else:
                yield from row_pieces(row, text_column, place, share, skipped)


def read_parquet(path: Path, text_column: str, skipped: SkippedRows) -> Iterator[Piece]:
    """Read the documents in a column of a parquet file.

    Raises:
        ValueError: it is not a parquet file, or has no such column of text, or pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path} needs pyarrow: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if text_column not in names:
                raise ValueError(
                    f"{path} has no column {text_column!r}: name one of {', '.join(names)} with --text_column"
                )
            share = path.stat().st_size / max(file.metadata.num_rows, 1)
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=[text_column]):
                for value in batch.column(0):
                    number += 1
                    row = {text_column: value.as_py()}
                    yield from row_pieces(row, text_column, f"{path} row {number}", share, skipped)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is truncated or corrupt ({' '.join(str(error).split())}): fetch it again") from None


@dataclass(frozen=True)
class DatasetName:
    """A dataset on the Hub or in a local folder, as `datasets.load_dataset` takes it."""

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


def read_dataset(dataset: DatasetName, text_column: str, skipped: SkippedRows) -> Iterator[Piece]:
    """Stream the documents in a column of a Hugging Face dataset, without storing it.

    Raises:
        ValueError, OSError: there is no such dataset, configuration, split or column; or datasets is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("--dataset needs datasets: pip install datasets") from None
    rows = load_dataset(dataset.path, dataset.name, split=dataset.split, revision=dataset.revision, streaming=True)
    for number, row in enumerate(rows, 1):
        if number == 1 and text_column not in row:
            raise ValueError(
                f"{dataset.path} has no column {text_column!r}: name one of {', '.join(row)} with --text_column"
            )
        yield from row_pieces(row, text_column, f"{dataset.path} row {number}", 0, skipped)


def row_pieces(row: Any, text_column: str, place: str, num_bytes: float, skipped: SkippedRows) -> Iterator[Piece]:
    """Yield the pieces of the document in a row, or note that there is none."""
    text = row.get(text_column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        skipped.add(f"{place} {why_no_text(row, text_column)}; --text_column names another")
    elif not is_unicode(text):
        skipped.add(f"{place} holds half a surrogate pair, which is not a character")
    else:
        for part, is_last in cut_string(text):
            yield Piece(part, is_last, num_bytes if is_last else 0)


def why_no_text(row: Any, text_column: str) -> str:
    """Say what a row has where its text should be."""
    if not isinstance(row, dict):
        return f"is not an object with {text_column!r}, but {json_kind(row)}"
    if text_column in row:
        return f"has {json_kind(row[text_column])} as {text_column!r}, and no text"
    return f"has no text {text_column!r} (it has: {', '.join(map(str, row))})"


def json_kind(value: Any) -> str:
    """Call a value as JSON does."""
    kinds = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def is_unicode(text: str) -> bool:
    """Return True if a string has a UTF-8 form; JSON can hold lone surrogates, which have none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
