"""Proves that known work is found in its part, and that reads of a number are counted."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hf_gpt_scratch.model.linear_cross_entropy import linear_cross_entropy
from scripts.benchmarks.gpu.step_profile import STEP, count_waits, part_of, seconds_by_part


def events_of(work, with_stack=False):
    number = torch.ones(())
    with profile(activities=[ProfilerActivity.CPU], with_stack=with_stack) as profiler:
        number.item()  # before the step
        with record_function(STEP):
            work()
    return profiler.events()


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["nvjet_tst_128x256", "aten::mm", "linearcrossentropy"], "products"),
        (["void pytorch_flash::flash_fwd_kernel", "aten::_scaled_dot_product_flash_attention"], "attention"),
        (["void at::native::elementwise", "aten::exp_", "linearcrossentropy"], "loss"),
        (["triton_red_fused__log_softmax_3", "## call compiledfxgraph"], "loss"),
        (
            ["void multi_tensor_apply_kernel<fusedadam>", "aten::_fused_adamw_", "optimizer.step#adamw.step"],
            "optimizer",
        ),
        (["memcpy dtod", "aten::copy_"], "others"),
        (["sm90_xmma_gemm_bf16", "aten::addmm"], "products"),
    ],
)
def test_names_of_a_gpu(names, part):
    assert part_of(names) == part


def test_known_work_is_found():
    hidden, weight = torch.randn(64, 32, requires_grad=True), torch.randn(997, 32, requires_grad=True)
    labels = torch.randint(997, (64,))
    optimizer = torch.optim.AdamW([hidden, weight])
    query = torch.randn(2, 2, 64, 16)

    def train():
        linear_cross_entropy(hidden, weight, labels).backward()
        optimizer.step()

    seconds = seconds_by_part(events_of(train), "cpu")
    assert min(seconds[part] for part in ("loss", "products", "optimizer")) > 0
    assert seconds["attention"] == 0
    attend = torch.nn.functional.scaled_dot_product_attention
    seconds = seconds_by_part(events_of(lambda: attend(query, query, query)), "cpu")
    assert seconds["attention"] > seconds["loss"] == 0


def test_reads_within_the_step_are_counted():
    number, weight = torch.ones(()), torch.ones(2, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.sum().backward()

    def refuse_beyond_context():
        return int(number)

    for work, expected in (
        (lambda: number + 1, 0),
        (lambda: [number.item(), float(number)], 2),
        (lambda: weight.tolist(), 1),
        (optimizer.step, 0),  # a GPU's keeps its numbers there
        (refuse_beyond_context, 0),  # positions are looked at on a CPU alone
    ):
        assert count_waits(events_of(work, with_stack=True), "cpu") == expected
