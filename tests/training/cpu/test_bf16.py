"""Proves that the CPU speedups of bf16 change no gradient beyond its rounding, and do what they are for."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss
from hf_gpt_scratch.training.cpu.bf16 import add_rows_of_tokens, convert_norms_once


LAYERS, VOCAB = 2, 301
IDS = torch.randint(VOCAB, (3, 40), generator=torch.Generator().manual_seed(1))
IDS[:, ::3] = 7  # a token that comes often: its rows are added up


def build(**changes: object) -> GPTScratchForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    model = GPTScratchForCausalLM(GPTScratchConfig(**sizes, dropout=0.0, max_position_embeddings=40, **changes))
    use_fused_loss(model)
    return model.train()


class Operators(TorchDispatchMode):
    """While entered, notes the names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


def gradients(model: torch.nn.Module, is_autocast: bool = True) -> dict[str, torch.Tensor]:
    """Gradients of two micro-batches, added up as a step adds them."""
    model.zero_grad()
    for ids in (IDS, IDS.flip(0, 1)):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            loss = model(ids, labels=ids, use_cache=False, skip_logits=True).loss
        loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def speed_up(model: GPTScratchForCausalLM) -> GPTScratchForCausalLM:
    model = copy.deepcopy(model)
    convert_norms_once(model)
    add_rows_of_tokens(model)
    return model


def test_gradients_are_as_near_to_float32_as_those_of_autocast_alone() -> None:
    """Each tensor's error is at most 1.2 times that of autocast; and the same each time, to the last bit."""
    model = build()
    exact, plain, fast = gradients(model, is_autocast=False), gradients(model), gradients(speed_up(model))
    again = gradients(speed_up(model))
    for name, value in exact.items():
        if "k_proj.bias" in name:  # softmax does not depend on it: its gradient is rounding alone
            continue
        errors = [((one[name] - value).norm() / value.norm()).item() for one in (plain, fast)]
        assert 0 < errors[1] <= 1.2 * errors[0] + 1e-4, (name, errors)
        assert torch.equal(fast[name], again[name])


def test_float32_is_left_alone() -> None:
    """Without autocast, as in an evaluation in float32, the hooks do nothing."""
    model = build()
    with torch.no_grad():
        assert torch.equal(speed_up(model)(IDS).logits, model(IDS).logits)
    exact, fast = gradients(model, is_autocast=False), gradients(speed_up(model), is_autocast=False)
    for name, value in exact.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-5, atol=1e-6)


def test_each_normalized_copy_is_converted_once() -> None:
    """Autocast converts it for each of q, k and v: two conversions less in a layer, forward and backward each."""
    counts = []
    for model in (build(), speed_up(build())):
        with Operators() as operators:
            gradients(model)
        counts.append(operators.names.count("_to_copy"))
    two_micro_batches, forward_and_backward = 2, 2
    assert counts[0] - counts[1] == two_micro_batches * forward_and_backward * 2 * LAYERS


@pytest.mark.parametrize("is_tied", [True, False])
def test_rows_are_the_dense_gradient_without_making_it(is_tied: bool) -> None:
    """In float32, to rounding, over two micro-batches, tied to the head or not."""
    model = build(tie_word_embeddings=is_tied)
    by_rows = copy.deepcopy(model)
    add_rows_of_tokens(by_rows)
    results, names = [], []
    for one in (model, by_rows):
        with Operators() as operators:
            results.append(gradients(one, is_autocast=False)["model.embed_tokens.weight"])
        names.append(operators.names)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)
    counts = [operators.count("embedding_dense_backward") for operators in names]
    assert counts == [4, 2], "those of the positions stay"
    by_rows.get_input_embeddings().weight.requires_grad_(False)
    by_rows.zero_grad()
    by_rows(IDS, labels=IDS, use_cache=False, skip_logits=True).loss.backward()
    assert by_rows.get_input_embeddings().weight.grad is None, "a frozen one gets none"
