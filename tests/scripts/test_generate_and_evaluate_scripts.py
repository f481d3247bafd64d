"""Proves scripts/generate.py and scripts/evaluate.py as users type them, on the folder that training left."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.data.documents import read_text
from hf_gpt_scratch.evaluation import evaluate_text
from hf_gpt_scratch.generation.decoding import generate_text
from hf_gpt_scratch.generation.quantization import quantize_int8
from hf_gpt_scratch.hub.loading import load_model_and_tokenizer


def test_generate_streams_the_same_text_for_the_same_seed(trained: tuple[Path, str], launch: Callable) -> None:
    arguments = ["--model", trained[0] / "model", "--prompt", "The lamp", "--temperature", 1.4, "--top-k", 25]
    arguments += ["--max-new-tokens", 10, "--seed"]
    first, again, other = (launch("generate.py", *arguments, seed) for seed in (123, 123, 124))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The lamp")
    assert first.stdout == again.stdout != other.stdout


def test_generate_shows_a_text_while_it_grows(
    trained: tuple[Path, str], project_root: Path, environment: dict[str, str]
) -> None:
    """A hundred characters are read long before the end: it would take minutes."""
    command = [sys.executable, project_root / "scripts" / "generate.py", "--model", trained[0] / "model"]
    command += ["--prompt", "The lamp", "--temperature", "1.4", "--max-new-tokens", "1000000"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        watch = threading.Timer(60, process.kill)
        watch.start()
        shown = process.stdout.read(100)
        is_running = process.poll() is None
        watch.cancel()
        process.kill()
    assert shown.startswith(b"The lamp")
    assert len(shown) == 100
    assert is_running


def test_generate_takes_several_prompts_and_samples_past_the_context(
    trained: tuple[Path, str], launch: Callable, tmp_path: Path
) -> None:
    prompts = ["The lamp", "Once upon a time there was"]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts), encoding="utf-8")
    arguments = ["--model", trained[0] / "model", "--prompt-file", tmp_path / "prompts.txt", "--num-samples", 2]
    arguments += ["--temperature", 1.4, "--seed", 5, "--max-new-tokens", 40]  # the context has 16 tokens
    result = launch("generate.py", *arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    samples = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(sample["prompt"], sample["seed"]) for sample in samples] == [(p, s) for p in prompts for s in (5, 6)]
    model, tokenizer = load_model_and_tokenizer(str(trained[0] / "model"))
    options = {"temperature": 1.4, "max_new_tokens": 40}
    for sample in samples:
        assert sample["text"] == generate_text(model, tokenizer, sample["prompt"], seed=sample["seed"], **options)
    plain = launch("generate.py", *arguments)
    assert plain.stdout == "".join(f"{sample['text']}\n\n" for sample in samples)


def test_any_console_can_show_any_text(
    trained: tuple[Path, str], launch: Callable, tmp_path: Path, environment: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where standard output is a file on Windows: JSON stays JSON, and what was computed is not lost."""
    monkeypatch.setitem(environment, "PYTHONIOENCODING", "cp1252")
    prompt = "日本 😀"
    arguments = ["--model", trained[0] / "model", "--prompt", prompt]
    result = launch("generate.py", *arguments, "--max-new-tokens", 1, "--json")
    assert json.loads(result.stdout)["prompt"] == prompt
    result = launch("generate.py", *arguments, "--max-new-tokens", 1)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(r"\u65e5\u672c")
    result = launch("plot_decoding.py", *arguments, "--num-tokens", 300, "--output", tmp_path / "bars")
    assert result.returncode == 0, result.stderr  # matplotlib warns of characters that its font lacks
    assert r"\u" in result.stdout
    assert (tmp_path / "bars.pdf").exists()


def test_only_a_line_end_ends_a_prompt(trained: tuple[Path, str], launch: Callable, tmp_path: Path) -> None:
    prompts = ["one\u2028line", "another\x0cone\x85", "last\x1c"]
    (tmp_path / "prompts.txt").write_text("\r\n".join(prompts), encoding="utf-8")
    arguments = ["--model", trained[0] / "model", "--prompt-file", tmp_path / "prompts.txt", "--max-new-tokens", 1]
    result = launch("generate.py", *arguments, "--json")
    assert [json.loads(line)["prompt"] for line in result.stdout.split("\n")[:-1]] == prompts


