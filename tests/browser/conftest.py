"""The demo as a process of its own, and Chromium in front of it, without a network but this machine's.

And a model exported to ONNX, with what ONNX Runtime in Python and transformers write with it.
"""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.conversion.onnx_export import QUANTIZED_FILE, export_onnx
from hf_gpt_scratch.conversion.verify_onnx import OnnxModel
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.repository import build_repository
from tests.browser.demo_server import Demo
from tests.browser.transformers_js import node_modules
from tests.engines.conftest import repository  # noqa: F401


CHROMIUM = os.environ.get("HF_GPT_SCRATCH_CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def start_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Demo]]:
    """Start a demo; all end with the file of tests."""
    demos = []

    def start(*command: str, folder: Path | None = None, **environment: str) -> Demo:
        demos.append(Demo(list(command), folder or tmp_path_factory.mktemp("demo"), **environment))
        return demos[-1]

    yield start
    for demo in demos:
        demo.close()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, large enough for 500 tokens to take seconds."""
    torch.manual_seed(0)
    config = GPTScratchConfig(hidden_size=128, num_hidden_layers=6, num_attention_heads=2, max_position_embeddings=64)
    return build_repository(GPTScratchForCausalLM(config), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="session")
def stock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformers' own GPT-2, which ends at its context."""
    folder = tmp_path_factory.mktemp("models") / "stock"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32)).save_pretrained(folder)
    build_tokenizer(32).save_pretrained(folder)
    return folder


@pytest.fixture
def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[[Demo], Page]]:
    """Open the page as somebody who was never there; nothing may be asked of another machine."""
    contexts, foreign = [], []

    def open_page(demo: Demo) -> Page:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: foreign.append(request.url))
        page.goto(demo.url)
        page.get_by_label("Prompt").wait_for()
        page.locator("#bars img").wait_for()  # the bars
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in foreign if not url.startswith(("http://127.0.0.1:", "data:"))] == []
    assert foreign


@pytest.fixture(scope="session")
def modules() -> Path:
    return node_modules()


@pytest.fixture(scope="session")
def onnx_folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A model of drawn weights for JavaScript; its context is 64 tokens."""
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    export_onnx(repository, folder, verify=False)
    return folder


@pytest.fixture(scope="session")
def greedy(onnx_folder: Path) -> Callable[[str, list[int], int], list[int]]:
    """Continue ids in Python: with dtype "fp32" by transformers, with "q8" by ONNX Runtime."""
    exact = AutoModelForCausalLM.from_pretrained(onnx_folder).eval()
    quantized = OnnxModel(onnx_folder / QUANTIZED_FILE)

    def continue_ids(dtype: str, ids: list[int], count: int) -> list[int]:
        if dtype == "fp32":
            output = exact.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
            return output[0, len(ids) :].tolist()
        new, cache, found, mask = np.array([ids]), quantized.empty_cache(1), [], np.ones((1, len(ids)), np.int64)
        for _ in range(count):
            positions = np.arange(mask.shape[1] - new.shape[1], mask.shape[1])[None]
            logits, cache = quantized(new, mask, positions, cache, keep=1)
            found.append(int(logits[0, 0].argmax()))
            new, mask = np.array([found[-1:]]), np.ones((1, mask.shape[1] + 1), np.int64)
        return found

    return continue_ids


@pytest.fixture(scope="session")
def encode(onnx_folder: Path) -> Callable[[str], list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(onnx_folder)
    return lambda text: tokenizer(text, verbose=False)["input_ids"]


@pytest.fixture(scope="session")
def decode(onnx_folder: Path) -> Callable[[list[int]], str]:
    tokenizer = AutoTokenizer.from_pretrained(onnx_folder)
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
