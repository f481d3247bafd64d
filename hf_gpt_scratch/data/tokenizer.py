"""A vocabulary as tiktoken encoding and as transformers tokenizer, and text to token ids and back.

GPT-2's is built from the packaged `assets/vocab.bpe`, so nothing is ever downloaded. A token's printable spelling
writes each byte as one character; tiktoken works on the bytes, transformers on the spelling, and the ids are the same.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tiktoken

from hf_gpt_scratch.data.vocabulary import END_OF_TEXT, Vocabulary, byte_alphabet
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary


if TYPE_CHECKING:
    import torch
    from transformers import GPT2Tokenizer, PreTrainedTokenizerBase

    AnyTokenizer = tiktoken.Encoding | PreTrainedTokenizerBase

# Value of `r50k_pat_str` in tiktoken_ext/openai_public.py: it splits as the pattern of the GPT-2 release does, faster.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
LONG_WHITE_SPACE = re.compile(r"[^\S\x1c-\x1f]{1000,}")  # the four are white space for Python alone


def load_encoding(vocabulary: str | Vocabulary = "gpt2") -> tiktoken.Encoding:
    """Build the encoding that tiktoken calls "gpt2", without a download, or that of another vocabulary.

    Every call returns the same object: with 50,257 ids; or with 257 if `vocabulary` is "bytes": GPT-2's first 256
    tokens, the single bytes, and `<|endoftext|>`.

    Args:
        vocabulary: from `load_vocabulary`, or what that takes.

    Raises:
        ValueError, OSError: see `load_vocabulary`.
    """
    return build_encoding(load_vocabulary(vocabulary) if isinstance(vocabulary, str) else vocabulary)


@functools.lru_cache(maxsize=4)
def build_encoding(vocabulary: Vocabulary) -> tiktoken.Encoding:
    """Build the tiktoken encoding of a vocabulary, with its ids as ranks."""
    byte_of = byte_alphabet()
    ids = vocabulary.ids
    end_of_text_id = ids.pop(END_OF_TEXT)
    return tiktoken.Encoding(
        vocabulary.name,
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={bytes(byte_of[char] for char in token): rank for token, rank in ids.items()},
        special_tokens={END_OF_TEXT: end_of_text_id},
        explicit_n_vocab=vocabulary.size,
    )


def encode_to_numpy(text: str, encoding: tiktoken.Encoding, special: bool) -> np.ndarray:
    """Encode a text of any length, also where tiktoken gives up: uint32 [N].

    Its pattern goes back over a run of white space, and fails beyond about a million characters. Such a run is then
    encoded by itself, as one word, which is what the pattern makes of it: all of it at the end of a text, and all but
    the last character before other text.

    Args:
        text: any text without lone surrogates.
        encoding: from `load_encoding`.
        special: read `<|endoftext|>` in the text as the special token, rather than as text.
    """
    allowed = {END_OF_TEXT} if special else set()

    def encode(part: str) -> np.ndarray:
        return encoding.encode_to_numpy(part, allowed_special=allowed, disallowed_special=())

    try:
        return encode(text)
    except ValueError:
        parts, start = [], 0
        for run in LONG_WHITE_SPACE.finditer(text):
            is_end = run.end() == len(text) or (special and text.startswith(END_OF_TEXT, run.end()))
            end = run.end() - (not is_end)
            parts += [encode(text[start : run.start()]), encode(text[run.start() : end])]
            start = end
        return np.concatenate([*parts, encode(text[start:])])


def build_tokenizer(model_max_length: int = 1024, vocabulary: str | Vocabulary = "gpt2") -> GPT2Tokenizer:
    """Build a new transformers tokenizer with the ids of `load_encoding`, ready for `save_pretrained`.

    `<|endoftext|>` is the bos, eos, unk and pad token. Padding goes to the left, where batched generation needs it.
    In text, `<|endoftext|>` is read as the special token unless the caller passes `split_special_tokens=True`.

    Args:
        model_max_length: Longest input of the model in tokens; longer texts are warned about and kept whole.
        vocabulary: as in `load_encoding`.

    Raises:
        ValueError, OSError: see `load_vocabulary`.
    """
    # Imported here, because preparing data needs tiktoken only.
    from transformers import GPT2Tokenizer

    known = load_vocabulary(vocabulary) if isinstance(vocabulary, str) else vocabulary
    merges: Any = list(known.merges)  # the library's annotation lacks pairs
    return GPT2Tokenizer(
        vocab=known.ids,
        merges=merges,
        unk_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        # As an attribute set later, the side would be lost by `save_pretrained`.
        padding_side="left",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


def text_to_token_ids(text: str, tokenizer: AnyTokenizer | None = None) -> torch.Tensor:
    """Encode one text as a batch of one; `<|endoftext|>` in it becomes the special token.

    Args:
        text: Any text, also the empty one.
        tokenizer: A tiktoken encoding or transformers tokenizer; by default `load_encoding()`.

    Returns:
        Token ids, shape [1, T], int64.

    Raises:
        ValueError: The text holds a lone surrogate, which no encoding of Unicode can represent.
    """
    # Imported here, because preparing data needs tiktoken only.
    import torch

    refuse_surrogates(text)
    tokenizer = load_encoding() if tokenizer is None else tokenizer
    if isinstance(tokenizer, tiktoken.Encoding):
        token_ids = encode_to_numpy(text, tokenizer, special=True).tolist()
    else:
        # Not verbose: of a text longer than the context it would say that indexing errors follow, and none do here.
        token_ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return torch.tensor([token_ids], dtype=torch.long)


def refuse_surrogates(text: str) -> None:
    """Raise ValueError for a text with a lone surrogate: tiktoken would replace it, transformers blames its type."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        surrogate = f"{text[error.start]!r} at index {error.start}"
        raise ValueError(f"text holds the lone surrogate {surrogate}: read it as valid UTF-8") from None


def token_ids_to_text(token_ids: torch.Tensor, tokenizer: AnyTokenizer | None = None) -> str:
    """Decode one sequence; special tokens stay visible and bytes that are not valid UTF-8 become U+FFFD.

    Args:
        token_ids: Token ids of one sequence, shape [T] or [1, T], any integer dtype, on any device.
        tokenizer: A tiktoken encoding or transformers tokenizer; by default `load_encoding()`.

    Raises:
        ValueError: `token_ids` has another shape or dtype, or holds an id that the tokenizer does not know.
    """
    if token_ids.ndim not in (1, 2) or (token_ids.ndim == 2 and token_ids.shape[0] != 1):
        raise ValueError(f"token_ids has shape {list(token_ids.shape)}, not [T] or [1, T]: decode a batch row by row")
    if token_ids.is_floating_point():
        raise ValueError(f"token_ids has dtype {token_ids.dtype}, not that of whole numbers: give ids, not scores")
    tokenizer = load_encoding() if tokenizer is None else tokenizer
    vocab_size = tokenizer.n_vocab if isinstance(tokenizer, tiktoken.Encoding) else len(tokenizer)
    ids = token_ids.flatten().tolist()
    if unknown := [token_id for token_id in ids if not 0 <= token_id < vocab_size]:
        raise ValueError(f"token id {unknown[0]} is outside the vocabulary, 0..{vocab_size - 1}: drop it first")
    return cast(str, tokenizer.decode(ids))  # a list for a batch alone
