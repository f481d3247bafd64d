"""Proves that the processor is temperature and top-k as the tutorial defines them, inside and outside generate().

The references are the tutorial's printed counts, transformers' own warpers for the same seed, and a softmax in double
precision written out here.
"""

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessorList

from hf_gpt_scratch import GPTScratchForCausalLM, TemperatureTopKLogitsProcessor
from hf_gpt_scratch.model.generation_gpt_scratch import multiply_by_onednn


ModelBuilder = Callable[..., GPTScratchForCausalLM]

VOCABULARY = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]
NEXT_TOKEN_LOGITS = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])
NO_IDS = torch.zeros(1, 0, dtype=torch.long)


def process(scores: torch.Tensor, temperature: float = 1.0, top_k: int | None = None) -> torch.Tensor:
    return TemperatureTopKLogitsProcessor(temperature, top_k)(NO_IDS, scores)


def probabilities(scores: list[float], temperature: float, top_k: int) -> list[float]:
    """Compute softmax(scores / temperature) over the top_k best scores and their ties, in double precision."""
    threshold = sorted(scores, reverse=True)[top_k - 1] if 0 < top_k < len(scores) else -math.inf
    best = max(scores)
    weights = [math.exp((score - best) / temperature) if score >= threshold else 0.0 for score in scores]
    return [weight / sum(weights) for weight in weights]


class TestTutorial:
    @pytest.mark.parametrize(
        ("temperature", "top_k", "counts"),
        [
            (1.0, None, [73, 0, 0, 582, 2, 0, 0, 343, 0]),
            (0.1, None, [0, 0, 0, 985, 0, 0, 0, 15, 0]),
            (5.0, None, [165, 75, 42, 239, 71, 46, 32, 227, 103]),
            (1.0, 3, [73, 0, 0, 583, 0, 0, 0, 344, 0]),
            (0.0, None, [0, 0, 0, 1000, 0, 0, 0, 0, 0]),
        ],
    )
    def test_a_thousand_draws_are_the_printed_ones(
        self, temperature: float, top_k: int | None, counts: list[int]
    ) -> None:
        probas = process(NEXT_TOKEN_LOGITS, temperature, top_k).softmax(dim=0)
        torch.manual_seed(123)
        draws = torch.tensor([torch.multinomial(probas, num_samples=1).item() for _ in range(1000)])
        assert draws.bincount(minlength=len(VOCABULARY)).tolist() == counts

    def test_the_first_draw_and_the_best_token_are_forward(self) -> None:
        probas = process(NEXT_TOKEN_LOGITS).softmax(dim=0)
        torch.manual_seed(123)
        assert VOCABULARY[torch.multinomial(probas, num_samples=1).item()] == "forward"
        assert VOCABULARY[process(NEXT_TOKEN_LOGITS, temperature=0.0).argmax()] == "forward"

    def test_probability_of_pizza(self) -> None:
        probas = process(NEXT_TOKEN_LOGITS, temperature=5.0).softmax(dim=0)
        assert probas[VOCABULARY.index("pizza")].item() == pytest.approx(0.0430, abs=5e-5)

    def test_top_three(self) -> None:
        masked = process(NEXT_TOKEN_LOGITS, top_k=3)
        inf = math.inf
        assert torch.equal(masked, torch.tensor([4.51, -inf, -inf, 6.75, -inf, -inf, -inf, 6.28, -inf]))
        kept = masked.softmax(dim=0)[[0, 3, 7]]
        torch.testing.assert_close(kept, torch.tensor([0.0615, 0.5775, 0.3610]), rtol=0, atol=5e-5)


