"""Conversion of a checkpoint to a repository folder: read, map, write, verify, and only then publish. No network.

Neither torch nor transformers is imported here for a checkpoint of TensorFlow or safetensors, and no more than one
matrix is held in memory at a time.
"""

import math
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_gpt_scratch import __version__
from hf_gpt_scratch.conversion.cards import render_card, render_license
from hf_gpt_scratch.conversion.gpt2_sizes import GPT2Size
from hf_gpt_scratch.conversion.mapping import (
    EMBEDDING,
    HEAD,
    Format,
    MappingPlan,
    canonical_names,
    detect_format,
    plan_moves,
)
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors, Shape
from hf_gpt_scratch.conversion.readers.sources import OURS, Source, open_source
from hf_gpt_scratch.conversion.source_config import build_config
from hf_gpt_scratch.conversion.verify import verify_folder
from hf_gpt_scratch.conversion.writers.repository_files import write_model_files
from hf_gpt_scratch.conversion.writers.safetensors_writer import write_model
from hf_gpt_scratch.conversion.writers.tensor_blocks import tensor_blocks
from hf_gpt_scratch.data.documents import read_text
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.vocabulary import Vocabulary, named_vocabulary
from hf_gpt_scratch.data.vocabulary_folder import REMEDY, load_vocabulary
from hf_gpt_scratch.runtime.cli import name_some
from hf_gpt_scratch.runtime.files import atomic_folder, file_sha256, write_json


REPORT_FILE = "conversion_report.json"


@dataclass(frozen=True)
class OutputOptions:
    """Options of writing a folder and of proving it equal to its source."""

    dtype: str | None = None  # "float32", "bfloat16" or "float16"; None: that of an exported folder, or float32
    max_shard_size: int = 5_000_000_000  # bytes of the largest weight file
    verify: bool = True  # prove the folder equal to its source
    text: str | Path | None = None  # file to compute losses on; None: a short one of the package
    say: Callable[[str], None] = lambda line: None  # called with a line about each step


@dataclass(frozen=True)
class Conversion:
    """A checkpoint that has been accounted for, before any value is copied."""

    source: Source
    format: Format
    config: dict[str, Any]  # fields of GPTScratchConfig
    plan: MappingPlan
    vocabulary: Vocabulary | None  # of the tokenizer to write
    notes: list[str]


def plan_conversion(source: Source, num_heads: int | None = None, vocab_size: int | None = None) -> Conversion:
    """Detect the format, build the config and account for every tensor; see `convert_checkpoint`."""
    if source.hint == OURS:
        raise ValueError(
            f"{source.path} is in our own layout already: --export_stock writes it as transformers' GPT-2"
        )
    tensors, shapes = source.tensors, source.tensors.shapes
    format_ = detect_format(shapes, source.hint)
    config, notes = build_config(format_, shapes, source.settings, num_heads)
    names = {short: name for name, short in canonical_names(format_, shapes).items()}
    drop = _settle_head(format_, source, names, config)
    drop |= _settle_zero_biases(format_, tensors, names, config)
    rows, vocabulary = config["vocab_size"], find_vocabulary(source.path.parent, notes)
    config["vocab_size"] = _cut_vocabulary(rows, vocab_size, vocabulary, notes)
    if vocabulary is not None and vocabulary.size > config["vocab_size"]:
        notes.append(
            f"no tokenizer is written: the model has {config['vocab_size']} tokens, and {vocabulary.name} "
            f"{vocabulary.size}"
        )
        vocabulary = None
    plan = plan_moves(format_, shapes, config, source_vocab_size=rows, drop=drop)
    plan.dropped |= source.dropped
    used = {move.source: tensors.dtypes[move.source] for move in plan.moves}
    wrong = [f"{name} is {dtype}" for name, dtype in used.items() if dtype not in (np.float32, np.float16)]
    if wrong:
        raise ValueError(f"weights have to be float32, float16 or bfloat16, but {name_some(wrong, '; ')}")
    if plan.zeros:
        notes.append(f"the model has no biases: {len(plan.zeros)} of ours are zero, which computes the same")
    return Conversion(source, format_, config, plan, vocabulary, notes)


