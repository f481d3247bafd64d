"""Proves that the model is GPT-2, exact under padding, packing and caching, and fit for what the library does with it.

The reference for every number is transformers' GPT2LMHeadModel with the same weights (tests/model/conftest.py), or the
model's own plain forward pass where two ways to the same result are compared. Tolerance: 1e-5 in float32.
"""

import copy
import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GPT2LMHeadModel,
    PreTrainedModel,
    StaticCache,
)
from transformers import initialization as init
from transformers.distributed import DistributedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_gpt_scratch import (
    GPTScratchConfig,
    GPTScratchForCausalLM,
    GPTScratchForSequenceClassification,
    GPTScratchForTokenClassification,
    GPTScratchModel,
)
from hf_gpt_scratch.model.configuration_gpt_scratch import VERSION
from hf_gpt_scratch.model.modeling_gpt_scratch import GPTScratchAttention, GPTScratchMLP


ModelBuilder = Callable[..., GPTScratchForCausalLM]
StockBuilder = Callable[[GPTScratchForCausalLM], GPT2LMHeadModel]
NameMapper = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]

TOLERANCE = 1e-5
# What a mistake must at least move the logits by; they are of order 1.
VISIBLE = 1e-2
CONTEXT = 24  # max_position_embeddings of the tiny model


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def differ_visibly(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((actual - expected).abs().max() > VISIBLE)


def pad(input_ids: torch.Tensor, lengths: list[int], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut row i to lengths[i] and pad it with 0; return ids, attention_mask and the positions, all [B, T]."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        start = width - length if side == "left" else 0
        ids[row, start : start + length] = input_ids[row, :length]
        mask[row, start : start + length] = 1
        positions[row, start : start + length] = torch.arange(length)
    return ids, mask, positions


def forward_in_chunks(
    model: PreTrainedModel, input_ids: torch.Tensor, chunks: list[int], attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the logits of all tokens, computed chunk after chunk with the key/value cache."""
    cache, logits, end = None, [], 0
    for chunk in chunks:
        start, end = end, end + chunk
        mask = None if attention_mask is None else attention_mask[:, :end]
        output = model(input_ids[:, start:end], attention_mask=mask, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    assert end == input_ids.shape[1]
    assert cache.get_seq_length() == end
    return torch.cat(logits, dim=1)


@pytest.mark.usefixtures("no_grad")
class TestEqualsGPT2:
    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("tie_word_embeddings", [True, False])
    @pytest.mark.parametrize("qkv_bias", [True, False])
    def test_logits(
        self,
        build_model: ModelBuilder,
        stock_gpt2: StockBuilder,
        input_ids: torch.Tensor,
        attn_implementation: str,
        tie_word_embeddings: bool,
        qkv_bias: bool,
    ) -> None:
        model = build_model(
            attn_implementation=attn_implementation, tie_word_embeddings=tie_word_embeddings, qkv_bias=qkv_bias
        )
        expected = stock_gpt2(model)(input_ids).logits
        assert 0.5 < expected.std() < 3  # the tolerance below means something
        assert_equal(model(input_ids).logits, expected)
        assert_equal(model(input_ids, use_cache=False).logits, expected)
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        assert tied is tie_word_embeddings

    def test_logits_of_other_shapes(
        self, build_model: ModelBuilder, stock_gpt2: StockBuilder, input_ids: torch.Tensor
    ) -> None:
        model = build_model(intermediate_size=40, layer_norm_eps=0.5, num_attention_heads=1, num_hidden_layers=1)
        assert_equal(model(input_ids).logits, stock_gpt2(model)(input_ids).logits)

    @pytest.mark.parametrize("mistake", ["swapped q and k", "exact gelu", "transposed o_proj", "no LayerNorm bias"])
    def test_a_mistake_is_seen(
        self, build_model: ModelBuilder, stock_gpt2: StockBuilder, input_ids: torch.Tensor, mistake: str
    ) -> None:
        model = build_model()
        stock = stock_gpt2(model)
        layer = model.model.layers[1]
        if mistake == "swapped q and k":
            layer.self_attn.q_proj, layer.self_attn.k_proj = layer.self_attn.k_proj, layer.self_attn.q_proj
        elif mistake == "exact gelu":
            for each in model.model.layers:
                each.mlp.act_fn = nn.GELU()
        elif mistake == "transposed o_proj":
            layer.self_attn.o_proj.weight.copy_(layer.self_attn.o_proj.weight.T.clone())
        else:
            layer.input_layernorm.bias.zero_()
        difference = (model(input_ids).logits - stock(input_ids).logits).abs().max()
        # The two forms of GELU differ by at most 5e-4.
        assert difference > (100 * TOLERANCE if mistake == "exact gelu" else VISIBLE)

    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_logits_of_padded_rows(
        self,
        build_model: ModelBuilder,
        stock_gpt2: StockBuilder,
        input_ids: torch.Tensor,
        attn_implementation: str,
        side: str,
    ) -> None:
        model = build_model(attn_implementation=attn_implementation)
        ids, mask, positions = pad(input_ids, [12, 5, 9], side)
        expected = stock_gpt2(model)(ids, attention_mask=mask, position_ids=positions).logits
        real = mask.bool()
        assert_equal(model(ids, attention_mask=mask, position_ids=positions).logits[real], expected[real])
        assert_equal(model(ids, attention_mask=mask).logits[real], expected[real])

    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("chunks", [[5] + [1] * 7, [1] * 12, [4, 4, 4], [7, 2, 3]], ids=str)
    def test_logits_with_cache(
        self,
        build_model: ModelBuilder,
        stock_gpt2: StockBuilder,
        input_ids: torch.Tensor,
        attn_implementation: str,
        chunks: list[int],
    ) -> None:
        model = build_model(attn_implementation=attn_implementation)
        stock = stock_gpt2(model)
        assert_equal(forward_in_chunks(model, input_ids, chunks), stock(input_ids).logits)
        for side in ("left", "right"):
            ids, mask, positions = pad(input_ids, [12, 5, 9], side)
            expected = stock(ids, attention_mask=mask, position_ids=positions).logits
            actual = forward_in_chunks(model, ids, chunks, attention_mask=mask)
            assert_equal(actual[mask.bool()], expected[mask.bool()])

    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
    @pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
    def test_flex_attention(
        self, build_model: ModelBuilder, stock_gpt2: StockBuilder, input_ids: torch.Tensor
    ) -> None:
        model = build_model(attn_implementation="flex_attention")
        assert model.config._attn_implementation == "flex_attention"
        stock = stock_gpt2(model)
        # Uncompiled, flex attention needs no compiler; on CPU it has no backward pass in any form.
        with torch.compiler.set_stance("force_eager"):
            assert_equal(model(input_ids).logits, stock(input_ids).logits)
            ids, mask, positions = pad(input_ids, [12, 5, 9], "left")
            expected = stock(ids, attention_mask=mask, position_ids=positions).logits
            assert_equal(model(ids, attention_mask=mask).logits[mask.bool()], expected[mask.bool()])
            assert_equal(forward_in_chunks(model, input_ids, [7, 1, 4]), stock(input_ids).logits)

    def test_hidden_states_and_attentions(
        self, build_model: ModelBuilder, stock_gpt2: StockBuilder, input_ids: torch.Tensor
    ) -> None:
        model = build_model(attn_implementation="eager")
        actual = model(input_ids, output_hidden_states=True, output_attentions=True)
        expected = stock_gpt2(model)(input_ids, output_hidden_states=True, output_attentions=True)

        assert len(actual.hidden_states) == len(expected.hidden_states) == 4  # the embeddings and three layers
        for ours, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
            assert ours.shape == (3, 12, 32)
            assert_equal(ours, theirs)
        # The last one is behind the final LayerNorm: the head makes the logits of it.
        assert_equal(model.lm_head(actual.hidden_states[-1]), actual.logits)

        assert len(actual.attentions) == len(expected.attentions) == 3
        future = torch.ones(12, 12).triu(diagonal=1).bool()
        for ours, theirs in zip(actual.attentions, expected.attentions, strict=True):
            assert ours.shape == (3, 4, 12, 12)
            assert_equal(ours, theirs)
            assert_equal(ours.sum(dim=-1), torch.ones(3, 4, 12))
            assert bool((ours[..., future] == 0).all())
        assert model(input_ids).hidden_states is None
        assert model(input_ids).attentions is None


class TestGradientsEqualGPT2:
    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize(
        ("tie_word_embeddings", "qkv_bias", "num_items_in_batch"), [(True, True, None), (False, False, 7)]
    )
    def test_loss_and_the_gradient_of_every_parameter(
        self,
        build_model: ModelBuilder,
        stock_gpt2: StockBuilder,
        gpt2_names: NameMapper,
        input_ids: torch.Tensor,
        attn_implementation: str,
        tie_word_embeddings: bool,
        qkv_bias: bool,
        num_items_in_batch: int | None,
    ) -> None:
        model = build_model(
            attn_implementation=attn_implementation, tie_word_embeddings=tie_word_embeddings, qkv_bias=qkv_bias
        )
        stock = stock_gpt2(model)
        ids, mask, positions = pad(input_ids, [12, 5, 9], "left")
        # A padding slot would predict the first token of a padded row: what it says is left to the implementation.
        labels = ids.masked_fill(positions == 0, -100)
        labels[0, 6:9] = -100
        extra = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        model.train()
        stock.train()

        loss = model(ids, attention_mask=mask, labels=labels, **extra).loss
        expected_loss = stock(ids, attention_mask=mask, position_ids=positions, labels=labels, **extra).loss
        assert_equal(loss, expected_loss)
        loss.backward()
        expected_loss.backward()

        assert all(parameter.grad is not None for parameter in model.parameters())
        gradients = gpt2_names({name: parameter.grad for name, parameter in model.named_parameters()})
        expected_gradients = {name: parameter.grad for name, parameter in stock.named_parameters()}
        if not qkv_bias:
            expected_gradients = {name: grad for name, grad in expected_gradients.items() if "c_attn.bias" not in name}
        assert gradients.keys() == expected_gradients.keys()
        for name, expected in expected_gradients.items():
            scale = float(expected.abs().max())
            assert scale > 1e-4, name
            torch.testing.assert_close(gradients[name], expected, rtol=0, atol=TOLERANCE * scale, msg=name)

    def test_dropout_falls_where_gpt2_drops(
        self, build_model: ModelBuilder, stock_gpt2: StockBuilder, input_ids: torch.Tensor
    ) -> None:
        """Same seed, same order of draws: with dropout on, the logits are equal only if each place is the same."""
        model = build_model(attn_implementation="eager", dropout=0.3).train()
        stock = stock_gpt2(model).train()
        for module in stock.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
        torch.manual_seed(5)
        actual = model(input_ids).logits
        torch.manual_seed(5)
        expected = stock(input_ids).logits
        assert_equal(actual, expected)
        assert differ_visibly(actual, model.eval()(input_ids).logits)


class DropoutRecorder(TorchFunctionMode):
    """Notes the shape and probability of every dropout that acts, also of the one inside the fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[int, ...], float]] = []

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is nn.functional.dropout and kwargs.get("training", True) and kwargs["p"] > 0:
            self.calls.append(("dropout", tuple(args[0].shape), kwargs["p"]))
        if func is nn.functional.scaled_dot_product_attention and kwargs["dropout_p"] > 0:
            self.calls.append(("attention", tuple(args[0].shape), kwargs["dropout_p"]))
        # nn.functional.dropout calls torch.dropout, which is let through unseen.
        return func(*args, **kwargs)


class TestDropout:
    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    def test_places(self, build_model: ModelBuilder, input_ids: torch.Tensor, attn_implementation: str) -> None:
        model = build_model(attn_implementation=attn_implementation, dropout=0.25)
        in_residual = ("dropout", (3, 12, 32), 0.25)
        in_attention = {
            "eager": ("dropout", (3, 4, 12, 12), 0.25),
            "sdpa": ("attention", (3, 4, 12, 8), 0.25),
        }[attn_implementation]
        with DropoutRecorder() as recorder:
            model.train()(input_ids)
        # The embeddings, then in each of three layers: attention weights, attention branch, MLP branch.
        assert recorder.calls == [in_residual] + [in_attention, in_residual, in_residual] * 3
        with DropoutRecorder() as recorder:
            model.eval()(input_ids)
        assert recorder.calls == []

    @torch.no_grad()
    def test_only_training_is_random(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model(dropout=0.25)
        assert torch.equal(model(input_ids).logits, model(input_ids).logits)
        model.train()
        assert differ_visibly(model(input_ids).logits, model(input_ids).logits)
        without = build_model(dropout=0.0).train()
        assert torch.equal(without(input_ids).logits, without(input_ids).logits)


@pytest.mark.usefixtures("no_grad")
class TestPaddingAndPacking:
    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    def test_left_padding_does_not_change_a_bare_forward(
        self,
        build_model: ModelBuilder,
        stock_gpt2: StockBuilder,
        input_ids: torch.Tensor,
        attn_implementation: str,
    ) -> None:
        model = build_model(attn_implementation=attn_implementation)
        stock = stock_gpt2(model)
        lengths = [12, 5, 9]
        ids, mask, positions = pad(input_ids, lengths, "left")
        cases = {
            "at once": model(ids, attention_mask=mask).logits,
            "token by token": forward_in_chunks(model, ids, [6] + [1] * 6, attention_mask=mask),
            "in chunks": forward_in_chunks(model, ids, [4, 5, 3], attention_mask=mask),
        }
        for row, length in enumerate(lengths):
            alone = model(input_ids[row : row + 1, :length]).logits[0]
            for logits in cases.values():
                assert_equal(logits[row, -length:], alone)
        # Control: the same call moves the stock model's logits; told the positions, it agrees again.
        alone = stock(input_ids[1:2, :5]).logits[0]
        assert differ_visibly(stock(ids, attention_mask=mask).logits[1, -5:], alone)
        assert_equal(stock(ids, attention_mask=mask, position_ids=positions).logits[1, -5:], alone)

    def test_a_mask_may_cover_slots_that_are_still_empty(
        self, build_model: ModelBuilder, stock_gpt2: StockBuilder, input_ids: torch.Tensor
    ) -> None:
        """Beside a static cache, a mask of constant width spares a recompilation for every token."""
        model = build_model()
        stock = stock_gpt2(model)
        ids, mask, positions = pad(input_ids, [12, 5, 9], "left")
        expected = stock(ids, attention_mask=mask, position_ids=positions).logits
        cache = StaticCache(config=model.config, max_cache_len=20)
        logits, end = [], 0
        for chunk in (5, 1, 4, 2):
            start, end = end, end + chunk
            wide_mask = torch.zeros(3, 20, dtype=torch.long)
            wide_mask[:, :end] = mask[:, :end]
            logits.append(model(ids[:, start:end], attention_mask=wide_mask, past_key_values=cache).logits)
        assert_equal(torch.cat(logits, dim=1)[mask.bool()], expected[mask.bool()])

    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    def test_packed_sequences_do_not_see_each_other(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, attn_implementation: str
    ) -> None:
        model = build_model(attn_implementation=attn_implementation)
        assert model.config.use_cache is True  # the default, under which the library alone would not look for packing
        lengths = [4, 7, 9]
        sequences = [input_ids[row : row + 1, :length] for row, length in enumerate(lengths)]
        packed = torch.cat(sequences, dim=1)
        restarting = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        separate = torch.cat([model(sequence).logits for sequence in sequences], dim=1)

        assert_equal(model(packed, position_ids=restarting).logits, separate)
        assert_equal(model(packed, position_ids=restarting, use_cache=False).logits, separate)
        # Control: the first sequence is the same anyhow, the others differ without the restart.
        unpacked = model(packed).logits
        assert_equal(unpacked[:, :4], separate[:, :4])
        assert differ_visibly(unpacked[:, 4:11], separate[:, 4:11])
        assert differ_visibly(unpacked[:, 11:], separate[:, 11:])

    def test_packed_batches_of_several_rows(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model()
        position_ids = torch.stack([torch.arange(12), torch.arange(12) % 5, torch.arange(12) % 8])
        logits = model(input_ids, position_ids=position_ids).logits
        assert_equal(logits[0], model(input_ids[:1]).logits[0])
        assert_equal(logits[1, 5:10], model(input_ids[1:2, 5:10]).logits[0])
        assert_equal(logits[2, 8:], model(input_ids[2:, 8:]).logits[0])

    def test_inputs_embeds_do_the_same_as_input_ids(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model()
        ids, mask, _ = pad(input_ids, [12, 5, 9], "left")
        embeds = model.get_input_embeddings()(ids)
        expected = model(ids, attention_mask=mask).logits
        assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits, expected)

    def test_exactly_one_input_is_taken(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model()
        rule = r"^give exactly one of input_ids \[batch, tokens\] and inputs_embeds"
        with pytest.raises(ValueError, match=rule):
            model()
        with pytest.raises(ValueError, match=rule):
            model(input_ids, inputs_embeds=model.get_input_embeddings()(input_ids))
        for ids in (input_ids[0], input_ids[0, :1], torch.arange(model.config.hidden_size)):  # of a width's length too
            with pytest.raises(ValueError, match=rule):
                model(ids)
            with pytest.raises(ValueError, match=rule):
                model(inputs_embeds=model.get_input_embeddings()(ids))


@pytest.mark.usefixtures("no_grad")
class TestEndOfContext:
    TOO_LONG = rf"^[^\n]*\b25\b[^\n]*max_position_embeddings={CONTEXT}\b[^\n]*$"

    @staticmethod
    def ids(length: int, batch: int = 1) -> torch.Tensor:
        return torch.randint(1, 101, (batch, length), generator=torch.Generator().manual_seed(2))

    def test_a_forward_pass_takes_the_whole_context_and_no_more(self, build_model: ModelBuilder) -> None:
        model = build_model()
        assert model(self.ids(CONTEXT)).logits.shape == (1, CONTEXT, 101)
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model(self.ids(25))
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model(self.ids(25), attention_mask=torch.ones(1, 25, dtype=torch.long))
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model(inputs_embeds=model.get_input_embeddings()(self.ids(25)))

    def test_explicit_positions(self, build_model: ModelBuilder) -> None:
        model = build_model()
        assert model(self.ids(2), position_ids=torch.tensor([[CONTEXT - 2, CONTEXT - 1]])).logits.shape[1] == 2
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model(self.ids(2), position_ids=torch.tensor([[CONTEXT - 1, CONTEXT]]))

    @pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
    def test_a_cache_counts(self, build_model: ModelBuilder, cache_class: type) -> None:
        model = build_model()
        kwargs = {"max_cache_len": 32} if cache_class is StaticCache else {}
        cache = cache_class(config=model.config, **kwargs)
        model(self.ids(CONTEXT - 1), past_key_values=cache)
        model(self.ids(1), past_key_values=cache)
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model(self.ids(1), past_key_values=cache)

    @pytest.mark.parametrize("cache_implementation", [None, "static"])
    def test_generate_stops_with_a_clear_message(
        self, build_model: ModelBuilder, cache_implementation: str | None
    ) -> None:
        model = build_model()
        options = {"do_sample": False, "eos_token_id": None, "cache_implementation": cache_implementation}
        prompt = self.ids(10, batch=2)
        mask = torch.ones_like(prompt)
        # The last token that is generated is never fed back.
        full = model.generate(prompt, attention_mask=mask, max_new_tokens=CONTEXT - 9, **options)
        assert full.shape == (2, CONTEXT + 1)
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model.generate(prompt, attention_mask=mask, max_new_tokens=CONTEXT - 8, **options)

    def test_padding_takes_no_position(self, build_model: ModelBuilder) -> None:
        """30 slots, of which at most 20 hold text: each token has a position."""
        model = build_model()
        text = self.ids(20)
        ids = torch.cat([torch.zeros(1, 10, dtype=torch.long), text], dim=1)
        mask = torch.cat([torch.zeros(1, 10, dtype=torch.long), torch.ones(1, 20, dtype=torch.long)], dim=1)
        assert_equal(model(ids, attention_mask=mask).logits[:, 10:], model(text).logits)

    def test_a_packed_row_may_be_longer_than_the_context(self, build_model: ModelBuilder) -> None:
        """Continuous batching, vLLM and packed training put many sequences in one row, each within the context."""
        model = build_model()
        packed, position_ids = self.ids(40), torch.arange(20).repeat(2).unsqueeze(0)
        separate = torch.cat([model(packed[:, :20]).logits, model(packed[:, 20:]).logits], dim=1)
        assert_equal(model(packed, position_ids=position_ids).logits, separate)

    def test_on_an_accelerator_the_slots_are_counted(self, build_model: ModelBuilder) -> None:
        """There, reading the positions would wait for the device. The meta device stands for one: it has no values."""
        model = build_model().to("meta")
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model(self.ids(25).to("meta"))
        cache = model(self.ids(CONTEXT).to("meta")).past_key_values
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model(self.ids(1).to("meta"), past_key_values=cache)
        with pytest.raises(ValueError, match=self.TOO_LONG):
            model(self.ids(1).to("meta"), position_ids=torch.tensor([[0]], device="meta"), past_key_values=cache)


class TestInitialization:
    @pytest.fixture
    def config(self) -> GPTScratchConfig:
        """Large enough to tell 0.02 from its neighbours; 0.02 / sqrt(2 * 4) = 0.00707."""
        return GPTScratchConfig(
            vocab_size=2000,
            max_position_embeddings=128,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )

    @staticmethod
    def assert_drawn(name: str, parameter: torch.Tensor, num_layers: int = 4) -> None:
        """Compare mean and standard deviation with GPT-2's, at five standard errors."""
        values = parameter.detach().double()
        if name.endswith("bias"):
            assert bool((values == 0).all()), name
        elif "norm" in name:
            assert bool((values == 1).all()), name
        else:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * num_layers) if residual else 0.02
            count = values.numel()
            assert abs(values.std() / std - 1) < 5 / math.sqrt(2 * count), name
            assert abs(values.mean()) < 5 * std / math.sqrt(count), name

    @pytest.mark.parametrize("tie_word_embeddings", [True, False])
    @pytest.mark.parametrize("build", [GPTScratchForCausalLM, AutoModelForCausalLM.from_config, AutoModel.from_config])
    def test_every_parameter_of_a_fresh_model(
        self, config: GPTScratchConfig, build: Callable[[GPTScratchConfig], PreTrainedModel], tie_word_embeddings: bool
    ) -> None:
        config.tie_word_embeddings = tie_word_embeddings
        torch.manual_seed(0)
        model = build(config)
        parameters = dict(model.named_parameters())
        assert len(parameters) == 4 * 16 + 4 + (isinstance(model, GPTScratchForCausalLM) and not tie_word_embeddings)
        for name, parameter in parameters.items():
            self.assert_drawn(name, parameter)

    @pytest.mark.parametrize("model_class", [GPTScratchForSequenceClassification, GPTScratchForTokenClassification])
    def test_every_parameter_of_a_fresh_classifier(self, config: GPTScratchConfig, model_class: type) -> None:
        config.num_labels = 50
        torch.manual_seed(0)
        for name, parameter in model_class(config).named_parameters():
            self.assert_drawn(name, parameter)

    def test_a_seed_draws_the_weights_that_it_always_drew(self) -> None:
        """Residual projections are drawn twice: drawn once, the weights of a seed would be others."""
        torch.manual_seed(123)
        sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        model = GPTScratchForCausalLM(GPTScratchConfig(**sizes, **ends)).model
        assert_equal(model.embed_tokens.weight[0, :2], torch.tensor([-0.0370253, -0.0362973]))
        assert_equal(model.layers[1].mlp.down_proj.weight[0, :3], torch.tensor([-0.0093458, -0.0076951, -0.0016891]))

    def test_initializer_range_scales_all_of_it(self, config: GPTScratchConfig) -> None:
        config.initializer_range = 0.1
        torch.manual_seed(0)
        for name, parameter in GPTScratchForCausalLM(config).named_parameters():
            plain = name.endswith("bias") or "norm" in name
            self.assert_drawn(name, parameter if plain else parameter / 5)

    def test_weights_missing_from_a_checkpoint(self, config: GPTScratchConfig) -> None:
        missing = {
            "model.embed_positions.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.self_attn.o_proj.weight",
            "model.layers.1.self_attn.o_proj.bias",
            "model.layers.2.mlp.down_proj.weight",
            "model.layers.3.mlp.down_proj.bias",
            "model.layers.3.input_layernorm.weight",
            "model.norm.bias",
        }
        present = GPTScratchForCausalLM(config).state_dict()
        present = {name: torch.full_like(value, 7.0) for name, value in present.items() if name not in missing}
        torch.manual_seed(0)
        model, info = GPTScratchForCausalLM.from_pretrained(
            None, config=config, state_dict=present, output_loading_info=True
        )
        assert set(info["missing_keys"]) == missing
        for name, parameter in model.named_parameters():
            if name in missing:
                self.assert_drawn(name, parameter)
            else:
                assert bool((parameter == 7.0).all()), name

    def test_head_missing_from_the_checkpoint_of_a_base_model(self, config: GPTScratchConfig, tmp_path: Path) -> None:
        config.tie_word_embeddings = False
        base = GPTScratchModel(config)
        base.save_pretrained(tmp_path)
        torch.manual_seed(0)
        model, info = GPTScratchForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == {"lm_head.weight"}
        assert not info["unexpected_keys"]
        self.assert_drawn("lm_head.weight", model.lm_head.weight)
        assert torch.equal(model.model.layers[3].mlp.down_proj.weight, base.layers[3].mlp.down_proj.weight)

    @pytest.mark.skipif(VERSION < (5, 3), reason="there the library asks for every module")
    def test_the_recipe_of_gpt2_would_leave_the_residual_projections_wide(self, config: GPTScratchConfig) -> None:
        """Control: initialising from the module around the Linear, as GPT-2 does, is not called for custom code."""

        class ContainerRecipe(GPTScratchModel):
            def _init_weights(self, module: nn.Module) -> None:
                PreTrainedModel._init_weights(self, module)
                std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
                if isinstance(module, GPTScratchAttention):
                    init.normal_(module.o_proj.weight, mean=0.0, std=std)
                elif isinstance(module, GPTScratchMLP):
                    init.normal_(module.down_proj.weight, mean=0.0, std=std)

        layer = ContainerRecipe(config).layers[0]
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.03)
            with pytest.raises(AssertionError):
                self.assert_drawn("o_proj.weight", weight)

    @pytest.mark.parametrize(
        "model_class",
        [
            GPTScratchModel,
            GPTScratchForCausalLM,
            GPTScratchForSequenceClassification,
            GPTScratchForTokenClassification,
        ],
    )
    def test_no_buffers(self, tiny_config: GPTScratchConfig, model_class: type) -> None:
        """A buffer that is not saved comes back from from_pretrained as uninitialised memory."""
        assert list(model_class(tiny_config).named_buffers()) == []

    def test_the_embedding_of_the_padding_token_learns(self, build_model: ModelBuilder) -> None:
        """Padding and end of text are one token, which must be trainable: no padding_idx."""
        model = build_model(tie_word_embeddings=False)
        assert model.config.pad_token_id == model.config.eos_token_id == 0
        ids = torch.tensor([[5, 0, 7, 8]])
        model(ids, labels=ids).loss.backward()
        gradient = model.get_input_embeddings().weight.grad
        assert gradient[0].abs().max() > 1e-4
        assert bool((gradient[1] == 0).all())  # control: token 1 is not in the text


class Normalization(torch.nn.Module):
    """The formula of arXiv:1910.07467, or for the control that of LayerNorm without its shift."""

    def __init__(self, norm: torch.nn.RMSNorm, takes_off_mean: bool) -> None:
        super().__init__()
        self.norm, self.takes_off_mean = norm, takes_off_mean

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden - hidden.mean(-1, keepdim=True) if self.takes_off_mean else hidden
        return hidden / (hidden.square().mean(-1, keepdim=True) + self.norm.eps).sqrt() * self.norm.weight


class TestNormType:
    def test_logits_are_those_of_the_formula(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model(norm_type="rmsnorm", layer_norm_eps=1e-2)
        norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.RMSNorm)]
        assert len(norms) == 2 * model.config.num_hidden_layers + 1
        assert not [name for name, _ in model.named_parameters() if name.endswith("norm.bias")]
        expected = {}
        for takes_off_mean in (False, True):
            reference = copy.deepcopy(model)
            for name in norms:
                reference.set_submodule(name, Normalization(reference.get_submodule(name), takes_off_mean))
            expected[takes_off_mean] = reference(input_ids).logits
        logits = model(input_ids).logits
        assert_equal(logits, expected[False])
        assert differ_visibly(logits, expected[True])

    def test_the_default_is_gpt2s(self, build_model: ModelBuilder) -> None:
        assert not [module for module in build_model().modules() if isinstance(module, torch.nn.RMSNorm)]

    def test_a_fresh_one_scales_by_one(self, tiny_config: GPTScratchConfig) -> None:
        tiny_config.norm_type = "rmsnorm"
        model = GPTScratchForCausalLM(tiny_config)
        assert all(torch.equal(value, torch.ones(32)) for name, value in model.named_parameters() if "norm" in name)


class TestLoss:
    @pytest.fixture
    def logits_and_labels(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> tuple[GPTScratchForCausalLM, torch.Tensor, torch.Tensor]:
        model = build_model()
        labels = input_ids.clone()
        labels[0, :4] = -100
        labels[2, 7:] = -100
        with torch.no_grad():
            return model, model(input_ids).logits, labels

    @staticmethod
    def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
        """Compute -log p of each label from the logits of the token before it, one by one."""
        log_probs = logits.double().log_softmax(dim=-1)
        return [
            -float(log_probs[row, column - 1, label])
            for row, line in enumerate(labels.tolist())
            for column, label in enumerate(line)
            if column > 0 and label != -100
        ]

    @torch.no_grad()
    def test_mean_over_labels_that_count(
        self, logits_and_labels: tuple[GPTScratchForCausalLM, torch.Tensor, torch.Tensor], input_ids: torch.Tensor
    ) -> None:
        model, logits, labels = logits_and_labels
        losses = self.token_losses(logits, labels)
        assert len(losses) == 8 + 11 + 6
        output = model(input_ids, labels=labels)
        assert float(output.loss) == pytest.approx(sum(losses) / len(losses), abs=TOLERANCE)
        assert torch.equal(output.logits, logits)
        assert model(input_ids).loss is None

    @torch.no_grad()
    def test_num_items_in_batch_divides_the_sum(
        self, logits_and_labels: tuple[GPTScratchForCausalLM, torch.Tensor, torch.Tensor], input_ids: torch.Tensor
    ) -> None:
        model, logits, labels = logits_and_labels
        total = sum(self.token_losses(logits, labels))
        for count in (25, 100, torch.tensor(100)):
            loss = model(input_ids, labels=labels, num_items_in_batch=count).loss
            assert float(loss) == pytest.approx(total / float(count), abs=TOLERANCE)

    @torch.no_grad()
    def test_shift_labels_are_taken_as_they_are(
        self, logits_and_labels: tuple[GPTScratchForCausalLM, torch.Tensor, torch.Tensor], input_ids: torch.Tensor
    ) -> None:
        model, logits, labels = logits_and_labels
        shift_labels = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], dim=1)
        expected = model(input_ids, labels=labels).loss
        assert_equal(model(input_ids, shift_labels=shift_labels).loss, expected)
        assert_equal(model(input_ids, labels=input_ids, shift_labels=shift_labels).loss, expected)
        # Control: unshifted labels handed over as shifted ones make another loss.
        assert differ_visibly(model(input_ids, shift_labels=labels).loss, expected)

    @torch.no_grad()
    def test_logits_to_keep(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model()
        everything = model(input_ids).logits
        assert torch.equal(model(input_ids, logits_to_keep=0).logits, everything)
        for count in (1, 5, 12):
            kept = model(input_ids, logits_to_keep=count).logits
            assert kept.shape == (3, count, 101)
            assert_equal(kept, everything[:, -count:])
        which = torch.tensor([0, 3, 11])
        assert_equal(model(input_ids, logits_to_keep=which).logits, everything[:, which])


class TestTraining:
    @pytest.mark.parametrize("use_reentrant", [False, True])
    @pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning")
    def test_gradient_checkpointing_changes_no_gradient(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, use_reentrant: bool
    ) -> None:
        model = build_model(dropout=0.2).train()
        calls = []
        model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))

        def gradients() -> list[torch.Tensor]:
            model.zero_grad()
            torch.manual_seed(3)
            model(input_ids, labels=input_ids, use_cache=False).loss.backward()
            return [parameter.grad.clone() for parameter in model.parameters()]

        expected = gradients()
        assert len(calls) == 1
        kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before 5.23
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": use_reentrant})
        assert getattr(model, f"is_{kind}_checkpointing")
        actual = gradients()
        assert len(calls) == 3  # once forward, once more in the backward pass
        for ours, theirs in zip(actual, expected, strict=True):
            assert torch.equal(ours, theirs)

        getattr(model, f"{kind}_checkpointing_disable")()
        calls.clear()
        gradients()
        assert len(calls) == 1

    def test_it_learns_one_batch_by_heart(self, tiny_config: GPTScratchConfig, input_ids: torch.Tensor) -> None:
        torch.manual_seed(0)
        model = GPTScratchForCausalLM(tiny_config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        first = model(input_ids, labels=input_ids).loss.item()
        assert first == pytest.approx(math.log(101), abs=0.05)  # fresh: every token as likely as the other
        for _ in range(60):
            loss = model(input_ids, labels=input_ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.1

    @torch.no_grad()
    def test_bfloat16_is_close(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        expected = build_model()(input_ids).logits
        for attn_implementation in ("eager", "sdpa"):
            logits = build_model(attn_implementation=attn_implementation).to(torch.bfloat16)(input_ids).logits
            assert logits.dtype == torch.bfloat16
            # bfloat16 has 8 bits: 0.4 % a step, through 3 layers; logits have a standard deviation of about 1.
            assert (logits.float() - expected).abs().mean() < 0.02
            assert not torch.equal(logits.float(), expected)


class TestGenerate:
    OPTIONS = {"max_new_tokens": 9, "min_new_tokens": 9}

    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("search", [{"do_sample": False}, {"do_sample": True, "temperature": 1.3, "top_k": 20}])
    def test_caches_change_nothing(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, attn_implementation: str, search: dict[str, object]
    ) -> None:
        model = build_model(attn_implementation=attn_implementation)
        ids, mask, _ = pad(input_ids, [12, 5, 9], "left")
        results = []
        for cache in (
            {"use_cache": False},
            {},
            {"cache_implementation": "dynamic"},
            {"cache_implementation": "static"},
        ):
            torch.manual_seed(4)
            results.append(model.generate(ids, attention_mask=mask, **search, **cache, **self.OPTIONS))
        assert results[0].shape == (3, 21)
        assert len(set(results[0][:, 12:].flatten().tolist())) > 5  # not one token over and over
        for other in results[1:]:
            assert torch.equal(other, results[0])

    def test_rows_of_a_padded_batch_are_what_they_are_alone(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> None:
        model = build_model()
        lengths = [12, 5, 9]
        ids, mask, _ = pad(input_ids, lengths, "left")
        together = model.generate(ids, attention_mask=mask, do_sample=False, **self.OPTIONS)
        for row, length in enumerate(lengths):
            prompt = input_ids[row : row + 1, :length]
            alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **self.OPTIONS)
            assert together[row, 12:].tolist() == alone[0, length:].tolist()

    def test_greedy_is_the_argmax_of_stock_gpt2(
        self, build_model: ModelBuilder, stock_gpt2: StockBuilder, input_ids: torch.Tensor
    ) -> None:
        model = build_model()
        stock = stock_gpt2(model)
        generated = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=9,
            eos_token_id=None,
        )
        ids = input_ids
        with torch.no_grad():
            for _ in range(9):
                ids = torch.cat([ids, stock(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
        assert torch.equal(generated, ids)

    def test_beam_search(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model()
        ids, mask, _ = pad(input_ids, [12, 5, 9], "left")
        options = {"num_beams": 3, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        cached = model.generate(ids, attention_mask=mask, **options, **self.OPTIONS)
        uncached = model.generate(ids, attention_mask=mask, use_cache=False, **options, **self.OPTIONS)
        assert torch.equal(cached.sequences, uncached.sequences)
        assert_equal(cached.sequences_scores, uncached.sequences_scores)
        # The score is the mean log-probability of what was generated, with the end token forbidden.
        log_probs = model(cached.sequences[:1]).logits[0, 11:-1].detach()
        log_probs = log_probs.log_softmax(dim=-1).gather(-1, cached.sequences[0, 12:, None])
        assert float(log_probs.mean()) == pytest.approx(float(cached.sequences_scores[0]), abs=1e-4)

    @pytest.mark.usefixtures("continuous_batching")
    def test_continuous_batching(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        """Six prompts of together more tokens than the context has positions, each well within it."""
        model = build_model()
        prompts = [row[:length].tolist() for length in (7, 12) for row in input_ids]
        assert sum(map(len, prompts)) > CONTEXT
        expected = [
            model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                eos_token_id=None,
                max_new_tokens=6,
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]
        # The library's signal for "no end token" here is -1.
        results = model.generate_batch(
            prompts,
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                num_blocks=16, max_batch_tokens=64, page_size=16
            ),
        )
        assert [result.error for result in results.values()] == [None] * 6
        assert [result.generated_tokens for result in results.values()] == expected


class TestEmbeddings:
    @pytest.mark.parametrize("tie_word_embeddings", [True, False])
    @pytest.mark.parametrize("vocab_size", [120, 90])
    @torch.no_grad()
    def test_resizing_keeps_old_logits_and_the_tie(
        self, build_model: ModelBuilder, tie_word_embeddings: bool, vocab_size: int
    ) -> None:
        model = build_model(tie_word_embeddings=tie_word_embeddings)
        ids = torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(6))
        before = model(ids).logits
        model.resize_token_embeddings(vocab_size)
        after = model(ids, labels=ids)
        assert model.config.vocab_size == vocab_size
        assert after.logits.shape == (2, 12, vocab_size)
        kept = min(vocab_size, 101)
        assert_equal(after.logits[..., :kept], before[..., :kept])
        assert math.isfinite(float(after.loss))
        tied = model.lm_head.weight is model.get_input_embeddings().weight
        assert tied is tie_word_embeddings

    def test_input_and_output_embeddings_are_found(self, build_model: ModelBuilder) -> None:
        model = build_model()
        assert model.get_input_embeddings() is model.model.embed_tokens
        assert model.get_output_embeddings() is model.lm_head
        assert model.base_model is model.model


class TestSaving:
    @pytest.mark.parametrize("tie_word_embeddings", [True, False])
    @torch.no_grad()
    def test_round_trip(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, tie_word_embeddings: bool, tmp_path: Path
    ) -> None:
        model = build_model(tie_word_embeddings=tie_word_embeddings)
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
            assert ("lm_head.weight" in file.keys()) is not tie_word_embeddings  # noqa: SIM118 (no mapping)

        loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is GPTScratchForCausalLM
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tie_word_embeddings

        base = AutoModel.from_pretrained(tmp_path)
        assert type(base) is GPTScratchModel
        assert torch.equal(base(input_ids).last_hidden_state, model.model(input_ids).last_hidden_state)

    @pytest.mark.parametrize("model_class", [GPTScratchModel, GPTScratchForCausalLM])
    def test_code_and_all_its_entries_lie_beside_the_weights(
        self, tiny_config: GPTScratchConfig, model_class: type, tmp_path: Path
    ) -> None:
        """The library alone would enter only the class that is saved; vLLM looks for AutoModel."""
        model_class(tiny_config).save_pretrained(tmp_path)
        auto_map = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
        assert sorted(auto_map) == [
            "AutoConfig",
            "AutoModel",
            "AutoModelForCausalLM",
            "AutoModelForSequenceClassification",
            "AutoModelForTokenClassification",
        ]
        for entry in auto_map.values():
            module, class_name = entry.split(".")
            code = (tmp_path / f"{module}.py").read_text(encoding="utf-8")
            assert re.search(rf"^(class|from .* import .*) *{class_name}\b", code, re.M)
        assert sorted(path.name for path in tmp_path.glob("*.py")) == [
            "configuration_gpt_scratch.py",
            "generation_gpt_scratch.py",
            "loss_gpt_scratch.py",
            "modeling_gpt_scratch.py",
        ]


class MissingLayer(nn.Identity):
    """What stands in a stage of a pipeline for a module of another one: it hands on what it is given first."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return hidden_states


class TestParallelism:
    @staticmethod
    def matching(pattern: str, names: list[str]) -> list[str]:
        expression = re.escape(pattern).replace(r"\*", r"\d+")
        return [name for name in names if re.fullmatch(expression, name)]

    def test_tensor_parallel_plan_names_real_modules_and_every_linear(self, build_model: ModelBuilder) -> None:
        model = build_model()
        modules = dict(model.named_modules())
        covered: dict[str, str] = {}
        # Before some version after 5.10 the plan of the head itself is not part of what the model shows.
        for pattern, style in (model.tp_plan | GPTScratchForCausalLM._tp_plan).items():
            found = self.matching(pattern, list(modules))
            assert found, pattern
            assert not set(found) & set(covered)
            covered |= dict.fromkeys(found, style)
        linears = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
        assert linears <= set(covered)
        # What is split by columns is joined again by the rows of the Linear behind it.
        rowwise = {name for name, style in covered.items() if style == "rowwise"}
        assert rowwise == {name for name in linears if name.endswith(("o_proj", "down_proj"))}

    def test_sharding_names_real_modules(self, build_model: ModelBuilder) -> None:
        model = build_model()
        names = [name for name, _ in model.named_modules()]
        if hasattr(model, "fsdp_plan"):  # some versions after 5.10
            assert all(self.matching(pattern, names) for pattern in model.fsdp_plan)
        classes = {type(module).__name__ for module in model.modules()}
        assert set(model._no_split_modules) <= classes

    @pytest.mark.parametrize(
        "model_class",
        [
            GPTScratchModel,
            GPTScratchForCausalLM,
            GPTScratchForSequenceClassification,
            GPTScratchForTokenClassification,
        ],
    )
    def test_pipeline_parallelism_is_refused(self, tiny_config: GPTScratchConfig, model_class: type) -> None:
        """from_pretrained puts its distributed_config on the config before it builds the model."""
        if "pp_size" not in inspect.signature(DistributedConfig).parameters:
            pytest.skip(f"transformers {transformers.__version__} has no pipelines")
        tiny_config.distributed_config = DistributedConfig(pp_size=2)
        with pytest.raises(ValueError, match=r"^[^\n]*pp_size=2: [^\n]+$"):
            model_class(tiny_config)
        for allowed in (DistributedConfig(tp_size=2), DistributedConfig(fsdp_size=2), DistributedConfig(), None):
            tiny_config.distributed_config = allowed
            model_class(tiny_config)

    @pytest.mark.usefixtures("no_grad")
    @pytest.mark.parametrize("is_padded", [False, True])
    @pytest.mark.parametrize("is_tied", [False, True])
    def test_two_stages_of_an_engine_are_the_whole_model(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, is_tied: bool, is_padded: bool
    ) -> None:
        """As vLLM cuts a model: with tied embeddings the last stage keeps both of them, otherwise it has neither."""
        whole, first, last = (build_model(tie_word_embeddings=is_tied) for _ in range(3))
        mask = None
        if is_padded:
            input_ids, mask, _ = pad(input_ids, [12, 5, 9], "left")
        expected = whole(input_ids, attention_mask=mask).logits
        first.model.layers[1] = first.model.layers[2] = first.model.norm = MissingLayer()
        last.model.layers[0] = MissingLayer()
        if not is_tied:
            last.model.embed_tokens = last.model.embed_positions = MissingLayer()

        hidden_states = first.model(input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = last(inputs_embeds=hidden_states, attention_mask=mask, use_cache=False).logits
        real = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-6)

        if is_tied:  # The control: what the last stage computes where it does not know that it is one.
            last.model.layers[0] = nn.Module()
            last.model.layers[0].forward = lambda hidden_states, **kwargs: hidden_states
            wrong = last(inputs_embeds=hidden_states, attention_mask=mask, use_cache=False).logits
            assert differ_visibly(wrong[real], expected[real])

    @pytest.mark.usefixtures("no_grad")
    def test_a_model_whose_first_layer_is_taken_out_keeps_its_positions(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> None:
        """Who takes a layer out to see what it does gives tokens, as no later stage gets them."""
        model = build_model()
        model.model.layers[0] = MissingLayer()
        logits = model(input_ids).logits
        model.model.layers = model.model.layers[1:]
        assert_equal(logits, model(input_ids, use_cache=False).logits)


@pytest.fixture
def dynamo_reset() -> None:
    """Compiled code of one test must not serve another."""
    torch._dynamo.reset()


class TestCompilation:
    @pytest.mark.usefixtures("dynamo_reset")
    @pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
    def test_the_forward_pass_is_one_graph(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, attn_implementation: str
    ) -> None:
        model = build_model(attn_implementation=attn_implementation)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        ids, mask, _ = pad(input_ids, [12, 5, 9], "left")
        assert_equal(compiled(input_ids).logits, model(input_ids).logits)
        with torch.no_grad():
            assert_equal(compiled(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)

    @pytest.mark.usefixtures("dynamo_reset")
    def test_a_training_step_is_one_graph(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model().train()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        loss = compiled(input_ids, labels=input_ids, use_cache=False).loss
        assert_equal(loss, model(input_ids, labels=input_ids).loss)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.usefixtures("dynamo_reset")
    @pytest.mark.parametrize("by_mask", [False, True])
    @torch.no_grad()
    def test_decoding_with_a_static_cache_is_one_graph(
        self, build_model: ModelBuilder, input_ids: torch.Tensor, by_mask: bool
    ) -> None:
        model = build_model()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        cache = StaticCache(config=model.config, max_cache_len=CONTEXT)
        logits = [model(input_ids[:, :8], past_key_values=cache).logits]
        for position in range(8, 12):
            step = input_ids[:, position : position + 1]
            mask = torch.zeros(3, CONTEXT, dtype=torch.long)
            mask[:, : position + 1] = 1
            kwargs = {"attention_mask": mask} if by_mask else {"position_ids": torch.full((3, 1), position)}
            logits.append(compiled(step, past_key_values=cache, **kwargs).logits)
        assert_equal(torch.cat(logits, dim=1), model(input_ids).logits)

    @pytest.mark.usefixtures("dynamo_reset")
    @torch.no_grad()
    def test_a_packed_row_longer_than_the_context_is_one_graph(self, build_model: ModelBuilder) -> None:
        """While tracing no position can be read; the length of the row must not stand for them here either."""
        model = build_model()
        packed = torch.randint(1, 101, (1, 40), generator=torch.Generator().manual_seed(2))
        position_ids = torch.arange(20).repeat(2).unsqueeze(0)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        separate = torch.cat([model(packed[:, :20]).logits, model(packed[:, 20:]).logits], dim=1)
        assert_equal(compiled(packed, position_ids=position_ids).logits, separate)

    @pytest.mark.usefixtures("dynamo_reset")
    @torch.no_grad()
    def test_export(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model()
        ids, mask, _ = pad(input_ids, [12, 5, 9], "left")
        exported = torch.export.export(model, (ids,), {"attention_mask": mask, "use_cache": False})
        other_ids, other_mask, _ = pad(input_ids.flip(0), [3, 12, 7], "left")
        for these, mask_of_these in ((ids, mask), (other_ids, other_mask)):
            actual = exported.module()(these, attention_mask=mask_of_these, use_cache=False).logits
            assert_equal(actual, model(these, attention_mask=mask_of_these).logits)


@pytest.mark.usefixtures("no_grad")
class TestOutputs:
    def test_a_tuple_on_request(self, build_model: ModelBuilder, input_ids: torch.Tensor) -> None:
        model = build_model()
        expected = model(input_ids, labels=input_ids)
        loss, logits, cache = model(input_ids, labels=input_ids, return_dict=False)
        assert torch.equal(loss, expected.loss)
        assert torch.equal(logits, expected.logits)
        assert cache.get_seq_length() == 12
        hidden_states, *_ = model.model(input_ids, return_dict=False)
        assert torch.equal(model.lm_head(hidden_states), logits)

    def test_the_config_says_whether_a_cache_comes_back(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> None:
        with_cache, without_cache = build_model(use_cache=True), build_model(use_cache=False)
        assert with_cache(input_ids).past_key_values.get_seq_length() == 12
        assert with_cache(input_ids, use_cache=False).past_key_values is None
        assert with_cache(input_ids, past_key_values=DynamicCache(), use_cache=False).past_key_values is None
        assert without_cache(input_ids).past_key_values is None
        assert without_cache(input_ids, use_cache=True).past_key_values.get_seq_length() == 12


@pytest.mark.usefixtures("no_grad")
class TestAttentionFromOutside:
    """An inference engine registers an attention function of its own and hands its state down as a keyword."""

    def test_the_function_gets_the_heads_no_mask_and_the_keyword(
        self,
        build_model: ModelBuilder,
        tiny_config: GPTScratchConfig,
        input_ids: torch.Tensor,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        calls = []

        def engine_attention(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            scaling: float | None = None,
            attention_instances: dict[int, str] | None = None,
            **kwargs: object,
        ) -> tuple[torch.Tensor, None]:
            calls.append((query.shape, key.shape, value.shape, attention_mask, attention_instances[module.layer_idx]))
            assert module.is_causal
            output = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
            return output.transpose(1, 2), None

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "engine", engine_attention)
        reference = build_model(GPTScratchModel)
        model = AutoModel.from_config(tiny_config, attn_implementation="engine").eval()
        model.load_state_dict(reference.state_dict())
        outputs = model(
            input_ids[:1],
            position_ids=torch.arange(12).unsqueeze(0),
            use_cache=False,
            attention_instances={0: "zero", 1: "one", 2: "two"},
            return_dict=False,
        )
        heads = torch.Size([1, 4, 12, 8])
        assert calls == [(heads, heads, heads, None, state) for state in ("zero", "one", "two")]
        assert_equal(outputs[0], reference(input_ids[:1]).last_hidden_state)

    def test_the_gates_of_engines_and_compilers_are_open(self) -> None:
        """What the tests here show to work is also what the library and vLLM are told."""
        assert GPTScratchModel.is_backend_compatible()
        assert GPTScratchForCausalLM._can_compile_fullgraph

    def test_the_implementation_can_be_switched_on_a_live_model(
        self, build_model: ModelBuilder, input_ids: torch.Tensor
    ) -> None:
        model = build_model(attn_implementation="sdpa")
        expected = model(input_ids).logits
        model.set_attn_implementation("eager")
        assert model.config._attn_implementation == "eager"
        assert model(input_ids, output_attentions=True).attentions[0].shape == (3, 4, 12, 12)
        assert_equal(model(input_ids).logits, expected)


def test_mask_without_the_cached_tokens_is_refused(build_model: Callable[..., GPTScratchForCausalLM]) -> None:
    """Captum hands over such a one; it ended in an IndexError of the depths."""
    model = build_model()
    with torch.no_grad():
        cache = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"covers 2 of 3 cached \+ 2 new tokens: .* leave what is cached out"):
            model(torch.tensor([[4, 5]]), past_key_values=cache, attention_mask=torch.ones(1, 2, dtype=torch.long))
