"""The sections of a model card that describe a run, from its history; `hub/model_card.py` has the card itself."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from huggingface_hub import EvalResult

from hf_gpt_scratch.data.sample_texts import SAMPLE_TEXTS
from hf_gpt_scratch.data.vocabulary import NAMES, OWN
from hf_gpt_scratch.data.windows import find_text_files
from hf_gpt_scratch.evaluation import perplexity
from hf_gpt_scratch.hub.model_card import CardDetails
from hf_gpt_scratch.runtime.environment import as_line
from hf_gpt_scratch.runtime.files import file_sha256
from hf_gpt_scratch.training.reporting.history import History
from hf_gpt_scratch.training.settings import TrainingSettings


MAX_LOSS_ROWS = 12
MAX_FILES = 20


def describe_texts(settings: TrainingSettings) -> list[dict[str, Any]]:
    """List the files that a run reads, by part: name, bytes and SHA-256, without their paths on this machine.

    A folder of prepared tokens is listed as its index, which holds the hash of every shard.
    """
    prepared = [settings.train_data] if settings.train_data else None
    training = prepared or settings.train_file or [str(SAMPLE_TEXTS[settings.sample_text]())]
    parts = {"training": training, "validation": settings.validation_file or []}
    return [
        {"part": part, "name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for part, paths in parts.items()
        for path in paths
        for file in text_files(Path(path))
    ]


def text_files(path: Path) -> list[Path]:
    """Return the index of a folder of prepared tokens, or the files that are read."""
    index = path / "index.json"
    return [index] if index.is_file() else find_text_files([path])


def card_details(settings: TrainingSettings, history: History, facts: Mapping[str, Any] | None = None) -> CardDetails:
    """Collect the content of the card of a run, finished or not.

    Args:
        settings: of the run.
        history: with its rows "run" (with "texts"), "evaluation", "sample" and, if it has finished, "end".
        facts: rows of the card's table.
    """
    run = history.rows("run")[-1]
    evaluations, samples, ends = (history.rows(event) for event in ("evaluation", "sample", "end"))
    picture = history.path.with_name("loss.png")
    sections = [
        section("Data", data_table(run), tokens_line(run, settings)),
        section("Training", f"{hardware_line(run, ends)}\n\nVersions: {as_line(run['versions'])}.", recipe(settings)),
        section("Losses", loss_table(evaluations), f"![losses]({picture.name})" if picture.is_file() else ""),
        section("Samples", *(sample_text(row) for row in first_and_last(samples))),
    ]
    title = (settings.push_to_hub or settings.output_dir).rstrip("/").split("/")[-1]
    return CardDetails(
        title=title,
        base_model=settings.model_name_or_path,
        facts=facts or {},
        repo_id=settings.push_to_hub,
        license=settings.license,
        sections="\n\n".join(filter(None, sections)),
        eval_results=tuple(measured(row["validation_loss"], run) for row in ends[-1:]),
        pictures=(picture,) if picture.is_file() else (),
    )


def section(title: str, *parts: str) -> str:
    """Return a heading and its parts, or nothing if all parts are empty."""
    body = "\n\n".join(filter(None, parts))
    return f"## {title}\n\n{body}" if body else ""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table, or nothing if it has no rows."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines) * (
        len(rows) > 0
    )


def data_table(run: dict[str, Any]) -> str:
    """Return a table of the files with their hashes; of very many, the first."""
    texts = run.get("texts", [])
    rows = [[text["part"], text["name"], f"{text['bytes']:,}", f"`{text['sha256']}`"] for text in texts[:MAX_FILES]]
    if len(texts) > MAX_FILES:
        rows.append(["", f"and {len(texts) - MAX_FILES} more", "", ""])
    return table(["part", "file", "bytes", "sha256"], rows)


def tokens_line(run: dict[str, Any], settings: TrainingSettings) -> str:
    """Name the number of tokens for training and for validation."""
    split = (
        "" if settings.validation_file else f" The training part is the first {settings.train_split:g} of the text."
    )
    vocabulary = run.get("vocabulary") or {}
    own = (
        f" The vocabulary has {vocabulary['size']:,} tokens of its own, sha256 `{vocabulary['sha256']}`."
        if vocabulary.get("name") == OWN
        else ""
    )
    return f"{run['train_tokens']:,} tokens to train on, {run['validation_tokens']:,} to validate on.{split}{own}"


def hardware_line(run: dict[str, Any], ends: list[dict[str, Any]]) -> str:
    """Name the devices of the run and its duration."""
    line = f"{run['processes']} x {run['device']}, precision {run['precision']}"
    return f"{line}, {ends[-1]['seconds']:,.0f} seconds." if ends else f"{line}; not finished yet."


def recipe(settings: TrainingSettings) -> str:
    """Return the settings that determine the result; free text is left out, as it may name files of this machine."""
    hints = get_type_hints(type(settings))
    unused = {item.name for item in fields(settings) if item.metadata["may_change_on_resume"]}
    if settings.vocabulary in NAMES:  # and no folder of this machine
        unused -= {"vocabulary"}
    if not (settings.train_file or settings.train_data):
        unused -= {"sample_text"}
    lines = [
        f"{name}: {json.dumps(value)}"
        for name, value in settings.to_dict().items()
        if name not in unused
        and (
            isinstance(value, (int, float)) or (value is not None and (is_choice(hints[name]) or name == "vocabulary"))
        )
    ]
    body = "\n".join(lines)
    return (
        "<details><summary>Settings, as <code>scripts/train.py --config</code> reads them</summary>\n\n"
        f"```yaml\n{body}\n```\n\n</details>"
    )


def is_choice(hint: Any) -> bool:
    """Return True if a setting takes one of a few given words."""
    return any(get_origin(part) is Literal for part in (hint, *get_args(hint)))


def loss_table(evaluations: list[dict[str, Any]]) -> str:
    """Return a table of evenly chosen evaluations, the first and the last among them."""
    last = len(evaluations) - 1
    step = max(1, last / (MAX_LOSS_ROWS - 1))
    chosen = sorted({min(last, round(index * step)) for index in range(MAX_LOSS_ROWS)}) if evaluations else []
    # A version before this one did not record bits per byte.
    has_bits = any("bits_per_byte" in row for row in evaluations)
    rows = [
        [
            f"{row['global_step']:,}",
            f"{row['epoch']:.2f}",
            f"{row['tokens_seen']:,}",
            f"{row['train_loss']:.3f}",
            f"{row['validation_loss']:.3f}" + (f" ± {row['standard_error']:.3f}" if "standard_error" in row else ""),
            f"{perplexity(row['validation_loss']):,.1f}",
            *([f"{row['bits_per_byte']:.3f}" if "bits_per_byte" in row else ""] if has_bits else []),
        ]
        for row in (evaluations[index] for index in chosen)
    ]
    head = ["step", "epoch", "tokens seen", "training loss", "validation loss", "validation perplexity"]
    return table([*head, "bits per byte"] if has_bits else head, rows)


def first_and_last(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first and the last row."""
    return rows if len(rows) < 2 else [rows[0], rows[-1]]


def sample_text(row: dict[str, Any]) -> str:
    """Return the greedy sample of a step, in a fence that the text cannot close."""
    longest = max((len(ticks) for ticks in re.findall("`+", row["text"])), default=0)
    fence = "`" * max(3, longest + 1)
    return f"After step {row['global_step']:,}:\n\n{fence}text\n{row['text']}\n{fence}"


def measured(validation_loss: float, run: dict[str, Any]) -> EvalResult:
    """Return the perplexity over the whole validation text, for the Hub's index."""
    texts = run.get("texts", [])
    names = [text["name"] for text in texts if text["part"] == "validation"] or [text["name"] for text in texts]
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type="text",
        dataset_name=", ".join(names[:3]) or "text",
        dataset_split="validation",
        metric_type="perplexity",
        metric_name="Perplexity",
        metric_value=round(perplexity(validation_loss), 4),
    )