class TestDistribution:
    # Eighths are exact in binary, so that a tie is a tie in both computations.
    @settings(deadline=None)
    @given(
        scores=st.lists(st.integers(-160, 160).map(lambda eighth: eighth / 8), min_size=1, max_size=40),
        temperature=st.floats(0.05, 50.0),
        top_k=st.integers(0, 45),
    )
    def test_probabilities_are_the_softmax_over_the_best(
        self, scores: list[float], temperature: float, top_k: int
    ) -> None:
        actual = process(torch.tensor([scores]), temperature, top_k).softmax(dim=-1)
        expected = torch.tensor([probabilities(scores, temperature, top_k)])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        assert torch.equal(actual == 0, expected < 1e-40) or temperature < 1

    @pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 30.0])
    def test_uniform_stays_uniform(self, temperature: float) -> None:
        scores = torch.full((2, 20), 3.7)
        for top_k in (None, 0, 5, 20):
            probas = process(scores, temperature, top_k).softmax(dim=-1)
            torch.testing.assert_close(probas, torch.full((2, 20), 0.05))  # all tie with the k-th: all are kept

    def test_colder_is_sharper(self) -> None:
        entropies = []
        for temperature in (0.1, 0.5, 1.0, 2.0, 10.0):
            probas = process(NEXT_TOKEN_LOGITS, temperature).softmax(dim=0)
            entropies.append(torch.special.entr(probas).sum().item())
        assert entropies == sorted(entropies)
        assert entropies[0] < 0.2
        assert entropies[-1] > 0.9 * math.log(9)

    @pytest.mark.parametrize("top_k", [None, 0, 9, 10, 50257])
    def test_no_filter(self, top_k: int | None) -> None:
        assert torch.equal(process(NEXT_TOKEN_LOGITS, top_k=top_k), NEXT_TOKEN_LOGITS)

    @pytest.mark.parametrize("top_k", range(1, 9))
    def test_k_are_kept(self, top_k: int) -> None:
        kept = process(NEXT_TOKEN_LOGITS, top_k=top_k).isfinite()
        assert int(kept.sum()) == top_k
        assert NEXT_TOKEN_LOGITS[kept].min() > NEXT_TOKEN_LOGITS[~kept].max()

    def test_ties_with_the_kth_are_kept(self) -> None:
        scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
        assert process(scores, top_k=1).isfinite().tolist() == [[False, True, False, False, False, False]]
        for top_k in (2, 3, 4):
            assert process(scores, top_k=top_k).isfinite().tolist() == [[False, True, True, True, True, False]]
        assert int(process(scores, top_k=5).isfinite().sum()) == 5

    @pytest.mark.parametrize("temperature", [0.7, 1.0])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_rounding_makes_no_ties(self, dtype: torch.dtype, temperature: float) -> None:
        """Tokens are kept for the scores they came with, not for what rounding leaves of them further down."""
        step = 4 * torch.finfo(dtype).eps  # between neighbours in [4, 8)
        scores = torch.tensor([[20.0, 4 + 4 * step, 4 + 3 * step, 4 + 2 * step, 4 + step]], dtype=dtype)
        for top_k in (1, 2, 3, 4):
            expected = [[True] * top_k + [False] * (5 - top_k)]
            assert process(scores, temperature, top_k).isfinite().tolist() == expected

    def test_rows_do_not_influence_each_other(self) -> None:
        scores = torch.randn(4, 6, 101, generator=torch.Generator().manual_seed(0)) * 5
        for temperature, top_k in ((0.0, None), (0.7, 10), (1.3, None)):
            together = process(scores, temperature, top_k)
            assert together.shape == scores.shape
            for first in range(4):
                for second in range(6):
                    alone = process(scores[first, second], temperature, top_k)
                    assert torch.equal(together[first, second], alone)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, 3), (0.0, None), (1.0, 3), (1e-30, 2)])
    def test_the_scores_stay_as_they_are(self, dtype: torch.dtype, temperature: float, top_k: int | None) -> None:
        scores = NEXT_TOKEN_LOGITS.to(dtype).unsqueeze(0)
        before = scores.clone()
        processed = process(scores, temperature, top_k)
        assert torch.equal(scores, before)
        processed.fill_(7.0)
        assert torch.equal(scores, before)


