"""Proves the chapter's decoding: printed counts, repeatable sampling, and clear refusals."""

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.decoding import count_draws, generate_text, next_token_probabilities
from hf_gpt_scratch.tokenizer import build_tokenizer


# The nine-word vocabulary of the chapter and its scores after "every effort moves you".
WORDS = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]
SCORES = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])


@pytest.mark.parametrize(
    ("temperature", "top_k", "counts"),
    [
        (1.0, None, [73, 0, 0, 582, 2, 0, 0, 343, 0]),
        (0.1, None, [0, 0, 0, 985, 0, 0, 0, 15, 0]),
        (5.0, None, [165, 75, 42, 239, 71, 46, 32, 227, 103]),
        (1.0, 3, [73, 0, 0, 583, 0, 0, 0, 344, 0]),
    ],
)
def test_printed_counts_of_a_thousand_draws(temperature: float, top_k: int | None, counts: list[int]) -> None:
    assert count_draws(next_token_probabilities(SCORES, temperature, top_k)) == counts


def test_probabilities_of_the_chapter() -> None:
    assert WORDS[next_token_probabilities(SCORES, 0.0).argmax()] == "forward"
    assert next_token_probabilities(SCORES, 5.0)[WORDS.index("pizza")].item() == pytest.approx(0.0430, abs=5e-5)
    top = next_token_probabilities(SCORES, top_k=3)
    assert [round(p, 4) for p in top[[0, 3, 7]].tolist()] == [0.0615, 0.5775, 0.3610]
    assert top.count_nonzero() == 3


@pytest.fixture(scope="module")
def model() -> GPTScratchForCausalLM:
    torch.manual_seed(0)
    config = GPTScratchConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)
    return GPTScratchForCausalLM(config).eval()


def test_seed_makes_sampling_repeatable(model: GPTScratchForCausalLM) -> None:
    tokenizer = build_tokenizer(32)
    texts = [
        generate_text(model, tokenizer, "The lamp", max_new_tokens=12, temperature=1.4, top_k=25, seed=seed)
        for seed in (123, 123, 124)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("The lamp")


def test_temperature_zero_is_greedy(model: GPTScratchForCausalLM) -> None:
    tokenizer = build_tokenizer(32)
    inputs = tokenizer("The lamp", return_tensors="pt")
    expected = tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0])
    assert generate_text(model, tokenizer, "The lamp", max_new_tokens=8, seed=1) == expected


def test_empty_prompt_starts_from_end_of_text(model: GPTScratchForCausalLM) -> None:
    tokenizer = build_tokenizer(32)
    expected = tokenizer.decode(
        model.generate(torch.tensor([[50256]]), attention_mask=torch.ones(1, 1), max_new_tokens=4, do_sample=False)[0],
        skip_special_tokens=True,
    )
    assert generate_text(model, tokenizer, "", max_new_tokens=4) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"max_new_tokens": 31}, "do not fit the context of 32 tokens: ask for at most 30"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, got -1.0"),
        ({"top_k": -2}, "top_k must be an integer of at least 0"),
    ],
)
def test_impossible_requests_are_refused(model: GPTScratchForCausalLM, arguments: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        generate_text(model, build_tokenizer(32), "The lamp", **arguments)
