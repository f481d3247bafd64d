"""Proves that the READMEs are true: their code is run here or named with the test of the same command, their links
lead somewhere, and README's tables say what the package and the recorded runs say.

Every command is parsed by the parser of its script and launcher. `pytest -m commands` runs those not in NOT_RUN.
"""

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import parse_args as parse_torchrun

import hf_gpt_scratch
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer_files import write_tokenizer
from hf_gpt_scratch.data.vocabulary import named_vocabulary
from hf_gpt_scratch.runtime.cli import snake_case
from hf_gpt_scratch.training.command_line import parse_settings
from scripts.benchmarks.command import RESULTS
from scripts.benchmarks.conversion import TINY as TINY_CHECKPOINT
from scripts.benchmarks.conversion import make_checkpoint
from scripts.benchmarks.measuring import format_spread
from tests.pyproject import PYPROJECT
from tests.readme import README, READMES, ROOT, Block, read_blocks, run_blocks


BLOCKS = [
    block
    for path in READMES
    for block in read_blocks(path.read_text(encoding="utf-8"))
    if block.heading != "Learning road"
]
# A block of Python counts as one command. A command that several READMEs have counts once.
COMMANDS = {
    command: block.language
    for block in BLOCKS
    for command in ([block.text] if block.language == "python" else block.commands)
}

# Beginnings of the commands that are not run here, why, and the tests that prove the same.
NOT_RUN = {
    "python3 -m venv .venv && .venv/bin/pip install -q -c .ci/constraints.txt -e . &&": (
        "installs packages and trains for minutes",
        "scripts/test_train_script.py::test_default_job_learns_and_then_overfits",
    ),
    "python3 -m venv .venv && .venv/bin/pip install -q -c .ci/constraints.txt -e '.[test]'": (
        "runs all tests; .ci/run takes it from README",
        "test_readme.py::test_the_two_commands_are_near_the_top",
    ),
    "accelerate launch --cpu --num_processes 2 scripts/train.py": (
        "trains for minutes",
        "scripts/test_train_script.py::test_two_processes_give_the_losses_of_one",
    ),
    "from hf_gpt_scratch.interpretability.transformer_lens import": (
        "needs TransformerLens",
        "engines/test_interpretability.py::test_the_example_of_the_readme",
    ),
    "accelerate launch scripts/train.py --recipe tutorial": (
        "fetches a text and trains for 15 minutes",
        "training/test_tutorial_recipe.py::test_initial_losses_and_first_steps",
    ),
    "accelerate launch scripts/train.py --output_dir runs/a --report_to": (
        "trains for minutes",
        "training/reporting/test_trackers.py::test_trackio_has_the_figures_and_goes_on_with_the_same_run",
    ),
    "accelerate launch scripts/train.py --recipe char-small": (
        "trains for minutes",
        "training/test_dry_run.py::test_every_recipe_can_be_looked_at",
    ),
    "accelerate launch scripts/train.py --recipe finetune": (
        "needs OpenAI's weights",
        "training/test_base_model.py::test_finetune_recipe_begins_at_the_loss_of_the_source_and_improves_on_it",
    ),
    "accelerate launch scripts/train.py --recipe gpt2-124m": (
        "needs a corpus and GPUs",
        "training/test_dry_run.py::test_every_recipe_can_be_looked_at",
    ),
    "accelerate launch --config_file scripts/configs/": (
        "needs eight GPUs",
        "runtime/test_launching.py::test_every_config_is_read_by_accelerate",
    ),
    "torchrun --nnodes=2": (
        "needs two nodes",
        "runtime/test_launching.py::test_two_nodes_give_the_losses_of_one_process",
    ),
    "export HEAD=": ("needs Slurm", "runtime/test_launching.py::test_two_nodes_give_the_losses_of_one_process"),
    "srun bash -c": ("needs Slurm", "runtime/test_launching.py::test_two_nodes_give_the_losses_of_one_process"),
    "python scripts/prepare_data.py --dataset": (
        "needs the Hub",
        "data/test_documents.py::test_dataset_is_streamed_from_a_local_folder",
    ),
    "ray start --": (
        "needs a cluster of Ray",
        "engines/test_ray.py::test_a_node_dies_and_the_shards_are_those_of_one_process",
    ),
    "python tokenize_on_ray.py": (
        "needs a cluster of Ray",
        "engines/test_ray.py::test_a_node_dies_and_the_shards_are_those_of_one_process",
    ),
    "# tokenize_on_ray.py": (
        "needs a cluster of Ray",
        "engines/test_ray.py::test_a_node_dies_and_the_shards_are_those_of_one_process",
    ),
    "python scripts/prepare_data.py --source datatrove-tokens": (
        "needs a cluster of Ray",
        "engines/test_ray.py::test_a_node_dies_and_the_shards_are_those_of_one_process",
    ),
    "accelerate launch scripts/train.py --train_data tokens": (
        "trains for minutes",
        "commands/test_prepare.py::test_training_on_it_is_the_same_on_one_process_and_two",
    ),
    "hf upload USER/NAME space": ("needs the Hub", "browser/test_space.py::test_a_space"),
    "hf upload USER/NAME page": (
        "needs the Hub",
        "browser/test_web_page.py::test_the_options_of_the_upload_exist",
    ),
    "python -m http.server": ("serves until it is stopped", "browser/test_web_page.py::test_a_visit"),
    "python scripts/convert_gpt2.py --size 124M --output gpt2-124m": (
        "downloads 500 MB, and with --push_to_hub needs the Hub",
        "conversion/test_convert_and_share.py::test_a_converted_checkpoint_arrives",
    ),
    "python scripts/benchmark.py gpu": (
        "needs a GPU",
        "benchmarks/gpu/test_rehearsal.py::test_the_rehearsal_passes",
    ),
    "pip download --no-deps": (
        "downloads packages for another machine",
        "benchmarks/gpu/test_rehearsal.py::test_what_is_carried_is_all_that_is_missing",
    ),
    "python -m pip install --no-index": (
        "installs what was carried",
        "benchmarks/gpu/test_rehearsal.py::test_what_is_carried_is_all_that_is_missing",
    ),
    "PYTHONPATH=site python scripts/benchmark.py gpu": (
        "needs a GPU",
        "benchmarks/gpu/test_rehearsal.py::test_the_rehearsal_passes",
    ),
    "hf auth login": (
        "asks for a token",
        "scripts/test_push_to_hub_script.py::test_each_error_is_one_line_with_the_way_out",
    ),
    "python scripts/push_to_hub.py runs": (
        "needs the Hub",
        "scripts/test_push_to_hub_script.py::test_a_push_prints_the_commit_and_the_line_that_loads_it",
    ),
    "python scripts/push_to_hub.py --update_code": (
        "needs the Hub",
        "scripts/test_push_to_hub_script.py::test_the_code_of_a_folder_and_of_a_repository_is_updated",
    ),
    "accelerate launch scripts/train.py --output_dir runs/shared": (
        "needs the Hub",
        "scripts/test_train_and_share.py::test_a_trained_model_arrives",
    ),
    'model = AutoModelForCausalLM.from_pretrained("USER/NAME"': (
        "needs the Hub",
        "sharing/test_push_and_pull.py::test_a_pushed_model_arrives_bit_for_bit",
    ),
}


