"""Load a vocabulary by its name or from a folder with `tokenizer.json`, refused unless tiktoken gives the same ids."""

import functools
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gpt_scratch.data.vocabulary import (
    END_OF_TEXT,
    NAMES,
    OWN,
    Vocabulary,
    byte_alphabet,
    hash_rules,
    named_vocabulary,
)
from hf_gpt_scratch.data.vocabulary_proof import unproved_merges
from hf_gpt_scratch.runtime.files import model_of_run


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FILE_NAME = "tokenizer.json"
REMEDY = "make one with hf-gpt-scratch train-tokenizer"
# Settings of the BPE and of its splitting into words that tiktoken does not have: the values without an effect.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
}
SPLITTER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
UNWRITTEN = {"use_regex": True}  # older files, such as GPT-2's of 2019, do not have it, nor the type of the model
END_OF_TEXT_RULES = {"single_word": False, "lstrip": False, "rstrip": False, "special": True}


def load_vocabulary(name_or_folder: str) -> Vocabulary:
    """Load "gpt2", "bytes", or the vocabulary of a folder with `tokenizer.json`; one of these two is known as such.

    Raises:
        FileNotFoundError: it is not a name, and there is no such folder or no `tokenizer.json` in it.
        ValueError: tiktoken would not give its ids; the line names the file, the value and the way out.
    """
    if name_or_folder in NAMES:
        return named_vocabulary(name_or_folder)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the vocabulary {folder} is neither {', '.join(NAMES)} nor a folder: name that with its {FILE_NAME}, or "
            f"{REMEDY}"
        )
    path = folder / FILE_NAME
    if not path.is_file():
        hint = f"did you mean {model}?" if (model := model_of_run(folder, FILE_NAME)) else REMEDY
        raise FileNotFoundError(f"{folder} holds no {FILE_NAME}, so it is not a vocabulary: {hint}")
    return parse_vocabulary(path.read_bytes(), str(path))


@functools.lru_cache(maxsize=4)  # a run asks for it several times
def parse_vocabulary(content: bytes | str, place: str) -> Vocabulary:
    """Parse the JSON of a tokenizer, as tokenizers writes it.

    Raises:
        ValueError: tiktoken would not give its ids; the line names the place, the value and the way out.
    """
    try:
        rules = json.loads(content)
        model = rules["model"]
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.get("merges", [])]
        ids = dict(model.get("vocab", {}))
        # Each may rely on those before.
        problem = next(chain(wrong_settings(rules), wrong_ids(rules, ids), wrong_spellings(ids)), None)
        known = next((v for v in map(named_vocabulary, NAMES) if (v.ids, v.merges) == (ids, tuple(merges))), None)
        if problem is None and known is None:
            problem = next(wrong_merges(ids, merges), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{place} is not a tokenizer as tokenizers writes it: {REMEDY}") from None
    if problem is not None:
        raise ValueError(f"{place} {problem}, so tiktoken would give other ids: {REMEDY}")
    tokens = sorted(ids, key=ids.__getitem__)
    return known or Vocabulary(hash_rules(tokens, merges), OWN, tuple(tokens), tuple(merges), ids[END_OF_TEXT])


def known_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> Vocabulary | None:
    """Return the vocabulary of a tokenizer, if tiktoken gives the same ids for every text, or None."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    try:
        vocabulary = parse_vocabulary(backend.to_str(), "the tokenizer")
    except ValueError:
        return None
    return vocabulary if vocabulary.end_of_text_id == tokenizer.eos_token_id else None


def wrong_settings(rules: dict[str, Any]) -> Iterator[str]:
    """Say which settings of a tokenizer change ids beside vocabulary and merges."""
    model, splitter = rules["model"], rules.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE":
        yield f"has a model of type {model.get('type')!r}, not 'BPE'"
    if rules.get("normalizer") is not None:
        yield f"has the normalizer {rules['normalizer'].get('type')!r}"
    for key, value in SPLITTER.items():
        if splitter.get(key, UNWRITTEN.get(key)) != value:
            yield f"has {key} {splitter.get(key)!r} in its pre_tokenizer, not {value!r}"
    for key, values in WITHOUT_EFFECT.items():
        if model.get(key) not in values:
            yield f"has {key} {model[key]!r}"
    added = rules.get("added_tokens", [])
    if [token["content"] for token in added] != [END_OF_TEXT]:
        yield f"has the special tokens {[token['content'] for token in added]}, not {END_OF_TEXT} alone"
    for key, value in END_OF_TEXT_RULES.items():
        if any(token[key] != value for token in added):
            yield f"has {key} {not value} for {END_OF_TEXT}"


def wrong_ids(rules: dict[str, Any], ids: dict[str, int]) -> Iterator[str]:
    """Say what is wrong with ids; `<|endoftext|>` may stand apart from the others, and is put to them."""
    token_id = rules["added_tokens"][0]["id"]
    if ids.setdefault(END_OF_TEXT, token_id) != token_id:
        yield f"has two ids for {END_OF_TEXT}, {ids[END_OF_TEXT]} and {token_id}"
    if sorted(ids.values()) != list(range(len(ids))):
        yield f"has {len(ids)} tokens whose ids are not 0 to {len(ids) - 1}"


def wrong_spellings(ids: dict[str, int]) -> Iterator[str]:
    """Say which token is not spelled in bytes, and which byte is not a token."""
    alphabet = byte_alphabet()
    for char, byte in alphabet.items():
        if char not in ids:
            yield f"has no token for the byte 0x{byte:02X}"
    for token in ids:
        if token != END_OF_TEXT and (not token or set(token) - alphabet.keys()):
            yield f"has the token {token!r}, which is not spelled in bytes"


def wrong_merges(ids: dict[str, int], merges: list[tuple[str, ...]]) -> Iterator[str]:
    """Say which merge is not the one way to its token."""
    ordinary = {token: token_id for token, token_id in ids.items() if token != END_OF_TEXT}
    highest = -1
    for merge in merges:
        token = "".join(merge)
        if len(merge) != 2 or not {*merge, token} <= ordinary.keys():
            yield f"has the merge {list(merge)}, of what is not a token"
        if ordinary[token] <= highest:
            yield f"has the merge {list(merge)}, whose token has another merge too, or an id below that of one before"
        highest = ordinary[token]
    made = {"".join(merge) for merge in merges}
    for token in ordinary:
        if len(token) > 1 and token not in made:
            yield f"has the token {token!r}, which no merge makes"
    if unproved := unproved_merges([(first, second) for first, second in merges], ordinary):
        yield f"has {len(unproved)} merges that tiktoken does not reach, the first {list(unproved[0])}"
