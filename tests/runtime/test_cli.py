"""Proves that every script checks its options where they are parsed: one line with the option's name, nothing done."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_gpt_scratch.runtime.cli import OneLineParser
from tests.warm_interpreter import run_script


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def run(tmp_path: Path, project_root: Path, environment: dict[str, str]) -> Run:
    """Run a script in a folder that holds a text, which an empty path would find."""
    (tmp_path / "notes.txt").write_text("The lamp went round. " * 50, encoding="utf-8")

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
        return run_script(project_root / "scripts" / script, [*map(str, arguments)], environment, tmp_path, 120)

    return run


def only_line(result: subprocess.CompletedProcess) -> str:
    """Return the line of a refused command."""
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert result.stdout == ""
    return line


OPTIONS_WITH_TEXT = {
    "train.py": ["train_file", "config"],  # the others: test_settings.py
    "prepare_data.py": ["source", "validation_source", "output", "verify"],
    "evaluate.py": ["model", "file"],
    "generate.py": ["model", "prompt_file"],
    "convert_gpt2.py": ["from_dir", "output", "text", "push_to_hub"],
    "plot_decoding.py": ["model", "output"],
    "plot_history.py": ["output"],
    "push_to_hub.py": ["tag"],
    "demo.py": ["model"],
}


@pytest.mark.parametrize(
    ("script", "option"), [(script, option) for script, options in OPTIONS_WITH_TEXT.items() for option in options]
)
def test_empty_value_is_not_the_current_folder(run: Run, script: str, option: str, tmp_path: Path) -> None:
    """As from an unset variable of a shell: refused by the option's name, and nothing is written."""
    line = only_line(run(script, f"--{option}", ""))
    assert f"--{option}" in line
    assert "empty" in line
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "arguments", [("plot_history.py", ""), ("push_to_hub.py", "", "me/x"), ("push_to_hub.py", "x", "")]
)
def test_empty_place_is_refused_by_its_name(run: Run, arguments: tuple[str, ...]) -> None:
    assert ": the value is empty: " in only_line(run(*arguments))


def test_benchmarks_have_the_same_rule(run: Run) -> None:
    assert "argument --json: the value is empty" in only_line(run("benchmark.py", "train", "--json", ""))


WORDS = [
    (["--top-k", "5"], {"top_k": 5}),
    (["--top_k=5", "--no-stop"], {"top_k": 5, "stop": False}),
    (["--top-k=5", "--text", "--no-stop here"], {"top_k": 5, "text": "--no-stop here"}),
    (["--text=--top-k=5"], {"text": "--top-k=5"}),
    (["--", "--top-k"], {"rest": ["--top-k"]}),
]


@pytest.mark.parametrize(("words", "expected"), WORDS, ids=lambda value: " ".join(value))
def test_both_spellings_of_a_flag_are_read_and_values_are_not_touched(words: list[str], expected: dict) -> None:
    parser = OneLineParser()
    parser.add_argument("--top-k", "--top_k", type=int)
    parser.add_argument("--no_stop", dest="stop", action="store_false")
    parser.add_argument("--text", type=str)
    parser.add_argument("rest", nargs="*")
    defaults = {"top_k": None, "stop": True, "text": None, "rest": []}
    assert vars(parser.parse_args(words)) == defaults | expected
    assert "--top_k TOP_K\n" in parser.format_help()


@pytest.mark.parametrize("script", OPTIONS_WITH_TEXT)
def test_help_documents_snake_case_alone(run: Run, script: str) -> None:
    flags = re.findall(r"(?<!\S)--[\w-]+", run(script, "--help").stdout)
    assert flags
    assert [flag for flag in flags if "-" in flag[2:]] == []


@pytest.mark.parametrize("script", ["generate.py --prompt x", "evaluate.py --file notes.txt", "plot_decoding.py"])
def test_file_is_not_a_model(run: Run, script: str) -> None:
    line = only_line(run(*script.split(), "--model", "notes.txt"))
    assert line.startswith("error: argument --model: notes.txt is a file: name its folder, .")


def test_unknown_option_is_one_line(run: Run) -> None:
    assert "unrecognized arguments: --fiel" in only_line(run("evaluate.py", "--model", "m", "--file", "f", "--fiel"))


@pytest.mark.parametrize(
    ("script", "arguments", "reason"),
    [
        (
            "convert_gpt2.py",
            "--from-dir x --output y --no-verify --text notes.txt",
            "--text would do nothing with --no_verify",
        ),
        (
            "convert_gpt2.py",
            "--from-dir x --output y --export-stock --n-head 3",
            "--n_head would do nothing with --export_stock",
        ),
        (
            "convert_gpt2.py",
            "--from-dir x --output y --export-stock --reader tensorflow --vocab-size 3",
            "--reader and --vocab_size would do nothing with --export_stock",
        ),
        ("convert_gpt2.py", "--from-dir x --output y --mirror z", "--mirror would do nothing with --from_dir"),
        ("prepare_data.py", "--verify x --source notes.txt", "--source would do nothing with --verify"),
        ("prepare_data.py", "--verify x --bad_rows stop", "--bad_rows would do nothing with --verify"),
        (
            "prepare_data.py",
            "--source notes.txt --output y --dataset_split z",
            "--dataset_split would do nothing with",
        ),
        ("generate.py", "--model x --interactive --json", "--json would do nothing with --interactive"),
        ("plot_decoding.py", "--prompt Once", "--prompt would do nothing without --model"),
        ("plot_decoding.py", "--output pictures/", "--output: pictures/ is a folder: name the picture in it"),
        ("train.py", "--train_file a.txt --sample_text story", "--sample_text would do nothing with --train_file"),
        (
            "train.py",
            "--train_file a.txt --validation_file b.txt --train_split 0.5",
            "--train_split would do nothing with --validation_file",
        ),
        ("train.py", "--train_data a --train_split 0.5", "--train_split would do nothing with --train_data"),
    ],
)
def test_option_that_would_do_nothing_is_refused(run: Run, script: str, arguments: str, reason: str) -> None:
    assert f"{reason}" in only_line(run(script, *arguments.split()))


