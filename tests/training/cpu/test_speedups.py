"""Proves which runs get the CPU speedups, that one flag switches all off, and that a run says what is on."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType, DynamoBackend

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.cpu.attention import NAME
from hf_gpt_scratch.training.cpu.speedups import enable_cpu_speedups
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows


ATTENTION = "blockwise attention (dropout 0.1 in float32)"
ATTENTION_BF16 = "blockwise attention (dropout 0.1 in bf16)"
NORMS = "one conversion of each norm (bf16)"
ROWS = "embedding gradient by rows (bf16)"
IN_BACKWARD = {"optimizer_in_backward": True, "max_grad_norm": 0.0}


@pytest.mark.parametrize(
    ("changes", "accelerator", "enabled"),
    [
        ({}, {}, [ATTENTION]),
        ({"cpu_speedups": False}, {}, []),
        ({"dropout": 0.0}, {}, []),
        ({"attn_implementation": "eager"}, {}, []),
        ({"torch_compile": True}, {}, []),
        ({}, {"mixed_precision": "bf16"}, [ATTENTION_BF16, NORMS, ROWS]),
        ({"dropout": 0.0}, {"mixed_precision": "bf16"}, [NORMS, ROWS]),
        (IN_BACKWARD, {"mixed_precision": "bf16"}, [ATTENTION_BF16, NORMS]),
        ({}, {"mixed_precision": "bf16", "distributed_type": DistributedType.MULTI_CPU}, [ATTENTION_BF16, NORMS]),
        ({"torch_compile": True}, {"mixed_precision": "bf16"}, []),
        ({"cpu_speedups": False}, {"mixed_precision": "bf16"}, []),
        ({"weights_dtype": "bfloat16"}, {"mixed_precision": "bf16"}, []),
        ({}, {"is_fsdp2": True}, []),
        ({}, {"device": torch.device("cuda")}, []),
    ],
)
def test_which_runs_have_which(changes: dict, accelerator: dict, enabled: list[str]) -> None:
    settings = TrainingSettings(**{"dropout": 0.1} | changes)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = GPTScratchForCausalLM(
        GPTScratchConfig(
            **sizes,
            dropout=settings.dropout,
            attn_implementation=settings.attn_implementation,
        )
    ).to(getattr(torch, settings.weights_dtype))
    cpu = {"mixed_precision": "no", "is_fsdp2": False, "device": torch.device("cpu")}
    cpu["distributed_type"] = DistributedType.NO
    state = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO))
    cpu |= {"num_processes": 2, "unwrap_model": lambda prepared: prepared}
    assert enable_cpu_speedups(model, settings, SimpleNamespace(**cpu | accelerator, state=state)) == enabled
    assert (model.config._attn_implementation == NAME) is any("attention" in line for line in enabled)
    assert NAME not in model.config.to_json_string()


@pytest.mark.parametrize("flag", ["--no_cpu_speedups", "--no-cpu-speedups", "--cpu_speedups=false"])
def test_one_flag_switches_all_off(flag: str) -> None:
    assert parse_settings([]).cpu_speedups
    assert not parse_settings([flag]).cpu_speedups


def test_a_run_says_in_one_line_what_is_on(
    tiny_settings: Callable[..., TrainingSettings], tmp_path, capsys: pytest.CaptureFixture
) -> None:
    train(tiny_settings(dropout=0.1, max_steps=1, warmup_steps=0))
    assert f"CPU speedups: {ATTENTION}\n" in capsys.readouterr().out
    off = tiny_settings(dropout=0.1, max_steps=1, warmup_steps=0, cpu_speedups=False, output_dir=str(tmp_path / "off"))
    train(off)
    assert "CPU speedups: none\n" in capsys.readouterr().out
    assert rows(off.output_dir, "run")[0]["cpu_speedups"] == []
