"""Proves dropout masks on a CPU: their rate and mean, and that the same draws come back where they must."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_gpt_scratch.training.cpu.dropout import DropoutMasks
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.training.histories import rows, without_speed
from tests.training.runs_in_one_world import copy_at_step


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.5, 0.999999])
def test_rate_and_mean(p: float) -> None:
    """To five standard deviations of a million draws."""
    masks = DropoutMasks(p, seed=1)
    kept = masks.draw((1000, 1000)).double()
    wanted = 1 - min(round(p * 2**16), 2**16 - 1) / 2**16
    deviation = (wanted * (1 - wanted) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - wanted) <= 5 * deviation
    assert abs(wanted - (1 - p)) <= 2**-16
    assert masks.scale == pytest.approx(1 / wanted, rel=1e-12)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}


def test_draws_are_independent_of_their_neighbours_and_of_other_masks() -> None:
    """Correlations below five standard deviations: in a row, four apart (one draw of 64 bits) and between seeds."""
    first, second = (DropoutMasks(0.3, seed).draw((10**6,)).numpy().astype(float) for seed in (1, 2))
    pairs = [(first[:-shift], first[shift:]) for shift in (1, 2, 3, 4, 16)] + [(first, second)]
    assert all(abs(np.corrcoef(one, other)[0, 1]) < 5e-3 for one, other in pairs)
    assert np.corrcoef(first, first)[0, 1] > 0.99


def test_seeds_come_from_the_generator_of_pytorch() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.stack([DropoutMasks(0.5).draw((3, 5)) for _ in range(2)])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(*drawn(1))
    masks = DropoutMasks(0.5)
    again = DropoutMasks(0.5, masks.seed)
    assert all(torch.equal(masks.draw(shape), again.draw(shape)) for shape in [(7,), (2, 3), (0, 4), (5, 5)])


def run_of(settings: TrainingSettings) -> tuple[list[dict], dict[str, torch.Tensor]]:
    train(settings)
    folder = Path(settings.output_dir)
    return [without_speed(row) for row in rows(folder, "step")], load_file(folder / "model" / "model.safetensors")


def test_a_run_is_trained_with_it_and_resumes_to_the_last_bit(
    tiny_settings: Callable[..., TrainingSettings], tmp_path: Path
) -> None:
    """Windows long enough for attention block by block; the control: PyTorch's dropout draws something else."""
    changes = {"dropout": 0.2, "save_steps": 3, "max_position_embeddings": 64, "learning_rate": 1e-2}
    steps, weights = run_of(tiny_settings(**changes))
    copy_at_step(tmp_path / "run", tmp_path / "killed", step=3)
    resumed = run_of(tiny_settings(**changes, output_dir=str(tmp_path / "killed"), resume=True))
    assert resumed[0] == steps
    assert all(torch.equal(value, resumed[1][name]) for name, value in weights.items())
    other, _ = run_of(tiny_settings(**changes, output_dir=str(tmp_path / "torch"), cpu_speedups=False))
    assert other[0]["loss"] != steps[0]["loss"]
    assert "blockwise" not in json.dumps(json.loads((tmp_path / "run" / "model" / "config.json").read_text()))
