"""Texts to a folder of token shards, whatever their size: read, encode, share out, write; and go on after a crash.

Shards are written one after the other. Each is renamed into its place when it is whole, then noted in
`unfinished.json` with the place in the text where it ends. What is made after a crash starts there, so that the result
is the same to the last byte. `index.json` comes last: a folder without it is not finished.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hf_gpt_scratch.data.document_sources import Source
from hf_gpt_scratch.data.documents import SkippedRows
from hf_gpt_scratch.data.pieces import Piece
from hf_gpt_scratch.data.preparation.progress import (
    LOCK_NAME,
    find_finished_shards,
    forget_progress,
    note_shards,
    refuse_foreign_folder,
)
from hf_gpt_scratch.data.preparation.shard_writer import ShardWriter
from hf_gpt_scratch.data.preparation.tokenizing import encode_in_order
from hf_gpt_scratch.data.token_folder import INDEX_NAME, read_index
from hf_gpt_scratch.data.token_shards import FORMAT, VERSION, token_dtype
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.vocabulary import Vocabulary, named_vocabulary
from hf_gpt_scratch.runtime.files import clear_unfinished, write_json


@dataclass(frozen=True)
class Choices:
    """Settings that the result depends on, besides the sources."""

    text_column: str = "text"
    validation_fraction: float = 0.0  # of the documents of sources without a split of their own
    shard_tokens: int = 1 << 26
    bad_rows: str = "stop"  # or "skip"


def prepare(
    folder: Path,
    sources: list[Source],
    choices: Choices,
    num_workers: int,
    say: Callable[[str], None],
    vocabulary: Vocabulary | None = None,
) -> dict[str, Any]:
    """Make a folder of token shards, or finish one that was begun with the same sources, choices and vocabulary.

    The vocabulary is GPT-2's by default.

    Returns:
        The index.

    Raises:
        ValueError, OSError: a source cannot be used, the folder holds something else, or the disk is full. What was
            done stays, and the same call goes on from there.
    """
    vocabulary = vocabulary or named_vocabulary("gpt2")
    if vocabulary != named_vocabulary("gpt2") and (of_gpt2 := [s.name for s in sources if s.kind == "datatrove"]):
        raise ValueError(f"{of_gpt2[0]} holds tokens of GPT-2: give texts for another --vocabulary")
    folder.mkdir(parents=True, exist_ok=True)
    refuse_foreign_folder(folder)
    try:
        with FileLock(folder / LOCK_NAME, timeout=0):
            return Preparation(folder, sources, choices, num_workers, say, vocabulary).run()
    except Timeout:
        raise FileExistsError(f"another process is preparing {folder}: wait for it, or name another folder") from None


class Preparation:
    """The work of the one process that holds the lock of a folder."""

    def __init__(
        self,
        folder: Path,
        sources: list[Source],
        choices: Choices,
        num_workers: int,
        say: Callable[[str], None],
        vocabulary: Vocabulary,
    ) -> None:
        self.folder = folder
        self.sources = sources
        self.choices = choices
        self.num_workers = num_workers
        self.say = say
        self.vocabulary = vocabulary
        self.skipped = SkippedRows(stops=choices.bad_rows == "stop")
        self.num_empty = 0
        self.plan = {
            "format": FORMAT,
            "version": VERSION,
            "vocabulary": vocabulary.facts(),
            "dtype": token_dtype(vocabulary.size).name,
            "separator": vocabulary.end_of_text_id,
            **vars(choices),
            "sources": [source.identity() for source in sources],
        }

    def run(self) -> dict[str, Any]:
        """Make or finish the folder, and return its index."""
        clear_unfinished(self.folder)
        if (self.folder / INDEX_NAME).exists():
            index = read_index(self.folder)
            if any(index.get(key) != value for key, value in self.plan.items()):
                raise FileExistsError(f"{self.folder} holds other prepared data: name another folder")
            self.say(f"{self.folder} is finished already")
            forget_progress(self.folder)
            return index
        finished = find_finished_shards(self.folder, self.plan, self.num_workers, self.say)
        self.writers = {
            split: ShardWriter(self.folder, split, self.choices.shard_tokens, shards, vocabulary=self.vocabulary)
            for split, shards in finished.items()
        }
        self.note()
        self.fill_shards()
        index = {
            **self.plan,
            "splits": {split: writer.summary() for split, writer in self.writers.items() if writer.shards},
            "skipped": {
                "empty_documents": self.num_empty,
                "bad_rows": self.skipped.count,
                "first_bad_row": self.skipped.first,
            },
        }
        write_json(self.folder / INDEX_NAME, index, sort_keys=False)
        forget_progress(self.folder)
        return index

    def note(self) -> None:
        """Write down which shards are done."""
        note_shards(self.folder, self.plan, {split: writer.shards for split, writer in self.writers.items()})

    def fill_shards(self) -> None:
        """Read everything, encode what is in no shard yet, and write the shards."""
        total = sum(source.num_bytes for source in self.sources)
        end = 0
        with tqdm(total=total or None, unit="B", unit_scale=True, disable=None, desc="tokenizing") as bar:
            encoded = encode_in_order(self.placed_pieces(), self.num_workers, load_encoding(self.vocabulary))
            for (number, split), piece, tokens in encoded:
                end = number + 1
                bar.update(piece.num_bytes)
                if tokens is not None:
                    for _ in self.writers[split].add(number, tokens, piece.ends_document):
                        self.note()
        self.refuse_empty()
        for writer in self.writers.values():
            if writer.filled:
                writer.write((end, 0))
                self.note()

    def placed_pieces(self) -> Iterator[tuple[tuple[int, str], Piece]]:
        """Yield all pieces with their number and split; those that are in a shard already come without content."""
        number = 0
        for source in self.sources:
            split = None
            for piece in source.read(self.choices.text_column, self.skipped):
                if split is None and is_empty(piece):
                    self.num_empty += 1
                    continue
                split = split or source.split or split_of(piece.content, self.choices.validation_fraction)
                is_wanted = self.writers[split].wants(number)
                yield (number, split), piece if is_wanted else replace(piece, content=None)
                number += 1
                if piece.ends_document:
                    split = None

    def refuse_empty(self) -> None:
        """Raise if a split that is asked for has got no document."""
        filled = {split for split, writer in self.writers.items() if writer.filled or writer.shards}
        fraction = self.choices.validation_fraction
        left_out = f"; {self.skipped.count} bad rows, the first: {self.skipped.first}" if self.skipped.count else ""
        if not filled:
            raise ValueError(f"the sources hold no document with text{left_out}")
        if "train" not in filled:
            raise ValueError(f"no document is left to train on: lower --validation_fraction {fraction}{left_out}")
        if "validation" not in filled and fraction:
            raise ValueError(
                f"--validation_fraction {fraction} leaves no document for validation: raise it, or name files with "
                f"--validation_source{left_out}"
            )


def is_empty(piece: Piece) -> bool:
    """Return True if a document has only white space, or no tokens."""
    content = piece.content
    return piece.ends_document and not (content.strip() if isinstance(content, str) else np.asarray(content).size)


def split_of(content: str | np.ndarray | None, validation_fraction: float) -> str:
    """Share documents out by the hash of their beginning, so that copies of one all fall to the same split."""
    data = content.encode("utf-8") if isinstance(content, str) else np.asarray(content, "<u4").tobytes()
    share = int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"
