"""Proves the demo as a visitor sees it: type, slide, click, and text and bars are those of the package."""

import base64
import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gradio.processing_utils import encode_plot_to_base64
from matplotlib.image import imread
from playwright.sync_api import Page, expect

from hf_gpt_scratch.generation.decoding import generate_text, likeliest_tokens, next_token_probabilities
from hf_gpt_scratch.hub.loading import load_model_and_tokenizer
from hf_gpt_scratch.plots import probability_figure
from tests.browser.demo_server import Demo


pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def demo(start_demo: Callable, model_folder: Path, project_root: Path) -> Demo:
    return start_demo(str(project_root / "scripts" / "demo.py"), "--model", str(model_folder))


@pytest.fixture
def expected_text(model_folder: Path) -> Callable[..., str]:
    model, tokenizer = load_model_and_tokenizer(str(model_folder))
    return lambda prompt, **decoding: generate_text(model, tokenizer, prompt, **decoding)


def set_number(page: Page, name: str, value: float) -> None:
    """Type it beside the slider."""
    field = page.get_by_label(f"number input for {name}")
    field.fill(str(value))
    field.blur()


def write(page: Page) -> None:
    page.get_by_role("button", name="Write").click()


def wait_for_text(page: Page) -> str:
    expect(page.get_by_label("Status")).to_have_value(re.compile("^done"), timeout=60_000)
    return page.get_by_label("Text", exact=True).input_value()


def picture(page: Page) -> torch.Tensor:
    """The pixels of the bars."""
    return pixels(page.locator("#bars img").get_attribute("src"))


def pixels(url: str) -> torch.Tensor:
    return torch.from_numpy(imread(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))).copy())


def expected_picture(folder: Path, prompt: str, temperature: float, top_k: int) -> torch.Tensor:
    tokens, token_ids, logits = likeliest_tokens(*load_model_and_tokenizer(str(folder)), prompt, 12)
    rows = [next_token_probabilities(logits), next_token_probabilities(logits, temperature, top_k)]
    names = ["temperature 1, all tokens", f"temperature {temperature:g}, top-k {top_k}"]
    figure = probability_figure([row[token_ids] for row in rows], names, tokens, bar_width=0.4)
    figure.set_size_inches(8, 4)
    figure.set_dpi(150)
    return pixels(encode_plot_to_base64(figure, "png"))


def wait_for_picture(page: Page, expected: torch.Tensor) -> None:
    end = time.monotonic() + 30
    while not torch.equal(picture(page), expected):
        assert time.monotonic() < end, "the bars are others"
        page.wait_for_timeout(100)


def test_a_visit(
    demo: Demo, visit: Callable, model_folder: Path, expected_text: Callable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page = visit(demo)
    wait_for_picture(page, expected_picture(model_folder, "Every effort moves you", 1.0, 25))
    page.get_by_label("Prompt").fill("The lamp")
    wait_for_picture(page, expected_picture(model_folder, "The lamp", 1.0, 25))
    for _ in range(4):
        page.get_by_label("range slider for Temperature").press("ArrowRight")
    for _ in range(22):
        page.get_by_label("range slider for Top-k").press("ArrowLeft")
    wait_for_picture(page, expected_picture(model_folder, "The lamp", 1.4, 3))
    # The control: these pictures are not all the same one.
    assert not torch.equal(picture(page), expected_picture(model_folder, "The lamp", 1.5, 3))

    set_number(page, "Top-k", 40)
    set_number(page, "Max new tokens", 150)
    page.get_by_label("Seed").fill("7")
    write(page)
    seen = set()
    while not page.get_by_label("Status").input_value().startswith("done"):
        seen.add(page.get_by_label("Text", exact=True).input_value())
    text = wait_for_text(page)
    assert len(seen) > 5  # it came piece by piece
    decoding = {"temperature": 1.4, "top_k": 40, "max_new_tokens": 150}
    assert text == expected_text("The lamp", seed=7, **decoding)
    assert text != expected_text("The lamp", seed=8, **decoding)
    assert page.get_by_label("Status").input_value().endswith("seed 7 gives this text again")
    page.screenshot(path=tmp_path_factory.getbasetemp() / "demo.png")


def test_a_seed_of_its_own_gives_the_text_again(demo: Demo, visit: Callable) -> None:
    page = visit(demo)
    page.get_by_label("Seed").fill("")
    texts = []
    for _ in range(2):
        write(page)
        expect(page.get_by_label("Status")).to_have_value("writing...")
        texts.append(wait_for_text(page))
    assert texts[0] != texts[1]
    page.get_by_label("Seed").fill(re.search(r"seed (\d+)", page.get_by_label("Status").input_value())[1])
    write(page)
    expect(page.get_by_label("Status")).to_have_value("writing...")
    assert wait_for_text(page) == texts[1]


def test_stop(demo: Demo, visit: Callable, expected_text: Callable) -> None:
    """The text stays as it is, and the model rests; then all goes on."""
    page = visit(demo)
    set_number(page, "Max new tokens", 500)
    write(page)
    expect(page.get_by_label("Text", exact=True)).to_have_value(re.compile("^Every effort moves you."))
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_label("Status")).to_have_value("stopped")
    page.wait_for_timeout(1000)
    text, before = page.get_by_label("Text", exact=True).input_value(), demo.cpu_seconds()
    page.wait_for_timeout(2000)
    assert demo.cpu_seconds() - before < 0.5
    whole = expected_text("Every effort moves you", temperature=1.0, top_k=25, max_new_tokens=500, seed=123)
    assert whole.startswith(text)
    assert len(text) < len(whole)
    assert page.get_by_label("Text", exact=True).input_value() == text
    assert page.get_by_label("Status").input_value() == "stopped"
    set_number(page, "Max new tokens", 5)
    write(page)
    assert wait_for_text(page) == expected_text(
        "Every effort moves you", temperature=1.0, top_k=25, max_new_tokens=5, seed=123
    )