def find_vocabulary(folder: Path, notes: list[str]) -> Vocabulary | None:
    """Return the vocabulary of the `tokenizer.json` beside a checkpoint, and GPT-2's without one.

    None if there is one that tiktoken cannot take: another in its place would give wrong texts.
    """
    try:
        return load_vocabulary(str(folder))
    except FileNotFoundError:
        return named_vocabulary("gpt2")
    except (ValueError, OSError) as error:
        reason = str(error).removesuffix(f": {REMEDY}")
        notes.append(f"no tokenizer is written, because {reason}: copy the files of the model's own")
        return None


def _settle_head(format_: Format, source: Source, names: Mapping[str, str], config: dict[str, Any]) -> dict[str, str]:
    """Decide whether the head is the token embedding, and what to drop for it; settings and values must agree."""
    settings = source.settings
    said = settings.get("tie_word_embeddings", True if settings else None) if format_.name == "gpt2" else None
    head, embedding = format_.source_of(HEAD), names[format_.source_of(EMBEDDING)]
    if head not in names:
        # Without a head in the file the model ties it, but for the tutorial's, which always has one.
        config["tie_word_embeddings"] = format_.name != "tutorial" and said is not False
        return {}
    one, other = source.tensors[names[head]], source.tensors[embedding]
    rows = range(0, max(len(one), len(other)), 4096)  # in blocks: a comparison takes a byte for each value
    is_tied = all(np.array_equal(one[row : row + 4096], other[row : row + 4096]) for row in rows)
    if said and not is_tied:
        raise ValueError(
            f"{names[head]} differs from {embedding}, though config.json ties them: "
            "set tie_word_embeddings to false there if the head is meant, or remove it from the file"
        )
    config["tie_word_embeddings"] = is_tied = is_tied and said is not False
    return {head: "it equals the token embedding, and the head is tied"} if is_tied else {}


def _settle_zero_biases(
    format_: Format, tensors: NamedTensors, names: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, str]:
    """Drop the QKV biases that `export_stock` added; ValueError says that they are no longer zero."""
    biases = [short for short in names if short.endswith(".attn.c_attn.bias")]
    if format_.name != "gpt2" or config["qkv_bias"] or not biases:
        return {}
    if changed := [names[short] for short in biases if np.any(tensors[names[short]])]:
        raise ValueError(
            f"config.json says qkv_bias is false, but {name_some(changed)} is not zero: remove qkv_bias there"
        )
    return dict.fromkeys(biases, "zeros, where the exported model had no bias")


def _cut_vocabulary(rows: int, wanted: int | None, vocabulary: Vocabulary | None, notes: list[str]) -> int:
    if wanted is not None and not 0 < wanted <= rows:
        raise ValueError(f"--vocab_size {wanted} cannot be had from an embedding of {rows} rows: choose 1 to {rows}")
    if wanted is not None and wanted < rows:
        notes.append(f"rows {wanted} to {rows - 1} of the vocabulary are cut, as asked")
    elif vocabulary is not None and rows > vocabulary.size:
        owner, size = "GPT-2" if vocabulary.name == "gpt2" else "the tokenizer", vocabulary.size
        notes.append(f"the vocabulary has {rows - size} rows more than {owner}'s; --vocab_size {size} cuts them")
    return wanted or rows


