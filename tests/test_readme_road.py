"""Proves the learning road of scripts/README.md: all its code is run in order, and prints what stands below it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import LEFT_OUT, ROAD, Block, is_as_shown, read_blocks, run_blocks


pytestmark = pytest.mark.commands

HEADING = "Learning road"
TEXT = ROAD.read_text(encoding="utf-8")
BLOCKS = [block for block in read_blocks(TEXT) if block.heading == HEADING]

# Where the reader has OpenAI's files, the test has a checkpoint of a tiny model, which TensorFlow writes.
MAKE_CHECKPOINT = """
import sys
from pathlib import Path
from scripts.benchmarks.conversion import TINY, make_checkpoint
make_checkpoint(Path(sys.argv[1]), TINY)
"""


@pytest.fixture(scope="module")
def scratch(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts, in which nothing has been run yet, and the checkpoint."""
    pytest.importorskip("tensorflow", reason="writes the checkpoint that the last part converts")
    folder = tmp_path_factory.mktemp("road")
    (folder / "scripts").symlink_to(project_root / "scripts")
    (folder / "gpt2" / "124M").mkdir(parents=True)
    command = [sys.executable, "-c", MAKE_CHECKPOINT, folder / "gpt2" / "124M"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One thread, and a Hub that is out of reach."""
    home = str(tmp_path_factory.mktemp("hf_home"))
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": home, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def printed(scratch: Path, environment: dict[str, str]) -> list[str]:
    """What each block printed."""
    outputs, errors = run_blocks(BLOCKS, scratch, environment)
    assert len(outputs) == len(BLOCKS), f"this block fails:\n{BLOCKS[len(outputs)].text}\n{errors}"
    return outputs


def test_the_road_has_all_parts_of_the_chapter(project_root: Path) -> None:
    section = TEXT.partition(f"## {HEADING}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\*\*(.*?)\.\*\*", section, flags=re.MULTILINE) == [
        "Text generation",
        "Cross-entropy and perplexity",
        "Training and validation loss",
        "The training loop",
        "Loss plots",
        "Temperature",
        "Top-k",
        "Saving and loading",
        "OpenAI's weights",
    ]
    tree = {path.name for path in (project_root / "hf_gpt_scratch").rglob("*.py")}
    for part in section.split("\n**")[1:]:
        assert "```" in part
        read = re.search(r"Read\s+(.*?)\.\n", part, flags=re.DOTALL)[1]
        assert set(re.findall(r"`(.*?)`", read)) <= tree


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_a_block_prints_what_stands_below_it(printed: list[str], index: int) -> None:
    assert BLOCKS[index].shown is not None, f"the road shows no output of\n{BLOCKS[index].text}"
    assert is_as_shown(BLOCKS[index].shown, printed[index]), printed[index]


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_an_altered_output_is_found(printed: list[str], index: int) -> None:
    """The control: each word of what is shown, altered alone."""
    shown = BLOCKS[index].shown
    places = [match.start() for match in re.finditer(r"\w+", shown)]
    assert places, f"nothing is compared: {shown}"
    for place in places:
        other = "8" if shown[place] != "8" else "3"
        assert not is_as_shown(shown[:place] + other + shown[place + 1 :], printed[index])


def test_the_pictures_are_drawn(printed: list[str], scratch: Path) -> None:
    for path in re.findall(r"road/[\w/-]+\.png", TEXT):
        assert (scratch / path).read_bytes().startswith(b"\x89PNG"), path


def test_a_block_that_fails_ends_the_road(tmp_path: Path, environment: dict[str, str]) -> None:
    blocks = [Block("python", "word = 'one'\n", ""), Block("bash", "echo two; false\necho three\n", "")]
    outputs, errors = run_blocks([*blocks, Block("python", "print(word)\n", "")], tmp_path, environment)
    assert outputs == [""]
    assert "CalledProcessError" in errors
    outputs, _ = run_blocks(
        [blocks[0], Block("bash", "echo two\n", ""), Block("python", "print(word)\n", "")], tmp_path, environment
    )
    assert outputs == ["", "two\n", "one\n"]


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("loss 4.613", "loss 4.614\n", True),
        ("loss 4.613", "loss 4.615", False),
        ("loss 4.613", "loss 4.61", False),
        ("loss 4.613", "loss 14.613", False),
        (f"a\n{LEFT_OUT}\nd 1.0", "a\nb\nc\nd 1.1", True),
        (f"a\n{LEFT_OUT}\nd 1.0", "a\nb\nc\nd 1.2", False),
        (f"a {LEFT_OUT}", "b a c", False),
        ("The lamp......", "The lamp said it", False),
        ("7 windows", "8 windows", False),
    ],
)
def test_what_counts_as_shown(shown: str, printed: str, expected: bool) -> None:
    assert is_as_shown(shown, printed) is expected


def test_a_block_that_cannot_be_read_is_an_error() -> None:
    assert [block.commands for block in read_blocks("## A\n```bash\na \\\n  b\nc\n```\n")] == [["a b", "c"]]
    for wrong in ("```sh\na\n```\n", "```bash\na\n", "  ```bash\na\n  ```\n"):
        with pytest.raises(ValueError, match="README has a block that is not bash, python, text or diff"):
            read_blocks(wrong)