class TestColdEnd:
    @pytest.mark.parametrize("temperature", [0, 0.0, 1e-30, 5e-324, 1e-8])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_zero_and_nearly_zero_leave_only_the_best(self, temperature: float, dtype: torch.dtype) -> None:
        scores = torch.tensor([[0.0, 5.0, 4.999, -3.0], [9.0, 9.0, -9.0, 1.0]], dtype=dtype)
        processed = process(scores, temperature)
        assert processed.dtype == dtype
        probas = processed.float().softmax(dim=-1)
        assert torch.equal(probas, torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))

    @pytest.mark.parametrize("temperature", [0.0, 1e-30, 1.1e-7, 1.3e-7, 1e-6, 1e-4, 0.01])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("top_k", [None, 2])
    def test_nothing_overflows(self, temperature: float, dtype: torch.dtype, top_k: int | None) -> None:
        scores = torch.tensor(
            [
                [0.0, 5.0, 4.0, -3.0],
                [60000.0, -60000.0, 59000.0, 0.0],
                [-50.0, -60000.0, -40.0, -55.0],
                [-math.inf, 700.0, -math.inf, 690.0],
            ],
            dtype=dtype,
        )
        processed = process(scores, temperature, top_k)
        assert processed.dtype == dtype
        assert not processed.isnan().any()
        assert not processed.isposinf().any()
        probas = processed.float().softmax(dim=-1)
        torch.testing.assert_close(probas.sum(dim=-1), torch.ones(4))
        assert probas.argmax(dim=-1).tolist() == [1, 0, 2, 1]

    def test_half_precision_is_close_to_single(self) -> None:
        """Control of the shift: it must not change the distribution."""
        scores = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)).mul(4).half()
        for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
            rounded = scores.to(dtype)
            actual = process(rounded, 0.8, 20).float().softmax(dim=-1)
            expected = process(rounded.float(), 0.8, 20).softmax(dim=-1)
            torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


class TestRefusals:
    @pytest.mark.parametrize("temperature", [-0.1, -1, -1e-30, math.nan, math.inf, -math.inf])
    def test_temperature_out_of_range(self, temperature: float) -> None:
        with pytest.raises(
            ValueError, match=rf"^temperature must be a number, at least 0 and finite, got {temperature}; [^\n]+$"
        ):
            TemperatureTopKLogitsProcessor(temperature=temperature)

    @pytest.mark.parametrize("temperature", [True, False, None, "1.0", [1.0], 1j])
    def test_temperature_of_another_type(self, temperature: object) -> None:
        with pytest.raises(ValueError, match=r"^temperature must be a number, [^\n]+$") as error:
            TemperatureTopKLogitsProcessor(temperature=temperature)
        assert repr(temperature) in str(error.value)

    @pytest.mark.parametrize("top_k", [-1, -50, True, False, 2.0, 0.5, math.nan, "3", [3]])
    def test_top_k(self, top_k: object) -> None:
        with pytest.raises(ValueError, match=r"^top_k must be an integer of at least 0 or None, got [^\n]+$") as error:
            TemperatureTopKLogitsProcessor(top_k=top_k)
        assert repr(top_k) in str(error.value)


