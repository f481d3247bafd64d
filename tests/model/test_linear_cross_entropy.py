"""Proves that the loss without logits is the loss: values and gradients against whole logits, in every use."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_gpt_scratch.model import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.model import linear_cross_entropy as linear_cross_entropy_module
from hf_gpt_scratch.model.linear_cross_entropy import fused_causal_lm_loss, linear_cross_entropy, use_fused_loss


CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
VOCAB = 211  # no multiple of 64
TOLERANCE = 1e-6


def build(seed=0, **changes):
    torch.manual_seed(seed)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = GPTScratchConfig(**(CONFIG | {"vocab_size": VOCAB, "dropout": 0.0} | special | changes))
    model = GPTScratchForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # fresh weights make all tokens equally likely, and any mistake small
    use_fused_loss(model)
    return model


def batch(rows=3, length=37, seed=1):
    """Labels of which some do not count; 3 * 37 tokens are no multiple of any chunk used here."""
    ids = torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, 5:9] = -100
    labels[2, -4:] = -100
    return ids, labels


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(left, right, tolerance=TOLERANCE):
    """Elements differ by at most `tolerance` times the largest of their tensor, or 1."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert (value - right[name]).abs().max() <= tolerance * max(1.0, right[name].abs().max()), name


def run(model, scale=1.0, **inputs):
    """Loss and gradients of scale * loss."""
    model.zero_grad()
    output = model(use_cache=False, **inputs)
    (output.loss * scale).backward()
    return output, gradients(model)


def reference_sum(hidden, weight, labels):
    logits = hidden.double() @ weight.double().T
    return nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 111, 1000])
def test_sum_and_gradients_against_float64(chunk_size):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(111, 32, generator=generator, requires_grad=True)
    weight = torch.randn(VOCAB, 32, generator=generator, requires_grad=True)
    labels = batch()[1].flatten()
    total = linear_cross_entropy(hidden, weight, labels, chunk_size)
    got = torch.autograd.grad(total / 100, (hidden, weight))
    expected_total = reference_sum(hidden, weight, labels)
    expected = torch.autograd.grad(expected_total / 100, (hidden, weight))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected_total, rtol=TOLERANCE, atol=0)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("labelled", ["labels", "shift_labels"])
@pytest.mark.parametrize("num_items", [None, 77, torch.tensor(77)], ids=["mean", "int", "tensor"])
@pytest.mark.parametrize("scale", [1.0, 0.25], ids=["whole", "quarter"])
def test_model_has_the_same_loss_and_gradients(tied, labelled, num_items, scale):
    model = build(tie_word_embeddings=tied)
    ids, labels = batch()
    inputs = {"input_ids": ids, labelled: labels}
    if num_items is not None:
        inputs["num_items_in_batch"] = num_items
    full, full_gradients = run(model, scale, **inputs)
    lean, lean_gradients = run(model, scale, **inputs, skip_logits=True)
    assert abs(full.loss - lean.loss) <= TOLERANCE * max(1, full.loss)
    assert_same_gradients(lean_gradients, full_gradients)
    assert lean.logits is None
    assert full.logits.shape == (3, 37, VOCAB), "nobody gets None unasked"


def test_a_wrong_scale_would_be_seen():
    """Negative control: gradients kept in the forward pass and not scaled, as a simpler form would have it."""
    model = build()
    ids, labels = batch()
    _, right = run(model, 0.25, input_ids=ids, labels=labels)
    _, unscaled = run(model, 1.0, input_ids=ids, labels=labels, skip_logits=True)
    with pytest.raises(AssertionError):
        assert_same_gradients(unscaled, right)


def test_micro_batches_add_up_to_the_batch():
    model = build()
    ids, labels = batch(rows=4)
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
    count = (shifted != -100).sum()
    _, whole = run(model, input_ids=ids, shift_labels=shifted, num_items_in_batch=count)
    model.zero_grad()
    for row in range(4):
        inputs = {"input_ids": ids[row : row + 1], "shift_labels": shifted[row : row + 1]}
        model(**inputs, num_items_in_batch=count, use_cache=False, skip_logits=True).loss.backward()
    assert_same_gradients(gradients(model), whole)


