"""Proves that the cards say what is true of their size, in the form that the Hub reads, and that the files in
model_cards/ are what the code makes; to make them again: HF_GPT_SCRATCH_WRITE_CARDS=1 pytest this file.
"""

import json
import os
import re
from importlib.resources import files
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from hf_gpt_scratch.conversion.cards import render_card, render_license, render_stock_card
from hf_gpt_scratch.conversion.gpt2_sizes import (
    CONTEXT_LENGTH,
    GPT2_SIZES,
    HUB_NAMES,
    VOCAB_SIZE,
    GPT2Size,
    find_size,
)


FIGURES = json.loads((files("hf_gpt_scratch") / "assets" / "gpt2_figures.json").read_text(encoding="utf-8"))
REPORT = {
    "format": "tutorial",
    "config": {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 16,
        "max_position_embeddings": 12,
        "vocab_size": 29,
    },
    "num_parameters": 1234,
    "tied": False,
    "dtype": "bfloat16",
    "source_files": {"model.pth": {"bytes": 5000, "sha256": "a" * 64}},
    "files": {"model.safetensors": {"bytes": 4000, "sha256": "b" * 64}},
    "notes": ["something was decided"],
    "verification": {
        "max_value_difference": 0.001,
        "max_logit_difference": {"float64": {"fixed": 2e-14}},
        "losses": {"all": 3.25},
    },
}


def card_file_name(size: GPT2Size) -> str:
    return f"{HUB_NAMES[size.name]}-{size.name.lower()}.md"


def render_size_card(size: GPT2Size) -> str:
    """The card of a released size before anybody has converted it: with what is known beforehand."""
    config = {
        "num_hidden_layers": size.num_hidden_layers,
        "num_attention_heads": size.num_attention_heads,
        "hidden_size": size.hidden_size,
        "max_position_embeddings": CONTEXT_LENGTH,
        "vocab_size": VOCAB_SIZE,
    }
    hashes = {name: {"bytes": num_bytes, "sha256": size.sha256.get(name)} for name, num_bytes in size.files.items()}
    report = {
        "format": "openai",
        "config": config,
        "num_parameters": size.num_parameters,
        "tied": True,
        "dtype": "float32",
        "source_files": hashes,
        "verification": None,
        "files": {},
        "notes": [],
    }
    return render_card(f"GPT-2 {size.name}", size, report)


@pytest.mark.parametrize("size", GPT2_SIZES.values(), ids=lambda size: size.name)
def test_card_files_are_what_the_code_makes(size: object, project_root: Path) -> None:
    path = project_root / "model_cards" / card_file_name(size)
    card = render_size_card(size)
    if os.environ.get("HF_GPT_SCRATCH_WRITE_CARDS"):
        path.write_text(card, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == card


@pytest.mark.parametrize("size", GPT2_SIZES.values(), ids=lambda size: size.name)
def test_cards_of_the_sizes(size: object, project_root: Path, tmp_path: Path) -> None:
    path = project_root / "model_cards" / card_file_name(size)
    card = ModelCard.load(path)
    assert isinstance(card.data, ModelCardData)
    assert (card.data.license, card.data.library_name, card.data.language) == ("mit", "transformers", "en")
    assert card.data.pipeline_tag == "text-generation"
    assert metadata_load(path)["tags"] == ["gpt-scratch", "hf_gpt_scratch", "gpt2"]
    card.save(tmp_path / "README.md")  # the library's own writer reads what it has parsed
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == card.data.to_dict()

    text = card.text
    assert "$" not in text
    assert f"{size.num_parameters:,}" in text
    for value in (*(figure for _, figure, _ in FIGURES[size.name]), *size.sha256.values()):
        assert value in text
    for heading in ("How to load it without remote code", "Known figures", "Limits and bias", "License"):
        assert f"## {heading}\n" in text
    assert "revision=revision, trust_remote_code=True" in text
    assert "Modified MIT License" in text
    assert re.search(r"data-00000-of-00001 \| [\d,]+ \| (`[0-9a-f]{64}`|printed by the download) \|", text)
    assert all(len(line) < 200 for line in text.splitlines())


def test_figures_have_one_value_for_each_row() -> None:
    tasks = [[task for task, _, source in rows if source != "lm-eval"] for rows in FIGURES.values()]
    assert all(len(set(own)) == 10 and own == tasks[0] for own in tasks)
    assert FIGURES.keys() == GPT2_SIZES.keys()


def test_card_of_another_checkpoint_claims_nothing_of_openai() -> None:
    text = render_card("mine", None, REPORT)
    card = ModelCard(text)
    assert card.data.license is None
    for fact in ("1,234", "| 29 tokens |", "its own", "bfloat16", "a" * 64, "b" * 64, "2e-14", "all 3.2500"):
        assert fact in text
    assert "Note: something was decided." in text
    assert "OpenAI" not in text
    assert "OpenAI" not in render_license("tutorial", None)
    assert "written with `--no_verify`" in render_card("mine", None, REPORT | {"verification": None})
    assert "are compared with a forward pass" not in render_card("mine", None, REPORT | {"verification": None})


def test_card_of_an_export() -> None:
    text = render_stock_card("mine", REPORT)
    assert ModelCard(text).data.tags == ["gpt-scratch", "hf_gpt_scratch", "gpt2"]
    assert "trust_remote_code=True" not in text
    assert "reports losses of rows of T tokens as (T - 1) / T of the true ones" in text


def test_license_holds_the_permission_notice() -> None:
    for license in (render_license("openai", find_size("124M")), render_license("openai", None)):
        assert "Software Copyright (c) 2019 OpenAI" in license
        assert "The above copyright notice and this permission notice shall be included" in license
        assert "Apache License 2.0" in license
