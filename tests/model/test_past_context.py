"""Proves that generate() goes on past the context when asked: as the tutorial's loop, or rolling, and else as before.

The references are the tutorial's crop-every-step loop and a loop that rolls without a cache, both written out here.
"""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from hf_gpt_scratch import GPTScratchForCausalLM, SeededDrawLogitsProcessor, TemperatureTopKLogitsProcessor
from hf_gpt_scratch.model.configuration_gpt_scratch import VERSION


ModelBuilder = Callable[..., GPTScratchForCausalLM]

CONTEXT = 16
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def model(build_model: ModelBuilder) -> GPTScratchForCausalLM:
    """The tiny model with a short context and no end of text that greedy decoding would meet."""
    model = build_model(max_position_embeddings=CONTEXT)
    model.generation_config.eos_token_id = None
    return model


def prompts(num_rows: int, num_tokens: int) -> torch.Tensor:
    return torch.randint(1, 101, (num_rows, num_tokens), generator=torch.Generator().manual_seed(2))


def crop_every_step(
    model: PreTrainedModel, ids: torch.Tensor, num_new: int, draw: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The tutorial's generate(): the last CONTEXT tokens, no cache, one token more."""
    for _ in range(num_new):
        logits = model(ids[:, -CONTEXT:], use_cache=False).logits[:, -1]
        ids = torch.cat([ids, draw(logits)], dim=1)
    return ids


def roll_without_cache(model: PreTrainedModel, ids: torch.Tensor, num_new: int) -> torch.Tensor:
    """Half a context when the context is full, and from there on one token more each time."""
    start = 0
    for _ in range(num_new):
        if ids.shape[1] - start > CONTEXT:
            start = ids.shape[1] - CONTEXT // 2
        ids = torch.cat([ids, best(model(ids[:, start:], use_cache=False).logits[:, -1])], dim=1)
    return ids


def best(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1, keepdim=True)


@pytest.mark.parametrize("num_tokens", [1, 5, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
class TestModes:
    def test_exact_is_the_tutorials_loop(self, model: GPTScratchForCausalLM, num_tokens: int) -> None:
        ids = prompts(3, num_tokens)
        expected = crop_every_step(model, ids, 40, best)
        assert torch.equal(model.generate(ids, max_new_tokens=40, do_sample=False, past_context="exact"), expected)

    def test_exact_without_cache_is_the_same(self, model: GPTScratchForCausalLM, num_tokens: int) -> None:
        ids = prompts(2, num_tokens)
        expected = crop_every_step(model, ids, 20, best)
        actual = model.generate(ids, max_new_tokens=20, do_sample=False, past_context="exact", use_cache=False)
        assert torch.equal(actual, expected)

    def test_exact_samples_as_the_tutorials_loop(self, model: GPTScratchForCausalLM, num_tokens: int) -> None:
        processor = TemperatureTopKLogitsProcessor(temperature=1.4, top_k=7)

        def draw(logits: torch.Tensor) -> torch.Tensor:
            return torch.multinomial(processor(ids, logits).softmax(dim=-1), 1)

        ids = prompts(2, num_tokens)
        torch.manual_seed(123)
        expected = crop_every_step(model, ids, 30, draw)
        torch.manual_seed(123)
        actual = model.generate(
            ids,
            max_new_tokens=30,
            past_context="exact",
            do_sample=True,
            temperature=1.0,
            top_k=0,
            logits_processor=[processor],
        )
        assert torch.equal(actual, expected)

    def test_rolling_is_the_loop_without_cache(self, model: GPTScratchForCausalLM, num_tokens: int) -> None:
        ids = prompts(3, num_tokens)
        expected = roll_without_cache(model, ids, 60)
        assert torch.equal(model.generate(ids, max_new_tokens=60, do_sample=False, past_context="rolling"), expected)

    def test_the_modes_differ_past_the_context_and_only_there(
        self, model: GPTScratchForCausalLM, num_tokens: int
    ) -> None:
        """The control: equality above would mean little if both modes, or neither, looked at the window."""
        ids = prompts(1, num_tokens)
        exact, rolling = (
            model.generate(ids, max_new_tokens=60, do_sample=False, past_context=mode) for mode in ("exact", "rolling")
        )
        assert torch.equal(exact[:, : CONTEXT + 1], rolling[:, : CONTEXT + 1])
        assert not torch.equal(exact, rolling)


def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([torch.zeros(longest - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.stack([torch.cat([torch.zeros(longest - len(row)), torch.ones(len(row))]) for row in rows]).long()
    return ids, mask


@pytest.mark.parametrize("seed", [None, 123, [5, 123, 77, 5]])
@pytest.mark.parametrize(
    ("past_context", "sizes", "num_new"), [("exact", (2, 9, CONTEXT, 2 * CONTEXT), 24), (None, (1, 2, 5, 8), 9)]
)
def test_a_row_of_an_unequal_batch_is_what_it_is_alone(
    model: GPTScratchForCausalLM, seed: int | list | None, past_context: str | None, sizes: tuple, num_new: int
) -> None:
    rows = [prompts(1, size)[0] for size in sizes]
    seeds = [123 + index for index in range(4)] if seed == 123 else seed or []

    def processors(seed: int | list | None) -> list:
        return [] if seed is None else [TemperatureTopKLogitsProcessor(1.3, 9), SeededDrawLogitsProcessor(seed)]

    def generate(ids: torch.Tensor, mask: torch.Tensor, seed: int | list | None) -> torch.Tensor:
        options = {"do_sample": False, "past_context": past_context, "logits_processor": processors(seed)}
        return model.generate(ids, attention_mask=mask, max_new_tokens=num_new, **options)[:, ids.shape[1] :]

    together = generate(*padded(rows), seed)
    for index, row in enumerate(rows):
        alone = generate(row[None], torch.ones(1, len(row)), None if seed is None else seeds[index])
        assert torch.equal(together[index], alone[0]), index


def test_rows_end_by_themselves(model: GPTScratchForCausalLM) -> None:
    """Each row is padded after its own end of text, also when that comes past the context."""
    ids = prompts(4, 10)
    free = model.generate(ids, max_new_tokens=40, do_sample=False, past_context="exact")
    end = int(free[0, 30])
    actual = model.generate(
        ids, max_new_tokens=40, do_sample=False, past_context="exact", eos_token_id=end, pad_token_id=0
    )
    for row, expected in zip(actual, free, strict=True):
        stops = (expected[10:] == end).nonzero()
        length = 10 + int(stops[0]) + 1 if len(stops) else len(expected)
        length = min(length, actual.shape[1])
        assert torch.equal(row[:length], expected[:length])
        assert not row[length:].any()


@pytest.mark.parametrize("mode", ["exact", "rolling"])
def test_beams_go_on_too(model: GPTScratchForCausalLM, mode: str) -> None:
    ids = prompts(2, 12)
    one = model.generate(ids, max_new_tokens=20, do_sample=False, past_context=mode)
    many = model.generate(ids, max_new_tokens=20, do_sample=False, past_context=mode, num_beams=3)
    assert many.shape == one.shape
    assert score(model, many, 12) >= score(model, one, 12) or mode == "rolling"


def score(model: GPTScratchForCausalLM, ids: torch.Tensor, num_prompt: int) -> float:
    """Log probability of what follows the prompt, each token given the CONTEXT tokens before it."""
    total = 0.0
    for end in range(num_prompt, ids.shape[1]):
        logits = model(ids[:, max(0, end - CONTEXT) : end]).logits[:, -1].log_softmax(dim=-1)
        total += logits.gather(1, ids[:, end : end + 1]).sum().item()
    return total


def test_who_does_not_ask_is_refused_as_before(model: GPTScratchForCausalLM) -> None:
    with pytest.raises(ValueError, match="17 positions are asked for, but the context of this model ends at"):
        model.generate(prompts(1, 10), max_new_tokens=20, do_sample=False)
    with pytest.raises(ValueError, match="past_contxt"):
        model.generate(prompts(1, 10), max_new_tokens=20, past_contxt="exact")


def test_stock_gpt2_dies(model: GPTScratchForCausalLM, stock_gpt2: Callable) -> None:
    """What is better here than there; if this fails, the README has to change."""
    with pytest.raises(IndexError):
        stock_gpt2(model).generate(prompts(1, 10), max_new_tokens=20, do_sample=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"past_context": "endless"}, 'past_context must be "exact" or "rolling", got \'endless\''),
        ({"past_context": "rolling", "use_cache": False}, "needs the cache: leave use_cache on"),
        ({"past_context": "exact", "cache_implementation": "static"}, "does not go with a static cache"),
        ({"past_context": "rolling", "cache_implementation": "static"}, "does not go with a static cache"),
        pytest.param(
            {"past_context": "exact", "prompt_lookup_num_tokens": 3, "eos_token_id": 0},
            "does not go with assisted or prompt-lookup",
            marks=pytest.mark.skipif(VERSION < (5, 3), reason="the library itself crops a cache that is not there"),
        ),
    ],
)
def test_what_does_not_go_together(model: GPTScratchForCausalLM, options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model.generate(prompts(1, 10).repeat(1, 1), max_new_tokens=20, do_sample=False, **options)


def test_rolling_refuses_padding_and_both_refuse_embeddings(model: GPTScratchForCausalLM) -> None:
    ids, mask = padded([prompts(1, 3)[0], prompts(1, 9)[0]])
    with pytest.raises(ValueError, match='takes prompts of one length: use "exact" for padded ones'):
        model.generate(ids, attention_mask=mask, max_new_tokens=20, past_context="rolling")
    embeddings = model.get_input_embeddings()(prompts(1, 4))
    with pytest.raises(ValueError, match="past_context needs input_ids"):
        model.generate(inputs_embeds=embeddings, max_new_tokens=20, past_context="exact")
    from_ids = model.generate(prompts(1, 4), max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(inputs_embeds=embeddings, max_new_tokens=6, do_sample=False), from_ids[:, 4:])


class TestSeededDraw:
    def test_a_row_draws_what_the_global_generator_would(self, model: GPTScratchForCausalLM) -> None:
        ids = prompts(1, 4)
        torch.manual_seed(123)
        expected = model.generate(ids, max_new_tokens=12, do_sample=True, temperature=1.3, top_k=9)
        processors = [TemperatureTopKLogitsProcessor(1.3, 9), SeededDrawLogitsProcessor(123)]
        before = torch.get_rng_state()
        actual = model.generate(ids, max_new_tokens=12, do_sample=False, logits_processor=processors)
        assert torch.equal(actual, expected)
        assert torch.equal(torch.get_rng_state(), before)
        # The control: sampling as the library does it changes the global state.
        model.generate(ids, max_new_tokens=2, do_sample=True)
        assert not torch.equal(torch.get_rng_state(), before)

    def test_seeds_and_rows(self) -> None:
        scores = torch.zeros(3, 50)
        whole = SeededDrawLogitsProcessor(7)(None, scores)
        assert (whole == 0).sum(dim=-1).tolist() == [1, 1, 1]
        assert whole.isinf().sum() == 3 * 49
        for row in range(3):
            assert torch.equal(SeededDrawLogitsProcessor(7 + row)(None, scores[:1])[0], whole[row])
        assert torch.equal(SeededDrawLogitsProcessor([7, 8, 9])(None, scores), whole)
        assert len({int(row.argmax()) for row in whole}) > 1

    def test_one_generator_for_all_rows(self) -> None:
        scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
        drawn = SeededDrawLogitsProcessor(torch.Generator().manual_seed(3))(None, scores).argmax(dim=-1)
        expected = torch.multinomial(scores.softmax(dim=-1), 1, generator=torch.Generator().manual_seed(3))[:, 0]
        assert torch.equal(drawn, expected)

    @pytest.mark.parametrize("seed", [1.5, "7", [1, "2"], True])
    def test_what_is_no_seed(self, seed: object) -> None:
        with pytest.raises(ValueError, match="seed must be an integer"):
            SeededDrawLogitsProcessor(seed)

    def test_a_seed_for_every_row(self) -> None:
        with pytest.raises(ValueError, match="there are 2 seeds for 3 rows"):
            SeededDrawLogitsProcessor([1, 2])(None, torch.zeros(3, 5))
