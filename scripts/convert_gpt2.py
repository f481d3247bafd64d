"""Convert a GPT-2 checkpoint: python scripts/convert_gpt2.py --size 124M --output DIR."""

import argparse
from pathlib import Path

from hf_gpt_scratch.runtime.cli import OneLineParser, number, run, say


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description="Turn a GPT-2 checkpoint into a repository folder, proved equal.")
    parser.add_argument(
        "--size", help="a released size, 124M, 355M, 774M or 1558M; downloaded unless --from-dir has it"
    )
    parser.add_argument(
        "--from-dir", type=Path, help="folder or file of OpenAI's, transformers', tutorial's or nanoGPT's"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.add_argument("--export-stock", action="store_true", help="from our layout to transformers' GPT-2")
    parser.add_argument("--reader", choices=("bundle", "tensorflow"), help="of TensorFlow's files (default: bundle)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weight file (default: 5GB)")
    parser.add_argument(
        "--n-head", type=number(int, 1), help="number of attention heads, where the checkpoint does not say"
    )
    parser.add_argument(
        "--vocab-size", type=number(int, 1), help="cut padding: keep only so many rows of the vocabulary"
    )
    parser.add_argument("--download-dir", type=Path, help="where --size puts the files (default: gpt2/SIZE)")
    parser.add_argument("--mirror", action="append", help="another store to download from; may be repeated")
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help="prove the result")
    parser.add_argument("--text", type=Path, help="UTF-8 file to compute losses on")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="push the folder afterwards")
    return parser.parse_args()


def main() -> None:
    from hf_gpt_scratch.conversion.command import convert_or_export, describe

    arguments = parse_arguments()
    if arguments.push_to_hub:
        from hf_gpt_scratch.hub.push import check_names, describe_push, push_folder

        check_names(arguments.push_to_hub)  # before the work of minutes
    report = convert_or_export(arguments, say)
    print("\n".join(describe(report, arguments.output)))
    if arguments.push_to_hub:
        pushed = push_folder(arguments.output, arguments.push_to_hub)
        print("\n".join(describe_push(pushed, arguments.output, arguments.push_to_hub)))


if __name__ == "__main__":
    run(main)