def convert_checkpoint(
    path: str | Path,
    output: str | Path,
    *,
    reader: str = "bundle",
    num_heads: int | None = None,
    vocab_size: int | None = None,
    size: GPT2Size | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Convert a checkpoint to a repository folder, atomically and verified, and return the report that it holds.

    Args:
        path: see `open_source`.
        output: the folder to make.
        reader: "bundle" or "tensorflow".
        num_heads: number of attention heads, where the checkpoint does not say.
        vocab_size: keep only so many rows of the vocabulary.
        size: the released size that this is, for the card and the license.
        **options: fields of `OutputOptions`.

    ValueError: the checkpoint does not fit, or the proof fails; OSError: a file is missing or cannot be written.
    """
    how = OutputOptions(**options)
    with atomic_folder(Path(output)) as folder:
        source = open_source(path, reader)
        conversion = plan_conversion(source, num_heads, vocab_size)
        format_, config, plan = conversion.format, conversion.config, conversion.plan
        if size is not None:
            check_size(config, size)
        how.say(f"this is {format_.title}: {len(source.tensors)} tensors, {config['num_hidden_layers']} layers")
        write_model_files(folder, config, how.dtype or "float32", conversion.vocabulary)
        source_files = describe_files(source.files)
        notes = conversion.notes + (compare_hashes(source_files, size) if size else [])
        report = {"format": format_.name, "reader": source.reader, "source_files": source_files, "notes": notes}
        report |= {"dtype": how.dtype or "float32", "config": config, "dropped": plan.dropped, "zeros": plan.zeros}
        return write_proved(
            folder, source, plan.shapes, tensor_blocks(plan, source.tensors), report, how,
            license_text=render_license(format_.name, size), render_card=partial(render_card, Path(output).name, size),
        )  # fmt: skip


def write_proved(
    folder: Path,
    source: Source,
    shapes: Mapping[str, Shape],
    blocks: Iterable[tuple[str, np.ndarray]],
    report: dict[str, Any],
    how: OutputOptions,
    *,
    license_text: str,
    render_card: Callable[[dict[str, Any]], str],
    stock: bool = False,
) -> dict[str, Any]:
    """Write weights, license, card and report to a folder that has all other files, and prove it equal to its source.

    `report` has format, dtype, config and notes, and is completed and returned; `stock`: as transformers' GPT-2.
    """
    has_tokenizer = (folder / "tokenizer.json").is_file()
    if how.text is not None and not has_tokenizer:
        raise ValueError(f"--text {how.text} needs a tokenizer, and this model has none: leave it out")
    text = read_text(Path(how.text) if how.text else bundled_text_path()) if has_tokenizer else None
    weights = write_model(folder, shapes, blocks, report["dtype"], how.max_shard_size)
    report |= {
        "num_parameters": sum(math.prod(shape) for shape in shapes.values()),
        "tied": report["config"]["tie_word_embeddings"],
        "tensors": {name: list(shape) for name, shape in shapes.items()},
        "text": None if how.text is None else Path(how.text).name,
        "verification": None,
        "versions": {"hf_gpt_scratch": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    if how.verify:
        how.say("verifying: every value, and logits of the folder loaded in a fresh process")
        report["verification"] = verify_folder(folder, weights, source.tensors, report, stock=stock, text=text)
    (folder / "LICENSE").write_text(license_text, encoding="utf-8")
    report["files"] = describe_files(sorted(folder.iterdir()))
    (folder / "README.md").write_text(render_card(report), encoding="utf-8")
    write_json(folder / REPORT_FILE, report)
    return report


def check_size(config: Mapping[str, Any], size: GPT2Size) -> None:
    """Raise ValueError if a checkpoint is not the released size that it is said to be."""
    expected = {key: getattr(size, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    wrong = [f"{key} is {config[key]}, not {value}" for key, value in expected.items() if config[key] != value]
    if wrong:
        raise ValueError(f"this is not GPT-2 {size.name}: {'; '.join(wrong)}")


def compare_hashes(source_files: Mapping[str, Mapping[str, Any]], size: GPT2Size) -> list[str]:
    """Say which files are not those that were published; only some of the hashes have a second source."""
    return [
        f"{name} is not the file that was published for {size.name}: its sha256 is not {size.sha256[name]}"
        for name, facts in source_files.items()
        if facts["sha256"] != size.sha256.get(name, facts["sha256"])
    ]


def describe_files(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Return bytes and SHA-256 of each file, by name."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}
