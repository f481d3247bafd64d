"""Continue prompts, and show the probabilities of the next token.

Temperature and top-k themselves are in `model/generation_gpt_scratch.py`, which is shipped with every repository.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.generation import BaseStreamer, LogitsProcessor

from hf_gpt_scratch.data.tokenizer import refuse_surrogates
from hf_gpt_scratch.generation.fast_decoding import generate
from hf_gpt_scratch.model import SeededDrawLogitsProcessor, TemperatureTopKLogitsProcessor


# The vocabulary of the tutorial's figure, and the scores after "every effort moves you".
TUTORIAL_TOKENS = ("closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you")
TUTORIAL_LOGITS = (4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79)
BATCH_SIZE = 8  # rows of a forward pass


@dataclass
class Decoding:
    """Settings of decoding. `check` refuses impossible ones."""

    max_new_tokens: int = 25  # fewer if the model ends the text
    temperature: float = 0.0  # 0 is greedy
    top_k: int | None = None  # number of most likely tokens to choose from; None or 0 for all
    seed: int | None = None  # of the first sample of each prompt; the next ones count on. None: another one every time
    # How to go on when the context is full: "exact" conditions each token on the last window, as the tutorial does;
    # "rolling" starts again from half a window and is faster; None refuses.
    past_context: Literal["exact", "rolling"] | None = "exact"

    def check(self) -> None:
        """Raise ValueError for a value that is impossible, in one line."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.past_context not in ("exact", "rolling", None):
            raise ValueError(f"past_context must be exact or rolling, got {self.past_context!r}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        TemperatureTopKLogitsProcessor(self.temperature, self.top_k)

    def first_seed(self) -> int:
        """Return the seed, or a new one."""
        return secrets.randbits(31) if self.seed is None else self.seed

    def generation_arguments(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Arguments of `generate()`, with a seed for each row: our processors draw, not the global random state."""
        processors: list[LogitsProcessor] = [TemperatureTopKLogitsProcessor(self.temperature, self.top_k)]
        if self.temperature > 0:
            processors.append(SeededDrawLogitsProcessor(list(seeds)))
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": False,
            "past_context": self.past_context,
            "logits_processor": processors,
        }


@dataclass(frozen=True)
class Sample:
    """A prompt with its continuation, and the seed that gives it again."""

    prompt: str
    text: str
    seed: int


def next_token_probabilities(logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None) -> torch.Tensor:
    """Softmax over scores [..., V] after temperature and top-k: what sampling draws from, float [..., V]."""
    processor = TemperatureTopKLogitsProcessor(temperature, top_k)
    scores = processor(torch.empty(0, dtype=torch.long), logits)  # type: ignore[arg-type]  # declared as old tensor types
    return torch.softmax(scores, dim=-1)


def count_draws(probabilities: torch.Tensor, num_draws: int = 1000, seed: int = 123) -> list[int]:
    """Draw `num_draws` single tokens from probabilities [V] and count each token.

    The draws are one by one, as in the tutorial: one call for many would give other counts under the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [int(torch.multinomial(probabilities, 1, generator=generator)) for _ in range(num_draws)]
    return torch.bincount(torch.tensor(draws), minlength=probabilities.shape[-1]).tolist()


def tutorial_tokens() -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Return the tutorial's nine words, their ids [9] and scores [9]."""
    return list(TUTORIAL_TOKENS), torch.arange(len(TUTORIAL_TOKENS)), torch.tensor(TUTORIAL_LOGITS)


def likeliest_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, num_tokens: int
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Return the likeliest next tokens of a prompt.

    Returns:
        The `num_tokens` most likely next tokens as Python writes them, so that a space is seen; their ids
        [num_tokens]; the scores of the whole vocabulary [V].

    Raises:
        ValueError: `num_tokens` is less than 1.
    """
    if num_tokens < 1:
        raise ValueError(f"the number of tokens must be at least 1, got {num_tokens}")
    inputs = encode_prompts(tokenizer, [prompt])
    window = inputs["input_ids"][:, -model.config.max_position_embeddings :].to(model.device)
    with torch.no_grad():
        logits = model(window).logits[0, -1].float().cpu()
    token_ids = logits.topk(min(num_tokens, len(logits))).indices
    return [repr(tokenizer.decode([token_id])) for token_id in token_ids.tolist()], token_ids, logits


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Token ids and mask [B, T], padded on the left; an empty prompt starts from `<|endoftext|>`.

    Raises:
        ValueError: a prompt is not text, such as a byte of the command line that is not UTF-8.
    """
    for prompt in prompts:
        refuse_surrogates(prompt)
    texts = [prompt or tokenizer.bos_token for prompt in prompts]
    return dict(tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", verbose=False))


def generate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    num_samples: int = 1,
    streamer: BaseStreamer | None = None,
) -> list[list[Sample]]:
    """Continue each prompt `num_samples` times; each sample is what it would be alone.

    Args:
        model: a causal language model, on any device; one that is not ours does not go on past its context.
        tokenizer: its tokenizer.
        prompts: texts to continue.
        decoding: how.
        num_samples: samples of each prompt.
        streamer: is given the tokens while they are made, of a single row.

    Raises:
        ValueError: a value is impossible, or prompt and new tokens do not fit the context and `past_context` is None.
    """
    decoding.check()
    if num_samples < 1:
        raise ValueError(f"the number of samples must be at least 1, got {num_samples}")
    first_seed = decoding.first_seed()
    rows = [(prompt, first_seed + index) for prompt in prompts for index in range(num_samples)]
    batch_size = 1 if decoding.past_context == "rolling" else BATCH_SIZE  # rolling takes prompts of one length
    samples: list[Sample] = []
    for start in range(0, len(rows), batch_size):
        samples += generate_batch(model, tokenizer, rows[start : start + batch_size], decoding, streamer)
    return [samples[start : start + num_samples] for start in range(0, len(samples), num_samples)]


def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[str, int]],
    decoding: Decoding,
    streamer: BaseStreamer | None,
) -> list[Sample]:
    """Continue some prompts, each with its seed, in one batch."""
    inputs = encode_prompts(tokenizer, [prompt for prompt, _ in rows])
    arguments = decoding.generation_arguments([seed for _, seed in rows])
    prepare: Any = model.prepare_inputs_for_generation
    if "past_context" not in signature(prepare).parameters:
        arguments["past_context"] = None  # a model that is not ours
    if arguments["past_context"] is None:
        refuse_beyond_context(inputs["input_ids"].shape[1], decoding.max_new_tokens, model)
    tensors: dict[str, Any] = {name: values.to(model.device) for name, values in inputs.items()}
    token_ids = generate(model, **tensors, pad_token_id=tokenizer.pad_token_id, streamer=streamer, **arguments)
    texts = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
    return [Sample(prompt, text, seed) for (prompt, seed), text in zip(rows, texts, strict=True)]


def refuse_beyond_context(num_prompt_tokens: int, max_new_tokens: int, model: PreTrainedModel) -> None:
    """Raise ValueError if prompt and new tokens do not fit."""
    context = model.config.max_position_embeddings
    if num_prompt_tokens + max_new_tokens > context:
        raise ValueError(
            f"a prompt of {num_prompt_tokens} tokens and {max_new_tokens} new ones do not fit the context of "
            f"{context} tokens: ask for at most {max(context - num_prompt_tokens, 0)} new ones, or shorten the prompt"
        )


def generate_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, stream: bool = False, **decoding: Any
) -> str:
    """Continue one prompt and return prompt and continuation.

    Args:
        model: see `generate_samples`.
        tokenizer: its tokenizer.
        prompt: text to continue; an empty one starts from `<|endoftext|>`.
        stream: print the text while it is made.
        **decoding: fields of `Decoding`.

    Raises:
        ValueError: see `generate_samples`.
    """
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if stream else None
    return generate_samples(model, tokenizer, [prompt], Decoding(**decoding), streamer=streamer)[0][0].text