def test_evaluation_writes_no_gradient():
    model = build()
    ids, labels = batch()
    with torch.no_grad():
        lean = model(ids, labels=labels, skip_logits=True)
        full = model(ids, labels=labels)
    assert not lean.loss.requires_grad
    assert abs(full.loss - lean.loss) <= TOLERANCE * full.loss
    model(ids, labels=labels, skip_logits=True)  # with gradients on, but no backward pass
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_multiplies_once():
    """Under no_grad a parameter still asks for a gradient: the head's took as long as the losses, in vain."""
    hidden, weight, labels = torch.rand(9, 4), torch.nn.Parameter(torch.rand(7, 4)), torch.arange(9) % 7

    def products():
        with torch.profiler.profile() as profile:
            linear_cross_entropy(hidden, weight, labels, chunk_size=3)
        return sum(event.count for event in profile.key_averages() if event.key in ("aten::addmm_", "aten::mm"))

    with torch.no_grad():
        assert products() == 3
        each = linear_cross_entropy(hidden, weight, labels, chunk_size=3, reduction="none")
    assert products() == 6
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    assert torch.allclose(each, expected, rtol=TOLERANCE)
    assert not each.requires_grad


def test_frozen_head_and_frozen_body():
    ids, labels = batch()
    for frozen in ("lm_head", "model"):
        model = build(tie_word_embeddings=False)
        getattr(model, frozen).requires_grad_(False)
        full = model(ids, labels=labels).loss
        lean = model(ids, labels=labels, skip_logits=True).loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for one, other in zip(torch.autograd.grad(lean, trained), torch.autograd.grad(full, trained), strict=True):
            torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_second_backward_pass_is_refused():
    model = build()
    ids, labels = batch()
    loss = model(ids, labels=labels, skip_logits=True).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_label_counts():
    model = build()
    ids, labels = batch()
    ignored = torch.full_like(labels, -100)
    assert model(ids, labels=ignored, num_items_in_batch=5, skip_logits=True).loss == 0
    for num_items in (None, 0, torch.tensor(0)):
        for skip_logits in (False, True):  # no mean, and a gradient of zeros: other micro-batches go on unharmed
            output, grads = run(
                model, labels=ignored, input_ids=ids, num_items_in_batch=num_items, skip_logits=skip_logits
            )
            assert output.loss.isnan()
            assert not any(grad.any() for grad in grads.values())


def test_no_labels_are_a_mistake():
    with pytest.raises(ValueError, match="skip_logits=True leaves nothing to compute: give labels"):
        build()(batch()[0], skip_logits=True)


@pytest.mark.parametrize("num_rows", [1, 64, VOCAB, 1000])
@pytest.mark.parametrize("chunk_size", [7, 64, 1000])
def test_bfloat16_gradient_of_the_head_is_added_up_in_float32(monkeypatch, chunk_size, num_rows):
    """Against float64 of the same rounded inputs, however it is cut: to bfloat16's rounding of logits and errors.

    Added up in bfloat16, 111 chunks of a token would lose the last of them.
    """
    monkeypatch.setattr(linear_cross_entropy_module, "GRADIENT_ROWS", num_rows)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(111, 32, generator=generator).bfloat16().float().requires_grad_()
    weight = torch.randn(VOCAB, 32, generator=generator).bfloat16().float().requires_grad_()
    labels = batch()[1].flatten()
    with torch.autocast("cpu", torch.bfloat16):
        total = linear_cross_entropy(hidden, weight, labels, chunk_size)
    got = torch.autograd.grad(total, (hidden, weight))
    expected_total = reference_sum(hidden, weight, labels)
    expected = torch.autograd.grad(expected_total, (hidden, weight))
    torch.testing.assert_close(total.double(), expected_total, rtol=2e-3, atol=0)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
def test_bfloat16_is_as_near_to_float32_as_whole_logits_are(autocast):
    """The gradients of both ways differ from those of float32 by bfloat16's rounding; ours by no more."""
    model = build()
    ids, labels = batch()
    exact, exact_gradients = run(model, input_ids=ids, labels=labels)
    errors = {}
    for skip_logits in (False, True):
        half = copy.deepcopy(model) if autocast else copy.deepcopy(model).bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # as Accelerate's mixed precision does
            output = half(ids, labels=labels, use_cache=False, skip_logits=skip_logits)
        output.loss.backward()
        assert output.loss.dtype == torch.float32
        assert abs(output.loss - exact.loss) < 0.02 * exact.loss
        assert half.lm_head.weight.grad.dtype == half.lm_head.weight.dtype
        errors[skip_logits] = sum(
            float((value.float() - exact_gradients[name]).norm() ** 2) for name, value in gradients(half).items()
        )
    assert errors[True] < 1.1 * errors[False]


def test_gradient_checkpointing():
    model = build()
    ids, labels = batch()
    _, expected = run(model, input_ids=ids, labels=labels)
    model.train()
    model.gradient_checkpointing_enable()
    _, got = run(model, input_ids=ids, labels=labels, skip_logits=True)
    assert_same_gradients(got, expected)


