"""safetensors files with numpy only: read memory-mapped, written by a few threads while the values are made.

Format: https://huggingface.co/docs/safetensors, a header in JSON before the raw little-endian values.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors, Shape
from hf_gpt_scratch.conversion.writers.parallel_writer import PIECE_BYTES, Buffer, ParallelWriter, reserve, run_jobs
from hf_gpt_scratch.runtime.files import flush, name_file_in_errors


WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PAGE_BYTES = 4096


# Name of a dtype -> its code in a header, and the numpy dtype of the stored bytes; numpy knows no bfloat16.
STORED = {"float32": ("F32", "<f4"), "float16": ("F16", "<f2"), "bfloat16": ("BF16", "<u2")}
CODES = dict(STORED.values()) | {"F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "|b1"}
CODES |= {"U8": "|u1", "I8": "|i1"}


# Makes some tensors, each in order and whole: (name, next values), C-contiguous arrays of float32 or float16. It may
# use the buffer for them; each array is done with when the next is asked for.
Job = Callable[[Buffer], Iterable[tuple[str, np.ndarray]]]


def num_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of a tensor in a file."""
    return math.prod(shape) * np.dtype(STORED[dtype][1]).itemsize


def cast(block: np.ndarray, dtype: str) -> np.ndarray:
    """Round to nearest, ties to even, and return the values as they are stored (bfloat16 as uint16).

    Raises:
        OverflowError: a finite value would become infinite.
    """
    if dtype == "float32":
        return block.astype("<f4", copy=False)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            rounded = block.astype("<f2", copy=False)
        if np.isinf(rounded).any() and (np.isinf(rounded) & np.isfinite(block)).any():
            raise OverflowError
        return rounded
    bits = np.ascontiguousarray(block, dtype="<f4").view("<u4")
    # Adding just under half of the last kept place, and one more where that place is odd, carries as rounding does.
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    if not np.isfinite(block).all():
        rounded = np.where(np.isnan(block), ((bits >> np.uint32(16)) | np.uint32(0x40)).astype("<u2"), rounded)
    if ((rounded & 0x7FFF == 0x7F80) & np.isfinite(block)).any():
        raise OverflowError
    return rounded


@dataclass
class Place:
    """Where the next values of a tensor go, and where it ends, in bytes of a file."""

    path: Path
    position: int
    end: int


