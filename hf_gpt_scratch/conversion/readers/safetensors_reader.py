"""safetensors files as memory-mapped numpy arrays, read without torch."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors, Shape


WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Name of a dtype -> its code in a header, and the numpy dtype of the stored bytes; numpy has no bfloat16.
STORED = {"float32": ("F32", "<f4"), "float16": ("F16", "<f2"), "bfloat16": ("BF16", "<u2")}
CODES = dict(STORED.values()) | {"F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "|b1", "U8": "|u1", "I8": "|i1"}


def widen_bfloat16(stored: np.ndarray) -> np.ndarray:
    """Return bfloat16, stored as uint16, as the float32 that holds it exactly; other arrays unchanged."""
    return (stored.astype("<u4") << np.uint32(16)).view("<f4") if stored.dtype == np.uint16 else stored


class SafetensorsFiles(NamedTensors):
    """The tensors of one or several files, memory-mapped; bfloat16 becomes float32. `codes` has the stored dtypes.

    ValueError: a file is not a valid safetensors file, or two files hold the same name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.codes: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        for path in paths:
            self._add_file(path)

    def _add_file(self, path: Path) -> None:
        try:
            # The library checks the header: its length, offsets without holes or overlap, the size of the file.
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is truncated or corrupt ({reason}): fetch it again") from None
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

    def __getitem__(self, name: str) -> np.ndarray:
        (path, offset), dtype = self._places[name], CODES[self.codes[name]]
        if 0 in self.shapes[name]:
            return np.zeros(self.shapes[name], self.dtypes[name])
        stored = np.memmap(path, dtype, "r", offset, self.shapes[name])
        return widen_bfloat16(stored)


def open_safetensors(path: Path) -> SafetensorsFiles:
    """Open a .safetensors file, or the model.safetensors.index.json of several.

    ValueError: a file is damaged, or the index does not say what is in its files; FileNotFoundError: one is missing.
    """
    if path.suffix != ".json":
        return SafetensorsFiles([path])
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not an index of safetensors files: fetch it again") from None
    if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise ValueError(f"{path} names the file {outside[0]!r}: the files must lie beside the index")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise FileNotFoundError(f"{path} names {', '.join(missing)}, which is not there: fetch it too")
    files = SafetensorsFiles(path.parent / name for name in names)
    if differing := sorted(set(files) ^ set(weight_map)):
        raise ValueError(f"{path} and its files disagree about {', '.join(differing[:8])}: fetch them again")
    return files
