"""A folder of token shards: the index that says what is in it, and its shards as one long row of tokens."""

import hashlib
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hf_gpt_scratch.data.token_shards import FORMAT, REMEDY, VERSION, Shard
from hf_gpt_scratch.data.vocabulary import VOCAB_SHA256, Vocabulary, named_vocabulary
from hf_gpt_scratch.runtime.files import file_sha256, read_json


INDEX_NAME = "index.json"
UNFINISHED_NAME = "unfinished.json"


def read_index(folder: Path, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """Read what a folder made by `hf-gpt-scratch prepare` says of itself; its tokens must be of the vocabulary given.

    Raises:
        FileNotFoundError: there is no such folder, or nothing prepared in it, or it is not finished.
        ValueError: the index is truncated or corrupt, or of another version or vocabulary.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        if (folder / UNFINISHED_NAME).is_file():
            raise FileNotFoundError(f"{folder} is not finished: give hf-gpt-scratch prepare the same options again")
        raise FileNotFoundError(f"{folder} holds no prepared data: make it with hf-gpt-scratch prepare")
    try:
        index = read_json(path)
        known = index["format"] == FORMAT and index["version"] == VERSION
        of_tokens = index["vocabulary"]
        vocab_sha256 = of_tokens["sha256"]
        shards = [shard for split in index["splits"].values() for shard in split["shards"]]
        files, _ = [shard["file"] for shard in shards], [shard["sha256"] for shard in shards]
        faults = wrong_facts(index, named_vocabulary("gpt2") if vocab_sha256 == VOCAB_SHA256 else vocabulary)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is truncated or corrupt: {REMEDY}") from None
    if not known:
        raise ValueError(f"{path} is of another version than {VERSION}: {REMEDY}")
    if vocabulary is not None and vocab_sha256 != vocabulary.sha256:
        size = f"{of_tokens['size']:,} tokens, " if isinstance(of_tokens.get("size"), int) else ""
        raise ValueError(
            f"{path} is of another vocabulary, {of_tokens.get('name')} ({size}sha256 {vocab_sha256}), and not of "
            f"{vocabulary}: name its own with --vocabulary, or {REMEDY}"
        )
    if outside := [name for name in files if not isinstance(name, str) or Path(name).name != name]:
        raise ValueError(f"{path} names the file {outside[0]!r}: the shards must lie beside the index")
    if faults:
        raise ValueError(f"{path} is corrupt ({'; '.join(faults)}): {REMEDY}")
    return index


def wrong_facts(index: dict[str, Any], vocabulary: Vocabulary | None) -> list[str]:
    """List what an index says that is not true of any folder or of its vocabulary, or not of the shards it names."""
    separator, size = index["separator"], index["vocabulary"]["size"]
    faults = []
    if vocabulary is not None:
        for name, found, expected in (
            ("separator", separator, vocabulary.end_of_text_id),
            ("vocabulary.size", size, vocabulary.size),
        ):
            if found != expected:
                faults.append(f"{name} is {found!r}, not {expected}")
    counts = {"separator": separator, "vocabulary.size": size}
    counts |= {name: index["skipped"][name] for name in ("empty_documents", "bad_rows")}
    for split, facts in index["splits"].items():
        for name in ("num_tokens", "num_documents"):
            of_shards = {shard["file"]: shard[name] for shard in facts["shards"]}
            counts |= {f"{name} of {split}": facts[name]}
            counts |= {f"{name} of {file}": count for file, count in of_shards.items()}
            if facts[name] != sum(of_shards.values()):
                faults.append(f"{name} of {split} is {facts[name]!r}, and its shards have {sum(of_shards.values())}")
    # A bool is an int for Python.
    return faults + [f"{name} is {count!r}" for name, count in counts.items() if type(count) is not int or count < 0]


def open_shard(folder: Path, entry: dict[str, Any], vocab_sha256: str) -> Shard:
    """Open a shard of a folder, by what the index says of it and of its vocabulary.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is truncated or corrupt, or not the one that the index describes; the line names it.
    """
    shard = Shard(folder / entry["file"], vocab_sha256)
    if (shard.num_tokens, shard.num_documents) != (entry["num_tokens"], entry["num_documents"]):
        raise ValueError(f"{shard.path} is not the shard that {INDEX_NAME} describes: {REMEDY}")
    return shard


class ShardedTokens:
    """The tokens of one split of a folder as one row; a slice is read from the shards by memory map.

    Opening reads the index and the headers, whatever the size of the shards.

    Args:
        folder: made by `hf-gpt-scratch prepare`.
        split: "train" or "validation".
        vocabulary: of the tokens; none: GPT-2's.

    Raises:
        OSError: the folder or a shard is not there.
        ValueError: the folder has no such split, is of another vocabulary, or a file of it is corrupt; the line names
            it.
    """

    def __init__(self, folder: Path, split: str, vocabulary: Vocabulary | None = None) -> None:
        vocabulary = vocabulary or named_vocabulary("gpt2")
        splits = read_index(folder, vocabulary)["splits"]
        if split not in splits:
            raise ValueError(f"{folder} has no {split} tokens, only {' and '.join(splits)}")
        self.shards: list[Shard] = []
        self.ends: list[int] = []
        self.hashes: list[str] = [entry["sha256"] for entry in splits[split]["shards"]]
        for entry in splits[split]["shards"]:
            shard = open_shard(folder, entry, vocabulary.sha256)
            self.shards.append(shard)
            self.ends.append(len(self) + shard.num_tokens)

    def fingerprint(self) -> bytes:
        """SHA-256 of the hashes that the index has of the shards: known without reading them."""
        return hashlib.sha256("".join(self.hashes).encode()).digest()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, places: slice) -> np.ndarray:
        """Copy a stretch of tokens, uint16 or uint32 [N], wherever it lies.

        Raises:
            ValueError: what is read does not have its checksum.
        """
        start, stop, _ = places.indices(len(self))
        parts = []
        for number in range(bisect_right(self.ends, start), len(self.shards)):
            begin = self.ends[number] - self.shards[number].num_tokens
            if begin >= stop:
                break
            parts.append(self.shards[number].read(max(start - begin, 0), min(stop, self.ends[number]) - begin))
        return np.concatenate(parts) if parts else np.empty(0, np.uint16)


def verify_folder(folder: Path, num_workers: int = 1) -> list[str]:
    """Compare every byte of a folder with its index.

    Returns:
        A line for each shard that is missing, or does not have its hash or counts; none: all is well.

    Raises:
        OSError, ValueError: the index cannot be used.
    """
    index = read_index(folder)
    shards = [shard for split in index["splits"].values() for shard in split["shards"]]

    def look_at(entry: dict[str, Any]) -> str | None:
        path = folder / entry["file"]
        if not path.is_file():
            return f"{path} is missing"
        if (digest := file_sha256(path)) != entry["sha256"]:
            return f"{path} has sha256 {digest} and not {entry['sha256']}"
        try:
            open_shard(folder, entry, index["vocabulary"]["sha256"])
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(num_workers) as threads:
        return [line for line in threads.map(look_at, shards) if line]
