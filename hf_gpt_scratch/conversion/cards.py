"""README and LICENSE of a converted model; tests render the cards in model_cards/ with it too."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from hf_gpt_scratch.conversion.gpt2_sizes import GPT2Size
from hf_gpt_scratch.conversion.mapping import FORMATS


HUB_NAMES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}
GPT2_PAPER = "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf"
NANOGPT = "https://github.com/karpathy/nanoGPT"
BUILD_NANOGPT = "https://github.com/karpathy/build-nanogpt"
LM_EVAL_ISSUE = "https://github.com/EleutherAI/lm-evaluation-harness/issues/2159"

LIMITS = """GPT-2 predicts the next token of web text, and that is all it does: it was not taught to follow
instructions or to tell truth from fiction. What it writes can be fluent and false. It knows no page
that was linked to after 2017, reads mostly English, and sees no more than 1,024 tokens.

Its training text, pages that Reddit users linked to, was filtered for being liked, not for being fair. So expect it to
repeat prejudice about gender, origin, religion and occupation, and to produce insults or worse from a harmless prompt.
Do not let it speak to people unsupervised, do not use it to decide about them, and test it for the harm that matters
in your case before you build on it. Say that a machine wrote what it wrote."""
OTHER_LIMITS = """The model has the limits and the bias of the text that it was trained on, which the conversion
neither knows nor changes. It makes up facts, and it ends at its context length."""
PROOF = """Every written value is compared with the checkpoint. The logits of the folder, loaded in a process of its
own, are compared with a forward pass in float64 that uses only the checkpoint's own names and layouts."""
UNKNOWN_FIGURES = "The figures and hashes of a conversion are in its card and in its `conversion_report.json`."
CODE_LICENSE = "The `.py` files are part of hf_gpt_scratch, under the Apache License 2.0."
OPENAI_LICENSE = "The weights are OpenAI's, under the Modified MIT License that is in the file LICENSE."
OTHER_LICENSE = """The conversion does not change whose the weights are: the license of the checkpoint that they came
from holds for them."""


def card_template() -> Template:
    """Return the README of a converted model with $names to fill in; in a checkout it lies in model_cards/."""
    packaged = Path(str(files("hf_gpt_scratch").joinpath("assets", "converted_card.md")))
    checkout = Path(__file__).parents[2] / "model_cards" / "converted.md"
    return Template((packaged if packaged.is_file() else checkout).read_text(encoding="utf-8"))


def render_license(format_name: str, size: GPT2Size | None) -> str:
    """Render the LICENSE file: whose the weights are, and whose the code."""
    if size is None and format_name != "openai":
        return f"Weights\n\n{OTHER_LICENSE}\n\nCode\n\n{CODE_LICENSE}\n"
    text = (files("hf_gpt_scratch") / "assets" / "gpt2_license.txt").read_text(encoding="utf-8")
    weights = "Weights" if size else "Weights, as far as they are those that OpenAI published,"
    return f"{weights} and vocabulary: https://github.com/openai/gpt-2\n\n{text}\nCode\n\n{CODE_LICENSE}\n"


def render_stock_license() -> str:
    """Render the LICENSE file of an export whose model had none."""
    return f"Weights\n\n{OTHER_LICENSE}\n"


def render_stock_card(name: str, report: Mapping[str, Any]) -> str:
    """Render the card of an export in the layout of transformers' GPT-2."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts(report).items())
    parts = [
        f"---\n{render_metadata(None)}\n- gpt2\n---\n# {name}",
        "A model of hf_gpt_scratch in the layout of the GPT-2 that is part of transformers. It computes the same, "
        'and\nloads without remote code: `AutoModelForCausalLM.from_pretrained("USER/NAME", revision="<commit>")`.',
        f"| | |\n|---|---|\n{rows}",
        "## How it was exported and verified",
        *render_verification(report["verification"]),
        *(f"Note: {note}." for note in report["notes"]),
        render_hashes("File of this repository", report["files"]),
        f"## Limits and bias\n\n{OTHER_LIMITS}",
        f"## License\n\n{OTHER_LICENSE}",
    ]
    return "\n\n".join(parts) + "\n"


def render_card(name: str, size: GPT2Size | None, report: Mapping[str, Any]) -> str:
    """Fill the template.

    Args:
        name: the title.
        size: the released size, if it is one.
        report: see `convert_checkpoint`.
    """
    return card_template().substitute(
        name=name,
        metadata=render_metadata(size),
        introduction=render_introduction(report, size),
        facts="\n".join(f"| {key} | {value} |" for key, value in facts(report).items()),
        conversion=render_conversion(report, size),
        figures=render_figures(size),
        limits=OTHER_LIMITS if size is None else LIMITS,
        license=f"{OTHER_LICENSE if size is None else OPENAI_LICENSE}\n{CODE_LICENSE}",
    )


def render_metadata(size: GPT2Size | None) -> str:
    """Render the YAML that the Hub reads."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if size is not None:
        lines += ["license: mit", "language: en", f"base_model: openai-community/{HUB_NAMES[size.name]}"]
    return "\n".join([*lines, "tags:", "- gpt-scratch", "- hf_gpt_scratch", *(["- gpt2"] if size else [])])


