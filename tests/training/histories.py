"""Reads the history of a run, and what of it must be the same in a repeated run."""

import json
from pathlib import Path


# They depend on the moment and the machine.
SPEED = ("tokens_per_second", "mfu", "peak_memory_bytes", "seconds_left")


def rows(output_dir: str | Path, event: str) -> list[dict]:
    lines = (Path(output_dir) / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


def step_losses(output_dir: str | Path) -> list[float]:
    return [row["loss"] for row in rows(output_dir, "step")]


def without_speed(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in SPEED}
