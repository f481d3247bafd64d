"""The stock export in other runtimes: ONNX Runtime, and GGUF made by llama.cpp's own converter."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel


pytestmark = pytest.mark.ecosystem

PROMPTS = ["Tom the ferry", "There were only two people on the ferry, Nell", "Is it"]
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def expected(repository: Path) -> dict[tuple[int, ...], list[int]]:
    """Greedy ids of our own model after each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(repository)
    model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True).eval()
    found = {}
    for text in PROMPTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        found[tuple(ids[0].tolist())] = output[0, ids.shape[1] :].tolist()
    assert len({tuple(ids) for ids in found.values()}) == len(PROMPTS)
    return found


class Logits(torch.nn.Module):
    """A model as a function of ids alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


@pytest.mark.works("onnxruntime", "the stock export in ONNX Runtime: the same greedy ids")
def test_onnx_runtime(stock: Path, expected: dict, tmp_path: Path) -> None:
    import onnxruntime

    model = GPT2LMHeadModel.from_pretrained(stock).eval()
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.onnx.export(
        Logits(model).eval(), (torch.arange(8)[None],), dynamo=True, dynamic_shapes={"input_ids": {1: length}},
        input_names=["input_ids"], verbose=False,
    )  # fmt: skip
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for prompt, ids in expected.items():
        row = list(prompt)
        for _ in ids:
            fed = row if len(row) > 1 else [*row, 0]  # the shortest exported length is 2; what follows is not seen
            logits = session.run(None, {"input_ids": torch.tensor([fed]).numpy()})[0]
            row.append(int(logits[0, len(row) - 1].argmax()))
        assert row[len(prompt) :] == ids


@pytest.fixture(scope="module")
def gguf_file(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by convert_hf_to_gguf.py of the llama.cpp that llama-cpp-python brings in its source archive."""
    archives = sorted(Path(sys.prefix, "llama.cpp").glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        pytest.skip("no llama.cpp: fetch the source archive as the README says")
    folder = tmp_path_factory.mktemp("llama")
    with tarfile.open(archives[-1]) as archive:
        wanted = [member for member in archive if "/vendor/llama.cpp/" in member.name and member.name.endswith(".py")]
        archive.extractall(folder, wanted, filter="data")
    script = next(folder.rglob("convert_hf_to_gguf.py"))
    command = [sys.executable, script, stock, "--outfile", folder / "model.gguf", "--outtype", "f32"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return folder / "model.gguf"


@pytest.mark.works("xllamacpp", "the stock export as GGUF of llama.cpp's converter: the same greedy texts")
def test_gguf_in_llama_cpp(gguf_file: Path, expected: dict, repository: Path) -> None:
    import xllamacpp

    tokenizer = AutoTokenizer.from_pretrained(repository)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf_file)
    parameters.n_ctx = 64
    parameters.n_parallel = 1
    server = xllamacpp.Server(parameters)
    for prompt, ids in expected.items():
        answer = server.handle_completions(
            {"prompt": tokenizer.decode(prompt), "max_tokens": NEW_TOKENS, "temperature": 0, "top_k": 1}
        )
        assert answer["choices"][0]["text"] == tokenizer.decode(ids)
