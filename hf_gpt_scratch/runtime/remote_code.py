"""The code files that travel with every model, read as text: importing them would import torch and transformers."""

import ast
import re
from importlib.resources import files
from pathlib import Path
from typing import Any


CODE_FOLDER = Path(str(files("hf_gpt_scratch"))) / "model"
CODE_FILES = tuple(sorted(path.name for path in CODE_FOLDER.glob("*_gpt_scratch.py")))


def is_code(name: str) -> bool:
    """Return True if a file of this name is code of this project, of this or another release."""
    return re.fullmatch(r"\w+_gpt_scratch\.py", name) is not None


def read_code() -> dict[str, bytes]:
    """Read the code files of this package: name -> content."""
    return {name: (CODE_FOLDER / name).read_bytes() for name in CODE_FILES}


def read_declarations() -> tuple[dict[str, str], dict[str, Any]]:
    """Read what the configuration file declares.

    Returns:
        The `auto_map` of config.json: Auto class -> module and class.
        The default of each field of the configuration: name -> value.
    """
    tree = ast.parse((CODE_FOLDER / "configuration_gpt_scratch.py").read_text(encoding="utf-8"))
    config_class = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    auto_map = next(
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "AUTO_MAP"
    )
    return ast.literal_eval(auto_map.value), {
        ast.unparse(node.target): ast.literal_eval(node.value)
        for node in config_class.body
        if isinstance(node, ast.AnnAssign) and node.value is not None
    }


AUTO_MAP, DEFAULTS = read_declarations()
