"""Going on past the context: rolling from half a window, exactly, and by the tutorial's loop, with the same weights.

Every prompt fills the context, and half a context is added: what rolling does between two looks at half a window. The
tutorial's loop crops to the last window at every step, and so does the exact mode: their ids must be the same.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .measuring import Results, build_report, compare, describe_machine
from .workers import Candidate, run_workers


if TYPE_CHECKING:
    import argparse

    import torch
    from transformers import PreTrainedModel

HELP = "texts longer than the context: rolling against exact and the tutorial's loop"
KEY_PACKAGES = ("torch", "transformers")
OURS, EXACT, LOOP = "rolling", "exact", "tutorial's loop"

# Fields of the config. The first is the model of the default job; the second GPT-2 124M with a shorter context.
SIZES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "max_position_embeddings": 128,
    },
    "124M": {"max_position_embeddings": 128},
    "tiny": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "vocab_size": 99,
    },
}


def draw_model(size: str) -> "tuple[PreTrainedModel, torch.Tensor]":
    """A model with drawn weights, and a prompt [1, context] that fills its context: the same in every process."""
    import torch

    from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM

    torch.manual_seed(123)
    config = GPTScratchConfig(**SIZES[size], bos_token_id=0, eos_token_id=None, pad_token_id=0)
    prompt = torch.randint(config.vocab_size, (1, config.max_position_embeddings))
    return GPTScratchForCausalLM(config).eval(), prompt


def describe_tokens(ids: "torch.Tensor", num_prompt: int) -> dict[str, Any]:
    """How many tokens were added, and a hash of them."""
    added = ids[0, num_prompt:]
    return {"tokens": len(added), "ids": hashlib.sha256(added.numpy().tobytes()).hexdigest()[:12]}


def make_generate(size: str, mode: str) -> Callable[[], dict[str, Any]]:
    """`generate()` past the context in one of its modes."""
    model, prompt = draw_model(size)
    num_prompt = prompt.shape[1]

    def work() -> dict[str, Any]:
        ids = model.generate(prompt, max_new_tokens=num_prompt // 2, do_sample=False, past_context=mode)
        return describe_tokens(ids, num_prompt)

    return work


def make_tutorial_loop(size: str) -> Callable[[], dict[str, Any]]:
    """The chapter's loop: crop, score every position of the window, append the best token after the last one."""
    import torch

    model, prompt = draw_model(size)
    num_prompt = prompt.shape[1]

    def work() -> dict[str, Any]:
        ids = prompt
        with torch.no_grad():
            for _ in range(num_prompt // 2):
                logits = model(ids[:, -num_prompt:], use_cache=False).logits
                ids = torch.cat([ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return describe_tokens(ids, num_prompt)

    return work


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Options of this benchmark alone."""
    parser.add_argument("--size", choices=SIZES, default="124M", help="model, with drawn weights (default: 124M)")


def refuse_other_work(results: Results, num_new: int) -> None:
    """Raise ValueError if a sample added fewer tokens, or the exact mode other tokens than the tutorial's loop."""
    for name, samples in results.items():
        for sample in samples:
            if sample.details["tokens"] != num_new:
                raise ValueError(f"{name} added {sample.details['tokens']} tokens, not {num_new}")
    ids = {sample.details["ids"] for name in (EXACT, LOOP) for sample in results[name]}
    if len(ids) != 1:
        raise ValueError(f"the exact mode and the tutorial's loop gave different tokens: {', '.join(sorted(ids))}")


def run(arguments: "argparse.Namespace") -> dict[str, Any]:
    """Run all candidates in turn.

    Returns:
        All figures, ready for JSON.

    Raises:
        ValueError: a candidate fails or does other work, or an option is wrong.
    """
    context = SIZES[arguments.size]["max_position_embeddings"]
    machine = describe_machine(KEY_PACKAGES, arguments.threads)
    candidates = [
        Candidate(OURS, f"{__name__}:make_generate", {"size": arguments.size, "mode": "rolling"}),
        Candidate(EXACT, f"{__name__}:make_generate", {"size": arguments.size, "mode": "exact"}),
        Candidate(LOOP, f"{__name__}:make_tutorial_loop", {"size": arguments.size}),
    ]
    results = run_workers(candidates, arguments.rounds, arguments.threads)
    refuse_other_work(results, context // 2)
    setting = f"{arguments.size}, context {context}, {context // 2} tokens past it, greedy"
    return build_report("past_context", setting, machine, results, comparisons=compare(results, "wall", OURS))
