"""Byte-level vocabularies, and the packaged one of GPT-2: merges, the spelling of each token, without any library."""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any


END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 50256
NAMES = ("gpt2", "bytes")  # of the vocabularies that need no folder
OWN = "own"  # the name of all others, which a path would tie to one machine
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a byte-level BPE and its merges; two are equal if every text has the same ids."""

    sha256: str  # of all that ids depend on; for GPT-2's that of `vocab.bpe`
    name: str = field(compare=False)  # "gpt2", "bytes" or "own"
    tokens: tuple[str, ...] = field(compare=False, repr=False)  # spellings in order of the ids, with `<|endoftext|>`
    merges: tuple[tuple[str, str], ...] = field(compare=False, repr=False)  # in order of the ids of what they make
    end_of_text_id: int = field(compare=False)

    @property
    def size(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    @property
    def ids(self) -> dict[str, int]:
        """Return the id of each spelling, in order of the ids."""
        return {token: token_id for token_id, token in enumerate(self.tokens)}

    @property
    def byte_lengths(self) -> list[int]:
        """Return the bytes of each token in order of the ids; those of `<|endoftext|>` are those of its spelling."""
        return [len(token) for token in self.tokens]

    def facts(self) -> dict[str, Any]:
        """Return what an index or a history says of it, JSON-ready."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} tokens, sha256 {self.sha256})"


@functools.cache
def named_vocabulary(name: str) -> Vocabulary:
    """Return the vocabulary of one of `NAMES`: GPT-2's, or single bytes, which is GPT-2's without any merge.

    Raises:
        ValueError: `vocab.bpe` is not the file OpenAI published.
    """
    merges = read_merges() if name == "gpt2" else []
    tokens = [*spell_tokens(merges), END_OF_TEXT]
    digest = VOCAB_SHA256 if name == "gpt2" else hash_rules(tokens, merges)
    return Vocabulary(digest, name, tuple(tokens), tuple(merges), len(tokens) - 1)


def hash_rules(tokens: Sequence[str], merges: Iterable[tuple[str, str]]) -> str:
    """Hash all that ids depend on: the spellings in order of the ids, and the merges in order."""
    content = json.dumps([list(tokens), join_merges(merges)])
    return hashlib.sha256(content.encode()).hexdigest()


def read_merges() -> list[tuple[str, str]]:
    """Read the 50,000 merges of `vocab.bpe`, in order of their ids.

    Raises:
        ValueError: it is not the file OpenAI published.
    """
    vocab_file = files("hf_gpt_scratch") / "assets" / "vocab.bpe"
    content = vocab_file.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != VOCAB_SHA256:
        raise ValueError(f"{vocab_file} has sha256 {digest}, not {VOCAB_SHA256}: reinstall the package")
    _version, *lines = content.decode("utf-8").splitlines()
    return [(left, right) for left, right in (line.split(" ") for line in lines)]


def join_merges(merges: Iterable[Sequence[str]]) -> list[str]:
    """Return merges as strings ("Ġ t"): every release of tokenizers from 0.19 on reads these, pairs only from 0.20 on.

    Raises:
        ValueError: a merge cannot be told apart in a string; none of byte-level spelling, which writes a space as "Ġ".
    """
    joined = []
    for merge in merges:
        text = " ".join(merge)
        # tokenizers splits at the spaces, and passes over what looks like the head of a merges.txt.
        if text.count(" ") != 1 or text.startswith("#version"):
            raise ValueError(f"the merge {list(merge)!r} cannot be written as one string: keep the merges as pairs")
        joined.append(text)
    return joined


def spell_tokens(merges: list[tuple[str, str]]) -> list[str]:
    """Spell the ordinary tokens in GPT-2's order of ids: the bytes first, then one token per merge."""
    return [*byte_alphabet(), *(first + second for first, second in merges)]


def byte_alphabet() -> dict[str, int]:
    """Map printable character to byte, in order of the ids (`bytes_to_unicode` in encoder.py of openai/gpt-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