def test_who_leaves_stops_his_sample(demo: Demo, visit: Callable) -> None:
    page = visit(demo)
    set_number(page, "Max new tokens", 500)
    write(page)
    expect(page.get_by_label("Text", exact=True)).to_have_value(re.compile("^Every effort moves you."))
    page.close()
    time.sleep(2)
    before = demo.cpu_seconds()
    time.sleep(2)
    assert demo.cpu_seconds() - before < 0.5


def test_two_visitors(demo: Demo, visit: Callable, model_folder: Path, expected_text: Callable) -> None:
    """The second waits for the first one's text, sees bars meanwhile, and each gets what is his."""
    first, second = visit(demo), visit(demo)
    expected = expected_picture(model_folder, "Once upon a time", 1.0, 9)
    first.get_by_label("Prompt").fill("The lamp")
    set_number(first, "Max new tokens", 500)
    second.get_by_label("Prompt").fill("Once upon a time")
    set_number(second, "Max new tokens", 20)
    write(first)
    expect(first.get_by_label("Status")).to_have_value("writing...")
    write(second)
    set_number(second, "Top-k", 9)
    wait_for_picture(second, expected)
    assert first.get_by_label("Status").input_value() == "writing..."
    options = {"temperature": 1.0, "seed": 123, "top_k": 25}
    assert wait_for_text(first) == expected_text("The lamp", max_new_tokens=500, **options)
    assert wait_for_text(second) == expected_text("Once upon a time", max_new_tokens=20, **options)


@pytest.mark.parametrize(("typed", "put_right"), [(-3, 0), (9999, 200)])
def test_an_impossible_top_k_is_put_right(
    demo: Demo, visit: Callable, model_folder: Path, typed: int, put_right: int
) -> None:
    """And a visitor's seed is his own mistake to hear of."""
    page = visit(demo)
    set_number(page, "Top-k", typed)
    expect(page.get_by_label("number input for Top-k")).to_have_value(str(put_right))
    if put_right:
        wait_for_picture(page, expected_picture(model_folder, "Every effort moves you", 1.0, put_right))
    page.get_by_label("Seed").fill("-5")
    write(page)
    expect(page.get_by_label("Status")).to_have_value("error: seed must be from 0 to 2**63 - 1, got -5")


def test_an_empty_prompt_and_one_longer_than_the_context(demo: Demo, visit: Callable, expected_text: Callable) -> None:
    page = visit(demo)
    for prompt in ("", "The lamp is on the table. " * 20):
        page.get_by_label("Prompt").fill(prompt)
        set_number(page, "Max new tokens", 12)
        write(page)
        page.wait_for_timeout(500)
        expected = expected_text(prompt, temperature=1.0, top_k=25, max_new_tokens=12, seed=123)
        assert wait_for_text(page) == expected


def test_a_prompt_too_long_for_a_model_that_is_not_ours(
    start_demo: Callable, visit: Callable, stock_folder: Path, project_root: Path
) -> None:
    demo = start_demo(str(project_root / "scripts" / "demo.py"), HF_GPT_SCRATCH_MODEL=str(stock_folder))
    page = visit(demo)
    page.get_by_label("Prompt").fill("The lamp is on the table. " * 20)
    write(page)
    expect(page.get_by_label("Status")).to_have_value(
        "error: a prompt of 141 tokens and 50 new ones do not fit the context of 32 tokens: ask for at most 0 new "
        "ones, or shorten the prompt"
    )
    page.get_by_label("Prompt").fill("The lamp")
    set_number(page, "Max new tokens", 5)
    write(page)
    assert wait_for_text(page).startswith("The lamp")


def test_the_program_speaks_to_this_machine_only(demo: Demo) -> None:
    contacts = demo.contacts.read_text(encoding="utf-8").splitlines()
    assert contacts  # it looks whether it can be reached, so this list cannot be empty
    assert [line for line in contacts if not re.search(r"127\.0\.0\.1|localhost|0\.0\.0\.0", line)] == []