class TestInGenerate:
    OPTIONS = {"max_new_tokens": 10, "min_new_tokens": 10}

    def generate(
        self,
        model: GPTScratchForCausalLM,
        input_ids: torch.Tensor,
        seed: int,
        processor: TemperatureTopKLogitsProcessor | None = None,
        **options: object,
    ) -> torch.Tensor:
        torch.manual_seed(seed)
        processors = LogitsProcessorList([] if processor is None else [processor])
        mask = torch.ones_like(input_ids)
        return model.generate(input_ids, attention_mask=mask, logits_processor=processors, **self.OPTIONS, **options)

    @pytest.mark.parametrize(("temperature", "top_k"), [(1.4, 25), (0.7, 5), (2.5, 60), (1.0, 3), (0.5, 0), (1.0, 0)])
    def test_the_same_seed_gives_what_the_built_in_warpers_give(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, temperature: float, top_k: int
    ) -> None:
        model = build_model()
        processor = TemperatureTopKLogitsProcessor(temperature, top_k)
        results = []
        for seed in (1, 123, 2024):
            ours = self.generate(model, input_ids, seed, processor, do_sample=True, temperature=1.0, top_k=0)
            theirs = self.generate(model, input_ids, seed, do_sample=True, temperature=temperature, top_k=top_k)
            assert torch.equal(ours, theirs)
            results.append(ours)
        # Controls: another seed and another temperature give other tokens.
        assert not torch.equal(results[0], results[1])
        other = TemperatureTopKLogitsProcessor(temperature * 1.5, top_k)
        moved = self.generate(model, input_ids, 1, other, do_sample=True, temperature=1.0, top_k=0)
        assert not torch.equal(results[0], moved)

    @pytest.mark.parametrize("temperature", [0.0, 1e-30])
    def test_temperature_zero_is_greedy_even_when_sampling(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, temperature: float
    ) -> None:
        model = build_model()
        greedy = self.generate(model, input_ids, 0, do_sample=False)
        processor = TemperatureTopKLogitsProcessor(temperature)
        for seed in (1, 2, 3):
            sampled = self.generate(model, input_ids, seed, processor, do_sample=True, temperature=1.0, top_k=0)
            assert torch.equal(sampled, greedy)
        assert torch.equal(self.generate(model, input_ids, 0, processor, do_sample=False), greedy)
        # Control: without the processor the same call samples something else.
        assert not torch.equal(self.generate(model, input_ids, 1, do_sample=True, temperature=1.0, top_k=0), greedy)

    def test_top_k_one_is_greedy(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model()
        processor = TemperatureTopKLogitsProcessor(temperature=5.0, top_k=1)
        sampled = self.generate(model, input_ids, 1, processor, do_sample=True, temperature=1.0, top_k=0)
        assert torch.equal(sampled, self.generate(model, input_ids, 0, do_sample=False))

    def test_generate_adds_its_own_top_k_of_50_unless_it_is_switched_off(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> None:
        """Why the docstring asks for top_k=0: None means 50 to generate(), and the vocabulary here has 101 tokens."""
        model = build_model()
        processor = TemperatureTopKLogitsProcessor(temperature=3.0)
        switched_off = self.generate(model, input_ids, 1, processor, do_sample=True, temperature=1.0, top_k=0)
        left_on = self.generate(model, input_ids, 1, processor, do_sample=True, temperature=1.0)
        assert not torch.equal(left_on, switched_off)
        assert torch.equal(left_on, self.generate(model, input_ids, 1, do_sample=True, temperature=3.0, top_k=50))
        assert torch.equal(switched_off, self.generate(model, input_ids, 1, do_sample=True, temperature=3.0, top_k=0))

    def test_the_cache_comes_under_the_name_that_forward_has(
        self, build_model: Callable[..., GPTScratchForCausalLM]
    ) -> None:
        """PEFT looks for it there; transformers 5.24 has another name of its own."""
        ids, cache = torch.tensor([[3, 1, 4]]), DynamicCache()
        prepared = build_model().prepare_inputs_for_generation(
            ids, past_key_values=cache, attention_mask=torch.ones_like(ids), use_cache=True
        )
        assert prepared["past_key_values"] is cache
        assert "cache" not in prepared


class TestInContinuousBatching:
    PROMPTS = [[3, 4, 5, 6], [7, 8, 9], [10, 11]]

    @pytest.fixture(autouse=True)
    def library_has_it(self, continuous_batching: ModuleType) -> None:
        self.library = continuous_batching

    def generate_batch(
        self,
        model: GPTScratchForCausalLM,
        processor: TemperatureTopKLogitsProcessor | None = None,
        **options: object,
    ) -> list[list[int]]:
        """Generate 5 tokens for each prompt through the manager, since generate_batch takes no processors."""
        manager = model.init_continuous_batching(
            GenerationConfig(max_new_tokens=5, eos_token_id=-1, pad_token_id=0, **options),
            transformers.ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32, page_size=16, seed=7),
        )
        if processor is not None:
            processors = self.library.ContinuousBatchingLogitsProcessorList(LogitsProcessorList([processor]))
            assert processors.logits_processor == [processor]  # kept
            manager.logit_processor = processors
        manager.start()
        try:
            request_ids = manager.add_requests(self.PROMPTS, max_new_tokens=5)
            finished = {}
            while len(finished) < len(request_ids) and manager.is_running():
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    finished[result.request_id] = result
        finally:
            manager.stop(block=True, timeout=60)
            manager.destroy()
        assert [finished[request_id].error for request_id in request_ids] == [None] * len(self.PROMPTS)
        return [finished[request_id].generated_tokens for request_id in request_ids]

    def test_the_same_seed_gives_what_the_built_in_warpers_give(self, build_model: ModelBuilder) -> None:
        model = build_model()
        ours = self.generate_batch(model, TemperatureTopKLogitsProcessor(2.0, 20), do_sample=True)
        theirs = self.generate_batch(model, do_sample=True, temperature=2.0, top_k=20)
        assert ours == theirs
        assert ours != self.generate_batch(model, do_sample=True)

    def test_temperature_zero_is_greedy(self, build_model: ModelBuilder) -> None:
        model = build_model()
        expected = [
            model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=5,
                eos_token_id=None,
            )[0, len(prompt) :].tolist()
            for prompt in self.PROMPTS
        ]
        assert self.generate_batch(model, TemperatureTopKLogitsProcessor(0.0), do_sample=True) == expected
        # What generate_batch() itself takes: a generation config.
        config = GenerationConfig(max_new_tokens=5, eos_token_id=-1, pad_token_id=0, do_sample=False)
        blocks = transformers.ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32, page_size=16)
        results = model.generate_batch(self.PROMPTS, generation_config=config, continuous_batching_config=blocks)
        assert [result.generated_tokens for result in results.values()] == expected

    def test_the_flag_is_what_keeps_the_processor(self) -> None:
        class Unsupported(TemperatureTopKLogitsProcessor):
            supports_continuous_batching = False

        assert TemperatureTopKLogitsProcessor.supports_continuous_batching is True  # None would draw a warning
        processors = LogitsProcessorList([TemperatureTopKLogitsProcessor(0.5), Unsupported(0.5)])
        kept = self.library.ContinuousBatchingLogitsProcessorList(processors).logits_processor
        assert [type(processor) for processor in kept] == [TemperatureTopKLogitsProcessor]