def test_decoding_is_drawn_for_the_tutorials_words_and_for_a_model(
    trained: tuple[Path, str], launch: Callable, tmp_path: Path
) -> None:
    result = launch("plot_decoding.py", "--output", tmp_path / "words.png")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["words.pdf", "words.png"]
    assert re.search(r"pizza +0\.0001 +0\.0000 +0\.0430", result.stdout)
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")
    arguments = ["--model", trained[0] / "model", "--prompt", "The", "--top-k", 3, "--num-tokens", 5]
    result = launch("plot_decoding.py", *arguments, "--temperature", 1, 0, "--output", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    rows = [line.split()[-2:] for line in result.stdout.splitlines() if not line.startswith("drawn")]
    assert len(rows) == 5
    assert [float(row[1]) for row in rows] == [1, 0, 0, 0, 0]
    assert sum(float(row[0]) > 0 for row in rows) == 3
    assert (tmp_path / "model.pdf").read_bytes().startswith(b"%PDF")


def test_evaluate_prints_the_losses_of_the_whole_text(
    trained: tuple[Path, str], launch: Callable, short_text: Path
) -> None:
    result = launch("evaluate.py", "--model", trained[0] / "model", "--file", short_text)
    assert result.returncode == 0, result.stderr
    model, tokenizer = load_model_and_tokenizer(str(trained[0] / "model"))
    expected = evaluate_text(model, read_text(short_text), tokenizer)
    assert f"tokens {expected.num_tokens}, bytes 2300" in result.stdout
    assert result.stderr == ""  # nor that a text longer than the context would lead to errors
    assert float(re.search(r"loss ([\d.]+)", result.stdout)[1]) == pytest.approx(expected.loss, abs=2e-6)
    assert float(re.search(r"perplexity ([\d.]+)", result.stdout)[1]) == pytest.approx(expected.perplexity, rel=1e-5)
    assert float(re.search(r"byte ([\d.]+)", result.stdout)[1]) == pytest.approx(expected.bits_per_byte, abs=2e-6)


def test_evaluate_says_what_it_takes_of_a_folder(
    trained: tuple[Path, str], launch: Callable, short_text: Path, tmp_path: Path
) -> None:
    """The figures are those of the texts in the rows; hidden folders are not looked at."""
    rows = "\n".join(json.dumps({"story": text}) for text in ("The lamp was lit.", "The keeper slept."))
    (tmp_path / "rows.JSONL").write_text(rows, encoding="utf-8")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "LICENSE.txt").write_text("not this", encoding="utf-8")
    (tmp_path / "data.csv").write_text("a,b", encoding="utf-8")
    folder = trained[0] / "model"
    result = launch("evaluate.py", "--model", folder, "--file", tmp_path, "--text-column", "story")
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"{tmp_path}: 1 file taken; passed over: 1 .csv\n"
    model, tokenizer = load_model_and_tokenizer(str(folder))
    expected = evaluate_text(model, "The lamp was lit.<|endoftext|>The keeper slept.", tokenizer)
    assert f"loss {expected.loss:.6f} nats" in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "reason"),
    [
        (
            "generate.py",
            ["--model", "{run}", "--prompt", "x"],
            "holds no config.json, so it is not a model folder: did",
        ),
        (
            "generate.py",
            ["--model", "{run}/model", "--prompt", "x", "--top-k", "-1"],
            "argument --top_k: must be at least 0, got -1",
        ),
        (
            "generate.py",
            ["--model", "{run}/model", "--prompt-file", "gone.txt"],
            "gone.txt: No such file or directory",
        ),
        ("plot_decoding.py", ["--temperature", "-1"], "argument --temperature: must be at least 0, got -1"),
        (
            "generate.py",
            ["--model", "{run}/model", "--prompt", "a\udcff"],
            "lone surrogate '\\udcff' at index 1: read",
        ),
        (
            "plot_decoding.py",
            ["--model", "{run}/model", "--prompt", "\udcff", "--output", "{run}/plot"],
            "lone surrogate '\\udcff' at index 0: read it as valid UTF-8",
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


def test_int8_weights_are_used_where_asked_for(trained: tuple[Path, str], launch: Callable, tmp_path: Path) -> None:
    """The perplexity is that of the function, and not to the last digit that of float32."""
    text = tmp_path / "text.txt"
    text.write_text("The lamp was lit, and the keeper went up the stairs. " * 4, encoding="utf-8")
    folder = str(trained[0] / "model")
    result = launch("evaluate.py", "--model", folder, "--file", text, "--int8")
    assert result.returncode == 0, result.stderr
    model, tokenizer = load_model_and_tokenizer(folder)
    plain = evaluate_text(model, read_text(text), tokenizer).loss
    printed = float(re.search(r"loss ([\d.]+) nats", result.stdout)[1])
    assert printed == pytest.approx(evaluate_text(quantize_int8(model), read_text(text), tokenizer).loss, abs=2e-6)
    assert printed != pytest.approx(plain, abs=2e-6)
    assert printed == pytest.approx(plain, rel=0.01)
    arguments = ["--model", folder, "--prompt", "The lamp", "--max-new-tokens", 10, "--int8"]
    result = launch("generate.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("The lamp")
