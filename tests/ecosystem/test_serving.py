"""`transformers serve`, started as a user starts it, and the way in which SGLang calls a model.

`transformers serve` 5.23 looks a model's class up in transformers itself (cli/serving/model_manager.py): it takes no
model with code of its own: what it serves is the stock export.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer


pytestmark = pytest.mark.ecosystem

PROMPT = "The lamp"


def serve(folder: Path, home: Path, *options: str) -> tuple[list, dict]:
    """The command on a CPU, and the environment of somebody who never used it."""
    command = [Path(sys.executable).parent / "transformers", "serve", folder, "--device", "cpu", *options]
    return command, os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def server(stock: Path, tmp_path: Path) -> Iterator[str]:
    """Its address on loopback; it is ended whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, env = serve(stock, tmp_path / "home", "--host", "127.0.0.1", "--port", str(port))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, tmp_path / "log")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"no server:\n{log.read_text()}")


def ask(address: str, **body: object) -> str:
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


@pytest.mark.works("transformers", "`transformers serve` with the stock export: completions, whole and streamed")
def test_transformers_serve(server: str, repository: Path, stock: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(repository)
    model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")
    generated = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    expected = tokenizer.decode(generated, skip_special_tokens=True)
    body = {"model": str(stock), "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = json.loads(ask(server, **body))
    assert whole["choices"][0]["text"] == expected
    assert whole["usage"]["completion_tokens"] == len(generated)
    lines = [line.removeprefix("data: ") for line in ask(server, **body, stream=True).splitlines() if line]
    pieces = [json.loads(line)["choices"][0]["text"] for line in lines if line.startswith("{")]
    assert len(pieces) > 3
    assert "".join(pieces) == expected
    other = json.loads(ask(server, **body | {"prompt": "She"}))["choices"][0]["text"]
    assert other != expected


def test_transformers_serve_takes_no_code_of_a_folder(repository: Path, tmp_path: Path) -> None:
    """What the library cannot do; if this fails, the README has to change."""
    command, env = serve(repository, tmp_path / "home", "--trust-remote-code")
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert result.returncode != 0
    assert "module transformers has no attribute GPTScratchForCausalLM" in result.stderr


def call_as_sglang_does(path: str) -> dict:
    """Two requests in one row without a mask; attention, every linear layer and the embedding are the engine's."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()
    requests = [torch.tensor([464, 20450, 373, 262, 5417]), torch.tensor([3347, 1816, 510])]
    masks = []

    class EngineAttention:
        """What an engine keeps for a layer; here it knows where the requests begin."""

        def __init__(self, lengths: list[int]) -> None:
            self.lengths = lengths

        def forward(self, query, key, value, heads, forward_batch):
            assert forward_batch == "batch"
            parts = [x.split(self.lengths) for x in (query, key, value)]
            outputs = []
            for q, k, v in zip(*parts, strict=True):
                q, k, v = (x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k, v))
                out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                outputs.append(out.transpose(0, 1).reshape(out.shape[1], -1))
            return torch.cat(outputs)

    def attention(module, query, key, value, attention_mask, scaling=None, attention_instances=None,
                  forward_batch=None, **kwargs):  # fmt: skip
        masks.append(attention_mask is None)
        flat = (x.transpose(1, 2).reshape(x.shape[2], -1) for x in (query, key, value))
        assert scaling == query.shape[-1] ** -0.5
        return attention_instances[module.layer_idx].forward(*flat, query.shape[1], forward_batch), None

    class EngineLinear(nn.Linear):
        """Stands for the engine's parallel layer."""

    class EngineEmbedding(nn.Embedding):
        """Stands for the engine's parallel embedding."""

    ALL_ATTENTION_FUNCTIONS["sglang"] = attention
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    config._attn_implementation = "sglang"
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=True).eval()
        model.set_input_embeddings(EngineEmbedding(config.vocab_size, config.hidden_size))
    assert model._supports_attention_backend
    assert all(getattr(module, "is_causal", True) for module in model.modules())  # else it takes it for an encoder
    names = [n for n, module in model.named_modules() if type(module) is nn.Linear]
    for linear in names:
        old = model.get_submodule(linear)
        model.set_submodule(linear, EngineLinear(old.in_features, old.out_features, device="meta"))
    weights = {
        key.removeprefix("model."): value for key, value in plain.state_dict().items() if key != "lm_head.weight"
    }
    model.load_state_dict(weights, strict=True, assign=True)

    def differences(lengths: list[int]) -> float:
        positions = torch.cat([torch.arange(len(ids)) for ids in requests])[None]
        instances = {layer: EngineAttention(lengths) for layer in range(config.num_hidden_layers)}
        with torch.no_grad():
            hidden = model(input_ids=torch.cat(requests)[None], inputs_embeds=None, use_cache=False,
                           position_ids=positions, return_dict=False, forward_batch="batch",
                           attention_instances=instances)[0][0]  # fmt: skip
            expected = torch.cat([plain(ids[None]).logits[0] for ids in requests])
            return (hidden @ plain.lm_head.weight.T - expected).abs().max().item()

    lengths = [len(ids) for ids in requests]
    return {"right": differences(lengths), "wrong": differences([sum(lengths)]), "masks": masks, "linears": len(names)}


def test_sglang_calls_the_model(call: Callable, repository: Path) -> None:
    """As in srt/models/transformers.py of SGLang 0.5.23; the engine itself needs a GPU, or stubs for its kernels."""
    report = call(call_as_sglang_does, path=repository)
    assert report["right"] < 1e-4
    assert report["wrong"] > 0.01  # the control: the engine's attention decides what is seen
    assert report["masks"] == [True] * 4
    assert report["linears"] == 12
