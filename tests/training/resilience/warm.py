"""Imported by the fork server: pays once for what every training process would pay, then each attempt is a fork.

The first optimizer step of a process loads parts of PyTorch for seconds, and so do the plot and the tokenizer.
"""

import contextlib
import io
import tempfile
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

import hf_gpt_scratch.runtime.cli  # noqa: F401  what scripts load is loaded here
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.training.command_line import parse_settings
from hf_gpt_scratch.training.loop import train
from tests.training.resilience.harness import SMALL


torch.set_num_threads(1)  # before anything runs in parallel: threads do not survive a fork


def warm_up() -> None:
    """Train one step, so that all of it is loaded, and forget that it happened."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        text = Path(name, "text.txt")
        text.write_text(bundled_text_path().read_text(encoding="utf-8")[:400], encoding="utf-8")
        one_step = ["--warmup_steps", "0", "--max_steps", "1", "--sample_tokens", "1"]
        with contextlib.redirect_stderr(io.StringIO()):
            train(
                parse_settings(
                    [*SMALL, *one_step, "--train_file", str(text), "--output_dir", str(text.parent / "run")]
                )
            )
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


warm_up()
