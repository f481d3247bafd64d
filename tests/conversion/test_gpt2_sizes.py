"""Proves that the table of sizes agrees with itself, with the architecture and with the files that can be rebuilt."""

import hashlib
import json
import math

import pytest

from hf_gpt_scratch.conversion.gpt2_sizes import (
    ALIASES,
    CONTEXT_LENGTH,
    DATA_FILE,
    GPT2_SIZES,
    HPARAMS_FILE,
    MIRROR_URLS,
    OPENAI_URL,
    VOCAB_SIZE,
    find_size,
)
from tests.conversion.bundle_writer import gpt2_shapes


SIZES = GPT2_SIZES.values()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_parameters_and_data_bytes_follow_from_the_shapes(size):
    shapes = gpt2_shapes(size.hidden_size, size.num_hidden_layers, VOCAB_SIZE, CONTEXT_LENGTH)
    assert sum(math.prod(shape) for shape in shapes.values()) == size.num_parameters
    assert len(shapes) == 4 + 12 * size.num_hidden_layers
    assert size.files[DATA_FILE] == 4 * size.num_parameters
    assert size.hidden_size == 64 * size.num_attention_heads


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_seven_files_and_hashes_of_some(size):
    names = {
        "checkpoint",
        "encoder.json",
        "hparams.json",
        "model.ckpt.meta",
        "vocab.bpe",
        "model.ckpt.index",
        DATA_FILE,
    }
    assert set(size.files) == names
    assert set(size.sha256) <= names
    assert all(len(bytes.fromhex(digest)) == 32 for digest in size.sha256.values())


def test_every_file_of_124m_is_pinned():
    assert set(GPT2_SIZES["124M"].sha256) == set(GPT2_SIZES["124M"].files)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_hparams_rebuilt(size):
    content = (json.dumps(size.hparams, indent=2) + "\n").encode()
    assert len(content) == size.files[HPARAMS_FILE]
    pinned = size.sha256.get(HPARAMS_FILE, hashlib.sha256(content).hexdigest())
    assert hashlib.sha256(content).hexdigest() == pinned


def test_checkpoint_file_rebuilt():
    content = b'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    for size in SIZES:
        assert len(content) == size.files["checkpoint"]
        assert hashlib.sha256(content).hexdigest() == size.sha256["checkpoint"]


def test_vocabulary_files(shared_data):
    for name in ("vocab.bpe", "encoder.json"):
        content = (shared_data / "gpt2_vocab" / name).read_bytes()
        for size in SIZES:
            assert (len(content), hashlib.sha256(content).hexdigest()) == (size.files[name], size.sha256[name])


@pytest.mark.parametrize("name", ["124M", "124m", "gpt2", "GPT2"])
def test_find_size(name):
    assert find_size(name) is GPT2_SIZES["124M"]


def test_every_alias_is_a_size():
    assert [find_size(alias).name for alias in ALIASES] == list(GPT2_SIZES)


@pytest.mark.parametrize("name", ["", "117M", "124M ", "gpt3", "../124M"])
def test_unknown_size(name):
    with pytest.raises(ValueError, match="unknown GPT-2 size .*: choose from 124M, 355M, 774M, 1558M, gpt2, "):
        find_size(name)


def test_urls_are_https_and_joinable():
    for url in (OPENAI_URL, *MIRROR_URLS):
        assert url.startswith("https://")
        assert not url.endswith("/")
