"""The model card (README) and LICENSE of a converted model; tests render the cards in model_cards/ with it too."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from hf_gpt_scratch.conversion.gpt2_sizes import HUB_NAMES, GPT2Size
from hf_gpt_scratch.conversion.mapping import FORMATS


ASSETS = Path(str(files("hf_gpt_scratch"))) / "assets"
UNKNOWN_FIGURES = "The figures and hashes of a conversion are in its card and in its `conversion_report.json`."
CODE_LICENSE = "The `.py` files are part of hf_gpt_scratch, under the Apache License 2.0."
OPENAI_LICENSE = "The weights are OpenAI's, under the Modified MIT License that is in the file LICENSE."
OTHER_LICENSE = """The conversion does not change whose the weights are: the license of the checkpoint that they came
from holds for them."""
UNKNOWN_LICENSE = f"Weights\n\n{OTHER_LICENSE}\n"  # of an export whose model had none


def render(name: str, /, **values: str) -> str:
    """Fill in a text of assets/cards/."""
    text = (ASSETS / "cards" / f"{name}.md").read_text(encoding="utf-8")
    return Template(text.removesuffix("\n")).substitute(values)


def render_license(format_name: str, size: GPT2Size | None) -> str:
    """Render the LICENSE file: whose the weights are, and whose the code."""
    if size is None and format_name != "openai":
        return f"{UNKNOWN_LICENSE}\nCode\n\n{CODE_LICENSE}\n"
    text = (ASSETS / "gpt2_license.txt").read_text(encoding="utf-8")
    weights = "Weights" if size else "Weights, as far as they are those that OpenAI published,"
    return f"{weights} and vocabulary: https://github.com/openai/gpt-2\n\n{text}\nCode\n\n{CODE_LICENSE}\n"


def render_stock_card(name: str, report: Mapping[str, Any]) -> str:
    """Render the card of an export in the layout of transformers' GPT-2."""
    verification = [
        *render_verification(report["verification"]),
        *(f"Note: {note}." for note in report["notes"]),
        render_hashes("File of this repository", report["files"]),
    ]
    onnx = report.get("onnx")  # of `export_onnx`
    card = render(
        "exported",
        metadata=f"{render_metadata(None)}\n- gpt2" + ("\n- onnx\n- transformers.js" if onnx else ""),
        name=name,
        facts=render_facts(report),
        verification="\n\n".join(verification),
        onnx=render_onnx(onnx) if onnx else "",
        limits=render("limits"),
        license=OTHER_LICENSE,
    )
    return f"{card}\n"


def render_onnx(onnx: Mapping[str, Any]) -> str:
    """Render how the ONNX files are used, and what was proved of them."""
    parts = [render("onnx"), render_hashes("File", onnx["files"])]
    if verification := onnx["verification"]:
        rows = ["| ONNX | |", "|---|---|"]
        rows += [f"| {what.replace('_', ' ')} | {value:.4g} |" for what, value in verification.items()]
        parts[1:1] = [render("onnx_proof"), "\n".join(rows)]
    return "\n\n" + "\n\n".join(parts)


def render_card(name: str, size: GPT2Size | None, report: Mapping[str, Any]) -> str:
    """Render the card of a converted model, of a released size or not, from the report of `convert_checkpoint`."""
    if size is None:
        introduction = render("introduction", title=FORMATS[report["format"]].title)
    else:
        names = {"num_parameters": f"{size.num_parameters:,}", "hub_name": HUB_NAMES[size.name]}
        introduction = render("gpt2_introduction", **names)
    card = render(
        "converted",
        name=name,
        metadata=render_metadata(size),
        introduction=introduction,
        facts=render_facts(report),
        conversion=render_conversion(report, size),
        figures=render_figures(size),
        limits=render("limits" if size is None else "gpt2_limits"),
        license=f"{OTHER_LICENSE if size is None else OPENAI_LICENSE}\n{CODE_LICENSE}",
    )
    return f"{card}\n"


def render_metadata(size: GPT2Size | None) -> str:
    """Render the YAML that the Hub reads."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if size is not None:
        lines += ["license: mit", "language: en", f"base_model: openai-community/{HUB_NAMES[size.name]}"]
    return "\n".join([*lines, "tags:", "- gpt-scratch", "- hf_gpt_scratch", *(["- gpt2"] if size else [])])


def render_facts(report: Mapping[str, Any]) -> str:
    """Render the rows of the table under the introduction."""
    config = report["config"]
    shape = (config[key] for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    facts = {
        "parameters": f"{report['num_parameters']:,}",
        "layers, heads, width": ", ".join(map(str, shape)),
        "context": f"{config['max_position_embeddings']:,} tokens",
        "vocabulary": f"{config['vocab_size']:,} tokens",
        "language-model head": "the token embedding" if report["tied"] else "its own",
        "stored as": report["dtype"],
    }
    return "\n".join(f"| {key} | {value} |" for key, value in facts.items())


def render_conversion(report: Mapping[str, Any], size: GPT2Size | None) -> str:
    """Render the command, the proof with its figures, and the hashes."""
    command = f"--size {size.name}" if size else "--from_dir CHECKPOINT"
    parts = [
        f"```bash\npython scripts/convert_gpt2.py {command} --output DIR\n```",
        "Every tensor of the checkpoint is mapped or named as dropped, every tensor of the model is filled exactly "
        "once,\nand every shape is compared before a value is copied.",
        *(render_verification(report["verification"]) if report["files"] else [render("proof"), UNKNOWN_FIGURES]),
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
    parts = [render("proof"), "\n".join([*rows, *differences])]
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
    figures = json.loads((ASSETS / "gpt2_figures.json").read_text(encoding="utf-8"))
    rows = [f"| {' | '.join(row)} |" for row in figures[size.name]]
    table = "\n".join(["| Task, without fine-tuning | figure | source |", "|---|---|---|", *rows])
    return render("gpt2_figures", table=table)