def test_what_is_not_run_stands_in_a_readme_once() -> None:
    assert not [block.text for block in BLOCKS if block.shown], "output is compared in the learning road only"
    assert not [start for start in NOT_RUN if not any(command.startswith(start) for command in COMMANDS)]
    assert not [command for command in COMMANDS if sum(map(command.startswith, NOT_RUN)) > 1]


@pytest.mark.parametrize("test", sorted({test for _, test in NOT_RUN.values()}))
def test_the_named_test_exists(test: str) -> None:
    file, name = test.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), flags=re.MULTILINE)


def script_calls(command: str) -> Iterator[list[str]]:
    """The words of each part of a command that starts a script of the project, variables filled in."""
    if command.startswith("srun bash -c "):
        command = shlex.split(command)[3].removeprefix("exec ")
    for part in command.split("&&"):
        words = shlex.split(os.path.expandvars(part))
        if any(re.fullmatch(r"scripts/\w+\.py", word) for word in words) and words[0] != "cp":
            yield words


def parse_launcher(words: list[str]) -> list[str]:
    """Have the launcher's parser take its options; return the script and its arguments."""
    program, *rest = dropwhile(lambda word: "=" in word, words)  # PYTHONPATH=site and its like
    if Path(program).name == "accelerate":
        parsed = launch_command_parser().parse_args(rest[1:])
        assert rest[0] == "launch"
    elif program == "torchrun":
        parsed = parse_torchrun(rest)
    else:
        assert program == "python"
        return rest
    return [parsed.training_script, *parsed.training_script_args]


