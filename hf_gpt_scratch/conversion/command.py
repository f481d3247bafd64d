"""Options of scripts/convert_gpt2.py to calls, and reports to lines."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_gpt_scratch.conversion.convert import REPORT_FILE, convert_checkpoint
from hf_gpt_scratch.conversion.export import export_stock
from hf_gpt_scratch.conversion.gpt2_sizes import find_size
from hf_gpt_scratch.conversion.writers.safetensors_writer import parse_size
from hf_gpt_scratch.runtime.cli import refuse_unused


def convert_or_export(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the conversion or export that the command line asks for.

    Returns:
        The report.

    Raises:
        ValueError: options contradict each other, or the checkpoint does not fit.
        OSError: a file is missing or cannot be written.
    """
    refuse_unused_options(arguments)
    common = {
        "max_shard_size": parse_size(arguments.max_shard_size),
        "verify": arguments.verify,
        "text": arguments.text,
        "say": say,
    }
    if arguments.export_stock:
        if arguments.from_dir is None:
            raise ValueError("--export-stock exports a gpt_scratch model: name its folder with --from-dir")
        return export_stock(arguments.from_dir, arguments.output, dtype=arguments.dtype, **common)
    size = find_size(arguments.size) if arguments.size else None
    path = arguments.from_dir
    if path is None:
        if size is None:
            raise ValueError("nothing to convert: give --size 124M to download it, or --from-dir with a checkpoint")
        # Imported here, because its HTTP client is not needed for a checkpoint that is there.
        from hf_gpt_scratch.conversion.download.released_files import download_gpt2

        if arguments.output.exists():
            raise FileExistsError(f"{arguments.output} exists already: choose another folder, or remove it")
        path = download_gpt2(size.name, arguments.download_dir or Path("gpt2") / size.name, arguments.mirror)
    return convert_checkpoint(
        path,
        arguments.output,
        reader=arguments.reader or "bundle",
        dtype=arguments.dtype or "float32",
        num_heads=arguments.n_head,
        vocab_size=arguments.vocab_size,
        size=size,
        **common,
    )


def refuse_unused_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that have no effect on what is asked for."""
    if not arguments.verify:
        refuse_unused(arguments, ["--text"], "with --no-verify")
    if arguments.export_stock:
        options = ["--size", "--reader", "--n-head", "--vocab-size", "--download-dir", "--mirror"]
        refuse_unused(arguments, options, "with --export-stock")
    if arguments.from_dir:
        refuse_unused(arguments, ["--download-dir", "--mirror"], "with --from-dir")


def describe(report: dict[str, Any], output: Path) -> list[str]:
    """Render the report in a few lines."""
    head = "the token embedding" if report["tied"] else "its own"
    lines = [f"{report['num_parameters']:,} parameters in {len(report['tensors'])} tensors, head: {head}"]
    dropped = report.get("dropped", {})
    lines += [f"dropped {name}: {reason}" for name, reason in list(dropped.items())[:8]]
    if len(dropped) > 8:
        lines.append(f"dropped {len(dropped) - 8} more, see {REPORT_FILE}")
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"sha256 {facts['sha256']}  {name}" for name, facts in report["files"].items()]
    lines += describe_verification(report["verification"])
    lines.append(f"report: {output / REPORT_FILE}")
    trust = "" if "format" in report and report["format"].startswith("stock") else ", trust_remote_code=True"
    lines.append(f'load it: AutoModelForCausalLM.from_pretrained("{output}"{trust})')
    return lines


def describe_verification(verification: dict[str, Any] | None) -> list[str]:
    """Render what was proved."""
    if verification is None:
        return ["not verified, as asked"]
    lines = [f"verified: largest difference of a value {verification['max_value_difference']:.3g}"]
    lines += [
        f"verified: largest difference of a logit {difference:.3g} ({dtype}, {sequence} tokens)"
        for dtype, by_sequence in verification["max_logit_difference"].items()
        for sequence, difference in by_sequence.items()
    ]
    return lines + [
        f"loss on {part.replace('_', ' ')} of the text: {loss:.6f} nats per token"
        for part, loss in verification["losses"].items()
    ]