def num_onednn_products(call: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::mkldnn_linear")


class Subclass(torch.Tensor):
    """A tensor that has ways of its own, as quantized ones do."""


@pytest.mark.usefixtures("no_grad")
class TestProductsOfOneDNN:
    LARGE = 2**19 // 128  # rows of a weight with 128 columns

    def generate_both_ways(self, model: GPTScratchForCausalLM, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of six greedy steps by the model's own generate() and by the library's."""
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "output_logits": True}
        options |= {"return_dict_in_generate": True, "pad_token_id": 0}
        ours, library = model.generate(ids, **options), GenerationMixin.generate(model, ids, **options)
        assert torch.equal(ours.sequences, library.sequences)
        return torch.stack(ours.logits), torch.stack(library.logits)

    @pytest.mark.parametrize("num_rows", [1, 3])
    def test_the_same_text(self, build_model: ModelBuilder, input_ids: torch.Tensor, num_rows: int) -> None:
        model = build_model(hidden_size=128, vocab_size=self.LARGE)
        ours, library = self.generate_both_ways(model, input_ids[:num_rows])
        torch.testing.assert_close(ours, library, atol=1e-5, rtol=1e-5)
        # The head, once a step; the control is the library's own way, which has none.
        assert (
            num_onednn_products(lambda: model.generate(input_ids[:num_rows], max_new_tokens=6, min_new_tokens=6)) == 6
        )
        assert num_onednn_products(lambda: GenerationMixin.generate(model, input_ids, max_new_tokens=6)) == 0
        assert num_onednn_products(lambda: model(input_ids)) == 0

    def test_hooks_run(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model(hidden_size=128, vocab_size=self.LARGE)
        shapes = []
        model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        model.generate(input_ids, max_new_tokens=2, min_new_tokens=2)
        assert shapes == [(3, 1, self.LARGE)] * 2

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_other_dtypes_are_left_to_the_library(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, dtype: torch.dtype
    ) -> None:
        model = build_model(hidden_size=128, vocab_size=self.LARGE).to(dtype)
        assert torch.equal(*self.generate_both_ways(model, input_ids))

    def test_under_autocast(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model(hidden_size=128, vocab_size=self.LARGE)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(*self.generate_both_ways(model, input_ids))

    def test_with_a_compiled_forward(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model(hidden_size=128, vocab_size=self.LARGE)
        expected = model.generate(input_ids, max_new_tokens=6)
        model.forward = torch.compile(model.forward, backend="eager")
        assert torch.equal(model.generate(input_ids, max_new_tokens=6), expected)

    def test_small_weights_are_left_alone(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model(hidden_size=128, vocab_size=self.LARGE - 1)
        assert num_onednn_products(lambda: model.generate(input_ids, max_new_tokens=2)) == 0

    def test_the_layers_are_as_before_also_after_an_error(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> None:
        model = build_model(hidden_size=128, vocab_size=self.LARGE)
        during = []
        model.lm_head.register_forward_hook(lambda module, inputs, output: during.append("forward" in vars(module)))
        model.generate(input_ids, max_new_tokens=1)
        with pytest.raises(ValueError, match="context of this model ends"):
            model.generate(input_ids, max_new_tokens=1000)
        assert during[0]
        assert not [module for module in model.modules() if "forward" in vars(module)]

    def test_a_forward_that_somebody_put_in_place_stays(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> None:
        """As Accelerate's hooks do, which bring weights from a disk."""
        model, calls = build_model(hidden_size=128, vocab_size=self.LARGE), []
        forward = model.lm_head.forward
        model.lm_head.forward = lambda hidden: calls.append(hidden.shape) or forward(hidden)
        mine = model.lm_head.forward
        model.generate(input_ids, max_new_tokens=2, min_new_tokens=2)
        assert len(calls) == 2
        assert model.lm_head.forward is mine

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda tensor: tensor.t().contiguous().t(), id="transposed"),
            pytest.param(lambda tensor: tensor.as_subclass(Subclass), id="subclass"),
            pytest.param(lambda tensor: tensor.to(torch.bfloat16), id="bfloat16"),
            pytest.param(lambda tensor: tensor.to("meta"), id="meta"),
            pytest.param(lambda tensor: tensor.to_sparse_csr(), id="sparse"),
        ],
    )
    def test_what_is_left_alone(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        linear = torch.nn.Linear(128, self.LARGE, bias=False).requires_grad_(False)
        inputs = torch.randn(2, 128)
        assert num_onednn_products(lambda: multiply_by_onednn(linear, inputs)) == 1
        weight = change(linear.weight.data)
        del linear.weight
        linear.weight = weight
        inputs = inputs.to(weight.device, weight.dtype)
        assert num_onednn_products(lambda: multiply_by_onednn(linear, inputs)) == 0