@pytest.mark.nightly
def test_compiled_whole():
    model = build()
    ids, labels = batch()
    expected, expected_gradients = run(model, input_ids=ids, labels=labels)
    compiled = torch.compile(model, fullgraph=True)
    model.zero_grad()
    loss = compiled(ids, labels=labels, use_cache=False, skip_logits=True).loss
    loss.backward()
    assert abs(loss - expected.loss) <= TOLERANCE * expected.loss
    assert_same_gradients(gradients(model), expected_gradients, 2e-6)


class LargestTensor(TorchDispatchMode):
    """While entered, notes the most elements that any new tensor has."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(result) if torch.is_tensor(leaf)]
        self.most = max([self.most, *sizes])
        return result


def test_no_tensor_of_tokens_by_vocabulary_is_ever_made():
    """Memory per token does not grow with the vocabulary."""
    most = {}
    for skip_logits in (True, False):
        model = build(vocab_size=4001, max_position_embeddings=512)
        ids = torch.zeros(8, 512, dtype=torch.long)
        with LargestTensor() as largest:
            model(ids, labels=ids, use_cache=False, skip_logits=skip_logits).loss.backward()
        most[skip_logits] = largest.most
    assert most[True] <= 512 * 4032, "a chunk, its rows a multiple of 64 long"
    assert most[False] >= 8 * 512 * 4001


def scaled_loss(logits, labels, vocab_size, **kwargs):
    """A loss of the user's own."""
    return 2 * ForCausalLMLoss(logits, labels, vocab_size, **kwargs)


class Adapter(nn.Module):
    """A head with a low-rank addition, as LoRA makes it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(32, 2, bias=False), nn.Linear(2, VOCAB, bias=False)
        self.weight = base.weight

    def forward(self, hidden):
        return self.base(hidden) + self.up(self.down(hidden))


def with_adapter(model):
    model.lm_head = Adapter(model.lm_head)


def with_hook(model):
    model.lm_head.register_forward_hook(lambda module, args, output: output / 2)


def with_forward(model):
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: plain(hidden) / 2


def with_own_loss(model):
    model.loss_function = scaled_loss


@pytest.mark.parametrize("change", [with_adapter, with_hook, with_forward, with_own_loss])
def test_a_head_or_loss_that_is_more_than_a_product_is_used_as_it_is(change):
    model = build()
    ids, labels = batch()
    before = model(ids, labels=labels).loss
    change(model)
    full, lean = model(ids, labels=labels), model(ids, labels=labels, skip_logits=True)
    assert abs(full.loss - before) > 0.01
    assert torch.equal(full.loss, lean.loss)
    assert lean.logits is None


def test_other_options_of_the_loss_pass_through():
    """It takes what the library's loss takes."""
    model = build()
    hidden = torch.randn(2, 9, 32)
    labels = torch.randint(VOCAB, (2, 9))
    loss = fused_causal_lm_loss(model.lm_head, hidden, labels, VOCAB, unknown_to_us=1)
    expected = ForCausalLMLoss(model.lm_head(hidden), labels, VOCAB)
    torch.testing.assert_close(loss, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_only_a_language_model_of_ours_is_given_it():
    other = nn.Linear(2, 2)
    use_fused_loss(other)
    assert not hasattr(other, "chunked_loss_function")


def test_trainer_reaches_it_through_the_batches(tmp_path):
    """The same weights after training with and without, gradient accumulation and evaluation included."""
    rows = [{"input_ids": row, "labels": row} for row in batch(rows=8)[0]]

    def collate(examples, skip_logits):
        stacked = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
        return stacked | ({"skip_logits": True} if skip_logits else {})

    results = []
    for skip_logits in (False, True):
        seen = []
        model = build()
        model.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.logits))
        arguments = TrainingArguments(
            str(tmp_path / str(skip_logits)),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            learning_rate=0.1,
            optim="sgd",  # Adam would blow up the rounding of gradients that are 0
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            prediction_loss_only=True,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=rows,
            eval_dataset=rows[:4],
            data_collator=lambda examples, skip_logits=skip_logits: collate(examples, skip_logits),
        )
        trainer.train()
        results.append((trainer.evaluate()["eval_loss"], model.state_dict()))
        assert all((logits is None) == skip_logits for logits in seen)
        assert len(seen) == 8 + 1
    (full_loss, full), (lean_loss, lean) = results
    assert lean_loss == pytest.approx(full_loss, rel=1e-5)
    for name, value in full.items():
        torch.testing.assert_close(lean[name], value, rtol=1e-4, atol=1e-5)