def render_introduction(report: Mapping[str, Any], size: GPT2Size | None) -> str:
    """Render the first paragraph."""
    if size is None:
        return (
            f"A GPT-2 style language model, converted from {FORMATS[report['format']].title} to the architecture of\n"
            "hf_gpt_scratch. The values are those of the checkpoint; nothing was trained."
        )
    return (
        f"OpenAI's GPT-2 with {size.num_parameters:,} parameters, known as `{HUB_NAMES[size.name]}`, in the "
        "architecture of hf_gpt_scratch: a GPT\nwritten to be read. The weights are those that OpenAI published in "
        "2019 for the paper\n[Language Models are Unsupervised Multitask Learners]"
        f"({GPT2_PAPER});\nnothing was trained or changed. It was trained by OpenAI on WebText, about 40 GB of web "
        "pages, and only to predict the\nnext token."
    )


def facts(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows of the table under the introduction."""
    config = report["config"]
    return {
        "parameters": f"{report['num_parameters']:,}",
        "layers, heads, width": ", ".join(
            str(config[key]) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        ),
        "context": f"{config['max_position_embeddings']:,} tokens",
        "vocabulary": f"{config['vocab_size']:,} tokens",
        "language-model head": "the token embedding" if report["tied"] else "its own",
        "stored as": report["dtype"],
    }


def render_conversion(report: Mapping[str, Any], size: GPT2Size | None) -> str:
    """Render the command, the proof with its figures, and the hashes."""
    command = f"--size {size.name}" if size else "--from_dir CHECKPOINT"
    parts = [
        f"```bash\npython scripts/convert_gpt2.py {command} --output DIR\n```",
        "Every tensor of the checkpoint is mapped or named as dropped, every tensor of the model is filled exactly "
        "once,\nand every shape is compared before a value is copied.",
        *(render_verification(report["verification"]) if report["files"] else [PROOF, UNKNOWN_FIGURES]),
        *(f"Note: {note}." for note in report["notes"]),
        render_hashes("File of the checkpoint", report["source_files"]),
    ]
    if report["files"]:
        parts.append(render_hashes("File of this repository", report["files"]))
    return "\n\n".join(parts)


def render_verification(verification: Mapping[str, Any] | None) -> list[str]:
    """Render what was proved, with its figures, or that nothing was."""
    if verification is None:
        return ["This folder was written with `--no_verify`: its values were not compared with the checkpoint."]
    differences = [
        f"| logits on the {sequence} tokens, {dtype} | {difference:.2g} |"
        for dtype, by_sequence in verification["max_logit_difference"].items()
        for sequence, difference in by_sequence.items()
    ]
    rows = ["| Largest difference | |", "|---|---|", f"| values | {verification['max_value_difference']:.3g} |"]
    parts = [PROOF, "\n".join([*rows, *differences])]
    if verification["losses"]:
        losses = (f"{part.replace('_', ' ')} {loss:.4f}" for part, loss in verification["losses"].items())
        parts.append(f"Loss on the verification text, nats per token: {', '.join(losses)}.")
    return parts


def render_hashes(title: str, hashes: Mapping[str, Mapping[str, Any]]) -> str:
    """Render a table of files."""
    rows = [f"| {title} | bytes | sha256 |", "|---|---|---|"]
    for name, entry in hashes.items():
        num_bytes = "not published" if entry["bytes"] is None else f"{entry['bytes']:,}"
        sha256 = f"`{entry['sha256']}`" if entry["sha256"] else "printed by the download"
        rows.append(f"| {name} | {num_bytes} | {sha256} |")
    return "\n".join(rows)


def render_figures(size: GPT2Size | None) -> str:
    """Render what others have measured on these weights."""
    if size is None:
        return ""
    figures = json.loads((files("hf_gpt_scratch") / "assets" / "gpt2_figures.json").read_text(encoding="utf-8"))
    rows = [f"| {' | '.join(row)} |" for row in figures[size.name]]
    table = "\n".join(["| Task, without fine-tuning | figure | source |", "|---|---|---|", *rows])
    return (
        f"\n## Known figures\n\nPublished for these weights by others; none was measured for this card.\n\n{table}\n\n"
        f"Sources: table 3 of the [paper]({GPT2_PAPER})\n(it undoes the tokenization of the data sets, so other "
        f"tools print other numbers), [nanoGPT]({NANOGPT}),\n[build-nanogpt]({BUILD_NANOGPT}) (play.ipynb),\n"
        f"[lm-eval issue 2159]({LM_EVAL_ISSUE}).\n"
    )
