"""Proofs of decoding: the greedy ids by every way are those of `generate()`."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM

from .devices import compile_config
from .plan import Plan
from .record import MissingError, Outcome


VOCAB_SIZE = 503
NEW_TOKENS = 8
CONTEXT = 20
LONG = 32  # new tokens of a text past that


def decoding_proofs(plan: Plan) -> dict[str, Callable[[], Outcome]]:
    """Return the proofs by name."""
    return {
        "left padding, generate": partial(check_padded, plan),
        "static cache, compiled": partial(check_static_cache, plan),
        "continuous batching": partial(check_continuous_batching, plan),
        "past the context, exact": partial(check_past_context, plan, "exact"),
        "past the context, rolling": partial(check_past_context, plan, "rolling"),
    }


def build(plan: Plan) -> Any:
    """Return a small model in float32, with heads of GPT-2's width and weights so large that texts differ."""
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, initializer_range=0.5, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return GPTScratchForCausalLM(config).to(plan.device).eval()  # type: ignore[arg-type]  # its `to` is wrapped


def prompts(device: torch.device) -> list[torch.Tensor]:
    """Return three prompts of one row each, of 4, 7 and 10 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = (4, 7, 10)
    return [torch.randint(1, VOCAB_SIZE, (1, length), generator=generator).to(device) for length in lengths]


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> list[list[int]]:
    """Return the new ids of each row."""
    options.setdefault("attention_mask", torch.ones_like(ids))
    options.setdefault("max_new_tokens", NEW_TOKENS)
    new = model.generate(ids, do_sample=False, eos_token_id=None, pad_token_id=0, **options)
    return new[:, ids.shape[1] :].tolist()


def same(found: Any, expected: list[list[int]]) -> Outcome:
    """Raise ValueError if ids differ, or if the prompts do not matter, so that a mix-up would not be seen."""
    if len({tuple(row) for row in expected}) != len(expected):
        raise ValueError("all prompts have one continuation: the proof would see nothing")
    if found != expected:
        wrong = sum(one != other for one, other in zip(found, expected, strict=True))
        raise ValueError(f"{wrong} of {len(expected)} rows differ: {found} instead of {expected}")
    return Outcome([f"{len(expected)} rows of {len(expected[0])} ids"])


def one_by_one(model: Any) -> list[list[int]]:
    """Return the new ids of each prompt alone."""
    return [greedy(model, ids)[0] for ids in prompts(model.device)]


def check_padded(plan: Plan) -> Outcome:
    """Decode the prompts together, padded on the left."""
    model = build(plan)
    rows = prompts(model.device)
    width = max(row.shape[1] for row in rows)
    ids = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    return same(greedy(model, ids, attention_mask=(ids != 0).long()), one_by_one(model))


def check_static_cache(plan: Plan) -> Outcome:
    """Decode with a static cache, and each step compiled in one graph."""
    from torch._dynamo.utils import counters

    model = build(plan)
    # Of one length: each length of the cache would be compiled again.
    ids = torch.cat([row[:, :4] for row in prompts(model.device)])
    expected = greedy(model, ids)
    config = compile_config(plan.decode_mode, fullgraph=True)
    counters.clear()
    options: dict[str, Any] = {"cache_implementation": "static", "compile_config": config}
    outcome = same(greedy(model, ids, **options), expected)
    graphs = counters["stats"]["unique_graphs"]
    if not graphs:
        raise ValueError("nothing was compiled")
    return Outcome([f"{outcome.lines[0]}, {graphs} graphs"], {"graphs": graphs})


def check_continuous_batching(plan: Plan) -> Outcome:
    """Decode the prompts in the batches that the library makes of them."""
    config_class = getattr(transformers, "ContinuousBatchingConfig", None)
    model = build(plan)
    if config_class is None or not hasattr(model, "generate_batch"):
        raise MissingError(f"continuous batching in transformers {transformers.__version__}")
    size = "page_size" if "page_size" in inspect.signature(config_class).parameters else "block_size"
    results = model.generate_batch(
        [row[0].tolist() for row in prompts(model.device)],
        # The library's signal for "no end token" here is -1.
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=config_class(num_blocks=16, max_batch_tokens=64, **{size: 16}),
    )
    by_prompt = {tuple(result.prompt_ids): result.generated_tokens for result in results.values()}
    found = [by_prompt.get(tuple(row[0].tolist())) for row in prompts(model.device)]
    return same(found, one_by_one(model))


@torch.no_grad()
def check_past_context(plan: Plan, way: str) -> Outcome:
    """Go on past the end of the context, and compare with a loop that crops the text itself."""
    model = build(plan)
    first = torch.arange(1, 11, device=plan.device)[None]
    rows, expected = [first, first + 50], []
    for row in rows:
        text, start = row, 0
        for _ in range(LONG):
            length = text.shape[1]
            if length - start > CONTEXT:
                start = length - (CONTEXT if way == "exact" else CONTEXT // 2)
            best = model(text[:, start:]).logits[:, -1].argmax(dim=-1, keepdim=True)
            text = torch.cat([text, best], dim=1)
        expected.append(text[0, row.shape[1] :].tolist())
    found = [greedy(model, row, past_context=way, max_new_tokens=LONG)[0] for row in rows]
    return same(found, expected)
