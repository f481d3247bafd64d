"""Real training runs as forks of a warm process: started, broken, started again with --resume, and compared."""

import faulthandler
import hashlib
import json
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path


SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "train.py"
SMALL = [
    *("--vocabulary", "bytes", "--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--max_position_embeddings", "16"),
]
SAVE_STEPS, MAX_STEPS = 4, 14
# Dropout, accumulation, warm-up, and evaluations and samples that do not fall on saves; nine steps an epoch.
RUN = [
    *SMALL,
    *("--dropout", "0.1", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"),
    *("--warmup_steps", "3", "--max_steps", str(MAX_STEPS), "--eval_steps", "3", "--initial_eval_iter", "1"),
    *(
        "--eval_iter",
        "2",
        "--sample_tokens",
        "3",
        "--sample_prompt",
        "The",
        "--peak_flops",
        "1e12",
        "--save_steps",
        str(SAVE_STEPS),
    ),
]
# What a run leaves when it ends; anything else is a leftover.
LEFT = {".lock", "checkpoints", "history.jsonl", "loss.pdf", "loss.png", "model", "settings.json"}
# Of a row of the history, what depends on the run alone; the rest depends on the machine's speed.
EXACT = ("event", "global_step", "epoch", "tokens_seen", "loss", "learning_rate", "grad_norm", "train_loss") + (
    "validation_loss",
    "perplexity",
    "bits_per_byte",
    "text",
)
Fault = Callable[[], None]


@dataclass
class Ended:
    """The end of a process."""

    code: int  # negative: the signal that killed it
    seconds: float
    output: str


def fork(arguments: Iterable[object], log: Path, faults: Iterable[Fault] = ()) -> int:
    """Start scripts/train.py in a fork, output into a file; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        faulthandler.register(signal.SIGUSR2, file=2)  # shows in the log where a hang is; USR1 stops a run
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
        sys.argv = [str(SCRIPT), *map(str, arguments)]
        for fault in faults:
            fault()
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, timeout: float = 60) -> int:
    """Wait for a fork; one that hangs writes its stacks into its log, is killed and counts as code 98."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGUSR2)
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 98


def start(arguments: Iterable[object], log: Path, faults: Iterable[Fault] = ()) -> Ended:
    """Run scripts/train.py in a fork to its end."""
    begun, offset = time.perf_counter(), log.stat().st_size if log.exists() else 0
    code = wait(fork(arguments, log, faults))
    output = log.read_bytes()[offset:].decode(errors="replace") if log.exists() else ""
    return Ended(code, time.perf_counter() - begun, output)


def history(run: Path) -> list[dict]:
    """The rows that were written whole."""
    path = run / "history.jsonl"
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def last_step(run: Path) -> int:
    """The last step that the history knows."""
    return max((row["global_step"] for row in history(run) if row["event"] == "step"), default=0)


def outcome(run: Path) -> dict[str, object]:
    """All of a finished run that must be equal to the last bit: every loss, and every bit of the last checkpoint."""
    rows = [{key: row[key] for key in EXACT if key in row} for row in history(run) if row["event"] != "run"]
    last = run / "checkpoints" / f"step-{MAX_STEPS:08d}"
    tensors = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(last.glob("*.safetensors"))}
    weights = run / "model" / "model.safetensors"
    return {"rows": rows, "tensors": tensors, "result": hashlib.sha256(weights.read_bytes()).hexdigest()}


def same(run: Path, expected: dict[str, object]) -> bool:
    """Return True if a run ended as it should have."""
    try:
        return outcome(run) == expected
    except (OSError, ValueError):
        return False


def leftovers(run: Path) -> list[str]:
    """List leftovers after the end."""
    found = [path.name for path in run.iterdir() if path.name not in LEFT]
    return found + [p.name for p in (run / "checkpoints").iterdir() if not re.fullmatch(r"step-\d{8}", p.name)]


def run_whole(folder: Path, arguments: list[str]) -> dict:
    """Run without a fault, once recording every file event and once timed; both must end the same."""
    from tests.training.resilience import faults

    run = folder / "run"
    record = partial(faults.record_events, root=run, record=folder / "events")
    ended = start([*arguments, "--output_dir", run], folder / "log", [record])
    assert ended.code == 0, ended.output
    timed = start([*arguments, "--output_dir", folder / "again"], folder / "log")
    expected = outcome(run)
    assert outcome(folder / "again") == expected  # otherwise nothing that is compared with it would mean anything
    events = (folder / "events").read_text().splitlines()
    return {"run": run, "expected": expected, "events": events, "seconds": timed.seconds}


@dataclass
class Survived:
    """A run that was broken, and what the same command made of it."""

    name: str
    broken_code: int
    repeated: int  # steps that were done twice
    manual: bool  # whether more than the same command was needed
    is_same: bool
    left: list[str] = field(default_factory=list)
    output: str = ""
    delay: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.is_same and not self.manual and self.repeated <= SAVE_STEPS and not self.left


def go_on(arguments: list[object], run: Path, log: Path, faults: Iterable[Fault] = ()) -> tuple[Ended, bool, int]:
    """Start the same command with --resume, or afresh where no run had begun.

    Returns:
        How it ended, whether a person had to do more, and the steps that were repeated.
    """
    reached = last_step(run)
    resumed = start([*arguments, "--resume"], log, faults)
    if resumed.code == 1 and "start without --resume" in resumed.output:
        resumed = start(arguments, log, faults)
    at = re.search(r"resumed from .*step-(\d+)", resumed.output)
    return resumed, resumed.code != 0, reached - (int(at[1]) if at else 0)


def survive(
    name: str,
    folder: Path,
    arguments: list[object],
    expected: dict[str, object],
    faults: tuple[Fault, ...] = (),
    later: tuple[Fault, ...] = (),
    kill_after: float | None = None,
) -> Survived:
    """Break a run by a fault or by SIGKILL after some seconds, go on with the same command, and compare.

    Args:
        name: of the case.
        folder: for all files of this case.
        arguments: of scripts/train.py but the folder.
        expected: what the unbroken run left.
        faults: armed in the first process.
        later: armed in the second one.
        kill_after: seconds until SIGKILL.
    """
    folder.mkdir(parents=True)
    run, log = folder / "run", folder / "log"
    arguments = [*arguments, "--output_dir", run]
    pid = fork(arguments, log, [_bound(fault, run) for fault in faults])
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    broken = wait(pid)
    resumed, manual, repeated = go_on(arguments, run, log, later)
    left = leftovers(run) if not manual else []
    return Survived(
        name, broken, repeated, manual, same(run, expected), left, resumed.output[-2000:], kill_after or 0.0
    )


def _bound(fault: Fault, run: Path) -> Fault:
    """Hand the output folder to a fault that asks for it with its keyword `root`."""
    keywords = getattr(fault, "keywords", {})
    if "root" in keywords:
        keywords["root"] = run
    return fault
