"""Proves the proof: true of GPT-2's merges, and of vocabularies that pass the libraries agree on random texts."""

import json
import random

import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from hf_gpt_scratch.data.tokenizer import SPLIT_PATTERN
from hf_gpt_scratch.data.vocabulary import byte_alphabet, named_vocabulary
from hf_gpt_scratch.data.vocabulary_proof import join_below, unproved_merges


ALPHABET = byte_alphabet()
Merges = list[tuple[str, str]]


def tiktoken_encoding(ids: dict[str, int], pattern: str) -> tiktoken.Encoding:
    ranks = {bytes(ALPHABET[char] for char in token): token_id for token, token_id in ids.items()}
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def test_holds_for_all_merges_of_gpt2() -> None:
    vocabulary = named_vocabulary("gpt2")
    assert len(vocabulary.merges) == 50_000
    assert unproved_merges(vocabulary.merges, vocabulary.ids) == []


def test_second_ways_to_tokens_are_named_and_no_others() -> None:
    """The control: of 50 tokens another merge that makes the same."""
    vocabulary = named_vocabulary("gpt2")
    known = vocabulary.ids
    second = [
        (token[:cut], token[cut:])
        for token, merge in zip(vocabulary.tokens[256:], vocabulary.merges, strict=False)
        for cut in range(1, len(token))
        if {token[:cut], token[cut:]} <= known.keys() and (token[:cut], token[cut:]) != merge
    ][:50]
    assert len(second) == 50
    assert unproved_merges([*vocabulary.merges, *second], known) == second


def test_bytes_are_joined_as_tiktoken_joins_them() -> None:
    """By an encoding that has the lower ids alone, and takes any text for one word."""
    ids = {token: token_id for token, token_id in named_vocabulary("gpt2").ids.items() if token_id < 5000}
    encoding = tiktoken_encoding(ids, r"(?s).+")
    longer = [token for token in named_vocabulary("gpt2").tokens[5000:50_000:97] if token.isascii()]
    assert len(longer) > 100
    for token in longer:
        parts = [encoding.decode_single_token_bytes(number).decode() for number in encoding.encode_ordinary(token)]
        assert join_below(token, ids | {token: 5000}) == parts


def test_what_passes_agrees_on_random_texts_and_what_differs_does_not_pass() -> None:
    """400 vocabularies on a small alphabet: half as they were trained, half with their merges in another order."""
    generator = random.Random(0)
    passed = differing = 0
    for number in range(400):
        merges = trained_merges(generator)
        if number % 2:
            generator.shuffle(merges)
        ids = {token: token_id for token_id, token in enumerate([*ALPHABET, *map("".join, merges)])}
        is_sound = unproved_merges(merges, ids) == []
        agree = agrees(merges, ids, random_texts(generator))
        assert agree or not is_sound, merges
        passed += is_sound
        differing += not agree
    assert passed >= 200
    assert differing >= 50


def trained_merges(generator: random.Random) -> Merges:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + generator.randrange(2, 40),
        min_frequency=generator.randrange(3),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(random_texts(generator), trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def random_texts(generator: random.Random) -> list[str]:
    return ["".join(generator.choices("aab ", k=generator.randrange(1, 30))) for _ in range(40)]


def agrees(merges: Merges, ids: dict[str, int], texts: list[str]) -> bool:
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding = tiktoken_encoding(ids, SPLIT_PATTERN)
    return all(tokenizer.encode(text).ids == encoding.encode_ordinary(text) for text in texts)