CALLS = [command for command in COMMANDS if list(script_calls(command))]


@pytest.mark.parametrize("command", CALLS)
def test_options_are_taken_by_the_real_parsers(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HEAD": "first-node", "SLURM_NNODES": "2", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "settings.yaml").write_text("hidden_size: 96\n", encoding="utf-8")
    (tmp_path / "mine").mkdir()
    write_tokenizer(tmp_path / "mine", named_vocabulary("bytes"))
    monkeypatch.chdir(tmp_path)
    for words in script_calls(command):
        script, *arguments = parse_launcher(words)
        assert (ROOT / script).is_file()
        if script == "scripts/train.py":
            parse_settings(arguments)
        else:
            ask_parser(script, arguments)


def ask_parser(script: str, arguments: list[str]) -> None:
    """Have a script parse its arguments: with `--help` behind them nothing else is done; it must know each option."""
    command = [sys.executable, ROOT / script, *arguments, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for option in (word for word in arguments if word.startswith("--")):
        assert re.search(rf"{snake_case(option)}\b", result.stdout), f"{script} has no {option}"


@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch scripts/train.py --lerning_rate 1",
        "accelerate launch scripts/train.py --dropout 1.5",
        "accelerate launch --num_processes many scripts/train.py",
        "python scripts/generate.py --model m --prompt p --top-p 0.9",
        "python scripts/generate.py --model m --prompt p --top-k many",
        "python scripts/no_script.py",
    ],
)
def test_a_wrong_option_is_found(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    with pytest.raises((AssertionError, ValueError, SystemExit)):
        test_options_are_taken_by_the_real_parsers(command, tmp_path, monkeypatch)


@pytest.mark.parametrize("text", [block.text for block in BLOCKS if block.language == "python"])
def test_python_can_be_compiled(text: str) -> None:
    compile(text, "README.md", "exec")


SMALL_RUN = """
accelerate launch --cpu scripts/train.py --hidden_size 16 --num_attention_heads 2 --max_position_embeddings 64 \\
    --sample_tokens 5 --warmup_steps 2 --max_steps 6 --eval_steps 3 --train_file my_text.txt
cp -r runs/gpt-scratch runs/a
cp -r runs/gpt-scratch runs/b
"""
SETTINGS = "train_file: [my_text.txt]\noutput_dir: runs/config\nmax_steps: 3\nwarmup_steps: 1\n"


@pytest.mark.commands
@pytest.mark.timeout(1800)
def test_the_commands_of_this_list_run(tmp_path: Path) -> None:
    """In the READMEs' order, after what a reader has by then: texts, a trained model, OpenAI's files, all small."""
    pytest.importorskip("tensorflow", reason="writes the checkpoint that is converted")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("scripts", "hf_gpt_scratch"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("my_texts", "models/124M"):
        (tmp_path / name).mkdir(parents=True)
    text = bundled_text_path().read_text(encoding="utf-8")[:2300]
    for name in ("my_texts/short.txt", "my_text.txt"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [f"The lamp was lit {number} times." for number in range(300)]
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"text": "{row}"}}\n' for row in rows), encoding="utf-8")
    parquet.write_table(
        pyarrow.table({"text": [f"{row} Then it went out." for row in rows]}), tmp_path / "more.parquet"
    )
    (tmp_path / "settings.yaml").write_text(SETTINGS, encoding="utf-8")
    make_checkpoint(tmp_path / "models" / "124M", TINY_CHECKPOINT)

    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    run_one(Block("bash", SMALL_RUN, ""), tmp_path, environment)
    printed, export = {}, "python scripts/convert_gpt2.py --from_dir runs/gpt-scratch/model --output"
    for command, language in COMMANDS.items():
        if not command.startswith(tuple(NOT_RUN)):
            printed[command] = run_one(Block(language, command, ""), tmp_path, environment)
    for start, words in {
        "accelerate launch scripts/train.py --train_file my_texts/ --output_dir runs/new": "parameters",
        "python scripts/generate.py": "The lamp",
        "from transformers import": "The lamp",
        "python scripts/evaluate.py": "bits per byte",
        "python scripts/convert_gpt2.py --from_dir models": "loss on all of the text",
        f"{export} stock": "verified: largest difference of a value 0",
        f"{export} runs/onnx": "loss on the text with 8 bits",
    }.items():
        (output,) = [output for command, output in printed.items() if command.startswith(start)]
        assert words in output
    made = ("runs.png", "tokens/index.json", "gpt2-tokenizer/tokenizer.json", "space/app.py", "space/model")
    for name in (*made, "page/model/onnx/model_quantized.onnx"):
        assert (tmp_path / name).exists(), name


def run_one(block: Block, folder: Path, environment: dict[str, str]) -> str:
    """Run a block in an interpreter of its own; return what it printed."""
    outputs, errors = run_blocks([block], folder, environment)
    assert outputs, f"this fails:\n{block.text}\n{errors}"
    return outputs[0]


def test_the_versions_are_those_of_the_package_and_of_ci() -> None:
    """Oldest versions as pyproject.toml has them, CI's as its constraints have them."""
    project = PYPROJECT
    needs = project["project"]["dependencies"]
    oldest = {name: version for name, _, version in (need.partition(">=") for need in needs)}
    python = project["project"]["requires-python"].removeprefix(">=")
    pins, middle = (
        dict(pin.split("==") for pin in (ROOT / ".ci" / name).read_text().split() if "==" in pin)
        for name in ("constraints.txt", "middle.txt")
    )
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"It takes Python {python}, torch {oldest['torch']} and transformers {oldest['transformers']} or newer; "
        f"CI runs with torch {pins['torch']} and transformers {pins['transformers']}. "
        f"`-c .ci/lowest.txt` takes the lowest of everything, on Python {python} too, and `-c .ci/middle.txt` "
        f"transformers {middle['transformers']} with huggingface_hub {middle['huggingface_hub']}"
    ) in text
    assert project["tool"]["ruff"]["target-version"] == f"py{python.replace('.', '')}"
    assert project["project"]["classifiers"][0] == f"Programming Language :: Python :: {python}"


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert len(text.encode()) <= 20_000


