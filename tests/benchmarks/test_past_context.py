"""Proves the benchmark of texts past the context: run as typed, all do the same work, and other work is no result."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.command import RESULTS
from scripts.benchmarks.measuring import Measurement
from scripts.benchmarks.past_context import EXACT, LOOP, OURS, draw_model, refuse_other_work


def digest(added: list[int]) -> str:
    return hashlib.sha256(torch.tensor(added).numpy().tobytes()).hexdigest()[:12]


@pytest.fixture(scope="module")
def report(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("benchmark") / "past.json"
    arguments = ["past_context", "--size", "tiny", "--rounds", "2", "--threads", "1", "--json", path]
    command = [sys.executable, project_root / "scripts" / "benchmark.py", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert f"wall time of {LOOP} / ours" in process.stdout
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.nightly
def test_each_candidate_adds_the_tokens_of_its_way(report: dict) -> None:
    """Held against a loop that is written out here, over a list."""
    model, prompt = draw_model("tiny")
    context, rows = prompt.shape[1], {"crop": prompt[0].tolist(), "roll": prompt[0].tolist()}
    for step in range(context // 2):
        for name, row in rows.items():
            # The prompt just fits. One token more, and rolling starts again from the last half.
            is_rolled = name == "roll" and step > 0
            window = row[context // 2 + 1 :] if is_rolled else row[-context:]
            with torch.no_grad():
                row.append(int(model(torch.tensor([window])).logits[0, -1].argmax()))
        assert len(rows["roll"]) == context + step + 1
    crop, roll = (digest(row[context:]) for row in rows.values())
    expected = {OURS: roll, EXACT: crop, LOOP: crop}
    for name, samples in report["candidates"].items():
        assert [sample["details"] for sample in samples] == [{"tokens": context // 2, "ids": expected[name]}] * 2
    assert {row["peer"] for row in report["comparisons"]} == {EXACT, LOOP}


def samples(**changes: tuple[int, str]) -> dict[str, list[Measurement]]:
    details = {OURS: (4, "a"), EXACT: (4, "b"), LOOP: (4, "b")} | changes
    return {
        name: [Measurement(1.0, 1.0, 1.0, {"tokens": count, "ids": ids})] for name, (count, ids) in details.items()
    }


def test_other_work_is_no_result() -> None:
    refuse_other_work(samples(), 4)
    with pytest.raises(ValueError, match="rolling added 3 tokens, not 4"):
        refuse_other_work(samples(rolling=(3, "a")), 4)
    with pytest.raises(ValueError, match="gave different tokens: b, c"):
        refuse_other_work(samples(exact=(4, "c")), 4)


@pytest.mark.parametrize("size", ["small", "124M"])
def test_the_recorded_runs_did_the_same_work(size: str, project_root: Path) -> None:
    """And README says what they say."""
    recorded = json.loads((RESULTS / f"past_context_{size}.json").read_text(encoding="utf-8"))
    measured = {name: [Measurement(**sample) for sample in one] for name, one in recorded["candidates"].items()}
    refuse_other_work(measured, 64)
    readme = " ".join((project_root / "hf_gpt_scratch/generation/README.md").read_text(encoding="utf-8").split())
    for row in recorded["comparisons"]:
        assert f"{row['times'][1]:.1f}" in readme[readme.index("64 tokens past a context") :][:1200]
