"""Proves that our writer and reader agree with the safetensors library, and rounding with torch, for every value."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_gpt_scratch.conversion.readers.safetensors_reader import SafetensorsFiles
from hf_gpt_scratch.conversion.writers.safetensors_writer import cast, write_model


def write(folder: Path, tensors: dict[str, np.ndarray], dtype: str, max_shard_size: int = 10**9) -> Path:
    """Each tensor in two blocks, the last tensor first; returns the first file."""
    folder.mkdir(exist_ok=True)
    blocks = [(name, part) for name in reversed(tensors) for part in (tensors[name][:1], tensors[name][1:])]
    shapes = {name: values.shape for name, values in tensors.items()}
    return write_model(folder, shapes, blocks, dtype, max_shard_size)[0]


def test_bfloat16_rounds_as_torch_does() -> None:
    every_upper_half = np.arange(65536, dtype=np.uint32) << np.uint32(16)
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (every_upper_half | np.uint32(lower)).view(np.float32)
        values = values[np.isfinite(values) & (np.abs(values) < 3.3e38)]
        expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
        assert np.array_equal(cast(values, "bfloat16"), expected)


def test_not_finite_values_stay_what_they_are() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    values[0] = np.uint32(0x7F800001).view(np.float32)  # a NaN that truncation would turn into infinity
    for dtype, torch_dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        stored = torch.from_numpy(cast(values, dtype).copy()).view(torch_dtype).float()
        assert stored.isnan().tolist() == [True, False, False, False]
        assert stored[1:].tolist() == [np.inf, -np.inf, 1.0]


@pytest.mark.parametrize(("dtype", "value"), [("float16", 65520.0), ("bfloat16", 3.4e38), ("float16", -7e4)])
def test_overflow_is_refused(dtype: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"big has values too large for {dtype}: use --dtype"):
        write(tmp_path, {"big": np.float32([[1], [value]])}, dtype)


def test_the_library_loads_what_is_written(tmp_path: Path) -> None:
    values = {name: np.random.default_rng(0).normal(size=shape).astype("f4") for name, shape in
              {"odd": (3, 5), "a": (7,), "matrix": (4, 6)}.items()}  # fmt: skip
    for dtype in ("float32", "float16", "bfloat16"):
        path = write(tmp_path / dtype, values, dtype)
        loaded = load_file(path)
        for name, array in values.items():
            assert torch.equal(loaded[name], torch.from_numpy(array).to(getattr(torch, dtype)))
        ours = SafetensorsFiles([path])
        assert all(np.array_equal(ours[name], loaded[name].float().numpy()) for name in values)
        assert list(ours) == list(values)


def test_wrong_number_of_values_does_not_pass(tmp_path: Path) -> None:
    for count, message in ((3, "short got too few values"), (5, "short got more values than it has")):
        folder = tmp_path / str(count)
        folder.mkdir()
        blocks = [("short", np.zeros(count, np.float32)), ("next", np.zeros(2, np.float32))]
        with pytest.raises(RuntimeError, match=message):
            write_model(folder, {"short": (4,), "next": (2,)}, blocks, "float32", 10**9)


def test_shards_are_filled_in_order(tmp_path: Path) -> None:
    """A tensor above the limit has a file of its own."""
    shapes = {str(n): (size,) for n, size in enumerate([10, 10, 30, 5, 5])}
    blocks = [(name, np.ones(shape, np.float32)) for name, shape in shapes.items()]
    paths = write_model(tmp_path, shapes, blocks, "float32", 80)
    assert [path.name for path in paths] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert [sorted(load_file(path)) for path in paths] == [["0", "1"], ["2"], ["3", "4"]]
    metadata = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]
    assert metadata == {"total_parameters": 60, "total_size": 240}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_path = Path.open

    def open_full(path: Path, mode: str = "r", *options: object) -> object:
        return open_path(Path("/dev/full") if mode == "r+b" else path, mode, *options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="No space left on device.*model.safetensors"):
        write(tmp_path, {"a": np.zeros((2, 1 << 16), np.float32)}, "float32")
