"""One file of token ids: a safetensors file whose every 4 KiB of tokens has a checksum.

The file holds the tensor `tokens`, uint16 or uint32 [N], and the tensor `checksums`, uint32, the CRC-32 of each 4,096
bytes of it. The header names the format, its version, the vocabulary and the number of documents. A window is read by
memory map, and what is read is compared with its checksums: a damaged file is never trained on.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from hf_gpt_scratch.data.vocabulary import END_OF_TEXT_ID, VOCAB_SHA256
from hf_gpt_scratch.runtime.files import atomic_file


FORMAT = "hf_gpt_scratch tokens"
VERSION = 1
VOCAB_SIZE = END_OF_TEXT_ID + 1
BLOCK_BYTES = 4096
DTYPES: dict[str, np.dtype] = {"U16": np.dtype("<u2"), "U32": np.dtype("<u4")}
CODES = {dtype: code for code, dtype in DTYPES.items()}
REMEDY = "make the folder again with hf-gpt-scratch prepare"


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest type that holds all ids of a vocabulary: uint16 up to 65,536 of them, else uint32."""
    return DTYPES["U16"] if vocab_size <= 1 << 16 else DTYPES["U32"]


def block_checksums(tokens: np.ndarray) -> np.ndarray:
    """CRC-32 of each `BLOCK_BYTES` of an array, uint32; the last block may be shorter."""
    content = np.ascontiguousarray(tokens).data.cast("B")
    crcs = [zlib.crc32(content[start : start + BLOCK_BYTES]) for start in range(0, len(content), BLOCK_BYTES)]
    return np.array(crcs, np.uint32)


def save_shard(
    path: Path, tokens: np.ndarray, num_documents: int, vocab_sha256: str = VOCAB_SHA256, vocab_size: int = VOCAB_SIZE
) -> None:
    """Write a shard of `tokens`, uint16 or uint32 [N], in which `num_documents` end, whole or not at all.

    Raises:
        OSError: it cannot be written; what lay in its place is unharmed.
    """
    facts = {
        "format": FORMAT,
        "version": str(VERSION),
        "vocab_sha256": vocab_sha256,
        "vocab_size": str(vocab_size),
        "num_documents": str(num_documents),
    }
    checksums = block_checksums(tokens)
    with atomic_file(path) as unfinished, unfinished.open("wb") as file:
        for part in (shard_header(tokens, checksums, facts), tokens.data, checksums.data):
            file.write(part)


def shard_header(tokens: np.ndarray, checksums: np.ndarray, facts: dict[str, str]) -> bytes:
    """Build the header of the safetensors format, one block long, so that blocks of tokens are pages of the file.

    The library's own writer orders the facts at random; here the same tokens are the same bytes.
    """
    end = tokens.nbytes + checksums.nbytes
    header = {
        "__metadata__": facts,
        "tokens": {"dtype": CODES[tokens.dtype], "shape": [len(tokens)], "data_offsets": [0, tokens.nbytes]},
        "checksums": {"dtype": "U32", "shape": [len(checksums)], "data_offsets": [tokens.nbytes, end]},
    }
    length = BLOCK_BYTES - 8
    return length.to_bytes(8, "little") + json.dumps(header).encode().ljust(length)


class Shard:
    """An open shard: its length, and any stretch of its tokens.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another version or dtype, or of another vocabulary; the line names it.
    """

    def __init__(self, path: Path, vocab_sha256: str = VOCAB_SHA256) -> None:
        self.path = path
        try:
            self._file = safe_open(path, "np")
            header = self._file.metadata() or {}
            self._tokens, self._checksums = (self._file.get_slice(name) for name in ("tokens", "checksums"))
            self.num_documents, vocab_size = (int(header.get(name, -1)) for name in ("num_documents", "vocab_size"))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is truncated or corrupt ({' '.join(str(error).split())}): {REMEDY}") from None
        if header.get("format") != FORMAT or header.get("version") != str(VERSION):
            raise ValueError(f"{path} is not a token shard of version {VERSION}: {REMEDY}")
        if header.get("vocab_sha256") != vocab_sha256:
            raise ValueError(
                f"{path} holds tokens of another vocabulary, sha256 {header.get('vocab_sha256')} and not "
                f"{vocab_sha256}: {REMEDY}"
            )
        self._check_shapes(token_dtype(vocab_size))

    def _check_shapes(self, expected: np.dtype) -> None:
        code, shape = self._tokens.get_dtype(), self._tokens.get_shape()
        if DTYPES.get(code) != expected or self._checksums.get_dtype() != "U32":
            raise ValueError(f"{self.path} has the wrong dtype, {code}: its vocabulary takes {expected}; {REMEDY}")
        self.dtype = expected
        self.block_size = BLOCK_BYTES // expected.itemsize
        self.num_tokens = shape[0] if len(shape) == 1 else -1
        if self._checksums.get_shape() != [-(-self.num_tokens // self.block_size)]:
            raise ValueError(f"{self.path} is corrupt (its checksums do not belong to its tokens): {REMEDY}")

    def __len__(self) -> int:
        return self.num_tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Copy the tokens from `start` up to `stop`, uint16 or uint32 [stop - start].

        Raises:
            ValueError: a block of them does not have its checksum.
        """
        first, last = start // self.block_size, -(-stop // self.block_size)
        blocks = self._tokens[first * self.block_size : min(last * self.block_size, self.num_tokens)]
        wrong = np.flatnonzero(block_checksums(blocks) != self._checksums[first:last])
        if len(wrong):
            place = (first + int(wrong[0])) * self.block_size
            raise ValueError(
                f"{self.path} is corrupt at tokens {place} to {place + self.block_size - 1} (wrong checksum): {REMEDY}"
            )
        return blocks[start - first * self.block_size : stop - first * self.block_size]
