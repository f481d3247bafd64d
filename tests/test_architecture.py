"""Holds the borders: who may import whom, what never stands in shipped code, and that the README's map is the tree."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

from hf_gpt_scratch.runtime.cli import snake_case
from tests.readme import READMES


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hf_gpt_scratch"
MODULES = sorted(PACKAGE.rglob("*.py"))
SHIPPED = sorted((PACKAGE / "model").glob("*_gpt_scratch.py"))
BENCHMARKS = ROOT / "scripts" / "benchmarks"
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

# The arrows of the house: what each room may import of ours, besides what lies in the same room. `""` is the package
# itself, for its version and public names.
ARROWS = {
    "model": set(),
    "runtime": set(),
    "plots": {"runtime"},
    "data": {"runtime"},
    "evaluation": {"data", "model"},
    "generation": {"model", "data", "runtime", "plots"},
    "hub": {"model", "data", "runtime", "registration", ""},
    "conversion": {"data", "runtime", ""},
    "training": {"model", "data", "evaluation", "hub", "runtime", "plots", "registration", ""},
    "registration": {"model"},
    "interpretability": {"registration"},
    "commands": {"conversion", "data", "evaluation", "generation", "hub", "plots", "runtime", "training", ""},
    "__main__": {"commands"},
    "": {"registration", "model"},
}


def imported_modules(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Absolute names of all imported modules, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module, node
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.relative_to(ROOT).with_suffix("").parts[: -node.level])
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield f"{base}.{name}", node


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE).with_suffix("")
    return relative.parts[0] if relative.parts != ("__init__",) else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    room = room_of(path)
    for module, _ in imported_modules(path):
        assert module.split(".")[0] not in ("scripts", "tests"), module
        if module.split(".")[0] == "hf_gpt_scratch":
            other = (module.split(".") + [""])[1]
            assert other in ARROWS[room] | {room}, f"{room} imports {module}"


def test_nothing_is_imported_in_a_circle() -> None:
    imports = {module_name(path): {name for name, _ in imported_modules(path)} for path in MODULES}
    sorter = TopologicalSorter({name: names & imports.keys() for name, names in imports.items()})
    sorter.prepare()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_stand_alone(path: Path) -> None:
    """torch, transformers, huggingface_hub, the standard library, and each other as `from .x import Name`."""
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    siblings = {sibling.stem for sibling in SHIPPED}
    for module, node in imported_modules(path):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            assert node.level == 1
            assert node.module in siblings
            # Before 5.10 the library copies what the modeling file names itself; a circle makes 4.45 to 4.55 hang.
            assert path.stem == "modeling_gpt_scratch"
        else:
            assert module.split(".")[0] in allowed, module
    # The library finds siblings with a pattern that also looks into docstrings.
    found = re.findall(r"^\s*from\s+\.(\S+)\s+import", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(found) <= siblings


def test_tensorflow_is_imported_in_one_file_at_most() -> None:
    users = [path for path in [*MODULES, *SCRIPTS] for name, _ in imported_modules(path) if "tensorflow" in name]
    assert {path.relative_to(PACKAGE).as_posix() for path in users} <= {"conversion/readers/tf_checkpoint.py"}


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_no_pickle_no_unsafe_load(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not {name for name, _ in imported_modules(path)} & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True"
            assert path.name == "torch_checkpoint.py", "torch.load has one place"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_only_parse_call_and_print(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 15
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_no_test_imports_a_script() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        scripts = {name for name, _ in imported_modules(path) if name.split(".")[0] == "scripts"}
        assert all(name.startswith("scripts.benchmarks") for name in scripts), path


# Modules that are proved by the tests of what calls them.
PROVED_BY = {
    "__main__.py": "commands/test_installed_wheel.py",
    "commands/demo.py": "generation/test_demo.py",
    "commands/evaluate.py": "scripts/test_generate_and_evaluate_scripts.py",
    "commands/generate.py": "scripts/test_generate_and_evaluate_scripts.py",
    "commands/plot_decoding.py": "scripts/test_generate_and_evaluate_scripts.py",
    "commands/plot_history.py": "commands/test_installed_wheel.py",
    "commands/push.py": "scripts/test_push_to_hub_script.py",
    "commands/train.py": "scripts/test_train_script.py",
    "registration.py": "hub/test_loading.py",
    "conversion/verify_worker.py": "conversion/test_verify.py",
    "data/vocabulary.py": "data/test_tokenizer.py",
    "benchmarks/benchmark.py": "benchmarks/test_conversion.py",
    "benchmarks/command.py": "benchmarks/test_conversion.py",
    "benchmarks/generation_runs.py": "benchmarks/test_generation.py",
    "benchmarks/gpu/decoding.py": "benchmarks/gpu/test_rehearsal.py",
    "benchmarks/gpu/devices.py": "benchmarks/gpu/test_rehearsal.py",
    "benchmarks/gpu/memory_estimate.py": "benchmarks/gpu/test_rehearsal.py",
    "benchmarks/gpu/plan.py": "benchmarks/gpu/test_rehearsal.py",
    "benchmarks/gpu/proof_of_resume.py": "benchmarks/gpu/test_rehearsal.py",
    "benchmarks/gpu/record.py": "benchmarks/gpu/test_parts.py",
    "benchmarks/gpu/step_alone.py": "benchmarks/gpu/test_rehearsal.py",
    "benchmarks/gpu/step_candidates.py": "benchmarks/gpu/test_rehearsal.py",
    "benchmarks/measuring.py": "benchmarks/test_conversion.py",
    "benchmarks/peer_benchmark.py": "benchmarks/test_training.py",
    "benchmarks/peer_models.py": "benchmarks/test_training.py",
    "benchmarks/plot.py": "benchmarks/test_conversion.py",
    "benchmarks/training_steps.py": "benchmarks/test_training.py",
}


def test_every_module_has_its_test() -> None:
    for folder, modules in ((PACKAGE, MODULES), (BENCHMARKS.parent, sorted(BENCHMARKS.rglob("*.py")))):
        for path in modules:
            if path.name != "__init__.py":
                relative = path.relative_to(folder)
                test = PROVED_BY.get(relative.as_posix(), f"{relative.parent}/test_{relative.name}")
                assert (ROOT / "tests" / test).is_file(), f"{path} has no tests/{test}"


# Tests of roads through many modules, by folder, and of one duty of a module that has a test file of its own.
ROADS = {"browser", "ecosystem", "engines", "loopback_hub", "scripts", "sharing", "training/resilience", "versions"}
OF_A_DUTY = {
    "benchmarks/gpu/test_rehearsal.py",
    "commands/test_installed_wheel.py",
    "conversion/test_convert_and_share.py",
    "model/test_heads.py",
    "model/test_import_does_nothing.py",
    "model/test_past_context.py",
    "test_architecture.py",
    "test_readme.py",
    "test_readme_road.py",
    "test_words.py",
    "test_works_table.py",
    "training/test_norm_type.py",
    "training/test_tutorial_recipe.py",
}


def test_every_test_file_has_its_module() -> None:
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    alone = {
        path.as_posix()
        for path in tests
        if path.parent.as_posix() not in ROADS
        and not any((root / path.with_name(path.name[5:])).is_file() for root in (PACKAGE, BENCHMARKS.parent))
    }
    assert alone == OF_A_DUTY


def test_modules_live_in_rooms() -> None:
    loose = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert loose == {"__main__.py", "evaluation.py", "plots.py", "registration.py"}


def test_a_hyperparameter_of_the_model_touches_three_files() -> None:
    """Beside them TransformerLens has to be told of `norm_type`, since it computes with the weights alone.

    The stock export and ONNX refuse what GPT-2 cannot be by comparing it with the defaults, whatever its name.
    """
    files = {
        path.relative_to(PACKAGE).as_posix() for path in MODULES if "norm_type" in path.read_text(encoding="utf-8")
    }
    of_model = {f"model/{name}_gpt_scratch.py" for name in ("configuration", "modeling")}
    assert files - {"interpretability/transformer_lens.py"} == of_model | {"training/settings.py"}


def test_what_travels_with_a_model_is_read_in_one_sitting() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in SHIPPED}
    assert len(SHIPPED) <= 4
    assert sum(len(source.splitlines()) for source in sources.values()) <= 900
    functions = [n for n in ast.walk(ast.parse(sources["modeling_gpt_scratch"])) if isinstance(n, ast.FunctionDef)]
    lengths = [node.end_lineno - node.lineno + 1 for node in functions]
    assert median(lengths) <= 12.5
    assert max(len(line) for source in sources.values() for line in source.splitlines()) <= 119


def test_vocabulary_hash_is_the_same_in_the_build_and_at_run_time() -> None:
    from hf_gpt_scratch.data.vocabulary import VOCAB_SHA256

    assert f'"{VOCAB_SHA256}"' in (ROOT / ".ci" / "check_assets.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mlinter", "--no-progress", "hf_gpt_scratch/model"],
        pytest.param(["mypy"], marks=pytest.mark.commands),  # takes a minute
    ],
    ids=["ruff check", "ruff format", "mlinter", "mypy"],
)
def test_linters_find_nothing(command: list[str]) -> None:
    program = Path(sys.executable).parent / command[0]
    result = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def test_built_package_holds_its_assets(tmp_path: Path) -> None:
    """Build the wheel; its hook checks the vocabulary, and a user without the checkout gets all data files."""
    import zipfile

    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for name in ("vocab.bpe", "sample_text.txt", "model_card.md"):
        assert f"hf_gpt_scratch/assets/{name}" in names
    assert "hf_gpt_scratch/py.typed" in names
    for path in (PACKAGE / "recipes").iterdir():
        assert f"hf_gpt_scratch/recipes/{path.name}" in names
    assert {f"hf_gpt_scratch/{path.relative_to(PACKAGE).as_posix()}" for path in MODULES} <= names
    assert not {name for name in names if name.startswith(("tests/", "scripts/"))}


def test_package_with_another_vocabulary_is_not_built(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", ".ci", "model_cards", "hf_gpt_scratch"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    vocab = tmp_path / "hf_gpt_scratch" / "assets" / "vocab.bpe"
    vocab.write_bytes(vocab.read_bytes()[:-1])
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "restore OpenAI's vocab.bpe" in result.stderr
    assert not (tmp_path / "dist").exists() or not list((tmp_path / "dist").glob("*.whl"))


def test_the_readmes_name_the_duty_of_every_file() -> None:
    listed = [
        (readme.parent / name).relative_to(ROOT).as_posix()
        for readme in READMES
        for name in re.findall(r"^\| `([^`]+\.py)` \|", readme.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    files = [*MODULES, *SCRIPTS, *BENCHMARKS.rglob("*.py")]
    tree = {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"}
    assert set(listed) == tree
    assert len(listed) == len(tree)


def test_readme_commands_use_flags_that_exist() -> None:
    readme = "\n".join(path.read_text(encoding="utf-8") for path in READMES).replace("\\\n", " ")
    # The options of a benchmark stand behind its name.
    commands = re.findall(r"(scripts/benchmark\.py \w+|scripts/\w+\.py)([^\n`|]*)", readme)
    assert commands
    help_texts: dict[str, str] = {}
    for script, arguments in commands:
        flags = re.findall(r"(--[\w-]+)", arguments)
        if flags and script not in help_texts:
            command = [sys.executable, *script.split(), "--help"]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
            help_texts[script] = result.stdout
        for flag in flags:
            assert re.search(rf"{snake_case(flag)}\b", help_texts[script]), f"{script} has no {flag}"
