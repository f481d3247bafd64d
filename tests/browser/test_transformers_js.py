"""Proves that an ONNX export in transformers.js in Node gives the ids that Python gives, and says where it ends."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conversion.test_verify_onnx import change


pytestmark = pytest.mark.browser

CONTEXT, NEW = 64, 20
TEXTS = ["Tom the ferry", "The lamp", "There were only two people on the ferry, Nell", "Is it"]
AWKWARD = [
    " ", "\n\n\t x  y ", "naïve café", "日本語のテキスト", "🙂👩‍👩‍👧", "a\u00a0b\u200bc", "\x00\x07\x1f",
    "<|endoftext|>", "it's 3,000 'times'", "e\u0301 é ﬁ Ⅷ",
]  # fmt: skip


@pytest.fixture(scope="module")
def shifted(onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, each of whose positions is taken for its neighbor."""
    folder = tmp_path_factory.mktemp("shifted") / "model"
    shutil.copytree(onnx_folder, folder)
    change(folder / "onnx" / "model.onnx", "transformer.wpe.weight", lambda values: np.roll(values, 1, axis=0))
    return folder


@pytest.fixture(scope="module")
def answers(repository: Path, onnx_folder: Path, shifted: Path, modules: Path) -> dict[str, list[Any]]:
    """What one process of Node answered to every order, by name."""
    orders = {
        "fp32": (onnx_folder, "fp32", [*TEXTS, TEXTS], {"max_new_tokens": NEW}),
        "q8": (onnx_folder, "q8", TEXTS, {"max_new_tokens": NEW}),
        "shifted": (shifted, "fp32", TEXTS, {"max_new_tokens": NEW}),
        "awkward": (onnx_folder, "q8", AWKWARD, {"max_new_tokens": 1}),
        "to the end": (onnx_folder, "fp32", [TEXTS[1]], {}),
        "past the end": (onnx_folder, "fp32", [TEXTS[1]], {"max_new_tokens": CONTEXT}),
        "past the end, q8": (onnx_folder, "q8", [TEXTS[1]], {"max_new_tokens": CONTEXT}),
        "not exported": (repository, "fp32", [TEXTS[1]], {}),
    }
    keys = ("name", "dtype", "texts", "options")
    given = json.dumps([dict(zip(keys, (str(order[0]), *order[1:]), strict=True)) for order in orders.values()])
    child = Path(__file__).with_name("node_child.mjs")
    done = subprocess.run(["node", child, modules], input=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = iter(json.loads(done.stdout))
    return {name: [next(report) for _ in order[2]] for name, order in orders.items()}


@pytest.mark.parametrize("dtype", ["fp32", "q8"])
def test_greedy_ids_are_those_of_python(dtype: str, answers: dict, greedy: Callable, encode: Callable) -> None:
    for text, answer in zip(TEXTS, answers[dtype], strict=False):
        assert answer["ids"] == [encode(text)]
        assert answer["new"] == [greedy(dtype, encode(text), NEW)]
    assert len({tuple(answer["new"][0]) for answer in answers[dtype][: len(TEXTS)]}) == len(TEXTS)


def test_a_batch_is_padded_and_gives_the_ids_of_each_text(answers: dict) -> None:
    *single, batch = answers["fp32"]
    assert batch["new"] == [answer["new"][0] for answer in single]
    assert len({*map(len, (answer["ids"][0] for answer in single))}) > 1


def test_a_position_too_far_would_be_seen(answers: dict) -> None:
    """The control, and another: 8 bits are not taken for the exact weights."""
    for other in ("shifted", "q8"):
        same = [one["new"] == two["new"] for one, two in zip(answers["fp32"], answers[other], strict=False)]
        assert not all(same)
    assert not any(one["new"] == two["new"] for one, two in zip(answers["fp32"], answers["shifted"], strict=False))


def test_texts_are_tokens_as_in_python(answers: dict, encode: Callable, greedy: Callable, decode: Callable) -> None:
    for text, answer in zip(AWKWARD, answers["awkward"], strict=True):
        assert answer["ids"] == [encode(text)], text
        assert answer["texts"] == [decode(answer["new"][0])]


def test_the_end_of_the_context(answers: dict, greedy: Callable, encode: Callable) -> None:
    """Without a length a text fills the context; with one that is too long the error names the context."""
    (answer,) = answers["to the end"]
    prompt = encode(TEXTS[1])
    assert answer["new"] == [greedy("fp32", prompt, CONTEXT - len(prompt))]
    for name in ("past the end", "past the end, q8"):
        (refused,) = answers[name]
        assert "text_past_the_context_of_64_tokens" in refused["error"]


def test_a_folder_that_was_not_exported_is_refused(answers: dict) -> None:
    """Its tokenizer loads, and its kind of model is one that JavaScript does not have."""
    assert answers["not exported"] == [{"error": "Error: Unsupported model type: gpt_scratch"}]
