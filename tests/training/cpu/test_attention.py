"""Proves attention block by block: values and gradients of the formula, with dropout too, and where it is used."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.training.cpu import attention as cpu_attention
from hf_gpt_scratch.training.cpu.attention import (
    BLOCK_SIZE,
    MIN_LENGTH,
    BlockwiseAttention,
    blocks,
    blockwise_attention_forward,
    use_blockwise_attention,
)
from hf_gpt_scratch.training.cpu.dropout import DropoutMasks


def states(batch_size: int, heads: int, length: int, width: int) -> list[torch.Tensor]:
    """Query, key and value as the model has them: [B, T, H, D] in memory."""
    generator = torch.Generator().manual_seed(length)
    shape = (batch_size, length, heads, width)
    return [torch.randn(shape, generator=generator).transpose(1, 2).requires_grad_() for _ in range(3)]


def formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, kept: torch.Tensor):
    """Attention in float64, written out; `kept` [B, H, T, T] has 0 or the scale for each weight."""
    scores = query.double() @ key.double().mT * scaling
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) * kept @ value.double()


def masks_of_all(query: torch.Tensor, dropout: float, seed: int) -> torch.Tensor:
    """Put together the masks of all blocks, one value for each weight."""
    masks, length = DropoutMasks(dropout, seed), query.shape[2]
    kept = torch.zeros(*query.shape[:3], length, dtype=torch.float64)
    for (row, heads, queries), (_, _, keys) in blocks(query):
        part = kept[row, heads, queries, keys]
        part += masks.draw(part.shape) * masks.scale
    return kept


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("batch_size", "heads", "length", "width"),
    [(1, 1, 1, 4), (2, 3, BLOCK_SIZE, 8), (2, 3, BLOCK_SIZE + 1, 8), (1, 12, 3 * BLOCK_SIZE - 5, 16), (1, 5, 1024, 8)],
)
def test_values_and_gradients_are_those_of_the_formula(
    batch_size: int, heads: int, length: int, width: int, dropout: float
) -> None:
    """To 1e-5 against float64. The control: the same with other draws is far off."""
    inputs = states(batch_size, heads, length, width)
    torch.manual_seed(5)
    output = BlockwiseAttention.apply(*inputs, 0.3, dropout)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    got = [output, *torch.autograd.grad(output, inputs, weights)]

    def expected(seed: int) -> list[torch.Tensor]:
        result = formula(*inputs, 0.3, masks_of_all(inputs[0], dropout, seed))
        return [result, *torch.autograd.grad(result, inputs, weights.double())]

    torch.manual_seed(5)
    seed = DropoutMasks(dropout).seed
    for one, other in zip(got, expected(seed), strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1, other.abs().max().item())
    if dropout > 0 and length > 1:
        assert (output - expected(seed + 1)[0]).abs().max() > 0.1


def test_no_weights_are_kept_for_the_backward_pass() -> None:
    """PyTorch keeps those of all pairs, several times over, as soon as there is dropout, and none without."""
    length, heads = 4 * BLOCK_SIZE, 3
    inputs = states(2, heads, length, 8)
    sdpa = nn.functional.scaled_dot_product_attention
    largest = {}
    for name, attend in {
        "without dropout": lambda: sdpa(*inputs, is_causal=True),
        "theirs": lambda: sdpa(*inputs, is_causal=True, dropout_p=0.3),
        "ours": lambda: BlockwiseAttention.apply(*inputs, 0.3, 0.3),
    }.items():
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            attend()
        largest[name] = max(kept)
    assert largest["theirs"] == 2 * heads * length**2
    assert largest["ours"] == largest["without dropout"] == inputs[0].numel()


def test_masks_of_pytorch_depend_on_neither_threads_nor_dtype() -> None:
    """Equal outputs to the last bit. With equal scores and the identity for values an output is the mask."""
    sdpa = nn.functional.scaled_dot_product_attention
    inputs = [tensor.detach() for tensor in states(2, 3, 64, 64)]
    scores, values = torch.zeros(2, 3, 64, 64), torch.eye(64).expand(2, 3, 64, 64)
    outputs, masks = [], []
    full, half = torch.float32, torch.bfloat16
    for num_threads, dtype, seed in ((1, full, 5), (2, full, 5), (1, half, 5), (2, half, 5), (1, full, 6)):
        torch.set_num_threads(num_threads)
        for query, value, found in ((inputs[0], inputs[2], outputs), (scores, values, masks)):
            torch.manual_seed(seed)
            found.append(sdpa(query.to(dtype), query.to(dtype), value.to(dtype), dropout_p=0.3))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    assert all(torch.equal(mask != 0, masks[0] != 0) for mask in masks[1:4])
    # The control: other draws.
    assert not torch.equal(outputs[4], outputs[0])
    assert not torch.equal(masks[4] != 0, masks[0] != 0)


def test_draws_do_not_depend_on_the_threads() -> None:
    """The control: other draws are far off."""
    inputs, outputs = states(2, 3, 2 * BLOCK_SIZE, 8), []
    for num_threads, seed in ((1, 5), (2, 5), (1, 6)):
        torch.set_num_threads(num_threads)
        torch.manual_seed(seed)
        outputs.append(BlockwiseAttention.apply(*inputs, 0.3, 0.3))
    assert (outputs[1] - outputs[0]).abs().max() < 1e-6
    assert (outputs[2] - outputs[0]).abs().max() > 0.1


def test_bf16_is_float32_rounded_at_the_borders() -> None:
    """Inputs, output and gradients are bf16; between them nothing is: float32 from the same inputs, rounded once.

    Under autocast too, which would otherwise convert the products inside.
    """
    inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in states(2, 3, BLOCK_SIZE + 9, 8)]
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    results = []
    for tensors, is_autocast in ((inputs, True), (exact, False)):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            output = blockwise_attention_forward(None, *tensors, None, dropout=0.3, scaling=0.3)[0]
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(output.dtype)
        results.append([output, *torch.autograd.grad(output, tensors, weights)])
    for one, other in zip(*results, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() < 4e-3 * other.norm()
        assert (one.float() - other).norm() > 1e-4 * other.norm(), "it would be bf16 in name only"
    assert torch.equal(results[0][0], results[1][0].bfloat16())


def test_every_pair_of_the_past_is_in_one_block() -> None:
    query = states(2, 7, 2 * BLOCK_SIZE + 3, 1)[0]
    seen = torch.zeros(*query.shape[:3], query.shape[2])
    for (row, heads, queries), (_, _, keys) in blocks(query):
        seen[row, heads, queries, keys] += 1
    assert torch.equal(seen.tril(), torch.ones_like(seen).tril())
    assert seen.triu(BLOCK_SIZE).max() == 0  # and hardly any of the future


def test_scores_at_once_stay_small() -> None:
    """Four bytes each: 4 MiB, or what one head needs."""
    for heads, length in [(12, 256), (12, 1024), (25, 1024), (1, 100_000)]:
        sizes = [
            len(range(*index[1].indices(heads))) * BLOCK_SIZE * length
            for index, _ in blocks(torch.empty(1, heads, length, 1, device="meta"))
        ]
        assert max(sizes) <= max(cpu_attention.MAX_SCORES, BLOCK_SIZE * length)


def model_of(length: int, dropout: float, **changes: object) -> GPTScratchForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GPTScratchForCausalLM(GPTScratchConfig(**sizes, max_position_embeddings=length, dropout=dropout, **changes))


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """A list that gets the queries' shape at each call of the function."""
    calls: list[torch.Size] = []

    def apply(query: torch.Tensor, *arguments: object) -> torch.Tensor:
        calls.append(query.shape)
        return BlockwiseAttention.apply(query, *arguments)

    monkeypatch.setattr(cpu_attention, "BlockwiseAttention", SimpleNamespace(apply=apply))
    return calls


