"""Opening a checkpoint of any kind: its file, its tensors, and the settings that lie beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_gpt_scratch.conversion.readers.named_tensors import NamedTensors
from hf_gpt_scratch.conversion.readers.safetensors_reader import INDEX_FILE, WEIGHTS_FILE, open_safetensors
from hf_gpt_scratch.conversion.readers.tensor_bundle import find_checkpoint_prefix, open_tensor_bundle
from hf_gpt_scratch.conversion.readers.tf_checkpoint import open_tf_checkpoint
from hf_gpt_scratch.runtime.files import model_of_run, read_json


TORCH_SUFFIXES = (".pth", ".pt", ".bin")
OURS = "gpt_scratch"


@dataclass
class Source:
    """An open checkpoint."""

    tensors: NamedTensors
    path: Path  # the file, or the prefix of a TensorFlow checkpoint
    reader: str
    hint: str | None = None  # name of the format, if the settings say it
    settings: dict[str, Any] = field(default_factory=dict)  # hparams.json, config.json or model_args; empty for none
    dropped: dict[str, str] = field(default_factory=dict)  # what is not a tensor of a model, with the reason
    files: list[Path] = field(default_factory=list)  # that make it up


def open_source(path: str | Path, reader: str = "bundle") -> Source:
    """Open a folder or file: TensorFlow's checkpoint, safetensors, or what torch.save wrote.

    Args:
        path: a folder; or a TensorFlow prefix, .index or `checkpoint` file; or a .safetensors, .pth, .pt or .bin file.
        reader: "bundle" reads TensorFlow's files without TensorFlow, "tensorflow" with it.

    Raises:
        FileNotFoundError: nothing is there, or nothing that holds weights.
        ValueError: a file is damaged or of an unknown kind, or a folder holds several that could be meant.
    """
    path = find_weights(Path(path))
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        source = Source(open_safetensors(path), path, "safetensors")
        source.files = sorted(path.parent.glob("model*.safetensors")) if path.suffix == ".json" else [path]
        return _read_model_config(source)
    if path.suffix in TORCH_SUFFIXES:
        # Imported here, because torch takes seconds and other checkpoints do without it.
        from hf_gpt_scratch.conversion.readers.torch_checkpoint import open_torch_checkpoint

        tensors, model_args, others = open_torch_checkpoint(path)
        source = Source(tensors, path, "torch", dropped=others, files=[path])
        if model_args:
            source.hint, source.settings = "nanogpt", model_args
            return source
        return _read_model_config(source)
    return _open_tensorflow(path, reader)


def find_weights(path: Path) -> Path:
    """Choose the file of a folder; a path to something else is returned as it is. For its errors see `open_source`."""
    if not path.is_dir():
        if not path.exists() and not Path(f"{path}.index").is_file():
            raise FileNotFoundError(f"{path} does not exist: give a checkpoint's folder or file")
        return path
    for name in (INDEX_FILE, WEIGHTS_FILE):
        if (path / name).is_file():
            return path / name
    if (path / "checkpoint").is_file() or any(path.glob("*.index")):
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in (*TORCH_SUFFIXES, ".safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found[:8])
        raise ValueError(f"{path} holds several checkpoints ({names}): give the one that is meant")
    if model := model_of_run(path):
        raise FileNotFoundError(f"{path} is the output folder of a run: give {model}")
    raise FileNotFoundError(
        f"{path} holds no checkpoint: no model.ckpt.index, no model.safetensors, no .pth, .pt or .bin file"
    )


def _open_tensorflow(path: Path, reader: str) -> Source:
    prefix = find_checkpoint_prefix(path)
    tensors = open_tf_checkpoint(prefix) if reader == "tensorflow" else open_tensor_bundle(prefix)
    hparams = prefix.parent / "hparams.json"
    return Source(
        tensors,
        prefix,
        reader,
        hint="openai" if any(name.startswith("model/") for name in tensors.shapes) else None,
        settings=read_settings(hparams) if hparams.is_file() else {},
        dropped=dict(tensors.skipped),
        files=sorted(
            file
            for file in prefix.parent.iterdir()
            if file.name.startswith((f"{prefix.name}.index", f"{prefix.name}.data-")) or file == hparams
        ),
    )


def _read_model_config(source: Source) -> Source:
    """Add the config.json that lies beside the weights; ValueError says that it is of another architecture."""
    path = source.path.parent / "config.json"
    if path.is_file():
        source.settings = read_settings(path)
        source.hint = source.settings.get("model_type")
        if source.hint not in (None, "gpt2", OURS):
            raise ValueError(f"{path} is of a {source.hint!r} model: only GPT-2 can be converted")
    return source


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError says that it is something else, and what to do."""
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}: fetch it again, or remove it if the shapes are to decide") from None
