"""Proves that generate() with oneDNN's products gives what it gives without, leaves the model alone, is never stale.

What ran is read from PyTorch's profiler: nothing else shows whether the packed products took part.
"""

import copy
import functools
import threading
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StoppingCriteria

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.generation import fast_decoding
from hf_gpt_scratch.generation.fast_decoding import generate


ModelBuilder = Callable[..., GPTScratchForCausalLM]
Weights = Callable[[GPTScratchForCausalLM], None]

PRODUCT = "mkldnn::_linear_pointwise"
NUM_NEW = fast_decoding.MIN_NEW_TOKENS + 8


@pytest.fixture
def model(build_model: ModelBuilder) -> GPTScratchForCausalLM:
    model = build_model(max_position_embeddings=96)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def two_threads() -> None:
    """More than one, so that a single row is packed too; the next test begins with one again."""
    torch.set_num_threads(2)


def prompts(num_rows: int, num_tokens: int = 7) -> torch.Tensor:
    return torch.randint(1, 101, (num_rows, num_tokens), generator=torch.Generator().manual_seed(2))


def products(call: Callable[[], object]) -> int:
    """How many products oneDNN computes in a call."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    return sum(event.count for event in profiler.key_averages() if event.key == PRODUCT)


def state(model: nn.Module) -> list[tuple]:
    """All that a copy might disturb: where each parameter lies and how, its version, each module and its hooks."""
    tensors = [(n, id(p), p.data_ptr(), p.stride(), p._version, p.requires_grad) for n, p in model.named_parameters()]
    modules = [(n, id(m), type(m), len(m._forward_hooks), set(vars(m))) for n, m in model.named_modules()]
    return [*tensors, *modules]


class TestSameText:
    @pytest.mark.parametrize("num_rows", [1, 3])
    @pytest.mark.parametrize("num_threads", [1, 2])
    @pytest.mark.parametrize("do_sample", [False, True])
    def test_ids(self, model: GPTScratchForCausalLM, num_rows: int, num_threads: int, do_sample: bool) -> None:
        torch.set_num_threads(num_threads)
        options = {"max_new_tokens": NUM_NEW, "do_sample": do_sample, "temperature": 1.3 if do_sample else None}
        texts = []
        for call in (model.generate, functools.partial(generate, model)):
            torch.manual_seed(5)
            texts.append(call(prompts(num_rows), **options))
        assert torch.equal(*texts)

    def test_ids_of_padded_rows(self, model: GPTScratchForCausalLM) -> None:
        mask = torch.ones(3, 7, dtype=torch.long)
        mask[1, :4] = 0
        options = {"attention_mask": mask, "max_new_tokens": NUM_NEW, "do_sample": False}
        assert torch.equal(generate(model, prompts(3), **options), model.generate(prompts(3), **options))

    def test_rows_end_at_either_end_and_are_padded_with_the_first(self, model: GPTScratchForCausalLM) -> None:
        """As the library does it where there is no padding token; the last row does not end."""
        options = {"max_new_tokens": NUM_NEW, "do_sample": False}
        free = model.generate(prompts(3), **options)
        ends = [int(free[0, 20]), int(free[1, 25])]
        model.generation_config.pad_token_id = None
        for call in (model.generate, functools.partial(generate, model)):
            rows = call(prompts(3), eos_token_id=ends, **options)
            lengths = []
            for row, whole in zip(rows, free, strict=True):
                is_end = torch.isin(whole[7:], torch.tensor(ends))
                lengths.append(7 + int(is_end.float().argmax()) + 1 if is_end.any() else len(whole))
                assert torch.equal(row[: lengths[-1]], whole[: lengths[-1]])
                assert (row[lengths[-1] :] == ends[0]).all()
            assert rows.shape[1] == max(lengths) > min(lengths)

    @pytest.mark.parametrize("mode", ["exact", "rolling"])
    def test_past_the_context(self, model: GPTScratchForCausalLM, mode: str) -> None:
        options = {"max_new_tokens": 150, "do_sample": False, "past_context": mode}
        assert torch.equal(generate(model, prompts(2), **options), model.generate(prompts(2), **options))

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (4, 1), (2, 30)])
    @pytest.mark.parametrize("num_threads", [1, 2])
    @pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"qkv_bias": False}], ids=str)
    def test_logits(self, build_model: ModelBuilder, shape: tuple, num_threads: int, changes: dict) -> None:
        model = build_model(max_position_embeddings=96, **changes)
        torch.set_num_threads(num_threads)
        with torch.no_grad():
            twin = fast_decoding.prepared_for_decoding(model, shape[0], NUM_NEW)
            assert twin is not model
            torch.testing.assert_close(twin(prompts(*shape)).logits, model(prompts(*shape)).logits, atol=1e-5, rtol=0)

    def test_scores_hidden_states_and_cache_come_back(self, model: GPTScratchForCausalLM) -> None:
        options = {"max_new_tokens": NUM_NEW, "do_sample": False, "return_dict_in_generate": True}
        options |= {"output_scores": True, "output_hidden_states": True}
        for _ in range(2):  # the library hooks into the modules at the first call
            packed, plain = generate(model, prompts(2), **options), model.generate(prompts(2), **options)
            assert [len(step) for step in packed.hidden_states] == [4] * NUM_NEW
            torch.testing.assert_close(packed.scores, plain.scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(packed.hidden_states, plain.hidden_states, atol=1e-5, rtol=0)
        for layer, expected in zip(packed.past_key_values.layers, plain.past_key_values.layers, strict=True):
            torch.testing.assert_close(layer.keys, expected.keys, atol=1e-5, rtol=0)
        # A text goes on with the cache that came back.
        more = generate(model, packed.sequences, past_key_values=packed.past_key_values, max_new_tokens=5)
        assert torch.equal(more, model.generate(prompts(2), max_new_tokens=NUM_NEW + 5, do_sample=False))


@pytest.mark.usefixtures("two_threads")
class TestWhenItIsPacked:
    @pytest.mark.parametrize("num_rows", [1, 3])
    def test_all_products_of_a_long_text(self, model: GPTScratchForCausalLM, num_rows: int) -> None:
        num_linears = sum(isinstance(module, nn.Linear) for module in model.modules())
        count = products(lambda: generate(model, prompts(num_rows), max_new_tokens=NUM_NEW))
        assert count == num_linears * NUM_NEW

    def test_copies_are_made_for_several_rows_of_a_long_text_only(self, model: GPTScratchForCausalLM) -> None:
        def is_copied(num_rows: int, num_new_tokens: int) -> bool:
            with torch.no_grad():
                twin = fast_decoding.prepared_for_decoding(model, num_rows, num_new_tokens)
            pairs = zip(twin.modules(), model.modules(), strict=True)
            linears = [(one, other) for one, other in pairs if isinstance(one, fast_decoding.OneDNNLinear)]
            assert len(linears) == sum(isinstance(module, nn.Linear) for module in model.modules())
            copied = {one.packed_weight.is_mkldnn for one, _ in linears}
            if copied == {False}:
                assert all(one.packed_weight.data_ptr() == other.weight.data_ptr() for one, other in linears)
            assert len(copied) == 1
            return copied.pop()

        few = fast_decoding.MIN_NEW_TOKENS - 1
        assert [is_copied(rows, new) for rows in (1, 2) for new in (few, few + 1)] == [False, False, False, True]

    @pytest.mark.parametrize("num_rows", [1, 3])
    def test_a_short_text(self, model: GPTScratchForCausalLM, num_rows: int) -> None:
        num_linears = sum(isinstance(module, nn.Linear) for module in model.modules())
        texts = []
        assert products(lambda: texts.append(generate(model, prompts(num_rows), max_new_tokens=5))) == num_linears * 5
        assert torch.equal(texts[0], model.generate(prompts(num_rows), max_new_tokens=5))

    def test_not_where_gradients_autocast_or_others_have_a_say(self, model: GPTScratchForCausalLM) -> None:
        def is_packed(model: nn.Module) -> bool:
            return fast_decoding.prepared_for_decoding(model, 2, NUM_NEW) is not model

        assert not is_packed(model)  # gradients are on
        with torch.no_grad():
            assert is_packed(model)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert not is_packed(model)
            assert not is_packed(copy.deepcopy(model).bfloat16())
            compiled = copy.deepcopy(model)
            compiled.model.layers[0].compile()
            assert not is_packed(compiled)

    def test_a_static_cache_is_the_librarys_business(self, model: GPTScratchForCausalLM) -> None:
        options = {"max_new_tokens": NUM_NEW, "do_sample": False}
        expected = model.generate(prompts(2), **options)
        texts = []
        static = options | {"cache_implementation": "static"}
        assert products(lambda: texts.append(generate(model, prompts(2), **static))) == 0
        assert torch.equal(texts[0], expected)

    def test_hooks_see_every_step_and_keep_their_linear_from_being_packed(self, model: GPTScratchForCausalLM) -> None:
        calls = []
        for module in (model, model.model.layers[1], model.lm_head):
            module.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
        expected = model.generate(prompts(2), max_new_tokens=NUM_NEW, do_sample=False)
        plain_calls, calls = list(calls), calls.clear() or calls
        assert torch.equal(generate(model, prompts(2), max_new_tokens=NUM_NEW, do_sample=False), expected)
        assert calls == plain_calls

    def test_foreign_modules_are_shared_as_they_are(self, model: GPTScratchForCausalLM) -> None:
        class LowRank(nn.Module):
            def __init__(self, base: nn.Linear) -> None:
                super().__init__()
                self.base, self.change = base, nn.Linear(32, 32)

            def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
                return self.base(hidden_states) + self.change(hidden_states)

        attention = model.model.layers[0].self_attn
        attention.q_proj = LowRank(attention.q_proj)
        with torch.no_grad():
            twin = fast_decoding.prepared_for_decoding(model, 2, NUM_NEW)
            torch.testing.assert_close(twin(prompts(2)).logits, model(prompts(2)).logits, atol=1e-5, rtol=0)
        modules = dict(twin.named_modules())
        assert modules["model.layers.0.self_attn.q_proj"] is attention.q_proj
        assert isinstance(modules["lm_head"], fast_decoding.OneDNNLinear)


class TestUnwatchedModules:
    """Which modules PyTorch calls as such while a text is made, and that the text is the same."""

    @staticmethod
    def called(model: GPTScratchForCausalLM, num_new: int = 6, **options: object) -> Counter:
        calls: Counter = Counter()
        original = nn.Module.__call__

        def call(self: nn.Module, *args: object, **kwargs: object) -> object:
            calls[type(self).__name__] += 1
            return original(self, *args, **kwargs)

        options = {"max_new_tokens": num_new, "do_sample": False} | options
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Module, "__call__", call)
            text = generate(model, prompts(2), **options)
        assert torch.equal(text, model.generate(prompts(2), **options))
        return calls

    @pytest.mark.parametrize("changes", [{}, {"norm_type": "rmsnorm"}, {"hidden_act": "relu"}, {"qkv_bias": False}])
    def test_layers_alone_are_called(self, build_model: ModelBuilder, changes: dict) -> None:
        model = build_model(max_position_embeddings=96, **changes)
        model.generation_config.eos_token_id = None
        layers = 6 * model.config.num_hidden_layers
        assert self.called(model) == {"GPTScratchForCausalLM": 6, "GPTScratchDecoderLayer": layers}

    @pytest.mark.parametrize("part", ["self_attn", "self_attn.o_proj", "mlp.act_fn", "dropout"])
    def test_what_has_a_hook_is_called_as_it_is(self, model: GPTScratchForCausalLM, part: str) -> None:
        """The hook makes all it sees zero, so that the text would tell."""
        untouched = model.generate(prompts(2), max_new_tokens=6, do_sample=False)
        hooked = [layer.get_submodule(part) for layer in model.model.layers]
        for module in hooked:
            module.register_forward_hook(
                lambda module, args, output: (0 * output[0], None) if isinstance(output, tuple) else 0 * output
            )
        num_calls = 2 if part == "dropout" else 1  # in a layer
        assert self.called(model)[type(hooked[0]).__name__] == num_calls * 6 * len(hooked)
        assert not torch.equal(model.generate(prompts(2), max_new_tokens=6, do_sample=False), untouched)

    def test_a_hook_of_all_modules_sees_them(self, model: GPTScratchForCausalLM) -> None:
        seen = []
        hook = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
        try:
            assert self.called(model)["GPTScratchMLP"] == 6 * model.config.num_hidden_layers
        finally:
            hook.remove()
        assert seen.count(type(model.model.layers[0].mlp)) == 2 * 6 * model.config.num_hidden_layers

    def test_a_changed_model_decodes_as_it_was_changed(
        self, model: GPTScratchForCausalLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Code that reads the weight of a projection, and a layer that is computed otherwise."""
        untouched = model.generate(prompts(2), max_new_tokens=6, do_sample=False)
        mlp = type(model.model.layers[0].mlp)

        def forward(self: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.up_proj(hidden_states).sin(), -self.down_proj.weight)

        monkeypatch.setattr(mlp, "forward", forward)
        self.called(model)
        assert not torch.equal(model.generate(prompts(2), max_new_tokens=6, do_sample=False), untouched)

    def test_dropout_of_a_model_in_training_mode(self, model: GPTScratchForCausalLM) -> None:
        model.train()
        model.model.dropout.p = 0.9
        texts = []
        for call in (model.generate, functools.partial(generate, model)):
            torch.manual_seed(5)
            texts.append(call(prompts(2), max_new_tokens=20, do_sample=False))
        assert torch.equal(*texts)
        assert not torch.equal(texts[0], model.eval().generate(prompts(2), max_new_tokens=20, do_sample=False))


