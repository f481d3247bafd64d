"""Evaluating a long text against the forward passes of training over the same windows, with the same weights.

Evaluation tokenises the text meanwhile; the training forward has its windows ready, keeps what a backward pass would
need, and computes the gradients of the head, as the loop's forward does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .growth import documents
from .measuring import Results, build_report, compare, describe_limit, describe_machine, ratios
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

    from transformers import PreTrainedModel

HELP = "a long text evaluated, against training's forward passes over it"
KEY_PACKAGES = ("torch", "transformers", "tokenizers")
OURS, PEER = "evaluate_text", "training forward"
LIMIT = 1.0
SAME_LOSS = 1e-5  # relative; the sums are of other chunks

# Fields of the config, with the batch and the bytes of the text.
SIZES: dict[str, tuple[dict[str, int], int, int]] = {
    "124M": ({"max_position_embeddings": 256}, 4, 20_000),
    "small": (
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "max_position_embeddings": 256},
        4,
        100_000,
    ),
    "tiny": (
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16},
        4,
        1_000,
    ),
}


def draw_model(size: str) -> "tuple[PreTrainedModel, str, int]":
    """A model with drawn weights and no dropout, a text and the windows of a batch: the same in every process."""
    import torch

    from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM

    fields, batch_size, num_bytes = SIZES[size]
    torch.manual_seed(123)
    return GPTScratchForCausalLM(GPTScratchConfig(**fields, dropout=0.0)), "".join(documents(num_bytes)), batch_size


def make_evaluation(size: str) -> Callable[[], dict[str, Any]]:
    """What scripts/evaluate.py does with a loaded model."""
    from hf_gpt_scratch.data.tokenizer import build_tokenizer
    from hf_gpt_scratch.evaluation import evaluate_text

    model, text, batch_size = draw_model(size)
    tokenizer = build_tokenizer(model.config.max_position_embeddings)

    def work() -> dict[str, Any]:
        result = evaluate_text(model, text, tokenizer, batch_size=batch_size)
        return {"tokens": result.num_tokens, "loss": result.loss}

    return work


def make_training_forward(size: str) -> Callable[[], dict[str, Any]]:
    """The forward passes of the training loop, without what follows them."""
    import torch

    from hf_gpt_scratch.data.tokenizer import load_encoding, text_to_token_ids
    from hf_gpt_scratch.data.windows import IGNORE_INDEX, TokenWindows, build_loader
    from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss

    model, text, batch_size = draw_model(size)
    model.train()
    use_fused_loss(model)
    token_ids = torch.cat([torch.tensor([model.config.bos_token_id]), text_to_token_ids(text, load_encoding())[0]])
    batches = list(build_loader(TokenWindows(token_ids, model.config.max_position_embeddings), batch_size))

    def work() -> dict[str, Any]:
        nats, total = 0.0, 0
        for batch in batches:
            num_tokens = int((batch["shift_labels"] != IGNORE_INDEX).sum())
            loss = model(**batch, use_cache=False, num_items_in_batch=num_tokens, skip_logits=True).loss
            nats, total = nats + loss.item() * num_tokens, total + num_tokens
        return {"tokens": total, "loss": nats / total}

    return work


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Options of this benchmark alone."""
    parser.add_argument("--size", choices=SIZES, default="124M", help="model, with drawn weights (default: 124M)")


def refuse_other_work(results: Results) -> None:
    """Raise ValueError if a sample scored other tokens than the first, or found another loss."""
    expected = results[OURS][0].details
    for name, samples in results.items():
        for sample in samples:
            found = sample.details
            if found["tokens"] != expected["tokens"]:
                raise ValueError(f"{name} scored {found['tokens']} tokens, not {expected['tokens']}")
            if abs(found["loss"] - expected["loss"]) > SAME_LOSS * expected["loss"]:
                raise ValueError(f"{name} found the loss {found['loss']}, not {expected['loss']}")


def run(arguments: "argparse.Namespace") -> dict[str, Any]:
    """Run both in turn.

    Returns:
        All figures, ready for JSON.

    Raises:
        ValueError: a candidate fails or does other work, or an option is wrong.
    """
    fields, batch_size, _ = SIZES[arguments.size]
    machine = describe_machine(KEY_PACKAGES, arguments.threads)
    candidates = [
        Candidate(OURS, f"{__name__}:make_evaluation", {"size": arguments.size}),
        Candidate(PEER, f"{__name__}:make_training_forward", {"size": arguments.size}),
    ]
    results = run_workers(candidates, arguments.rounds, arguments.threads)
    refuse_other_work(results)
    num_tokens = results[OURS][0].details["tokens"]
    setting = f"{arguments.size}, {num_tokens} tokens, batches of {batch_size} x {fields['max_position_embeddings']}"
    speed = ratios(results, "wall", PEER, OURS)
    return build_report(
        "evaluate",
        setting,
        machine,
        results,
        comparisons=compare(results, "wall", OURS),
        limits=[describe_limit(f"tokens/s, {OURS} / {PEER}", speed, "at least", LIMIT)],
    )
