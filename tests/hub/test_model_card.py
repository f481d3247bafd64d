"""Proves that the card tells the Hub's index what it needs, in the words that the Hub's own reader understands."""

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard import metadata_load

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForTokenClassification
from hf_gpt_scratch.hub.model_card import CardDetails, render_card


PERPLEXITY = EvalResult(
    task_type="text-generation",
    dataset_type="text",
    dataset_name="story.txt",
    metric_type="perplexity",
    metric_value=97.5,
)


@pytest.fixture
def model(tiny_config: GPTScratchConfig) -> GPTScratchForCausalLM:
    return GPTScratchForCausalLM(tiny_config)


def test_metadata_is_what_the_hub_reads(model: GPTScratchForCausalLM, tmp_path: Path) -> None:
    details = CardDetails(title="toy", base_model="alice/base", license="cc0-1.0", eval_results=(PERPLEXITY,))
    path = tmp_path / "README.md"
    path.write_text(render_card(model, "model", details), encoding="utf-8")
    card = ModelCard.load(path)
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "text-generation", "cc0-1.0")
    assert data.base_model == "alice/base"
    assert data.tags == ["gpt-scratch", "hf_gpt_scratch"]
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("story.txt", "perplexity", 97.5)
    assert metadata_load(path)["model-index"][0]["name"] == "toy"
    assert "fine-tuned from `base`" in card.text
    assert "under the license `cc0-1.0`" in card.text
    card.save(tmp_path / "again.md")  # the library's own writer
    assert ModelCard.load(tmp_path / "again.md").data.to_dict() == data.to_dict()


def test_what_is_not_known_is_not_claimed(model: GPTScratchForCausalLM, tmp_path: Path) -> None:
    card = ModelCard(render_card(model, "model", CardDetails(facts={"price": "$title"}, base_model=str(tmp_path))))
    assert card.data.license is None
    assert card.data.base_model is None  # a folder of this machine is nothing to look up
    assert card.data.eval_results is None
    assert "named no license" in card.text
    assert "\n# model\n" in card.text
    assert "| price | $title |" in card.text
    assert str(tmp_path) not in card.content


def test_the_card_says_how_to_load_it_pinned_and_without_its_code(model: GPTScratchForCausalLM) -> None:
    text = render_card(model, "model", CardDetails(repo_id="alice/toy"))
    assert 'path = "alice/toy"' in text
    assert "from_pretrained(path, revision=revision, trust_remote_code=True)" in text
    assert "## How to load it without remote code" in text
    assert "--export_stock" in text


def test_a_classifier_has_its_own_task(tiny_config: GPTScratchConfig) -> None:
    card = ModelCard(render_card(GPTScratchForTokenClassification(tiny_config), "model", CardDetails()))
    assert card.data.pipeline_tag == "token-classification"
    assert "import AutoModelForTokenClassification" in card.text
