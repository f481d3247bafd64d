"""Proves scripts/generate.py and scripts/evaluate.py as users type them, on the folder that training left."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.data import read_text
from hf_gpt_scratch.evaluation import evaluate_text
from hf_gpt_scratch.loading import load_model_and_tokenizer


def test_generate_streams_the_same_text_for_the_same_seed(trained: tuple[Path, str], launch: Callable) -> None:
    arguments = ["--model", trained[0] / "model", "--prompt", "The lamp", "--temperature", 1.4, "--top-k", 25]
    arguments += ["--max-new-tokens", 10, "--seed"]
    first, again, other = (launch("generate.py", *arguments, seed) for seed in (123, 123, 124))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The lamp")
    assert first.stdout == again.stdout != other.stdout


def test_evaluate_prints_the_losses_of_the_whole_text(
    trained: tuple[Path, str], launch: Callable, short_text: Path
) -> None:
    result = launch("evaluate.py", "--model", trained[0] / "model", "--file", short_text)
    assert result.returncode == 0, result.stderr
    model, tokenizer = load_model_and_tokenizer(str(trained[0] / "model"))
    expected = evaluate_text(model, read_text(short_text), tokenizer)
    assert f"tokens {expected.num_tokens}, bytes 2300" in result.stdout
    assert float(re.search(r"loss ([\d.]+)", result.stdout)[1]) == pytest.approx(expected.loss, abs=2e-6)
    assert float(re.search(r"perplexity ([\d.]+)", result.stdout)[1]) == pytest.approx(expected.perplexity, rel=1e-5)
    assert float(re.search(r"byte ([\d.]+)", result.stdout)[1]) == pytest.approx(expected.bits_per_byte, abs=2e-6)


@pytest.mark.parametrize(
    ("script", "arguments", "reason"),
    [
        ("generate.py", ["--model", "{run}", "--prompt", "x"], "holds no config.json, so it is no model folder: did"),
        (
            "generate.py",
            ["--model", "{run}/model", "--prompt", "x", "--max-new-tokens", "99"],
            "do not fit the context",
        ),
        ("generate.py", ["--model", "no/such-model", "--prompt", "x"], "cannot load no/such-model: "),
        ("evaluate.py", ["--model", "{run}/model", "--file", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_mistakes_give_one_line(
    trained: tuple[Path, str], launch: Callable, script: str, arguments: list[str], reason: str
) -> None:
    result = launch(script, *[argument.format(run=trained[0]) for argument in arguments])
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert reason in lines[0]
