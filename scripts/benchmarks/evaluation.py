"""Evaluation of a long text against the forward passes of training over the same windows, with the same weights.

Evaluation tokenizes the text meanwhile. The training forward has its windows ready, keeps the activations for a
backward pass, and computes the gradients of the head, as the loop's forward does.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .benchmark import Benchmark
from .growth import documents
from .measuring import Results, build_report, compare, describe_limit, ratios
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

    from transformers import PreTrainedModel

OURS, PEER, BEFORE = "evaluate_text", "training forward", "evaluate_text, before"
LIMITS = {PEER: 1.0, BEFORE: 1.7}
SAME_LOSS = 1e-5  # relative; the sums are of other chunks

# Fields of the config, with the batch and the bytes of the text.
SIZES: dict[str, tuple[dict[str, int], int, int]] = {
    "124M": ({"max_position_embeddings": 256}, 4, 20_000),
    "small": (
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "max_position_embeddings": 256},
        4,
        100_000,
    ),
    "default": (
        {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "max_position_embeddings": 128},
        2,
        100_000,
    ),
    "tiny": (
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16},
        4,
        1_000,
    ),
}


def draw_model(size: str) -> "tuple[PreTrainedModel, str, int]":
    """Return a model with drawn weights and no dropout, a text and the batch size: the same in every process."""
    import torch

    from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM

    fields, batch_size, num_bytes = SIZES[size]
    torch.manual_seed(123)
    return GPTScratchForCausalLM(GPTScratchConfig(**fields, dropout=0.0)), "".join(documents(num_bytes)), batch_size


def make_evaluation(size: str) -> Callable[[], dict[str, Any]]:
    """Evaluate as scripts/evaluate.py does with a loaded model."""
    from hf_gpt_scratch.data.tokenizer import build_tokenizer
    from hf_gpt_scratch.evaluation import evaluate_text

    model, text, batch_size = draw_model(size)
    tokenizer = build_tokenizer(model.config.max_position_embeddings)

    def work() -> dict[str, Any]:
        result = evaluate_text(model, text, tokenizer, batch_size=batch_size)
        return {"tokens": result.num_tokens, "loss": result.loss}

    return work


def make_training_forward(size: str) -> Callable[[], dict[str, Any]]:
    """Run the forward passes of the training loop alone."""
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


class Evaluation(Benchmark):
    """A long text evaluated, and the forward passes of training over it."""

    help = "a long text evaluated, against training's forward passes over it"
    packages = ("torch", "transformers", "tokenizers")
    sizes = SIZES

    def run(self, arguments: "argparse.Namespace") -> Iterator[dict[str, Any]]:
        """Run both in turn."""
        fields, batch_size, _ = SIZES[arguments.size]
        machine = self.describe_machine(arguments)
        candidates = [
            Candidate(OURS, f"{__name__}:make_evaluation", {"size": arguments.size}),
            Candidate(PEER, f"{__name__}:make_training_forward", {"size": arguments.size}),
        ]
        if arguments.before is not None:
            source = arguments.before.resolve()
            candidates.append(replace(candidates[0], name=BEFORE, source=source))
        results = run_workers(candidates, arguments.rounds, arguments.threads)
        refuse_other_work(results)
        num_tokens, length = results[OURS][0].details["tokens"], fields["max_position_embeddings"]
        yield build_report(
            "evaluate",
            f"{arguments.size}, {num_tokens} tokens, batches of {batch_size} x {length}",
            machine,
            results,
            comparisons=compare(results, "wall", OURS),
            limits=[
                describe_limit(
                    f"tokens/s, {OURS} / {name}", ratios(results, "wall", name, OURS), "at least", LIMITS[name]
                )
                for name in results
                if name != OURS
            ],
        )