@pytest.mark.parametrize(
    ("script", "option", "value", "rule"),
    [
        ("evaluate.py", "--batch_size", "0", "must be at least 1, got 0"),
        ("evaluate.py", "--batch_size", "-2", "must be at least 1, got -2"),
        ("evaluate.py", "--block_size", "0", "must be at least 1, got 0"),
        ("generate.py", "--max_new_tokens", "2.5", "must be a whole number, at least 1, got '2.5'"),
        ("generate.py", "--temperature", "nan", "must be at least 0, got nan"),
        ("generate.py", "--seed", str(2**63), f"must be at least 0 and below {2**63}, got {2**63}"),
        ("generate.py", "--num_samples", "0", "must be at least 1, got 0"),
        ("plot_decoding.py", "--num_tokens", "0", "must be at least 1, got 0"),
        (
            "prepare_data.py",
            "--shard_tokens",
            "many",
            "must be a whole number, at least 1 and below 1099511627776, got",
        ),
        ("convert_gpt2.py", "--n_head", "0", "must be at least 1, got 0"),
        ("demo.py", "--port", "70000", "must be at least 0 and below 65536, got 70000"),
        ("push_to_hub.py", "--timeout", "0", "must be at least 1, got 0"),
    ],
)
def test_number_is_checked_where_it_is_parsed(run: Run, script: str, option: str, value: str, rule: str) -> None:
    assert f"argument {option}: {rule}" in only_line(run(script, option, value))


def test_benchmarks_check_theirs_too(run: Run) -> None:
    assert "argument --rounds: must be at least 1" in only_line(run("benchmark.py", "train", "--rounds", "0"))


CODE = """
import sys
from hf_gpt_scratch.runtime.cli import run
def main():
    for number in range(20000):
        print("lamp 日本 \\U0001f600 \\udcff", number)
    print("a line for people", file=sys.stderr, flush=True)
    open("result", "w").write("done")
run(main, shows_result={})
"""


def start(tmp_path: Path, shows_result: bool, redirect: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a program under a shell's redirection; its exit code is what is printed last on stderr."""
    (tmp_path / "program.py").write_text(CODE.replace("{}", str(shows_result)), encoding="utf-8")
    command = f"{{ {sys.executable} program.py; echo code $? > code; }} {redirect}"
    environment = os.environ | variables
    return subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    "redirect", ["| head -1", "> /dev/full", "2> /dev/full", "> /dev/full 2>&1", ">&-", "2>&-", "> /dev/full 2>&-"]
)
def test_lines_that_are_only_shown_end_nothing(tmp_path: Path, redirect: str) -> None:
    result = start(tmp_path, False, redirect)
    assert (tmp_path / "code").read_text() == "code 0\n", result.stderr
    assert (tmp_path / "result").read_text() == "done"
    assert b"Exception" not in result.stderr


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        ("| head -1", 141, b""),
        ("> /dev/full", 1, b"error: the output cannot be written: No space left on device\n"),
        (">&-", 1, b"error: the output cannot be written: standard output is closed\n"),
    ],
)
def test_result_that_cannot_be_written_ends_the_work(tmp_path: Path, redirect: str, code: int, said: bytes) -> None:
    result = start(tmp_path, True, redirect)
    assert (tmp_path / "code").read_text() == f"code {code}\n"
    assert result.stderr == said
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_character_that_the_console_lacks_is_escaped(tmp_path: Path, encoding: str) -> None:
    result = start(tmp_path, True, "", PYTHONIOENCODING=encoding)
    assert (tmp_path / "code").read_text() == "code 0\n", result.stderr
    shown = "日本 😀" if encoding == "utf-8" else r"\u65e5\u672c \U0001f600"
    assert result.stdout.decode(encoding).splitlines()[0] == rf"lamp {shown} \udcff 0"


STARTS_THREADS = """
import resource, sys, threading, time
from hf_gpt_scratch.runtime.cli import run

def main():
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, -1))
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

run(main)
"""


def test_no_thread_left_is_one_line() -> None:
    """As under `ulimit -u` and `ulimit -v`, where not even PyTorch can be imported any more."""
    result = subprocess.run([sys.executable, "-c", STARTS_THREADS], capture_output=True, text=True, timeout=60)
    assert only_line(result).startswith("error: no thread can be started: raise the limits")
