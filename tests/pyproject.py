"""What pyproject.toml says, for the tests that hold others to it."""

from pathlib import Path


try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings this
    import tomli as tomllib

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
