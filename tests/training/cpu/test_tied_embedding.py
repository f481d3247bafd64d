"""Proves that a tied embedding's gradient is that of autograd to the last bit, without a second matrix, and where."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.model.linear_cross_entropy import use_fused_loss
from hf_gpt_scratch.training.cpu.tied_embedding import TiedEmbedding, join_tied_gradients


VOCAB_SIZE, WIDTH = 50, 8
CPU = SimpleNamespace(distributed_type=DistributedType.NO, device=torch.device("cpu"))


def build(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    return GPTScratchForCausalLM(GPTScratchConfig(**sizes, max_position_embeddings=16, dropout=0.0, **changes))


def both():
    plain, joined = build(), build()
    use_fused_loss(plain)
    use_fused_loss(joined)
    join_tied_gradients(joined, CPU, acts_on_gradients=False)
    assert type(joined.model.embed_tokens) is TiedEmbedding
    return plain, joined


def batch(seed):
    """Token ids that occur several times, some not at all."""
    return torch.randint(VOCAB_SIZE // 2, (3, 16), generator=torch.Generator().manual_seed(seed))


def add_gradients(model, seed, skip_logits):
    ids = batch(seed)
    model(ids, labels=ids, skip_logits=skip_logits).loss.backward()
    return model.model.embed_tokens.weight.grad


@pytest.mark.parametrize("skip_logits", [True, False])
def test_gradient_is_that_of_autograd_to_the_last_bit(skip_logits):
    plain, joined = both()
    expected = add_gradients(plain, 1, skip_logits)
    assert torch.equal(add_gradients(joined, 1, skip_logits), expected)
    others = zip(plain.parameters(), joined.parameters(), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in others)
    with torch.no_grad():
        assert torch.equal(plain(batch(2)).logits, joined(batch(2)).logits)
    # The head's part alone is something else.
    alone = build()
    alone.model.embed_tokens.forward = lambda ids: torch.nn.functional.embedding(ids, alone.lm_head.weight.detach())
    assert (add_gradients(alone, 1, skip_logits) - expected).abs().max() > 1e-3


def test_gradients_add_up_over_micro_batches():
    plain, joined = both()
    for seed in (1, 2):
        expected, got = add_gradients(plain, seed, True), add_gradients(joined, seed, True)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_the_head_may_take_no_part():
    plain, joined = both()
    for model in (plain, joined):
        model.model(batch(1)).last_hidden_state.sin().sum().backward()
    assert torch.equal(joined.lm_head.weight.grad, plain.lm_head.weight.grad)


def test_frozen_weights_get_no_gradient():
    _, joined = both()
    joined.lm_head.weight.requires_grad_(False)
    assert add_gradients(joined, 1, True) is None
    assert joined.model.embed_positions.weight.grad is not None


class Matrices(TorchDispatchMode):
    """Counts tensors that operations make in the shape of the weight, views and changes in place aside."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {item.data_ptr() for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)}
        for item in tree_leaves(result):
            if isinstance(item, torch.Tensor) and item.shape == (VOCAB_SIZE, WIDTH) and item.data_ptr() not in known:
                self.places.add((str(function), item.data_ptr()))
        return result


def test_no_second_matrix_is_made():
    plain, joined = both()
    made = []
    for model in (plain, joined):
        with Matrices() as matrices:
            add_gradients(model, 1, True)
        made.append(sorted(name for name, _ in matrices.places))
    assert "aten.embedding_dense_backward.default" in made[0]
    assert made[1] == ["aten.empty_like.default"], "the head's own"


@pytest.mark.parametrize(
    ("model", "accelerator", "acts_on_gradients"),
    [
        ({"tie_word_embeddings": False}, {}, False),
        ({}, {"distributed_type": DistributedType.MULTI_CPU}, False),
        ({}, {"distributed_type": DistributedType.FSDP}, False),
        ({}, {"device": torch.device("cuda")}, False),
        ({}, {}, True),
    ],
)
def test_where_it_is_left_alone(model, accelerator, acts_on_gradients):
    model = build(**model)
    join_tied_gradients(model, SimpleNamespace(**vars(CPU) | accelerator), acts_on_gradients)
    assert type(model.model.embed_tokens) is torch.nn.Embedding