def test_a_model_with_it_is_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients to 1e-6, packed texts and padding too, generated ids; and the control: it was used.

    So rarely does it drop a weight that here it drops none.
    """
    length = 4 * BLOCK_SIZE
    plain, ours = model_of(length + 8, 0.0), model_of(length + 8, 1e-12)
    use_blockwise_attention(ours)
    calls = count_calls(monkeypatch)
    ids = torch.randint(50, (2, length))
    padding = torch.ones_like(ids)
    padding[1, :40] = 0
    packed = torch.arange(length).remainder(100).expand(2, -1)
    for model in (plain, ours):
        model.train()
    for arguments in ({}, {"attention_mask": padding}, {"position_ids": packed, "use_cache": False}):
        gradients = []
        for model in (plain, ours):
            model.zero_grad()
            loss = model(ids, labels=ids, **arguments).loss
            loss.backward()
            gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert len(calls) == 2  # two layers, and neither with a mask
    generated = [model.eval().generate(ids, max_new_tokens=8, min_new_tokens=8) for model in (plain, ours)]
    assert torch.equal(*generated)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("length", "dropout", "mask", "past", "is_used"),
    [
        (MIN_LENGTH, 0.1, False, 0, True),
        (MIN_LENGTH - 1, 0.1, False, 0, False),
        (MIN_LENGTH, 0.0, False, 0, False),
        (MIN_LENGTH, 0.1, True, 0, False),
        (MIN_LENGTH, 0.1, False, 5, False),
    ],
)
def test_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch, length: int, dropout: float, mask: bool, past: int, is_used: bool
) -> None:
    calls = count_calls(monkeypatch)
    query, key, value = states(1, 2, length, 4)
    if past:
        key = value = states(1, 2, length + past, 4)[0]
    attention_mask = torch.ones(1, 1, length, length + past, dtype=torch.bool) if mask else None
    module = nn.Module()
    module.is_causal = True
    with torch.no_grad():
        output, weights = blockwise_attention_forward(module, query, key, value, attention_mask, dropout, 0.5)
    assert output.shape == (1, length, 2, 4)
    assert weights is None
    assert calls == [query.shape] * is_used
