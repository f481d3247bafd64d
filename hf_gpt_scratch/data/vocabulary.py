"""The packaged vocabulary of GPT-2, read without any library of tokenizers: merges, and the spelling of each token."""

import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files


END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 50256
# Of each vocabulary the id of its last token: GPT-2's, and that of single bytes, which is GPT-2's without any merge.
END_OF_TEXT_IDS = {"gpt2": END_OF_TEXT_ID, "bytes": 256}
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


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
    """Spell the 50,256 ordinary tokens in order of their ids: the bytes first, then one token per merge."""
    return [*byte_alphabet(), *(first + second for first, second in merges)]


def byte_alphabet() -> dict[str, int]:
    """Map printable character to byte, in order of the ids (`bytes_to_unicode` in encoder.py of openai/gpt-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
