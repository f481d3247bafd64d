"""Bring the code of an older model folder up to date: the code files, and what config.json says of them."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hf_gpt_scratch.runtime.files import clear_unfinished, json_text, model_of_run, write_file, write_json
from hf_gpt_scratch.runtime.remote_code import AUTO_MAP, CODE_FILES, is_code, read_code


def update_config(config: bytes, tokenizer_config: bytes, place: str) -> bytes:
    """Return config.json as this package would write it, with its code files and the class of the tokenizer.

    Args:
        config: the file as it is; it is returned as it is if nothing has to change.
        tokenizer_config: tokenizer_config.json beside it; an empty object if there is none.
        place: the folder or repository, for the error.

    Raises:
        ValueError: it is not the config of a model of this project; one line.
    """
    fields = parse_object(config)
    if not fields:
        raise ValueError(f"cannot update {place}: its config.json is not a JSON object with a model_type: restore it")
    if fields.get("model_type") != "gpt_scratch":
        raise ValueError(
            f"cannot update {place}: its config.json has the model_type {fields.get('model_type')!r}, not "
            "'gpt_scratch': name a repository or folder that this project made"
        )
    named = fields.get("auto_map") or {}
    others = {name: reference for name, reference in named.items() if "_gpt_scratch." not in str(reference)}
    updated: dict[str, Any] = fields | {"auto_map": others | AUTO_MAP}
    tokenizer_class = parse_object(tokenizer_config).get("tokenizer_class")
    if tokenizer_class and not fields.get("tokenizer_class"):
        updated["tokenizer_class"] = tokenizer_class
    return config if updated == fields else json_text(updated).encode()


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object; anything else counts as an empty one."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def update_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Replace the code files of a model folder by those of this package, and what config.json says of them.

    Whenever this is killed, the folder can be loaded, and the next call completes it: while the files are replaced one
    by one, config.json names a second set of the new ones. Weights and all other files stay as they are. Returns the
    names of the files that were written, and of those that were removed; both empty if all was up to date.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        ValueError: it is not a folder of this project, or holds something else where a file is to be replaced; one
            line.
        OSError: a file cannot be written.
    """
    config_file, tokenizer_config = folder / "config.json", folder / "tokenizer_config.json"
    if not config_file.is_file():
        hint = f": did you mean {model}?" if (model := model_of_run(folder)) else ""
        raise FileNotFoundError(f"cannot update {folder}: it holds no config.json, so it is not a model folder{hint}")
    old_config = config_file.read_bytes()
    config = update_config(
        old_config, tokenizer_config.read_bytes() if tokenizer_config.is_file() else b"{}", str(folder)
    )
    present = [path for path in folder.iterdir() if is_code(path.name)]
    for path in (*present, config_file):
        if path.is_symlink():
            raise ValueError(f"cannot update {folder}: {path.name} is a link, put the file itself there")
        if not path.is_file():
            raise ValueError(f"cannot update {folder}: {path.name} is not a regular file, move it away")
    clear_unfinished(folder)
    code = read_code()
    written = [name for name in CODE_FILES if not holds(folder / name, code[name])]
    removed = sorted(path.name for path in present if path.name not in code)
    interim = write_interim(folder, code, config) if written else []
    for name in written:
        write_file(folder / name, code[name])
    if interim or config != old_config:
        write_file(config_file, config)
    for name in {*removed, *interim}:
        (folder / name).unlink()
    return written + [config_file.name] * (config != old_config), removed


def holds(path: Path, content: bytes) -> bool:
    """Return True if a file is there and holds that."""
    return path.is_file() and path.read_bytes() == content


def write_interim(folder: Path, code: dict[str, bytes], config: bytes) -> list[str]:
    """Write the new code under other names, have config.json name that, and return the names.

    They differ between releases, so that an update of another one that was killed has no files of the same names.
    """
    prefix = f"interim_{hashlib.sha256(b''.join(code.values())).hexdigest()[:8]}_"
    for name, content in code.items():
        importing = re.sub(rb"(?<=from \.)(?=\w+_gpt_scratch import)", prefix.encode(), content)
        write_file(folder / f"{prefix}{name}", importing)
    fields = json.loads(config)
    auto_map = fields["auto_map"] | {auto_class: f"{prefix}{place}" for auto_class, place in AUTO_MAP.items()}
    write_json(folder / "config.json", fields | {"auto_map": auto_map})
    return [f"{prefix}{name}" for name in code]
