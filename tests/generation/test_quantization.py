"""Proves int8 weights: all linear layers have them, the perplexity stays, and where there are none a line says so."""

import copy
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.data.windows import TokenWindows
from hf_gpt_scratch.evaluation import evaluate_text
from hf_gpt_scratch.generation.quantization import quantize_int8


TEXT = bundled_text_path().read_text(encoding="utf-8")[:12000]
CLOSE = 0.01  # relative, of the perplexity


@pytest.fixture(scope="module")
def trained() -> tuple[GPTScratchForCausalLM, PreTrainedTokenizerBase]:
    """A model of bytes that has learned something: of fresh weights nothing depends on rounding."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(64, "bytes")
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, dropout=0.0,
        max_position_embeddings=64, **ids,
    )  # fmt: skip
    model = GPTScratchForCausalLM(config).train()
    windows = TokenWindows(torch.tensor(tokenizer(TEXT)["input_ids"]), 64, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        rows = [windows[(8 * step + row) % len(windows)] for row in range(8)]
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def rounded_to(bits: int) -> Callable[[GPTScratchForCausalLM], GPTScratchForCausalLM]:
    """Round the weights of the linear layers, each row with a scale of its own."""

    def change(model: GPTScratchForCausalLM) -> GPTScratchForCausalLM:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # not the embedding as well
        for module in model.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.detach().abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
                module.weight.data = (module.weight.detach() / scale).round() * scale
        return model

    return change


def change_of_perplexity(trained: tuple, change: Callable) -> float:
    model, tokenizer = trained
    before = evaluate_text(model, TEXT, tokenizer).perplexity
    assert before < 0.1 * len(tokenizer)  # it has learned something
    return abs(evaluate_text(change(copy.deepcopy(model)), TEXT, tokenizer).perplexity / before - 1)


def test_perplexity_stays_within_one_percent_and_with_3_bits_it_would_not(trained: tuple) -> None:
    assert 0 < change_of_perplexity(trained, quantize_int8) < CLOSE / 4
    assert change_of_perplexity(trained, rounded_to(8)) < CLOSE / 4
    assert change_of_perplexity(trained, rounded_to(3)) > CLOSE


def test_every_linear_layer_has_int8_weights_and_the_embeddings_are_untouched(trained: tuple) -> None:
    model = copy.deepcopy(trained[0])
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(linear) == 2 * 6 + 1
    embedding = model.model.embed_tokens.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized = quantize_int8(model)
    weights = {name: module.weight() for name, module in quantized.named_modules() if name in linear}
    assert {weight.dtype for weight in weights.values()} == {torch.qint8}
    assert all(weight.q_per_channel_scales().numel() == len(weight) for weight in weights.values())
    assert quantized.model.embed_tokens.weight is embedding
    assert torch.equal(embedding, trained[0].model.embed_tokens.weight)


def test_generation_goes_on_past_the_context(trained: tuple) -> None:
    model, tokenizer = quantize_int8(copy.deepcopy(trained[0])), trained[1]
    prompt = tokenizer("The lamp", return_tensors="pt")["input_ids"]
    ids = model.generate(prompt, max_new_tokens=100, do_sample=False, eos_token_id=-1, past_context="rolling")
    assert ids.shape == (1, prompt.shape[1] + 100)
    plain = trained[0].generate(prompt, max_new_tokens=10, do_sample=False)
    assert torch.equal(ids[:, : plain.shape[1]], plain)


def test_other_dtypes_and_devices_are_refused(tiny_config: GPTScratchConfig) -> None:
    with pytest.raises(ValueError, match="this one is in torch.bfloat16 on cpu: leave out --int8"):
        quantize_int8(GPTScratchForCausalLM(tiny_config).bfloat16())
    with pytest.raises(ValueError, match="this one is in torch.float32 on meta: leave out --int8"):
        quantize_int8(GPTScratchForCausalLM(tiny_config).to("meta"))


def test_a_pytorch_without_it_is_named(tiny_config: GPTScratchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPTScratchForCausalLM(tiny_config)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.ao.quantization", None)
        with pytest.raises(ValueError, match=r"no longer has torch\.ao\.quantization"):
            quantize_int8(model)
    monkeypatch.setattr(type(torch.backends.quantized), "engine", "none")
    with pytest.raises(ValueError, match="no int8 kernels for this processor"):
        quantize_int8(model)
