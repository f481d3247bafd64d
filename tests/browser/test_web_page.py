"""Proves the page that runs a model in the browser as a visitor sees it, laid out by its README's commands.

The page is the one that is deployed, byte for byte: what it fetches from the CDN and the Hub comes from folders.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.page_server import PageServer, answer_from_folder, answer_from_npm


pytestmark = pytest.mark.browser

CONTEXT, TIMEOUT = 64, 120_000  # tokens, milliseconds on a busy machine
CDN, HUB, REPOSITORY = "https://cdn.jsdelivr.net/**", "https://huggingface.co/**", "user/drawn"
# Keeps what was on the page for a moment only.
WATCH = """
window.seen = {progress: [], texts: []};
addEventListener("DOMContentLoaded", () => {
  const id = (name) => document.getElementById(name);
  new MutationObserver(() => seen.progress.push(id("progress").value)).observe(id("progress"), {attributes: true});
  new MutationObserver(() => seen.texts.push(id("text").textContent)).observe(id("text"), {childList: true});
});
"""


@pytest.fixture(scope="module")
def server(onnx_folder: Path, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(project_root / "scripts" / "web", folder / "scripts" / "web")
    shutil.copytree(onnx_folder, folder / "runs" / "onnx")
    readme = (project_root / "scripts" / "web" / "README.md").read_text(encoding="utf-8")
    (layout,) = re.findall(r"^mkdir page .*$", readme, flags=re.MULTILINE)
    subprocess.run(["bash", "-ec", layout], cwd=folder, check=True)
    server = PageServer(folder / "page")
    assert server.settings["sdk"] == "static"
    yield server
    server.close()


@pytest.fixture(scope="module")
def new_context(browser: Browser, modules: Path, onnx_folder: Path) -> Iterator[Callable[[], BrowserContext]]:
    """Make visitors who were never there; nothing may be asked of any other machine."""
    contexts, asked = [], []

    def make() -> BrowserContext:
        context = browser.new_context(viewport={"width": 1000, "height": 900})
        context.on("request", lambda request: asked.append(request.url))
        context.route(CDN, partial(answer_from_npm, modules))
        context.route(HUB, partial(answer_from_folder, onnx_folder, REPOSITORY))
        context.add_init_script(WATCH)
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()
    known = ("http://127.0.0.1:", "data:", "blob:", "https://cdn.jsdelivr.net/npm/", "https://huggingface.co/user/")
    assert asked
    assert [url for url in asked if not url.startswith(known)] == []


def load(page: Page, weights: str = "q8") -> None:
    page.get_by_label("Weights").select_option(weights)
    page.get_by_role("button", name="Load").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("Ready|loaded"), timeout=TIMEOUT)
    expect(page.get_by_role("status")).to_have_text("Ready.")


@pytest.fixture(scope="module")
def page(server: PageServer, new_context: Callable) -> Page:
    """The page with the model loaded, and then cut off from the network."""
    context = new_context()
    page = context.new_page()
    page.goto(server.url)
    load(page)
    context.set_offline(True)
    return page


def write(page: Page, prompt: str, new: int = 20, temperature: float = 0, top_k: int = 25) -> str:
    """Return the text without the prompt."""
    page.get_by_label("Prompt").fill(prompt)
    for label, value in (("New tokens", new), ("Temperature", temperature), ("Top-k", top_k)):
        page.get_by_label(label).fill(str(value))
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("^Done"), timeout=TIMEOUT)
    text = page.get_by_role("region", name="Text").text_content()
    assert text.startswith(prompt)
    return text.removeprefix(prompt)


def test_a_visit(
    page: Page, onnx_folder: Path, encode: Callable, decode: Callable, greedy: Callable,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    assert page.evaluate("crossOriginIsolated")  # several threads
    progress = [value for value in page.evaluate("seen.progress") if value > 0]
    assert len(set(progress)) > 3
    assert progress == sorted(progress)
    assert progress[-1] == 100
    page.evaluate("seen.texts = []")
    text = write(page, "The lamp")
    assert text == decode(greedy("q8", encode("The lamp"), 20))
    assert text != decode(greedy("fp32", encode("The lamp"), 20))  # the control
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^Done, as long as asked: 20 new tokens, [\d.]+ a s"))
    seen = page.evaluate("seen.texts")
    assert len(seen) > 5  # it came piece by piece
    assert all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=tmp_path_factory.getbasetemp() / f"web-{scheme}.png", full_page=True)


def test_sampling(page: Page, encode: Callable, decode: Callable, greedy: Callable) -> None:
    likeliest = decode(greedy("q8", encode("Is it"), 20))
    assert write(page, "Is it", temperature=1.4, top_k=1) == likeliest
    assert write(page, "Is it", temperature=5, top_k=0) != likeliest
    # An empty prompt is the end of another text.
    assert write(page, "") == decode(greedy("q8", encode("<|endoftext|>"), 20))


def test_the_end_of_the_context(page: Page, encode: Callable, decode: Callable, greedy: Callable) -> None:
    prompt = " lamp" * 60
    text = write(page, prompt, new=50)
    assert text == decode(greedy("q8", encode(prompt), 4))
    expect(page.get_by_role("status")).to_have_text(re.compile("^Done, the context of 64 tokens is full: 4 new"))
    page.get_by_label("Prompt").fill(" lamp" * CONTEXT)
    expect(page.locator("#count")).to_have_text("64 of 64 tokens")
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_role("status")).to_have_text(
        "The prompt has 64 tokens, and the context of this model holds 64 with the new ones: shorten it."
    )
    assert write(page, "Is it") == decode(greedy("q8", encode("Is it"), 20))  # all goes on


def test_stop(page: Page, encode: Callable, decode: Callable, greedy: Callable) -> None:
    """Pressed at the first new word: the text ends there and not with the context."""
    prompt = "The lamp"
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("New tokens").fill("60")
    page.get_by_label("Temperature").fill("0")
    page.evaluate(
        """new MutationObserver((_, observer) => {
          if (document.getElementById("text").textContent !== "The lamp") {
            document.getElementById("stop").click();
            observer.disconnect();
          }
        }).observe(document.getElementById("text"), {childList: true})"""
    )
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("^Done, stopped: "), timeout=TIMEOUT)
    text = page.get_by_role("region", name="Text").text_content().removeprefix(prompt)
    whole = decode(greedy("q8", encode(prompt), 60))
    assert text
    assert whole.startswith(text)
    assert len(text) < len(whole) / 2
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_exact_weights_from_the_hub(
    server: PageServer, new_context: Callable, encode: Callable, decode: Callable, greedy: Callable
) -> None:
    """A second visit takes the model from the browser's cache, and the numbers of tokens are Python's."""
    context = new_context()
    page = context.new_page()
    for _ in range(2):
        page.goto(f"{server.url}?model={REPOSITORY}")
        load(page, "fp32")
        assert write(page, "The lamp") == decode(greedy("fp32", encode("The lamp"), 20))
        context.unroute(HUB)
        context.route(HUB, lambda route: route.abort())
    for text in ("日本語のテキスト", "🙂👩‍👩‍👧", "naïve\n\n  café", "<|endoftext|>"):
        page.get_by_label("Prompt").fill(text)
        expect(page.locator("#count")).to_have_text(f"{len(encode(text))} of 64 tokens")


def test_what_cannot_be_loaded_is_said(server: PageServer, new_context: Callable) -> None:
    context = new_context()
    page = context.new_page()
    for name in ("nothing", "user/nothing"):
        page.goto(f"{server.url}?model={name}")
        page.get_by_role("button", name="Load").click()
        message = f"{name} could not be loaded, it needs the files that --export_onnx writes"
        expect(page.get_by_role("status")).to_contain_text(message, timeout=TIMEOUT)
        expect(page.get_by_role("button", name="Load")).to_be_enabled()
        expect(page.get_by_label("Prompt")).to_be_disabled()
    context.route(CDN, lambda route: route.abort())
    page.goto(server.url)
    page.get_by_role("button", name="Load").click()
    expect(page.get_by_role("status")).to_contain_text("transformers.js could not be loaded from https://cdn.js")


def test_the_options_of_the_upload_exist(project_root: Path) -> None:
    readme = (project_root / "scripts" / "web" / "README.md").read_text(encoding="utf-8")
    (upload,) = re.findall(r"^hf upload .*$", readme, flags=re.MULTILINE)
    shown = subprocess.run([Path(sys.executable).parent / "hf", "upload", "--help"], capture_output=True, text=True)
    options = re.findall(r"--[\w-]+", upload)
    assert options
    assert all(option in shown.stdout for option in options)
