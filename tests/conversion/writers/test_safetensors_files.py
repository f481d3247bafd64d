"""Proves that our writer and reader agree with the safetensors library, and rounding with torch, for every value."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_gpt_scratch.conversion.writers.safetensors_files import (
    SafetensorsFiles,
    cast,
    open_safetensors,
    parse_size,
    split_into_shards,
    write_model,
)


def write(folder: Path, tensors: dict[str, np.ndarray], dtype: str, max_shard_size: int = 10**9) -> Path:
    """Each tensor by a job of its own, in two blocks; returns the first file."""
    folder.mkdir(exist_ok=True)
    jobs = [
        lambda buffer, name=name, values=values: [(name, values[:1]), (name, values[1:])]
        for name, values in tensors.items()
    ]
    shapes = {name: values.shape for name, values in tensors.items()}
    return write_model(folder, shapes, jobs, dtype, max_shard_size)[0]


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
        job = lambda buffer, count=count: [("short", np.zeros(count, np.float32))]  # noqa: E731
        zeros = lambda buffer: [("next", np.zeros(2, np.float32))]  # noqa: E731
        with pytest.raises(RuntimeError, match=message):
            write_model(folder, {"short": (4,), "next": (2,)}, [job, zeros], "float32", 10**9)


def test_tensors_of_whole_pages_begin_with_a_page(tmp_path: Path) -> None:
    values = {"odd": np.ones((3, 5), "f4"), "page": np.ones((2, 512), "f4"), "pages": np.ones((4, 1024), "f4")}
    path = write(tmp_path, values, "float32")
    places = [SafetensorsFiles([path])._places[name][1] for name in ("page", "pages", "odd")]
    assert places == [4096, 8192, 8192 + 4 * 4096]


def test_shards_are_filled_in_order() -> None:
    shapes = {str(n): (size,) for n, size in enumerate([10, 10, 30, 5, 5])}
    shards = split_into_shards(shapes, "float32", 80)
    assert [list(shard) for shard in shards] == [["0", "1"], ["2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5 * 10**9), ("200 MB", 2 * 10**8), ("10kb", 10**4), ("1GiB", 2**30), ("5000", 5000)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-5GB", "5XB", "GB", "1e9", "5GB extra"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: write it like 5GB"):
        parse_size(text)


def test_bad_indexes_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, error, message in (
        (
            {"a": "one.safetensors", "b": "two.safetensors"},
            ValueError,
            "a is in one.safetensors and in two.safetensors",
        ),
        ({"a": "one.safetensors", "c": "one.safetensors"}, ValueError, "disagree about c"),
        ({"a": "gone.safetensors"}, FileNotFoundError, "names gone.safetensors, which is not there"),
        ({"a": "../one.safetensors"}, ValueError, "must lie beside the index"),
        ({"a": str(tmp_path / "one.safetensors")}, ValueError, "must lie beside the index"),
        ({"a": 3}, ValueError, "no index|must lie beside"),
        ([1], ValueError, "no index of safetensors files"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(error, match=message):
            open_safetensors(index)
    index.write_text("<html>")
    with pytest.raises(ValueError, match="no index of safetensors files"):
        open_safetensors(index)
    (tmp_path / "html.safetensors").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        open_safetensors(tmp_path / "html.safetensors")