def begin_file(path: Path, shapes: Mapping[str, Shape], dtype: str) -> dict[str, Place]:
    """Make a new file of the right size that holds the header only, and say where each tensor goes.

    Tensors that fill whole pages come first, each at the start of a page, so that no page is written twice.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    names = sorted(shapes, key=lambda name: num_bytes(shapes[name], dtype) % PAGE_BYTES > 0)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + num_bytes(shapes[name], dtype)
        header[name] = {"dtype": STORED[dtype][0], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE_BYTES)
    reserve(path, 8 + len(text) + end)
    with name_file_in_errors(path), path.open("r+b") as file:
        file.write(len(text).to_bytes(8, "little") + text)
    places = {}
    for name in names:
        first, last = header[name]["data_offsets"]
        places[name] = Place(path, 8 + len(text) + first, 8 + len(text) + last)
    return places


def fill_files(places: Mapping[str, Place], jobs: Iterable[Job], dtype: str) -> None:
    """Do the jobs and write what they make.

    Raises:
        ValueError: a value is too large for the dtype.
        OSError: a file cannot be written.
    """
    writer = ParallelWriter()

    def write(name: str, values: np.ndarray) -> None:
        place = places[name]
        try:
            stored = cast(values, dtype)
        except OverflowError:
            raise ValueError(f"{name} has values too large for {dtype}: use --dtype float32 or bfloat16") from None
        if place.position + stored.nbytes > place.end:
            raise RuntimeError(f"{name} got more values than it has")
        writer.write(place.path, place.position, stored)
        place.position += stored.nbytes

    def do(job: Job, buffer: Buffer) -> None:
        for name, values in job(buffer):
            step = PIECE_BYTES // values.itemsize
            for start in range(0, values.size, step):
                write(name, values.reshape(-1)[start : start + step])

    run_jobs(partial(do, job) for job in jobs)
    if short := [name for name, place in places.items() if place.position != place.end]:
        raise RuntimeError(f"{', '.join(short[:8])} got too few values")


def split_into_shards(shapes: Mapping[str, Shape], dtype: str, max_shard_size: int) -> list[dict[str, Shape]]:
    """Fill one file after the other; a tensor above `max_shard_size` bytes gets a file of its own."""
    shards: list[dict[str, Shape]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + num_bytes(shape, dtype) > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += num_bytes(shape, dtype)
    return shards


def write_model(
    folder: Path, shapes: Mapping[str, Shape], jobs: Iterable[Job], dtype: str, max_shard_size: int
) -> list[Path]:
    """Write one file, or several and the index that transformers reads, and flush them to the disk.

    Args:
        folder: where they go.
        shapes: name and shape of every tensor, in their order.
        jobs: together they make every tensor once.
        dtype: "float32", "bfloat16" or "float16".
        max_shard_size: bytes of the largest file.

    Returns:
        The weight files.

    Raises:
        ValueError: a value is too large for the dtype.
        OSError: the disk is full or cannot be written.
    """
    shards = split_into_shards(shapes, dtype, max_shard_size)
    if len(shards) == 1:
        paths = [folder / WEIGHTS_FILE]
    else:
        paths = [folder / f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
        write_index(folder / INDEX_FILE, dict(zip(paths, shards, strict=True)), dtype)
    places: dict[str, Place] = {}
    for path, shard in zip(paths, shards, strict=True):
        places |= begin_file(path, shard, dtype)
    fill_files(places, jobs, dtype)
    for path in paths:
        flush(path)
    return paths


def write_index(path: Path, shards: Mapping[Path, Mapping[str, Shape]], dtype: str) -> None:
    """Write which tensor is in which file, as transformers does."""
    shapes = [shape for shard in shards.values() for shape in shard.values()]
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(shape) for shape in shapes),
            "total_size": sum(num_bytes(shape, dtype) for shape in shapes),
        },
        "weight_map": dict(sorted((name, file.name) for file, shard in shards.items() for name in shard)),
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def parse_size(text: str) -> int:
    """Bytes of "5GB", "200MB" or "10KB" (powers of ten, as transformers has it), "5GiB" (powers of two) or "5000".

    Raises:
        ValueError: it is none of these, or zero.
    """
    match = re.fullmatch(r"\s*(\d+)\s*(?:([KMG])(i?)B)?\s*", text, re.IGNORECASE)
    number = int(match[1]) if match else 0
    if not number:
        raise ValueError(f"--max-shard-size {text!r} is no size: write it like 5GB or 200MB")
    power = " KMG".index((match[2] or " ").upper())
    return number * (1024 if match[3] else 1000) ** power


class SafetensorsFiles(NamedTensors):
    """The tensors of one or several files, memory-mapped; bfloat16 becomes float32, which holds it exactly.

    Attributes:
        shapes: shape of each tensor.
        dtypes: numpy dtype of each tensor, as it is handed out.
        codes: dtype of each tensor, as it is stored, such as "BF16".

    Raises:
        ValueError: a file is no valid safetensors file, or two files hold the same name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.codes: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        for path in paths:
            self._enter(path)

    def _enter(self, path: Path) -> None:
        _refuse_damage(path)
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            code = entry["dtype"]
            if name in self._places:
                raise ValueError(f"{name} is in {self._places[name][0].name} and in {path.name}: remove one of them")
            if code not in CODES:
                raise ValueError(f"{name} in {path} has dtype {code}: save it as F32, F16 or BF16")
            self.shapes[name] = tuple(entry["shape"])
            self.dtypes[name] = np.dtype(np.float32 if code == "BF16" else CODES[code])
            self.codes[name] = code
            self._places[name] = (path, 8 + header_size + entry["data_offsets"][0])

    def stored(self, name: str) -> np.ndarray:
        """The values as they are in the file, bfloat16 as uint16."""
        (path, offset), code = self._places[name], self.codes[name]
        if 0 in self.shapes[name]:
            return np.zeros(self.shapes[name], CODES[code])
        return np.memmap(path, CODES[code], "r", offset, self.shapes[name])

    def __getitem__(self, name: str) -> np.ndarray:
        values = self.stored(name)
        if self.codes[name] == "BF16":
            return (values.astype("<u4") << np.uint32(16)).view("<f4")
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _refuse_damage(path: Path) -> None:
    """Let the library check the header: its length, offsets without holes or overlap, the size of the file."""
    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole safetensors file ({reason}): fetch it again") from None


def open_safetensors(path: Path) -> SafetensorsFiles:
    """Open a .safetensors file, or the model.safetensors.index.json of several.

    Raises:
        ValueError: a file is damaged, or the index does not say what is in its files.
        FileNotFoundError: a file that the index names is missing.
    """
    if path.suffix != ".json":
        return SafetensorsFiles([path])
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no index of safetensors files: fetch it again") from None
    if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise ValueError(f"{path} names the file {outside[0]!r}: the files must lie beside the index")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise FileNotFoundError(f"{path} names {', '.join(missing)}, which is not there: fetch it too")
    files = SafetensorsFiles(path.parent / name for name in names)
    if set(files) != set(weight_map):
        odd = sorted(set(files) ^ set(weight_map))
        raise ValueError(f"{path} and its files disagree about {', '.join(odd[:8])}: fetch them again")
    return files
