"""The check of a model folder before a push: it is complete, and holds nothing else."""

import codecs
import re
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_gpt_scratch.runtime.files import model_of_run, read_json
from hf_gpt_scratch.runtime.remote_code import CODE_FILES, is_code


WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
REQUIRED = ("README.md", "config.json", "tokenizer.json", "tokenizer_config.json")
OPTIONAL = (
    *("LICENSE", "added_tokens.json", "chat_template.jinja", "conversion_report.json", "generation_config.json"),
    *("loss.png", "merges.txt", "special_tokens_map.json", "vocab.json", WEIGHTS, WEIGHTS_INDEX),
)
# Keys of well-known forms, and private keys.
SECRET = re.compile(
    rb"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,}|sk-[A-Za-z0-9_-]{40,}"
    rb"|AKIA[A-Z0-9]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{20,})\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000  # what safetensors itself allows


def may_be_pushed(name: str) -> bool:
    """Return True if a model repository of this project may hold a file of this name.

    The names are a fixed list. Weights are safetensors alone: formats that are loaded by pickle, such as
    pytorch_model.bin, can run code and have no name here.
    """
    return name in REQUIRED or name in OPTIONAL or name in CODE_FILES or SHARD_NAME.fullmatch(name) is not None


def check_folder(folder: str | Path) -> list[Path]:
    """Check all files of a folder before any of them leaves this machine.

    Returns:
        The files, sorted by name.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it holds foreign files, is not complete, or is the output folder of a run; one line that names
            everything.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"cannot push {folder}: there is no such folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot push {folder}: it is a file, name the folder that holds it")
    if model := model_of_run(folder):
        raise ValueError(f"cannot push {folder}: it is the output folder of a run: push {model}")
    paths = sorted(folder.iterdir())
    problems = foreign_files(paths)
    if not problems:
        problems = [*missing_files(folder), *corrupt_files(folder), *files_with_secrets(paths)]
    if problems:
        raise ValueError(f"cannot push {folder}: {'; '.join(problems)}")
    return paths


def foreign_files(paths: list[Path]) -> list[str]:
    """List links, what is not a regular file, and names that do not belong into a model repository."""
    problems = []
    for path in paths:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            problems.append(f"{path.name} is a link, put the file itself there")
        elif not stat.S_ISREG(mode):
            problems.append(f"{path.name} is not a regular file, move it away")
        elif is_code(path.name) and path.name not in CODE_FILES:
            problems.append(f"{path.name} is code of another release, bring it up to date by --update_code")
        elif not may_be_pushed(path.name):
            problems.append(f"{path.name} does not belong into a model repository, move it away")
    if len(problems) > 8:
        return [*problems[:8], f"and {len(problems) - 8} more such files"]
    return problems


def missing_files(folder: Path) -> list[str]:
    """List missing files, and weights that nobody who loads the repository would read."""
    there = {path.name for path in folder.iterdir()}
    weights = {name for name in there if name.endswith(".safetensors")}
    expected = set(shards_by_tensor(folder).values()) if WEIGHTS_INDEX in there else {WEIGHTS}
    missing = sorted(({*REQUIRED, *code_files(folder)} | expected) - there)
    problems = [f"it lacks {', '.join(missing)}"] if missing else []
    return problems + [f"{name} belongs to other weights, move it away" for name in sorted(weights - expected)]


def shards_by_tensor(folder: Path) -> dict[str, str]:
    """Read the index of a sharded model: tensor name -> file name."""
    weight_map = read_if_valid(folder / WEIGHTS_INDEX).get("weight_map")
    return {name: str(shard) for name, shard in weight_map.items()} if isinstance(weight_map, dict) else {}


def code_files(folder: Path) -> set[str]:
    """Return the files that config.json has the Auto classes import, and those that these import."""
    config = read_if_valid(folder / "config.json")
    auto_map = config.get("auto_map")
    references = auto_map.values() if isinstance(auto_map, dict) else ()
    wanted = {f"{str(reference).split('.')[0]}.py" for reference in references}
    if config.get("model_type") == "gpt_scratch":
        wanted |= set(CODE_FILES)
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        found.add(name)
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            siblings = re.findall(r"^\s*from\s+\.(\w+)\s+import", text, flags=re.MULTILINE)
            wanted |= {f"{sibling}.py" for sibling in siblings} - found
    return found


def corrupt_files(folder: Path) -> list[str]:
    """List invalid JSON files, and weights that safetensors does not accept or the index describes wrongly."""
    problems = [f"{path.name} {fault}" for path in sorted(folder.glob("*.json")) if (fault := fault_of_json(path))]
    shards = shards_by_tensor(folder)
    weights = {path.name for path in folder.glob("*.safetensors")}
    if any(map(SHARD_NAME.fullmatch, weights)) and not {WEIGHTS, WEIGHTS_INDEX} & {
        path.name for path in folder.iterdir()
    }:
        problems.append(f"the shards of its weights are there without {WEIGHTS_INDEX}")
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                problems.append(f"{path.name} is a pointer of Git LFS, fetch the file itself with git lfs pull")
                continue
        try:
            with safe_open(path, framework="numpy") as file:
                names = set(file.keys())
        except (SafetensorError, OSError) as error:
            problems.append(f"{path.name} is truncated or corrupt ({' '.join(str(error).split())})")
            continue
        if shards and names != {name for name, shard in shards.items() if shard == path.name}:
            problems.append(f"{path.name} does not hold the tensors that {WEIGHTS_INDEX} says")
    return problems


def fault_of_json(path: Path) -> str | None:
    """Say what keeps the libraries from reading a JSON file of a model; None for a good one."""
    if path.read_bytes()[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8:
        return "begins with a byte order mark, save it as UTF-8 without one"
    try:
        content = read_json(path)
    except ValueError:
        return "is not valid JSON"
    if path.name == WEIGHTS_INDEX and not isinstance(content.get("weight_map"), dict):
        return "has no weight_map"
    return None


def files_with_secrets(paths: list[Path]) -> list[str]:
    """List files in which something looks like a key; of weights only the header can hold text."""
    problems = []
    for path in paths:
        with path.open("rb") as file:
            size = -1
            if path.suffix == ".safetensors":
                size = min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES)
            if SECRET.search(file.read(size)):
                problems.append(f"{path.name} holds what looks like a secret key, remove that and revoke it")
    return problems


def read_if_valid(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one stands for what is missing or broken, which `check_folder` reports."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
