"""vLLM itself, on a CPU, with an exported folder: the ids and their log-probabilities are those of `generate`.

A start takes about a minute, so each engine is started once, and its calls are what several tests look at.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from tests.engines.environments import VLLM, python_of


pytestmark = [pytest.mark.engines, pytest.mark.timeout(2400)]

START_TIMEOUT = 600  # seconds; one that finds other processes at work, and compiles
CONTEXT, NEW = 64, 16
TOLERANCE = 1e-3  # of a log-probability; one position too many moves some by 0.1 and more
GREEDY = {"temperature": 0.0, "max_tokens": NEW, "ignore_eos": True, "logprobs": 0}
SAMPLED = {"temperature": 1.4, "top_k": 25, "max_tokens": NEW, "ignore_eos": True}
# Each name is a way to run the folder; "chunked" also reads what an earlier call left in the cache. Without compiling,
# vLLM 0.32 cannot run a pipeline on a CPU, its own GPT-2 included.
ENGINES: dict[str, dict[str, Any]] = {
    "chunked": {
        "model_impl": "transformers", "enforce_eager": True, "enable_chunked_prefill": True,
        "max_num_batched_tokens": 16, "enable_prefix_caching": True, "block_size": 32,
    },
    "tensor parallel": {"tensor_parallel_size": 2, "enforce_eager": True},
    "pipeline parallel": {"pipeline_parallel_size": 2},
    "stock": {"model_impl": "vllm", "enforce_eager": True},
}  # fmt: skip


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Five pieces of the story; the last two begin with the same 40 tokens."""
    ids = build_tokenizer()(bundled_text_path().read_text(encoding="utf-8")[:2000])["input_ids"]
    return [ids[start:end] for start, end in ((0, 3), (10, 17), (40, 51), (100, 140), (100, 144))]


@pytest.fixture(scope="session")
def expected(repository: Path, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """The greedy ids of each prompt alone, by `generate`, and their log-probabilities."""
    model, answers = GPTScratchForCausalLM.from_pretrained(repository), []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        ids = output.sequences[0, len(prompt) :]
        scores = torch.cat(output.logits).log_softmax(-1)[torch.arange(NEW), ids]
        answers.append((ids.tolist(), scores.tolist()))
    assert min(len(set(ids)) for ids, _ in answers) > NEW // 2  # no repetitions of one token
    return answers


def start(folder: Path, model: Path, name: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Start an engine in a process that cannot import this package, make the calls and return the report."""
    python, options = python_of(VLLM), ENGINES[name]
    is_parallel = not {"tensor_parallel_size", "pipeline_parallel_size"}.isdisjoint(options)
    cores = sorted(os.sched_getaffinity(0))
    if is_parallel and len(cores) < 2:
        pytest.skip("two workers of vLLM want a core each")
    order = {
        "engine": {
            "model": str(model), "trust_remote_code": name != "stock", "dtype": "float32", "max_model_len": CONTEXT,
            "max_num_seqs": 8, **options,
        },
        "calls": calls,
    }  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON", "VLLM_"))}
    settings = {
        "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CACHE_ROOT": str(folder / "vllm"), "VLLM_CONFIG_ROOT": str(folder / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, cores[: 2 if is_parallel else 1])),
    }  # fmt: skip
    report, log = folder / "report.json", folder / "log.txt"
    command = [python, "-I", Path(__file__).with_name("vllm_child.py"), report]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=inherited | settings, stdin=subprocess.PIPE, stdout=output,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            process.communicate(json.dumps(order), timeout=START_TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # a broken engine waits for its workers for ever
            process.wait()
            print(log.read_text(encoding="utf-8")[-8000:])
            raise
    said = log.read_text(encoding="utf-8")
    if process.returncode != 0:
        pytest.fail(f"vLLM ended with {process.returncode}:\n{said[-8000:]}")
    return json.loads(report.read_text(encoding="utf-8")) | {"log": said}


@pytest.fixture(scope="module", params=list(ENGINES))
def ran(
    request: pytest.FixtureRequest,
    repository: Path,
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What an engine answered: twice to all prompts, and, where prompts are not cut, to sampling and long ones.

    A request with a seed whose prompt is prefilled in parts ends vLLM 0.32 on a CPU.
    """
    name = request.param
    model = request.getfixturevalue("stock") if name == "stock" else repository
    calls = [{"prompts": prompts, "sampling": GREEDY}] * 2
    if name != "chunked":
        calls += [{"prompts": prompts, "sampling": SAMPLED | {"seed": seed}} for seed in (7, 7, 8)]
    calls += [{"prompts": [[464] * (CONTEXT + 6)], "sampling": GREEDY}]
    calls += [{"prompts": [prompts[0]], "sampling": GREEDY | {"max_tokens": 2 * CONTEXT}}]
    calls += [{"prompts": [build_tokenizer().decode(prompts[2])], "sampling": GREEDY}]
    return start(tmp_path_factory.mktemp("vllm"), model, name, calls) | {"name": name}


def test_greedy_ids_are_those_of_generate(ran: dict, prompts: list, expected: list) -> None:
    architecture = "GPT2LMHeadModel" if ran["name"] == "stock" else "TransformersForCausalLM"
    assert f"Resolved architecture: {architecture}" in ran["log"]
    assert not ran["package"]
    for call in ran["calls"][:2]:
        assert call["prompts"] == prompts
        assert call["ids"] == [ids for ids, _ in expected]
        for found, (_, scores) in zip(call["logprobs"], expected, strict=True):
            assert found == pytest.approx(scores, abs=TOLERANCE)
    if ran["name"] == "chunked":
        assert "max_num_batched_tokens=16" in ran["log"]
        assert ran["calls"][1]["cached"][-2:] == [32, 32]  # a block of each of the long prompts
    (from_text,) = ran["calls"][-1]["ids"]
    assert ran["calls"][-1]["prompts"] == [prompts[2]]
    assert from_text == expected[2][0]


def test_a_seed_repeats_sampling(ran: dict) -> None:
    if ran["name"] == "chunked":
        pytest.skip("vLLM 0.32 ends at a seed and a prompt in parts")
    first, again, other = (call["ids"] for call in ran["calls"][2:5])
    assert first == again != other
    assert all(len(ids) == NEW for ids in first)


def test_the_end_of_the_context(ran: dict, prompts: list) -> None:
    refused, to_the_end, _ = ran["calls"][-3:]
    assert refused["error"] == "VLLMValidationError"
    assert f"maximum context length is {CONTEXT} tokens" in refused["message"]
    assert to_the_end["ends"] == ["length"]
    assert len(prompts[0]) + len(to_the_end["ids"][0]) in (CONTEXT, CONTEXT + 1)