def step_of_adamw(fused: bool) -> Weights:
    def change(model: GPTScratchForCausalLM) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        model(prompts(2), labels=prompts(2)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return change


def assign_data(model: GPTScratchForCausalLM) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(0).clone()


def write_into_data(model: GPTScratchForCausalLM) -> None:
    """As no version counter of the parameter shows."""
    for parameter in model.parameters():
        parameter.data.mul_(-1.5)


def load_others(model: GPTScratchForCausalLM) -> None:
    model.load_state_dict({name: tensor.flip(0) for name, tensor in model.state_dict().items()})


CHANGES = [step_of_adamw(True), step_of_adamw(False), assign_data, write_into_data, load_others]


@pytest.mark.parametrize("change", CHANGES, ids=["fused AdamW", "AdamW", "data", "in data", "loaded"])
def test_never_stale(model: GPTScratchForCausalLM, change: Weights) -> None:
    ids, options = prompts(2), {"max_new_tokens": NUM_NEW, "do_sample": False}
    before = generate(model, ids, **options)
    with torch.no_grad():
        stale = fast_decoding.prepared_for_decoding(model, 2, NUM_NEW)
    change(model)
    after = generate(model, ids, **options)
    assert torch.equal(after, model.generate(ids, **options))
    # The control: a copy from before the change would be noticed.
    assert not torch.equal(after, before)
    with torch.no_grad():
        assert (stale(ids).logits - model(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("road", [generate, GPTScratchForCausalLM.generate], ids=["fast", "shipped"])
def test_cache_of_inference_mode_goes_on_outside_of_it(model: GPTScratchForCausalLM, road: Callable) -> None:
    """PyTorch lets nothing be written into tensors of that mode once it has ended; the ids are those of one text."""
    ids = prompts(1)
    whole = model.generate(ids, max_new_tokens=12, do_sample=False)
    with torch.inference_mode():
        output = road(model, ids, max_new_tokens=8, do_sample=False, return_dict_in_generate=True)
    sequences, cache = output.sequences.clone(), output.past_key_values
    assert torch.equal(sequences, whole[:, : sequences.shape[1]])
    for position in range(sequences.shape[1], whole.shape[1]):
        with torch.no_grad():
            logits = model(sequences[:, -1:], past_key_values=cache).logits
        sequences = torch.cat([sequences, logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(sequences, whole[:, : position + 1])


@pytest.mark.usefixtures("two_threads")
class TestTheModelIsLeftAlone:
    @pytest.mark.parametrize("num_rows", [1, 3])
    def test_after_generating(self, model: GPTScratchForCausalLM, num_rows: int) -> None:
        generate(model, prompts(1), max_new_tokens=2)
        before = state(model)
        generate(model, prompts(num_rows), max_new_tokens=NUM_NEW)
        assert state(model) == before
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_after_a_failure(self, model: GPTScratchForCausalLM) -> None:
        class Failing(StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
                raise KeyboardInterrupt

        generate(model, prompts(1), max_new_tokens=2)
        before = state(model)
        with pytest.raises(KeyboardInterrupt):
            generate(model, prompts(1), max_new_tokens=NUM_NEW, stopping_criteria=[Failing()])
        assert state(model) == before

    def test_by_several_threads_at_once(self, model: GPTScratchForCausalLM) -> None:
        expected = [model.generate(prompts(rows), max_new_tokens=NUM_NEW, do_sample=False) for rows in (1, 2, 3, 4)]
        texts: dict[int, torch.Tensor] = {}

        def add(rows: int) -> None:
            texts[rows] = generate(model, prompts(rows), max_new_tokens=NUM_NEW, do_sample=False)

        threads = [threading.Thread(target=add, args=(rows,)) for rows in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(texts[rows], expected[rows - 1]) for rows in (1, 2, 3, 4))


class TestGrowingLayer:
    @staticmethod
    def states(num_tokens: int, num_rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(num_rows, 4, num_tokens, 8), torch.randn(num_rows, 4, num_tokens, 8)

    @torch.no_grad()
    def test_holds_what_a_dynamic_layer_holds(self) -> None:
        """Growing past its room, cropped, reordered, chosen from and repeated, then growing again."""
        ours, theirs = DynamicCache(), DynamicCache()
        ours.layers.append(fast_decoding.GrowingLayer())
        changes = [
            lambda cache: cache.crop(-5),
            lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
            lambda cache: cache.batch_select_indices(torch.tensor([1])),
            lambda cache: cache.batch_repeat_interleave(2),
            lambda cache: cache.reset(),
        ]
        for change, num_rows in zip([lambda cache: None, *changes], (2, 2, 2, 1, 2, 2), strict=True):
            change(ours)
            change(theirs)
            for num_tokens in (9, 1, 1, fast_decoding.SPARE_SLOTS, 1, 2 * fast_decoding.SPARE_SLOTS, 1):
                states = self.states(num_tokens, num_rows)
                for actual, expected in zip(ours.update(*states, 0), theirs.update(*states, 0), strict=True):
                    assert torch.equal(actual, expected)
                assert ours.get_seq_length() == theirs.get_seq_length()

    @torch.no_grad()
    def test_what_was_handed_out_never_changes(self) -> None:
        layer = fast_decoding.GrowingLayer()
        keys, _ = layer.update(*self.states(6))
        before = keys.clone()
        layer.crop(-3)
        layer.update(*self.states(3))
        assert torch.equal(keys, before)
        assert not torch.equal(layer.keys, before)

    @torch.no_grad()
    def test_old_tokens_stay_where_they_are(self) -> None:
        """The point of it: a dynamic layer moves all of them at each step."""
        for layer, stays in ((fast_decoding.GrowingLayer(), True), (DynamicCache().layer_class_to_replicate(), False)):
            first, _ = layer.update(*self.states(5))
            second, _ = layer.update(*self.states(1))
            assert (first.data_ptr() == second.data_ptr()) == stays

    def test_gradients_pass(self) -> None:
        layer = fast_decoding.GrowingLayer()
        keys, values = (tensor.requires_grad_() for tensor in self.states(3))
        layer.update(keys, values)
        grown, _ = layer.update(*self.states(1))
        grown.sum().backward()
        assert torch.equal(keys.grad, torch.ones_like(keys))


class TestWhichCache:
    def cache_after(self, model: GPTScratchForCausalLM, **options: object) -> object:
        seen = []
        model.model.layers[0].self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["past_key_values"]), with_kwargs=True
        )
        generate(model, prompts(1), max_new_tokens=3, **options)
        return seen[-1]

    def test_it_grows_in_place(self, model: GPTScratchForCausalLM) -> None:
        assert {type(layer) for layer in self.cache_after(model).layers} == {fast_decoding.GrowingLayer}

    def test_what_the_options_say_is_left_alone(self, model: GPTScratchForCausalLM) -> None:
        filled = DynamicCache()
        assert self.cache_after(model, **{fast_decoding.CACHE: filled}) is filled
        assert self.cache_after(model, use_cache=False) is None
        assert self.cache_after(model, cache_implementation="static").is_compileable

    def test_other_models_are_left_alone(self) -> None:
        config = GPT2Config(vocab_size=101, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=None)
        stock = GPT2LMHeadModel(config).eval()
        options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
        assert products(lambda: generate(stock, prompts(2), **options)) == 0
        assert torch.equal(generate(stock, prompts(2), **options), stock.generate(prompts(2), **options))


@pytest.mark.parametrize(
    ("input_ids", "reason"),
    [
        (
            torch.arange(5),
            r"input_ids has shape \[5\] .*, not \[B, T\] of an integer dtype: one text is input_ids\[None\]",
        ),
        (torch.rand(1, 5), r"input_ids has shape \[1, 5\] and dtype torch.float32"),
        (torch.tensor([[3, -1]]), r"token id -1 is outside the vocabulary of the model, 0\.\.100"),
        (torch.tensor([[3, 101]]), r"token id 101 is outside the vocabulary of the model, 0\.\.100"),
    ],
)
def test_what_are_no_ids_of_the_model_is_refused(
    model: GPTScratchForCausalLM, input_ids: torch.Tensor, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        generate(model, input_ids, max_new_tokens=2)
