"""The demo as a process of its own, and Chromium in front of it, without a network but this machine's."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.data.tokenizer import build_tokenizer
from hf_gpt_scratch.hub.repository import build_repository
from tests.browser.demo_server import Demo


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
