"""Convert a GPT-2 checkpoint into a repository folder, or export one: hf-gpt-scratch convert --size 124M."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_gpt_scratch.commands.options import num_bytes
from hf_gpt_scratch.conversion.convert import REPORT_FILE, convert_checkpoint
from hf_gpt_scratch.conversion.export import export_stock
from hf_gpt_scratch.conversion.gpt2_sizes import find_size
from hf_gpt_scratch.conversion.onnx_export import export_onnx
from hf_gpt_scratch.runtime.cli import OneLineParser, number, refuse_unused, say


def parse_arguments(words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Parse the words of the command line."""
    parser = OneLineParser(prog=prog, description="Turn a GPT-2 checkpoint into a repository folder, proved equal.")
    source = parser.add_argument_group("checkpoint")
    source.add_argument(
        "--size", help="a released size, 124M, 355M, 774M or 1558M; downloaded unless --from_dir has it"
    )
    source.add_argument(
        "--from_dir", type=Path, help="folder or file of OpenAI's, transformers', tutorial's or nanoGPT's"
    )
    source.add_argument("--reader", choices=("bundle", "tensorflow"), help="of TensorFlow's files (default: bundle)")
    source.add_argument(
        "--n_head", type=number(int, 1), help="number of attention heads, where the checkpoint does not say"
    )
    source.add_argument(
        "--vocab_size", type=number(int, 1), help="cut padding: keep only so many rows of the vocabulary"
    )
    source.add_argument("--download_dir", type=Path, help="where --size puts the files (default: gpt2/SIZE)")
    source.add_argument("--mirror", action="append", help="another store to download from; may be repeated")
    result = parser.add_argument_group("result")
    result.add_argument("--output", required=True, type=Path, help="folder to make")
    exports = result.add_mutually_exclusive_group()
    for option, help_text in (
        ("--export_stock", "from our layout to transformers' GPT-2"),
        ("--export_onnx", "the same with ONNX files, for transformers.js"),
    ):
        exports.add_argument(option, dest="export", action="store_const", const=option, help=help_text)
    result.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32")
    result.add_argument(
        "--max_shard_size", type=num_bytes, default="5GB", help="largest weight file, such as 200MB (default: 5GB)"
    )
    result.add_argument("--push_to_hub", metavar="USER/NAME", help="push the folder afterwards")
    proof = parser.add_argument_group("verification")
    proof.add_argument("--verify", action="store_true", default=True, help="prove the result (default)")
    proof.add_argument("--no_verify", action="store_false", dest="verify", help="do not prove it")
    proof.add_argument("--text", type=Path, help="UTF-8 file to compute losses on")
    return parser.parse_args(words)


def main(words: Sequence[str], prog: str | None = None) -> None:
    """Convert or export, print the report, and push the folder where asked for."""
    arguments = parse_arguments(words, prog)
    if arguments.push_to_hub:
        from hf_gpt_scratch.hub.push import check_names, describe_push, push_folder

        check_names(arguments.push_to_hub)  # before the work of minutes
    report = convert_or_export(arguments)
    print("\n".join(describe(report, arguments.output)))
    if arguments.push_to_hub:
        pushed = push_folder(arguments.output, arguments.push_to_hub)
        print("\n".join(describe_push(pushed, arguments.output, arguments.push_to_hub)))


def convert_or_export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for, and return the report."""
    refuse_unused_options(arguments)
    common = {
        "dtype": arguments.dtype,
        "max_shard_size": arguments.max_shard_size,
        "verify": arguments.verify,
        "text": arguments.text,
        "say": say,
    }
    if arguments.export:
        if arguments.from_dir is None:
            raise ValueError(f"{arguments.export} exports a gpt_scratch model: name its folder with --from_dir")
        export = {"--export_stock": export_stock, "--export_onnx": export_onnx}[arguments.export]
        return export(arguments.from_dir, arguments.output, **common)
    size = find_size(arguments.size) if arguments.size else None
    path = arguments.from_dir
    if path is None:
        if size is None:
            raise ValueError("nothing to convert: give --size 124M to download it, or --from_dir with a checkpoint")
        # Imported here, because its HTTP client is not needed for a checkpoint that is there.
        from hf_gpt_scratch.conversion.download.released_files import download_gpt2

        if arguments.output.exists():
            raise FileExistsError(f"{arguments.output} exists already: choose another folder, or remove it")
        path = download_gpt2(size, arguments.download_dir or Path("gpt2") / size.name, arguments.mirror)
    return convert_checkpoint(
        path,
        arguments.output,
        reader=arguments.reader or "bundle",
        num_heads=arguments.n_head,
        vocab_size=arguments.vocab_size,
        size=size,
        **common,
    )


def refuse_unused_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that have no effect on what is asked for."""
    if not arguments.verify:
        refuse_unused(arguments, ["--text"], "with --no_verify")
    if arguments.export == "--export_onnx" and arguments.push_to_hub:
        raise ValueError(f"--push_to_hub leaves out ONNX files: hf upload {arguments.push_to_hub} {arguments.output}")
    if arguments.export:
        options = ["--size", "--reader", "--n_head", "--vocab_size", "--download_dir", "--mirror"]
        refuse_unused(arguments, options, f"with {arguments.export}")
    if arguments.from_dir:
        refuse_unused(arguments, ["--download_dir", "--mirror"], "with --from_dir")


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
    if onnx := report.get("onnx"):
        lines += [f"{what.replace('_', ' ')}: {value:.4g}" for what, value in (onnx["verification"] or {}).items()]
        lines += [f"sha256 {facts['sha256']}  {name}" for name, facts in onnx["files"].items()]
    lines.append(f"report: {output / REPORT_FILE}")
    trust = "" if "format" in report and report["format"].startswith("stock") else ", trust_remote_code=True"
    lines.append(f'load it: AutoModelForCausalLM.from_pretrained("{output}"{trust})')
    return lines


def describe_verification(verification: dict[str, Any] | None) -> list[str]:
    """Describe the verification."""
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
