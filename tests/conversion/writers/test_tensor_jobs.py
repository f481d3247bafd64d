"""Proves that values are cut and turned as numpy does it at once, for every layout and sizes that fit no tile."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.conversion.mapping import Layout, Move, Plan
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors
from hf_gpt_scratch.conversion.readers.tensor_bundle import open_tensor_bundle
from hf_gpt_scratch.conversion.readers.tf_paths import CheckpointError
from hf_gpt_scratch.conversion.writers import tensor_jobs
from hf_gpt_scratch.conversion.writers.parallel_writer import Buffer
from hf_gpt_scratch.conversion.writers.tensor_jobs import TILE_ROWS, plan_jobs
from tests.conversion.bundle_writer import write_bundle
from tests.conversion.light_interpreter import PEAK, run_light


class Arrays(NamedTensors):
    """Arrays in memory."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self.dtypes = {name: array.dtype for name, array in arrays.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def made(source: np.ndarray, layout: Layout, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Do the one job of a plan, as the writer does: each block is copied before the next is asked for."""
    (job,) = plan_jobs(Plan([Move("x", tuple(shapes), layout)], shapes), Arrays(x=source))
    flat = {name: np.empty(0, source.dtype) for name in shapes}
    for name, values in job(Buffer()):
        assert values.flags.c_contiguous
        flat[name] = np.concatenate([flat[name], values.reshape(-1)])
    return {name: values.reshape(shapes[name]) for name, values in flat.items()}


def draw(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("rows", [1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 3 * TILE_ROWS])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
@pytest.mark.parametrize("layout", [Layout.CONV1D, Layout.CONV1D_TF])
def test_matrices_are_turned_and_cut(rows: int, dtype: str, layout: Layout) -> None:
    source = draw(rows, 3 * 37, dtype=dtype)
    shapes = dict.fromkeys("qkv", (37, rows))
    result = made(source[None] if layout is Layout.CONV1D_TF else source, layout, shapes)
    for name, expected in zip("qkv", np.split(source.T, 3), strict=True):
        assert np.array_equal(result[name], expected)
        assert not np.array_equal(result[name], expected[::-1])


@pytest.mark.parametrize("turned_bytes", [1, 1000, 10_000, 1 << 24], ids=["column", "few", "many", "whole"])
@pytest.mark.parametrize("targets", ["q", "qkv"])
def test_matrices_are_turned_in_stripes(turned_bytes: int, targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the rows fit the tiles nor the columns of a part the stripes."""
    monkeypatch.setattr(tensor_jobs, "TURNED_BYTES", turned_bytes)
    source = draw(TILE_ROWS + 3, 3 * 37)
    shapes = dict.fromkeys(targets, (3 * 37 // len(targets), len(source)))
    result = made(source[None], Layout.CONV1D_TF, shapes)
    for name, expected in zip(targets, np.split(source.T, len(targets)), strict=True):
        assert np.array_equal(result[name], expected)


@pytest.mark.parametrize("turned_bytes", [1, 1 << 24], ids=["stripes", "whole"])
def test_a_damaged_matrix_is_told(turned_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_jobs, "TURNED_BYTES", turned_bytes)
    write_bundle(tmp_path / "model.ckpt", {"x": draw(10, 30)})
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    (job,) = plan_jobs(Plan([Move("x", ("y",), Layout.CONV1D)], {"y": (30, 10)}), open_tensor_bundle(tmp_path))
    with pytest.raises(CheckpointError, match="is damaged at x .its checksum is"):
        list(job(Buffer()))


MEMORY_PROGRAM = f"""{PEAK}
import sys
from hf_gpt_scratch.conversion import tensor_jobs
from hf_gpt_scratch.conversion.mapping import Layout, Move, Plan
from hf_gpt_scratch.conversion.writers.parallel_writer import Buffer
from hf_gpt_scratch.conversion.readers.tensor_bundle import open_tensor_bundle
tensor_jobs.TURNED_BYTES = int(sys.argv[2])
bundle = open_tensor_bundle(sys.argv[1])
before = peak()
(job,) = tensor_jobs.plan_jobs(Plan([Move("x", ("y",), Layout.CONV1D)], {{"y": (8192, 2048)}}), bundle)
for _ in job(Buffer()):
    pass
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux shows it")
@pytest.mark.parametrize(
    ("turned_bytes", "least", "most"), [(1 << 24, 16, 32), (1 << 30, 64, 80)], ids=["stripes", "whole"]
)
def test_memory_of_a_matrix_of_64_mib(turned_bytes: int, least: int, most: int, tmp_path: Path) -> None:
    write_bundle(tmp_path / "model.ckpt", {"x": draw(2048, 8192)})
    process = run_light(MEMORY_PROGRAM, str(tmp_path), str(turned_bytes))
    assert least < float(process.stdout) < most


@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 22])
def test_rows_are_copied_and_cut(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_jobs, "PIECE_BYTES", piece_bytes)
    matrix, vector = draw(33, 5), draw(33)
    for source in (matrix, vector):
        result = made(source, Layout.LINEAR, dict.fromkeys("qkv", (11, *source.shape[1:])))
        assert all(np.array_equal(result[name], part) for name, part in zip("qkv", np.split(source, 3), strict=True))
    assert np.array_equal(made(matrix, Layout.LINEAR, {"e": (30, 5)})["e"], matrix[:30])  # a vocabulary cut
    assert np.array_equal(made(matrix, Layout.LINEAR, {"e": (2, 5)})["e"], matrix[:2])


def test_what_the_source_has_not_is_zero() -> None:
    (job,) = plan_jobs(Plan([], {"b": (3,)}, zeros=["b"]), Arrays())
    ((name, values),) = job(Buffer())
    assert (name, values.dtype, values.tolist()) == ("b", np.float32, [0, 0, 0])
