"""Proves the files of a tokenizer against those that transformers writes, and that AutoTokenizer reads them."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary import join_merges
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from hf_gpt_scratch.hub.repository import settle_tokenizer


@pytest.mark.parametrize("name", ["gpt2", "bytes", "own"])
def test_files_are_those_of_transformers_to_the_byte(tmp_path: Path, own_vocabulary: Path, name: str) -> None:
    vocabulary = load_vocabulary(str(own_vocabulary) if name == "own" else name)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    build_tokenizer(128, vocabulary).save_pretrained(theirs)
    (theirs / "config.json").write_text("{}")
    settle_tokenizer(theirs)
    ours.mkdir()
    write_tokenizer(ours, vocabulary, 128)
    assert sorted(path.name for path in ours.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for path in ours.iterdir():
        assert path.read_bytes() == (theirs / path.name).read_bytes()


def test_folder_of_a_vocabulary_is_read_as_it_is(own_vocabulary: Path) -> None:
    vocabulary = load_vocabulary(str(own_vocabulary))
    content = json.loads((own_vocabulary / "tokenizer.json").read_text(encoding="utf-8"))
    assert content["model"]["merges"] == join_merges(vocabulary.merges)
    tokenizer = AutoTokenizer.from_pretrained(own_vocabulary)
    assert tokenizer.get_vocab() == vocabulary.ids
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == vocabulary.end_of_text_id == 399
    assert tokenizer("The lamp" * 2000, verbose=True)["input_ids"]  # no limit, so no warning of one
    assert tokenizer.padding_side == "left"
