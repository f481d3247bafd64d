"""Score a text: python scripts/evaluate.py --model FOLDER_OR_REPO --file TEXT."""

from pathlib import Path

from hf_gpt_scratch.runtime.cli import OneLineParser, folder_or_repository, number, quiet_libraries, run, say


def main() -> None:
    parser = OneLineParser(description="Print loss, perplexity and bits per byte of a model on a text.")
    parser.add_argument("--model", type=folder_or_repository, required=True, help="folder or Hub repository")
    parser.add_argument(
        "--file", required=True, type=Path, help="UTF-8 text, JSON lines or parquet; a folder: all below it"
    )
    parser.add_argument("--text-column", "--text_column", default="text", help="key or column with the text of rows")
    parser.add_argument(
        "--block-size", type=number(int, 1), help="tokens of a window; default: the context of the model"
    )
    parser.add_argument("--batch-size", type=number(int, 1), default=4, help="windows scored at once")
    parser.add_argument("--int8", action="store_true", help="score the int8 weights that generate.py --int8 uses")
    arguments = parser.parse_args()
    quiet_libraries()

    from hf_gpt_scratch.data.windows import read_blocks
    from hf_gpt_scratch.evaluation import evaluate_text
    from hf_gpt_scratch.generation.quantization import quantize_int8
    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer

    blocks = read_blocks([arguments.file], arguments.text_column, say)
    model, tokenizer = load_model_and_tokenizer(arguments.model)
    if arguments.int8:
        model = quantize_int8(model)
    result = evaluate_text(model, blocks, tokenizer, arguments.block_size, arguments.batch_size)
    print(f"tokens {result.num_tokens}, bytes {result.num_bytes}")
    print(f"loss {result.loss:.6f} nats per token")
    print(f"perplexity {result.perplexity:.4f}")
    print(f"bits per byte {result.bits_per_byte:.6f}")


if __name__ == "__main__":
    run(main, shows_result=True)
