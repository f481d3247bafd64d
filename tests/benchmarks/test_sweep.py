"""Proves what a sweep trains and scores on, and that the recorded choice of `--minutes` is near the best of each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.command import RESULTS
from scripts.benchmarks.sweep import CHOSEN, WITHIN, flags_of, split


HELD_OUT = sorted(path for path in RESULTS.glob("sweep-*.json") if CHOSEN in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("length", [5_000, 3_000_000])
def test_the_end_of_each_stretch_is_held_out(tmp_path: Path, length: int) -> None:
    whole = "".join(chr(97 + number * number % 23) for number in range(length))
    (tmp_path / "text.txt").write_text(whole, encoding="utf-8")
    split(tmp_path / "text.txt", tmp_path)
    train, held_out = ((tmp_path / name).read_text(encoding="utf-8") for name in ("train.txt", "held_out.txt"))
    assert len(train) + len(held_out) == length
    assert len(held_out) == min(length // 10, 120_000)
    stretch, end = length // 20, len(held_out) // 20
    assert train.startswith(whole[: stretch - end])
    assert held_out.startswith(whole[stretch - end : stretch])


def test_settings_are_flags(tmp_path: Path) -> None:
    flags = [str(word) for word in flags_of("bytes 3x96 64 12 2e-2 0.1", tmp_path)]
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    assert given["--vocabulary"] == "bytes"
    assert (given["--num_hidden_layers"], given["--hidden_size"], given["--num_attention_heads"]) == ("3", "96", "3")
    assert given["--choose"] == "none"
    with pytest.raises(ValueError, match="are not six words"):
        flags_of("bytes 96 64", tmp_path)


@pytest.mark.parametrize("path", HELD_OUT, ids=lambda path: path.stem)
def test_the_recorded_choice_is_near_the_best_of_six(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    losses = {name: samples[0]["details"]["bits per byte"] for name, samples in report["candidates"].items()}
    assert len(losses) > 6
    assert losses[CHOSEN] <= WITHIN * min(losses.values())


def test_two_texts_were_held_out_of_the_fit() -> None:
    assert len({path.stem.split("-")[1] for path in HELD_OUT}) >= 2


@pytest.mark.slow
def test_a_sweep_runs_as_typed(project_root: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a lamp by the river\n" * 2000, encoding="utf-8")
    command = [sys.executable, project_root / "scripts" / "benchmark.py", "sweep", "--text", tmp_path / "text.txt"]
    command += ["--minutes", "0.2", "--settings", "bytes 1x32 16 4 1e-2 0", "--chosen", "--json", tmp_path / "x.json"]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert set(report["candidates"]) == {"bytes 1x32 16 4 1e-2 0", CHOSEN}
