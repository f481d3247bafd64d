"""Proves what is seen of a step: one line of 80 columns in a terminal, plain lines now and then in a log file."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from hf_gpt_scratch.training.reporting import progress_bar
from hf_gpt_scratch.training.reporting.progress_bar import StepDisplay


CODE = """
import time
from hf_gpt_scratch.training.reporting.progress_bar import StepDisplay
display = StepDisplay(18_865, 18_855, enabled=True)
for step in range(18_856, 18_866):
    time.sleep(0.12)
    display.show(step, 10.8453, 123_456.7, 0.614, 12_300_000_000)
display.close()
"""


def output_in_a_terminal(code: str, columns: int) -> str:
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    output = b""
    try:
        while chunk := os.read(terminal, 65536):
            output += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    assert os.waitpid(process, 0)[1] == 0, output
    return output.decode()


def test_bar_and_all_figures_fit_a_terminal_of_80_columns() -> None:
    states = [state for state in re.split(r"[\r\n]+", output_in_a_terminal(CODE, 80)) if state.strip()]
    assert len(states) > 5
    assert max(map(len, states)) <= 80
    for state in states[1:]:
        assert re.fullmatch(
            r"\d+/18865 \|.+\| \d\d:\d\d left, loss 10\.845, 123,457 tok/s, MFU 61%, 12\.3 GB *", state
        )
    assert states[-1].startswith("18865/18865")


def test_log_file_gets_few_plain_lines(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    display = StepDisplay(4, 0, enabled=True)
    for step in (1, 2):
        display.show(step, 3.0, 500, 0.4, 10**9)
    assert capsys.readouterr().err == ""  # the 10 seconds are not over
    monkeypatch.setattr(progress_bar, "LOG_SECONDS", 0)
    display.show(3, 3.0, 500, 0.4, 10**9)
    monkeypatch.setattr(progress_bar, "LOG_SECONDS", 99)
    display.show(4, 2.0, 500, 0.4, 10**9)
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 3/4, 00:00 left, loss 3.000, 500 tok/s, MFU 40%, 1.0 GB",
        "step 4/4, 00:00 left, loss 2.000, 500 tok/s, MFU 40%, 1.0 GB",
    ]


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture) -> None:
    display = StepDisplay(1, 0, enabled=False)
    display.show(1, 3.0, 500, 0.4, 10**9)
    display.close()
    assert capsys.readouterr() == ("", "")


def test_time_left_counts_the_steps_of_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: now[0])
    display = StepDisplay(60, 50, enabled=False)
    now[0] += 8.0
    assert display.seconds_left(54) == 12.0  # four steps took 8 s, six are left


def test_time_left_counts_what_is_not_steps_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 seconds 4 went into an evaluation: six steps of one second are left, and 7 seconds besides."""
    now, parts = [100.0], {"evaluations": 5.0}
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: now[0])
    display = StepDisplay(60, 50, enabled=False, parts=parts)
    now[0] += 8.0
    parts["evaluations"] += 4.0
    display.seconds_besides = 7.0
    assert display.seconds_left(54) == 13.0


PAUSED = """
import time
from hf_gpt_scratch.training.reporting.progress_bar import StepDisplay
display = StepDisplay(10, 0, enabled=False)
time.sleep(0.5)
print("stop", flush=True)
time.sleep(0.5)
print(display.seconds_left(5))
"""


def test_time_left_does_not_count_a_pause_of_the_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "stop\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert 0.5 <= float(said) < 4  # with the pause it would be 8 and more


EVALUATION = """
import time
from hf_gpt_scratch.training.reporting.progress_bar import evaluation_bar
for _ in evaluation_bar(range(6), 6, enabled={enabled}):
    time.sleep({pause})
"""


@pytest.mark.parametrize(
    ("pause", "enabled", "is_shown"), [(0.5, True, True), (0.5, False, False), (0.1, True, False)]
)
def test_evaluation_of_more_than_two_seconds_is_shown(pause: float, enabled: bool, is_shown: bool) -> None:
    shown = output_in_a_terminal(EVALUATION.format(pause=pause, enabled=enabled), 80)
    assert bool(re.search(r"evaluating: +\d+%.* [1-6]/6 ", shown)) == is_shown
    assert is_shown or not shown.strip()


def test_log_file_has_no_bar() -> None:
    command = [sys.executable, "-c", EVALUATION.format(pause=0.5, enabled=True)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout + result.stderr == ""
