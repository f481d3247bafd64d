"""Proves the chapter's decoding: printed counts, samples that are repeatable and alone as in a batch, refusals."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.generation.decoding import (
    Decoding,
    count_draws,
    generate_samples,
    generate_text,
    likeliest_tokens,
    next_token_probabilities,
    tutorial_tokens,
)


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
        ({"max_new_tokens": 31, "past_context": None}, "do not fit the context of 32 tokens: ask for at most 30"),
        ({"past_context": "endless"}, "past_context must be exact or rolling, got 'endless'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be a number, at least 0 and finite, got -1.0"),
        ({"top_k": -2}, "top_k must be an integer of at least 0"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*63 - 1, got -1"),
        ({"seed": 2**63}, r"seed must be from 0 to 2\*\*63 - 1, got 9223372036854775808"),
    ],
)
def test_impossible_requests_are_refused(model: GPTScratchForCausalLM, arguments: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        generate_text(model, build_tokenizer(32), "The lamp", **arguments)


PROMPTS = ["The lamp", "", "I had always thought Jack Gisburn rather a cheap genius", "Yes"]


@pytest.mark.parametrize("mode", ["exact", "rolling"])
def test_each_sample_is_what_it_is_alone(model: GPTScratchForCausalLM, mode: str) -> None:
    """Of unequal prompts, in batches, past the context; with the seed that it reports."""
    tokenizer = build_tokenizer(32)
    options = {"max_new_tokens": 40, "temperature": 1.3, "top_k": 50, "past_context": mode}
    state = torch.get_rng_state()
    groups = generate_samples(model, tokenizer, PROMPTS, Decoding(seed=123, **options), num_samples=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [[sample.seed for sample in group] for group in groups] == [[123, 124, 125]] * 4
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert len({sample.text for sample in group}) == 3
        for sample in group:
            assert sample.prompt == prompt
            assert sample.text == generate_text(model, tokenizer, prompt, seed=sample.seed, **options)


def test_without_a_seed_every_call_is_another(model: GPTScratchForCausalLM) -> None:
    decoding = Decoding(max_new_tokens=20, temperature=1.5)
    one, other = (generate_samples(model, build_tokenizer(32), ["The"], decoding)[0][0] for _ in range(2))
    assert one.text != other.text
    repeated = generate_text(model, build_tokenizer(32), "The", max_new_tokens=20, temperature=1.5, seed=one.seed)
    assert repeated == one.text


def test_a_prompt_longer_than_the_context_goes_on(model: GPTScratchForCausalLM) -> None:
    prompt = "The lamp is on the table. " * 20
    for mode in ("exact", "rolling"):
        text = generate_text(model, build_tokenizer(32), prompt, past_context=mode, max_new_tokens=9)
        assert text.startswith(prompt)
        assert len(text) > len(prompt)


def test_a_model_that_is_not_ours_ends_at_its_context() -> None:
    torch.manual_seed(0)
    stock = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    assert generate_text(stock, build_tokenizer(32), "The lamp", max_new_tokens=8).startswith("The lamp")
    with pytest.raises(ValueError, match="do not fit the context of 32 tokens"):
        generate_text(stock, build_tokenizer(32), "The lamp", max_new_tokens=40)


def test_likeliest_tokens(model: GPTScratchForCausalLM) -> None:
    tokenizer = build_tokenizer(32)
    tokens, token_ids, logits = likeliest_tokens(model, tokenizer, "The lamp", 5)
    with torch.no_grad():
        expected = model(tokenizer("The lamp", return_tensors="pt").input_ids).logits[0, -1]
    assert torch.equal(logits, expected)
    assert token_ids.tolist() == expected.argsort(descending=True)[:5].tolist()
    assert [eval(token) for token in tokens] == [tokenizer.decode([i]) for i in token_ids.tolist()]  # noqa: S307
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        likeliest_tokens(model, tokenizer, "The lamp", 0)


def test_the_tutorials_words_are_the_printed_ones() -> None:
    tokens, token_ids, logits = tutorial_tokens()
    assert tokens == WORDS
    assert token_ids.tolist() == list(range(9))
    assert torch.equal(logits, SCORES)
