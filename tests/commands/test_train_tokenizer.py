"""Proves the road of a vocabulary of one's own as users type it: made, prepared, trained with, resumed, exported."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2LMHeadModel

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.token_folder import ShardedTokens
from hf_gpt_scratch.data.vocabulary_folder import load_vocabulary
from tests.conftest import TINY


STORY = bundled_text_path()
TEXT = "The lamp² went <|endoftext|> über 日本   42\n\n"


@pytest.fixture(scope="module")
def made(launch: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A vocabulary, and what was printed."""
    folder = tmp_path_factory.mktemp("made") / "mine"
    result = launch("train_tokenizer.py", "--source", STORY, "--vocab-size", 400, "--output", folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder, result.stdout.splitlines()


@pytest.fixture(scope="module")
def run_folder(launch: Callable, short_text: Path, made: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "run"
    result = launch("train.py", *training(short_text, made[0], folder), "--max_steps", 6, "--save_steps", 3)
    assert result.returncode == 0, result.stderr
    assert "validation tokens" in result.stdout
    return folder


def training(text: Path, vocabulary: Path, folder: Path) -> list[object]:
    return [*TINY, "--train_file", text, "--vocabulary", vocabulary, "--output_dir", folder, "--eval_steps", 3]


def rows(folder: Path, event: str) -> list[dict]:
    lines = map(json.loads, (folder / "history.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in lines if row["event"] == event]


def test_it_is_said_how_it_fits_and_what_comes_next(made: tuple[Path, list[str]], own_vocabulary: Path) -> None:
    folder, lines = made
    assert lines[0].startswith("400 tokens: 2.")
    assert lines[0].endswith(f" bytes a token, GPT-2 has 3.82, on {len(STORY.read_bytes()):,} bytes of text")
    assert lines[1:] == [f"train with it: hf-gpt-scratch train --train_file {STORY} --vocabulary {folder}"]
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for path in folder.iterdir():
        assert path.read_bytes() == (own_vocabulary / path.name).read_bytes()


def test_text_that_gives_fewer_tokens_is_one_line(launch: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ab ab ab"}\nnot JSON\n')
    result = launch(
        "train_tokenizer.py", "--source", tmp_path / "a.jsonl", "--vocab_size", 500, "--output", tmp_path / "out"
    )
    assert result.returncode == 0, result.stderr
    left_out, fewer, *_ = result.stdout.splitlines()
    assert left_out == f"left out: 1 bad rows, the first: {tmp_path / 'a.jsonl'} line 2 is not JSON"
    assert fewer == "the texts give 259 tokens and not --vocab_size 500: no other pair stands in them twice"
    assert load_vocabulary(str(tmp_path / "out")).size == 259


MISTAKES = {
    "too small": (["--source", "{tmp}/a.txt", "--output", "{tmp}/out", "--vocab_size", "256"], "must be at least 257"),
    "nothing to read": (["--output", "{tmp}/out", "--vocab_size", "300"], "arguments are required: --source"),
    "missing": (["--source", "{tmp}/b.txt", "--output", "{tmp}/out", "--vocab_size", "300"], "b.txt does not exist"),
    "used folder": (["--source", "{tmp}/a.txt", "--output", "{tmp}", "--vocab_size", "300"], "exists already"),
    "tokens": (["--source", "{tmp}/a.ds", "--output", "{tmp}/out", "--vocab_size", "300"], "a.ds is of no known kind"),
    "column of text": (
        ["--source", "{tmp}/a.txt", "--output", "{tmp}/out", "--vocab_size", "300", "--text_column", "body"],
        "--text_column body would do nothing without JSON lines or parquet",
    ),
    "no text": (["--source", "{tmp}/empty.txt", "--output", "{tmp}/out", "--vocab_size", "300"], "hold no text"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_gives_one_line_and_leaves_nothing(launch: Callable, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("The lamp went round.")
    (tmp_path / "a.ds").write_bytes(b"\0\0")
    (tmp_path / "empty.txt").write_text("")
    arguments, words = MISTAKES[name]
    result = launch("train_tokenizer.py", *(argument.format(tmp=tmp_path) for argument in arguments))
    lines = result.stderr.strip().splitlines()
    assert (result.returncode, len(lines)) == (1, 1), result.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ds", "a.txt", "empty.txt"]


def test_interrupt_leaves_nothing(environment: dict, project_root: Path, tmp_path: Path) -> None:
    """Ctrl-C while a pipe's worth of text is read: no folder, and exit code 130."""
    (tmp_path / "texts").mkdir()
    with (tmp_path / "texts" / "a.txt").open("w", encoding="utf-8") as file:
        for number in range(1_000_000):
            file.write(f"word{number} lamps went round. ")
    command = [sys.executable, project_root / "scripts" / "train_tokenizer.py", "--source", tmp_path / "texts"]
    command += ["--vocab_size", "1000", "--output", tmp_path / "out"]
    process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / ".out.hf_gpt_scratch-unfinished").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_result_has_the_vocabulary_and_stock_gpt2_reads_it(
    launch: Callable, made: tuple, run_folder: Path, tmp_path: Path
) -> None:
    model = run_folder / "model"
    assert (model / "tokenizer.json").read_bytes() == (made[0] / "tokenizer.json").read_bytes()
    ours = GPTScratchForCausalLM.from_pretrained(model).eval()
    assert (ours.config.vocab_size, ours.config.eos_token_id) == (400, 399)
    result = launch("convert_gpt2.py", "--from_dir", model, "--output", tmp_path / "stock", "--export_stock")
    assert result.returncode == 0, result.stderr
    stock = GPT2LMHeadModel.from_pretrained(tmp_path / "stock").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "stock")
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == Tokenizer.from_file(str(made[0] / "tokenizer.json")).encode(TEXT).ids
    batch = torch.tensor([ids[:16]])
    with torch.no_grad():
        torch.testing.assert_close(stock(batch).logits, ours(batch).logits)
    result = launch("convert_gpt2.py", "--from_dir", tmp_path / "stock", "--output", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()


def test_result_is_generated_from_and_evaluated(launch: Callable, run_folder: Path, short_text: Path) -> None:
    result = launch("generate.py", "--model", run_folder / "model", "--prompt", "The lamp²", "--max_new_tokens", 5)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("The lamp²")
    result = launch("evaluate.py", "--model", run_folder / "model", "--file", short_text)
    assert result.returncode == 0, result.stderr
    assert f"bytes {len(short_text.read_bytes())}\n" in result.stdout


def test_history_and_card_know_it_without_its_path(made: tuple, run_folder: Path) -> None:
    vocabulary = load_vocabulary(str(made[0]))
    run = rows(run_folder, "run")[0]
    assert run["vocabulary"] == {"name": "own", "size": 400, "sha256": vocabulary.sha256}
    card = (run_folder / "model" / "README.md").read_text(encoding="utf-8")
    assert f"The vocabulary has 400 tokens of its own, sha256 `{vocabulary.sha256}`." in card
    assert str(made[0]) not in card
    assert f"{rows(run_folder, 'end')[0]['bits_per_byte']:.3f} bits per byte" in card


def test_resume_is_bit_for_bit_with_the_folder_moved_and_refused_with_another(
    launch: Callable, made: tuple, run_folder: Path, short_text: Path, tmp_path: Path
) -> None:
    run, moved = shutil.copytree(run_folder, tmp_path / "run"), shutil.copytree(made[0], tmp_path / "moved")
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    words = [*training(short_text, moved, run), "--max_steps", 6, "--save_steps", 3, "--resume"]
    result = launch("train.py", *words)
    assert result.returncode == 0, result.stderr
    assert "resumed from" in result.stdout
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (run_folder / weights).read_bytes()

    other = tmp_path / "other"
    launch("train_tokenizer.py", "--source", short_text, "--vocab_size", 400, "--output", other)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    words[words.index(moved)] = other
    result = launch("train.py", *words)
    assert result.returncode == 1
    ours, theirs = (load_vocabulary(str(folder)).sha256 for folder in (made[0], other))
    assert f"--vocabulary was {made[0]} with sha256 {ours}, is {other} with sha256 {theirs}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_model_is_trained_on_with_its_own_vocabulary(
    launch: Callable, made: tuple, run_folder: Path, short_text: Path, tmp_path: Path
) -> None:
    """`--model_name_or_path` alone: the same tokens; what contradicts it is one line."""
    words = ["--model_name_or_path", run_folder / "model", "--train_file", short_text, "--max_steps", 2]
    result = launch("train.py", *words, "--output_dir", tmp_path / "run", "--sample_tokens", 0, "--warmup_steps", 1)
    assert result.returncode == 0, result.stderr
    first, second = rows(run_folder, "run")[0], rows(tmp_path / "run", "run")[0]
    assert second["vocabulary"] == first["vocabulary"]
    assert second["train_tokens"] == first["train_tokens"]
    end = rows(run_folder, "end")[0]["validation_loss"]
    assert rows(tmp_path / "run", "evaluation")[0]["validation_loss"] == pytest.approx(end, rel=1e-6)
    for vocabulary, is_fine in ((made[0], True), ("gpt2", False)):
        result = launch("train.py", *words, "--output_dir", tmp_path / "x", "--vocabulary", vocabulary, "--dry_run")
        assert (result.returncode == 0) == is_fine, result.stderr
    assert "--vocabulary gpt2 contradicts" in result.stderr
    assert "which has the vocabulary own (400 tokens, sha256 " in result.stderr


def test_prepared_tokens_are_those_of_tokenizers_and_trained_on(
    launch: Callable, made: tuple, short_text: Path, tmp_path: Path
) -> None:
    texts = ["The lamp² went round.", "über <|endoftext|> 日本", short_text.read_text(encoding="utf-8")]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokens = tmp_path / "tokens"
    words = ["--source", tmp_path / "a.jsonl", "--validation_source", short_text, "--output", tokens]
    result = launch("prepare_data.py", *words, "--vocabulary", made[0], "--shard_tokens", 300)
    assert result.returncode == 0, result.stderr
    command = f"train on it: hf-gpt-scratch train --train_data {tokens} --vocabulary "
    assert result.stdout.splitlines()[-1] == f"{command}{made[0]}"
    assert launch("prepare_data.py", "--verify", tokens).stdout.splitlines()[-1] == f"{command}FOLDER"

    again = launch("prepare_data.py", *words, "--vocabulary", made[0], "--shard_tokens", 300)
    assert again.stderr == f"{tokens} is finished already\n"
    other = launch("prepare_data.py", *words, "--vocabulary", "bytes", "--shard_tokens", 300)
    assert other.stderr == f"error: {tokens} holds other prepared data: name another folder\n"

    vocabulary = load_vocabulary(str(made[0]))
    index = json.loads((tokens / "index.json").read_text())
    assert index["vocabulary"] == vocabulary.facts()
    assert (index["separator"], index["dtype"]) == (399, "uint16")
    plain = Tokenizer.from_file(str(made[0] / "tokenizer.json"))
    plain.encode_special_tokens = True  # the one that is written in a text is text
    expected = [number for text in texts for number in [*plain.encode(text).ids, 399]]
    assert np.array_equal(ShardedTokens(tokens, "train", vocabulary)[:], expected)

    run = [*TINY, "--train_data", tokens, "--output_dir", tmp_path / "run", "--max_steps", 2, "--warmup_steps", 1]
    result = launch("train.py", *run)
    assert result.returncode == 1
    assert (
        f"{tokens}/index.json is of another vocabulary, own (400 tokens, sha256 {vocabulary.sha256})" in result.stderr
    )
    assert "and not of gpt2 (50,257 tokens" in result.stderr
    result = launch("train.py", *run, "--vocabulary", made[0])
    assert result.returncode == 0, result.stderr
    assert ", bits per byte " in result.stdout


def test_tokens_of_datatrove_want_gpt2(launch: Callable, made: tuple, tmp_path: Path) -> None:
    (tmp_path / "a.ds").write_bytes(b"\0\0")
    words = ["--source", tmp_path / "a.ds", "--output", tmp_path / "tokens", "--vocabulary", made[0]]
    result = launch("prepare_data.py", *words)
    assert result.stderr == f"error: {tmp_path}/a.ds holds tokens of GPT-2: give texts for another --vocabulary\n"
    assert not (tmp_path / "tokens").exists()


def test_result_loads_without_the_package(run_folder: Path, environment: dict, tmp_path: Path) -> None:
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(run_folder / 'model')!r}, trust_remote_code=True)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(run_folder / 'model')!r}, trust_remote_code=True)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'hf_gpt_scratch']\n"
        "assert len(tokenizer) == model.config.vocab_size == 400\n"
        f"print(tokenizer({TEXT!r})['input_ids'])"
    )
    env = environment | {"PYTHONPATH": "", "HF_HOME": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    plain = Tokenizer.from_file(str(run_folder / "model" / "tokenizer.json"))
    assert json.loads(result.stdout) == plain.encode(TEXT).ids
