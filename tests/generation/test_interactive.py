"""Proves the session at the keyboard in a pseudo-terminal: prompts, commands, Ctrl-C ends only a sample."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from hf_gpt_scratch.generation.decoding import Decoding, generate_text
from hf_gpt_scratch.generation.interactive import continue_prompt, run_command
from hf_gpt_scratch.hub.loading import load_model_and_tokenizer
from hf_gpt_scratch.hub.repository import build_repository


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, large enough for a sample of 100,000 tokens to take long."""
    torch.manual_seed(0)
    config = GPTScratchConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
    return build_repository(GPTScratchForCausalLM(config), tmp_path_factory.mktemp("models") / "model")


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, command: list[str]) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Everything shown up to `text`."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            if time.monotonic() > end or not select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} did not come: {self.shown!r}")
            self.shown += os.read(self.master, 4096).decode(errors="replace").replace("\r", "")
        before, _, self.shown = self.shown.partition(text)
        return before

    def interrupt_at_prompt(self, seconds: float = 120) -> None:
        """Ctrl-C while the program waits for a line: Python loses one that comes between its prompt and its read."""
        end = time.monotonic() + seconds
        state = Path(f"/proc/{self.process.pid}/syscall")  # number and arguments of the call; a read of file 0 here
        while state.read_text().split()[1:2] != ["0x0"]:
            assert time.monotonic() < end, "the program does not wait for a line"
            time.sleep(0.01)
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(folder: Path, project_root: Path) -> Iterator[Terminal]:
    """The session, at its first prompt."""
    script = project_root / "scripts" / "generate.py"
    terminal = Terminal(
        [sys.executable, str(script), "--model", str(folder), "--interactive", "--max-new-tokens", "6"]
    )
    terminal.wait_for("> ")
    yield terminal
    terminal.close()


def test_a_session(terminal: Terminal, folder: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(str(folder))

    def expect(**options: object) -> None:
        text = generate_text(model, tokenizer, "The lamp", **options)
        terminal.type("The lamp\n")
        assert text in terminal.wait_for("\n> ")

    expect(max_new_tokens=6)
    terminal.type("/temperature 1.4\n")
    terminal.wait_for("> ")
    terminal.type("/top-k 25\n")
    terminal.wait_for("> ")
    terminal.type("/seed 123\n")
    terminal.wait_for("> ")
    expect(max_new_tokens=6, temperature=1.4, top_k=25, seed=123)
    terminal.type("/temperature -3\n")
    assert "not changed: temperature must be a number, at least 0" in terminal.wait_for("> ")
    expect(max_new_tokens=6, temperature=1.4, top_k=25, seed=123)

    terminal.type("/max_new_tokens 100000\n")
    terminal.wait_for("> ")
    terminal.type("Once\n")
    terminal.wait_for("Once ")
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.wait_for("[stopped]")
    terminal.wait_for("> ")
    terminal.interrupt_at_prompt()
    terminal.wait_for("/quit or Ctrl-D leaves")
    terminal.wait_for("> ")
    terminal.type("/max_new_tokens 6\n")
    terminal.wait_for("> ")
    expect(max_new_tokens=6, temperature=1.4, top_k=25, seed=123)
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


def test_an_interrupt_that_a_library_drops_stops_all_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the control: without one the sample comes to its end. Afterwards Ctrl-C is what it was."""
    model, tokenizer = load_model_and_tokenizer(str(folder))
    passes = []

    def interrupt(module: torch.nn.Module, inputs: object, output: object) -> None:
        passes.append(module)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    continue_prompt(model, tokenizer, "The lamp", Decoding(max_new_tokens=5))
    assert "[stopped]" not in capsys.readouterr().out
    handle = model.register_forward_hook(interrupt)
    continue_prompt(model, tokenizer, "The lamp", Decoding(max_new_tokens=5))
    handle.remove()
    assert capsys.readouterr().out.endswith("\n[stopped]\n")
    assert len(passes) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/temperature 0.8", {"temperature": 0.8}),
        ("/top_k 5", {"top_k": 5}),
        ("/top-k none", {"top_k": None}),
        ("/seed 7", {"seed": 7}),
        ("/past_context rolling", {"past_context": "rolling"}),
    ],
)
def test_commands_change_settings(line: str, expected: dict) -> None:
    assert run_command(line, Decoding(top_k=3)) == Decoding(**{"top_k": 3, **expected})


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/temperature hot", "not changed: could not convert string to float"),
        ("/top_k -1", "not changed: top_k must be"),
        ("/max_new_tokens 0", "not changed: max_new_tokens must be"),
        ("/past_context far", "not changed: past_context must be"),
        ("/fly", "there is no command '/fly': /help shows all"),
        ("/top_k", "there is no command '/top_k': /help shows all"),
        ("/help", "Ctrl-C stops it"),
        ("/settings", "max_new_tokens 25   temperature 0.0"),
    ],
)
def test_other_lines_change_nothing(line: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(line, Decoding()) == Decoding()
    assert answer in capsys.readouterr().out


def test_line_that_is_not_utf8_ends_nothing(folder: Path, project_root: Path) -> None:
    command = [sys.executable, project_root / "scripts" / "generate.py", "--model", folder, "--interactive"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.run(command, input=b"a\xff\nThe lamp\n", capture_output=True, env=environment, timeout=300)
    assert process.returncode == 0, process.stderr
    assert b"error: text holds the lone surrogate '\\udcff' at index 1" in process.stdout
    assert b"> The lamp" in process.stdout