def test_the_two_commands_are_near_the_top() -> None:
    first, second = read_blocks(README.read_text(encoding="utf-8"))[:2]
    beginning = " ".join(README.read_text(encoding="utf-8").split()[:100])
    for block in (first, second):
        assert " ".join(block.text.split()) in beginning
    assert "scripts/train.py" in first.text
    assert "pytest" in second.text


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def broken_links(path: Path) -> list[str]:
    """Return the links of a Markdown file that lead to no file, or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, section = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists():
            broken.append(link)
        elif section:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            broken += [link] * (section not in map(anchor, headings))
    return broken


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """The control."""
    (tmp_path / "a.md").write_text("# One two\n[x](#one-two) [x](#three) [x](a.md#one-two) [x](b.md)")
    assert broken_links(tmp_path / "a.md") == ["#three", "b.md"]


def test_contents_name_every_section() -> None:
    text = README.read_text(encoding="utf-8")
    contents = text.partition("**Contents**")[2].partition("\n\n")[0]
    sections = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert re.findall(r"\[(.*?)\]\(#", contents) == sections


def test_the_picture_is_drawn_by_its_script_and_shows_every_folder() -> None:
    script = runpy.run_path(str(ROOT / ".github" / "draw_parts.py"))
    assert (ROOT / ".github" / "parts.svg").read_text(encoding="utf-8") == script["draw_parts"]() + "\n"
    folders = {path.parent.name for path in (ROOT / "hf_gpt_scratch").glob("*/__init__.py")}
    assert folders <= {name for *_, name, _ in script["BOXES"]}


def first_cells(heading: str) -> list[list[str]]:
    """Return the rows of README's tables below a heading, without their heads."""
    section = README.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return rows[1:]


def test_the_api_is_complete_and_can_be_imported() -> None:
    names = [row[0].strip("`") for row in first_cells("Python API")]
    public = [name.removeprefix("hf_gpt_scratch.") for name in names if name.count(".") == 1]
    assert sorted(public) == sorted(hf_gpt_scratch.__all__)
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name


def test_the_results_are_those_of_the_recorded_runs() -> None:
    recorded = set()
    for path in RESULTS.glob("*.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        for limit in report.get("limits", []):
            what = f"{report['benchmark']}: {report['setting']}"
            recorded.add((what, limit["text"], format_spread(limit["reached"])))
    rows = first_cells("Results")
    assert len(rows) == 10
    assert {tuple(row) for row in rows} <= recorded
