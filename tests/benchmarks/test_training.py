"""Proves that the training benchmark runs as typed, that its figures are those of the samples, and that nobody who
computes something else can take part.
"""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from scripts.benchmarks.measuring import Measurement
from scripts.benchmarks.peer_models import Task, draw_weights
from scripts.benchmarks.training import GROUPS, SETTINGS, check_losses, memory_limits, peak_limits, speed_limits
from scripts.benchmarks.training_steps import make_transformers


TINY = {"layers": 2, "width": 32, "heads": 2, "context": 64, "rows": 2, "length": 16}


def run_script(root, *arguments):
    command = [sys.executable, root / "scripts" / "benchmark.py", "train", "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def report(project_root, tmp_path_factory):
    """Content of the JSON file and lines printed, two rounds against the stock model and under its Trainer."""
    path = tmp_path_factory.mktemp("benchmark") / "x.json"
    peers = ("transformers", "transformers Trainer")
    arguments = ("--settings", "tiny", "--rounds", "2", "--only", *peers, "--json", path)
    process = run_script(project_root, *map(str, arguments))
    assert process.returncode == 0, process.stderr
    report = json.loads(path.with_name("x-tiny.json").read_text(encoding="utf-8"))
    return report | {"lines": process.stdout.splitlines()}


@pytest.mark.nightly
def test_all_do_the_same_work(report):
    losses = {name: samples[-1]["details"].get("losses") for name, samples in report["candidates"].items()}
    assert set(losses) == {"torch.mm", "ours", "transformers", "transformers Trainer"}
    assert len(losses["ours"]) == 3
    assert len(set(losses["ours"])) == 3, "other tokens in each step"
    for name in ("transformers", "transformers Trainer"):
        assert losses[name] == pytest.approx(losses["ours"], abs=1e-4)
        line = next(line for line in report["lines"] if line.startswith(f"{name}  "))
        assert line.endswith(f"losses {losses[name]}")


@pytest.mark.nightly
def test_limits_are_judged_by_the_samples(report):
    samples = report["candidates"]
    limits = {limit["text"]: limit for limit in report["limits"]}
    assert set(limits) == {"transformers / ours", "transformers Trainer / ours"}
    for name in ("transformers", "transformers Trainer"):
        values = [peer["wall"] / ours["wall"] for peer, ours in zip(samples[name], samples["ours"], strict=True)]
        assert limits[f"{name} / ours"]["reached"] == pytest.approx([min(values), sum(values) / 2, max(values)])
        assert limits[f"{name} / ours"]["limit"] == 1.2
    assert report["left_out"][0] == "nanoGPT, without --nanogpt"


@pytest.mark.nightly
def test_bf16_is_measured_of_all_and_beside_our_float32(project_root, tmp_path):
    """Losses tell that the peer computed in bf16 too; the file has a name of its own."""
    arguments = ["--settings", "tiny", "--rounds", "1", "--only", "transformers", "ours, float32"]
    process = run_script(project_root, *arguments, "--mixed_precision", "bf16", "--json", str(tmp_path / "x.json"))
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "x-tiny-bf16.json").read_text(encoding="utf-8"))
    assert report["setting"].endswith(", bf16")
    losses = {name: samples[-1]["details"].get("losses") for name, samples in report["candidates"].items()}
    assert set(losses) == {"torch.mm", "ours", "ours, float32", "transformers"}
    assert 0 < abs(losses["ours"][0] - losses["ours, float32"][0]) < 5e-3
    assert 0 < abs(losses["transformers"][0] - losses["ours, float32"][0]) < 5e-3
    limits = {limit["text"]: (limit["bound"], limit["limit"]) for limit in report["limits"]}
    assert limits == {
        "ours, float32 / ours": ("at least", 2.3),
        "transformers / ours": ("at least", 1.3),
        "memory, ours / ours, float32": ("at most", 1.0),
    }


def samples_of(losses):
    return [Measurement(1.0, 1.0, 100.0, {"losses": losses})]


@pytest.mark.nightly
def test_another_model_cannot_take_part(report, tmp_path):
    """The same step from the same weights is let in, from other weights it is not."""
    ours = report["candidates"]["ours"][-1]["details"]["losses"]
    for seed, is_same in ((0, True), (1, False)):
        task = Task(**TINY, folder=str(tmp_path))
        draw_weights(task, seed)
        work = make_transformers(vars(task))
        losses = [work() for _ in range(3)][-1]["losses"]
        results = {"ours": samples_of(ours), "transformers": samples_of(losses)}
        if is_same:
            check_losses(results)
        else:
            with pytest.raises(ValueError, match="transformers does other work: its first losses are"):
                check_losses(results)


def test_every_loss_counts_to_the_fourth_digit():
    check_losses({"ours": samples_of([3.0, 2.0, 1.0]), "nanoGPT": samples_of([3.0, 2.0, 1.00009])})
    with pytest.raises(ValueError, match="nanoGPT does other work"):
        check_losses({"ours": samples_of([3.0, 2.0, 1.0]), "nanoGPT": samples_of([3.0, 2.0, 1.00011])})


def test_part_of_the_peak_and_memory_by_hand():
    """0.7553 and 0.7978 GFLOP a token, forward and backward, counted by hand for 256 and 1024 positions."""
    setting = replace(SETTINGS["124M-2x1024"])
    assert SETTINGS["124M-2x256"].flops / 512 == pytest.approx(0.7553e9, rel=1e-4)
    assert setting.flops / 2048 == pytest.approx(0.7978e9, rel=1e-4)
    # 24 products of 2 * 1024^3 FLOPs in half a second; a step at half that speed.
    seconds = setting.flops / (24 * 2 * 1024**3 / 0.5) * 2
    peers = {"nanoGPT": 4000.0, "transformers": 8000.0}
    results = {"torch.mm": [Measurement(1, 0.5, 1)], "ours": [Measurement(1, seconds, 3000.0)]}
    results |= {name: [Measurement(1, 3 * seconds, memory)] for name, memory in peers.items()}
    (peak,) = peak_limits([results], setting)
    assert peak["reached"] == pytest.approx([0.5] * 3)
    assert not peak["met"]
    reached = {limit["text"]: (limit["reached"][1], limit["met"]) for limit in memory_limits(results, setting)}
    assert reached["memory, ours / nanoGPT"] == (0.75, True)
    assert reached["memory, ours / transformers"] == (0.375, True)
    assert [limit["met"] for limit in speed_limits([results])] == [True, True]


def test_ours_is_in_every_group():
    for group in GROUPS:
        assert list(group)[:2] == ["torch.mm", "ours"]


@pytest.mark.parametrize("option", ["--settings", "--only"])
def test_unknown_names_end_in_one_line(project_root, option):
    process = run_script(project_root, option, "GPT-5")
    assert process.returncode == 1
    assert process.stderr.startswith("error: unknown 'GPT-5': choose from ")
    assert len(process.stderr.splitlines()) == 1
