"""The shards of one split, filled one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_gpt_scratch.data.token_shards import save_shard, token_dtype
from hf_gpt_scratch.data.vocabulary import Vocabulary, named_vocabulary
from hf_gpt_scratch.runtime.files import file_sha256


@dataclass
class ShardWriter:
    """Collects the tokens of one split into shards of `shard_tokens`, and knows where in the text the last one ended.

    `shards` are those that are done: what the index says of each, and `position`, the number of pieces read before its
    end and the tokens of the next one that are in it. The `vocabulary` is GPT-2's by default.
    """

    folder: Path
    split: str
    shard_tokens: int
    shards: list[dict[str, Any]] = field(default_factory=list)
    vocabulary: Vocabulary = field(default_factory=lambda: named_vocabulary("gpt2"))

    def __post_init__(self) -> None:
        self.position = tuple(self.shards[-1]["position"]) if self.shards else (0, 0)
        # numpy takes the memory from the system only where it is written to.
        self.buffer = np.empty(self.shard_tokens, token_dtype(self.vocabulary.size))
        self.filled = 0
        self.num_documents = 0

    def wants(self, number: int) -> bool:
        """Return True if a piece has tokens that no shard holds yet."""
        return number >= self.position[0]

    def add(self, number: int, tokens: np.ndarray, ends_document: bool) -> Iterator[None]:
        """Take the tokens of a piece; yields each time that a shard is done."""
        if ends_document:
            tokens = np.append(tokens, np.asarray([self.vocabulary.end_of_text_id], tokens.dtype))
        start = self.position[1] if number == self.position[0] else 0
        while start < len(tokens):
            taken = min(len(tokens) - start, self.shard_tokens - self.filled)
            self.buffer[self.filled : self.filled + taken] = tokens[start : start + taken]
            self.filled += taken
            start += taken
            self.num_documents += ends_document and start == len(tokens)
            if self.filled == self.shard_tokens:
                self.write((number, start))
                yield

    def write(self, position: tuple[int, int]) -> None:
        """Write what has been collected as the next shard."""
        path = self.folder / f"{self.split}-{len(self.shards):05d}.safetensors"
        tokens = self.buffer[: self.filled]
        save_shard(path, tokens, self.num_documents, self.vocabulary.sha256, self.vocabulary.size)
        facts = {"file": path.name, "num_tokens": self.filled, "num_documents": self.num_documents}
        self.shards.append({**facts, "sha256": file_sha256(path), "position": list(position)})
        self.filled = self.num_documents = 0

    def summary(self) -> dict[str, Any]:
        """Return the entry of the split in the index."""
        shards = [{key: value for key, value in shard.items() if key != "position"} for shard in self.shards]
        totals = {name: sum(shard[name] for shard in shards) for name in ("num_tokens", "num_documents")}
        return {**totals, "shards": shards}
