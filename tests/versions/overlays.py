"""Installs a version of transformers in a folder of its own, to be laid over the installed packages.

Such an overlay is transformers with the tokenizers and huggingface_hub that it wants, and little else: torch, numpy,
accelerate and the rest are those of the environment. It is installed once and kept in .venv/overlays, or in the folder
that the environment variable HF_GPT_SCRATCH_OVERLAYS names.
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.pip import NotInstalledError, pip


# Of a version of transformers what it wants of these, in this order. With a huggingface_hub below 1 the datasets of
# the environment cannot be imported, which the Trainer of those days does.
PACKAGES = ("tokenizers", "huggingface_hub", "datasets")
VERSIONS = {
    "4.40.2": ("0.19.1", "0.36.2", "4.4.1"),
    "4.44.2": ("0.19.1", "0.36.2", "4.4.1"),
    "4.46.3": ("0.20.3", "0.36.2", "4.4.1"),
    "4.49.0": ("0.21.4", "0.36.2", "4.4.1"),
    "4.51.3": ("0.21.4", "0.36.2", "4.4.1"),
    "4.53.3": ("0.21.4", "0.36.2", "4.4.1"),
    "4.55.4": ("0.21.4", "0.36.2", "4.4.1"),
    "4.56.2": ("0.22.2", "0.36.2", "4.4.1"),
    "4.57.6": ("0.22.2", "0.36.2", "4.4.1"),
    "5.0.0": ("0.22.2", "1.33.0"),
    "5.3.0": ("0.22.2", "1.33.0"),
    "5.4.0": ("0.22.2", "1.33.0"),
    "5.5.4": ("0.22.2", "1.33.0"),
    "5.6.0": ("0.22.2", "1.33.0"),
    "5.10.4": ("0.22.2", "1.33.0"),
    "5.16.1": ("0.23.3", "1.33.0"),
    "5.17.0": ("0.23.3", "1.33.0"),
    "5.19.0": ("0.23.3", "2.4.0"),
    "5.21.0": ("0.23.3", "2.4.0"),
    "5.23.0": ("0.23.3", "2.4.0"),
    "5.24.0": ("0.23.3", "2.4.0"),
}
OLDEST, *_, NEWEST_KNOWN = VERSIONS
REFERENCE = "5.23.0"  # the version whose values the others have to reach
INSTALL_TIMEOUT = 300  # seconds; an overlay takes about five without a cache of pip
COMPLETE = "overlay.json"


def newest_release() -> str:
    """The newest release of transformers that pip would install."""
    options = ("--dry-run", "--no-deps", "--ignore-installed", "--report", "-")
    (found,) = json.loads(pip("install", *options, "transformers", timeout=INSTALL_TIMEOUT))["install"]
    return found["metadata"]["version"]


def install(version: str) -> tuple[Path, dict[str, Any]]:
    """The overlay of a version, and what is known of it: its packages, the seconds of the installation, its MB.

    A version that is not in the table gets what goes with the newest that is; transformers itself complains at its
    import if that is not what it wants.
    """
    wanted = VERSIONS.get(version, VERSIONS[NEWEST_KNOWN])
    packages = {"transformers": version, **dict(zip(PACKAGES, wanted, strict=False))}
    default = Path(__file__).parents[2] / ".venv" / "overlays"
    overlay = Path(os.environ.get("HF_GPT_SCRATCH_OVERLAYS", default)).resolve() / version
    if overlay.is_dir():
        if not (overlay / COMPLETE).is_file():
            raise NotInstalledError(f"{overlay} was not made here: move it away, or choose another folder")
        known = json.loads((overlay / COMPLETE).read_text(encoding="utf-8"))
        if known["packages"] == packages:
            return overlay, known
        shutil.rmtree(overlay)
    overlay.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=overlay.parent, prefix=f".{version}-") as folder:
        unfinished, start = Path(folder) / version, time.monotonic()
        requirements = [f"{name}=={number}" for name, number in packages.items()]
        pip(
            "install", "--no-deps", "--no-compile", "--target", str(unfinished), *requirements, timeout=INSTALL_TIMEOUT
        )
        size = sum(file.stat().st_size for file in unfinished.rglob("*") if file.is_file())
        known = {"packages": packages, "seconds": round(time.monotonic() - start, 1), "mb": round(size / 1e6)}
        (unfinished / COMPLETE).write_text(json.dumps(known), encoding="utf-8")
        if not overlay.exists():  # another process may have been faster
            unfinished.rename(overlay)
    return overlay, known
