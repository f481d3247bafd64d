"""Text out of a model: from scores to draws, and from a prompt to a streamed continuation."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer, set_seed

from .model import TemperatureTopKLogitsProcessor


def next_token_probabilities(logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None) -> torch.Tensor:
    """Softmax over scores [..., V] after temperature and top-k: what sampling draws from, float [..., V]."""
    processor = TemperatureTopKLogitsProcessor(temperature, top_k)
    return torch.softmax(processor(torch.empty(0, dtype=torch.long), logits), dim=-1)


def count_draws(probabilities: torch.Tensor, num_draws: int = 1000, seed: int = 123) -> list[int]:
    """Draw `num_draws` single tokens from probabilities [V] and count each token.

    The draws are one by one, as in the tutorial: one call for many would give other counts under the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [int(torch.multinomial(probabilities, 1, generator=generator)) for _ in range(num_draws)]
    return torch.bincount(torch.tensor(draws), minlength=probabilities.shape[-1]).tolist()


def sampled_generation_arguments(temperature: float, top_k: int | None) -> dict:
    """Arguments of `generate()` that sample through our processor alone.

    transformers would add a top-k of 50 of its own to every sampling call that does not switch it off.
    """
    return {
        "do_sample": temperature > 0,
        "temperature": 1.0 if temperature > 0 else None,
        "top_k": 0 if temperature > 0 else None,
        "logits_processor": [TemperatureTopKLogitsProcessor(temperature, top_k)],
    }


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 25,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
    stream: bool = False,
) -> str:
    """Continue a prompt and return prompt and continuation.

    Args:
        model: a causal language model, on any device.
        tokenizer: its tokenizer.
        prompt: text to continue; an empty one starts from `<|endoftext|>`.
        max_new_tokens: number of tokens to add, fewer if the model ends the text.
        temperature: 0 is greedy.
        top_k: number of most likely tokens to choose from; None or 0 for all.
        seed: of the global generators; None leaves them as they are.
        stream: print the text while it is made.

    Raises:
        ValueError: prompt and new tokens together do not fit the model's context, or a value is impossible.
    """
    inputs = tokenizer(prompt or tokenizer.bos_token, return_tensors="pt").to(model.device)
    num_prompt_tokens = inputs.input_ids.shape[1]
    context = model.config.max_position_embeddings
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if num_prompt_tokens + max_new_tokens > context:
        raise ValueError(
            f"a prompt of {num_prompt_tokens} tokens and {max_new_tokens} new ones do not fit the context of "
            f"{context} tokens: ask for at most {max(context - num_prompt_tokens, 0)} new ones or shorten the prompt"
        )
    if seed is not None:
        set_seed(seed)
    token_ids = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True) if stream else None,
        **sampled_generation_arguments(temperature, top_k),
    )
    return tokenizer.decode(token_ids[0], skip_special_tokens=True)
