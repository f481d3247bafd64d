"""The card of a trained model: a README for people, with metadata that the Hub's index reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel


PIPELINE_TAGS = {
    "AutoModel": "feature-extraction",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
GENERATION_EXAMPLE = """\
token_ids = model.generate(**inputs, max_new_tokens=25, do_sample=True, temperature=1.0, top_k=25)
print(tokenizer.decode(token_ids[0]))"""
FORWARD_EXAMPLE = "print(model(**inputs)[0])"
NO_LICENSE = "Whoever trained the weights named no license for them."


@dataclass(frozen=True)
class CardDetails:
    """Details of a card that the model itself does not know."""

    title: str | None = None  # none: the name of the folder
    base_model: str | None = None  # folder or Hub name of the model that training began with; None: fresh weights
    facts: Mapping[str, Any] = field(default_factory=dict)  # more rows of the table, such as the losses
    repo_id: str | None = None  # USER/NAME, if it is known where the model will be pushed to
    license: str | None = None  # of the weights, as the Hub calls it, such as "apache-2.0"
    sections: str = ""  # Markdown between the table of facts and how to load it
    eval_results: tuple[EvalResult, ...] = ()
    pictures: tuple[Path, ...] = ()  # files that the sections show, to lie beside the card


def render_card(model: PreTrainedModel, name: str, details: CardDetails) -> str:
    """Fill in the card of a model, whose title is `name` if the details have none."""
    config = model.config
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "layers, heads, width": f"{config.num_hidden_layers}, {config.num_attention_heads}, {config.hidden_size}",
        "context": f"{config.max_position_embeddings} tokens",
        **details.facts,
    }
    title, base_model = details.title or name, details.base_model
    auto_class = type(model)._auto_class or "AutoModelForCausalLM"
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[auto_class],
        license=details.license,
        # A folder is nothing that others can look up.
        base_model=base_model if base_model and not Path(base_model).exists() else None,
        tags=["gpt-scratch", "hf_gpt_scratch"],
        model_name=title,
        eval_results=list(details.eval_results) or None,
    )
    template = (files("hf_gpt_scratch") / "assets" / "model_card.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        metadata=metadata.to_yaml(),
        title=title,
        origin=f"fine-tuned from `{Path(base_model).name}`" if base_model else "trained from scratch",
        facts="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
        sections=f"\n{details.sections}\n" if details.sections else "",
        auto_class=auto_class,
        repo_id=details.repo_id or "USER/NAME",
        example=GENERATION_EXAMPLE if model.can_generate() else FORWARD_EXAMPLE,
        license=f"The weights are under the license `{details.license}`." if details.license else NO_LICENSE,
    )
