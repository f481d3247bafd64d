"""The READMEs' blocks of code: found, run in order in one folder as a reader would, and their output compared."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
README, ROAD = ROOT / "README.md", ROOT / "scripts" / "README.md"
READMES = [
    README,
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "hf_gpt_scratch").rglob("README.md")),
    *sorted((ROOT / "scripts").rglob("README.md")),
]
LEFT_OUT = "[...]"
END_OF_BLOCK = "\x1e"

# Run by a fresh interpreter: Python is one session, and each bash block a shell of its own that ends at an error.
RUNNER = f"""
import json, subprocess, sys
session = {{"__name__": "__main__"}}
for language, text in json.loads(sys.argv[1]):
    if language == "python":
        exec(compile(text, "README.md", "exec"), session)
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
    print({END_OF_BLOCK!r}, end="", flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text, the heading above it, and the output that is shown below it."""

    language: str
    text: str
    heading: str
    shown: str | None = None

    @property
    def commands(self) -> list[str]:
        """Return the commands of a shell block, each in one line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [" ".join(line.split()) for line in lines if line.strip()]


def read_blocks(readme: str) -> list[Block]:
    """Return the blocks of code in order; `text` is the output of the block before it, and `diff` is passed over.

    Raises:
        ValueError: a fence is left open, or its language is none of these.
    """
    blocks: list[Block] = []
    fences = re.findall(r"^ *```", readme, flags=re.MULTILINE)
    found = list(re.finditer(r"^```(bash|python|text|diff)\n(.*?)^```$", readme, flags=re.DOTALL | re.MULTILINE))
    if len(fences) != 2 * len(found):
        raise ValueError("README has a block that is not bash, python, text or diff, is indented or not closed")
    for match in found:
        language, text = match.groups()
        if language == "text":
            blocks[-1] = replace(blocks[-1], shown=text)
        elif language != "diff":
            headings = re.findall(r"^##+ (.*)$", readme[: match.start()], flags=re.MULTILINE)
            blocks.append(Block(language, text, "".join(headings[-1:])))
    return blocks


def run_blocks(blocks: list[Block], folder: Path, environment: dict[str, str]) -> tuple[list[str], str]:
    """Run blocks one after the other in a folder, to the first that fails.

    Returns:
        What each block printed on standard output, of those that ended well; and all that was printed on stderr.
    """
    bin_folder = str(Path(sys.executable).parent)
    program = [sys.executable, "-c", RUNNER, json.dumps([(block.language, block.text) for block in blocks])]
    result = subprocess.run(
        program,
        cwd=folder,
        env=environment | {"PATH": os.pathsep.join([bin_folder, environment["PATH"]])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=570,
    )
    return result.stdout.split(END_OF_BLOCK)[:-1], result.stderr


def is_as_shown(shown: str, printed: str) -> bool:
    """Return True if that was printed; `[...]` stands for anything, and decimals may differ by 1 in the last digit."""
    pieces = re.split(rf"({re.escape(LEFT_OUT)}|\d+\.\d+)", shown.strip())
    numbers = [piece for piece in pieces[1::2] if piece != LEFT_OUT]
    special = [".*" if piece == LEFT_OUT else r"(\d+\.\d+)" for piece in pieces[1::2]]
    pattern = re.escape(pieces[0]) + "".join(
        wanted + re.escape(plain) for wanted, plain in zip(special, pieces[2::2], strict=True)
    )
    match = re.fullmatch(pattern, printed.strip(), flags=re.DOTALL)
    return match is not None and all(map(is_near, numbers, match.groups()))


def is_near(shown: str, printed: str) -> bool:
    """Return True if two decimals have equally many digits after the point and differ by at most 1 in the last."""
    digits = [len(number.partition(".")[2]) for number in (shown, printed)]
    return digits[0] == digits[1] and round(abs(float(shown) - float(printed)) * 10 ** digits[0]) <= 1
