"""Proves that values are split and transposed as numpy does it at once, for every layout and block size."""

import sys
from pathlib import Path

import numpy as np
import pytest

from hf_gpt_scratch.conversion.mapping import Layout, MappingPlan, Row
from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors
from hf_gpt_scratch.conversion.readers.tensor_bundle import CheckpointError, open_tensor_bundle
from hf_gpt_scratch.conversion.writers import tensor_blocks as module
from hf_gpt_scratch.conversion.writers.tensor_blocks import tensor_blocks
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


def made(source: np.ndarray, layout: Layout, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Make the targets of one source tensor, as the writer does: block after block."""
    plan = MappingPlan([Row("x", tuple(shapes), layout)], shapes)
    flat = {name: np.empty(0, source.dtype) for name in shapes}
    for name, values in tensor_blocks(plan, Arrays(x=source)):
        assert values.flags.c_contiguous
        assert values.nbytes <= max(module.BLOCK_BYTES, values[0].nbytes)
        flat[name] = np.concatenate([flat[name], values.reshape(-1)])
    return {name: values.reshape(shapes[name]) for name, values in flat.items()}


def draw(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.fixture(params=[1, 1000, 1 << 20], ids=["row", "few", "whole"])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("rows", [1, 67])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
@pytest.mark.parametrize("layout", [Layout.CONV1D, Layout.CONV1D_TF])
@pytest.mark.parametrize("targets", ["q", "qkv"])
def test_matrices_are_transposed_and_split(rows: int, dtype: str, layout: Layout, targets: str) -> None:
    source = draw(rows, 3 * 37, dtype=dtype)
    shapes = dict.fromkeys(targets, (3 * 37 // len(targets), rows))
    result = made(source[None] if layout is Layout.CONV1D_TF else source, layout, shapes)
    for name, expected in zip(targets, np.split(source.T, len(targets)), strict=True):
        assert np.array_equal(result[name], expected)
        assert not np.array_equal(result[name], expected[::-1])


def test_a_damaged_matrix_is_told(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model.ckpt", {"x": draw(10, 30)})
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    plan = MappingPlan([Row("x", ("y",), Layout.CONV1D)], {"y": (30, 10)})
    with pytest.raises(CheckpointError, match="is truncated or corrupt at x .its checksum is"):
        list(tensor_blocks(plan, open_tensor_bundle(tmp_path)))


MEMORY_PROGRAM = f"""{PEAK}
import sys
from hf_gpt_scratch.conversion.mapping import Layout, MappingPlan, Row
from hf_gpt_scratch.conversion.readers.tensor_bundle import open_tensor_bundle
from hf_gpt_scratch.conversion.writers import tensor_blocks as module
module.BLOCK_BYTES = int(sys.argv[2])
bundle = open_tensor_bundle(sys.argv[1])
before = peak()
for _ in module.tensor_blocks(MappingPlan([Row("x", ("y",), Layout.CONV1D)], {{"y": (8192, 2048)}}), bundle):
    pass
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux shows it")
@pytest.mark.parametrize(("block_bytes", "least", "most"), [(1 << 20, 1, 80), (1 << 30, 120, 160)])
def test_memory_of_a_matrix_of_64_mib(block_bytes: int, least: int, most: int, tmp_path: Path) -> None:
    """Its mapped pages, which are released after each block, and the block."""
    write_bundle(tmp_path / "model.ckpt", {"x": draw(2048, 8192)})
    process = run_light(MEMORY_PROGRAM, str(tmp_path), str(block_bytes))
    assert least < float(process.stdout) < most


@pytest.mark.usefixtures("block_bytes")
def test_rows_are_copied_and_cut() -> None:
    matrix, vector = draw(33, 5), draw(33)
    for source in (matrix, vector):
        result = made(source, Layout.LINEAR, dict.fromkeys("qkv", (11, *source.shape[1:])))
        assert all(np.array_equal(result[name], part) for name, part in zip("qkv", np.split(source, 3), strict=True))
    assert np.array_equal(made(matrix, Layout.LINEAR, {"e": (30, 5)})["e"], matrix[:30])  # a vocabulary cut
    assert np.array_equal(made(matrix, Layout.LINEAR, {"e": (2, 5)})["e"], matrix[:2])


def test_what_the_source_has_not_is_zero() -> None:
    ((name, values),) = tensor_blocks(MappingPlan([], {"b": (3,)}, zeros=["b"]), Arrays())
    assert (name, values.dtype, values.tolist()) == ("b", np.float32, [0, 0, 0])
