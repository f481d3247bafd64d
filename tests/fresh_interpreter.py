"""Runs calls in an interpreter of its own, as a user makes them, and hands back what they returned.

Tests import `run`; it starts this same file as a script. A call is the name of a function below and its arguments.
Unless told otherwise, that interpreter cannot import hf_gpt_scratch, as if it were not installed.
"""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import os
import re
import runpy
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock


if TYPE_CHECKING:
    import torch

Calls = dict[str, tuple[str, dict[str, Any]]]
Report = dict[str, dict[str, Any]]

PACKAGE = "hf_gpt_scratch"
TIMEOUT = 240  # seconds; a fresh interpreter takes about ten


@dataclass(frozen=True)
class Outcome:
    """What the calls of one interpreter came to."""

    folder: Path
    report: Report
    stderr: str

    def returned(self, name: str) -> dict[str, Any]:
        """What a call returned; one that raised fails the test."""
        if "error" in self.report[name]:
            raise AssertionError(f"{name} raised in the fresh interpreter:\n{self.report[name]['traceback']}")
        return self.report[name]

    def raised(self, name: str) -> tuple[list[str], str]:
        """The classes, most special first, and the message of what a call raised; one that returned fails the test."""
        if "error" not in self.report[name]:
            raise AssertionError(f"{name} raised nothing in the fresh interpreter but returned {self.report[name]}")
        return self.report[name]["error"], self.report[name]["message"]

    def tensor(self, name: str) -> "torch.Tensor":
        """The tensor that a call wrote to the file `name`."""
        from safetensors.torch import load_file

        return load_file(self.folder / name)["output"]


def run(
    folder: Path,
    calls: Calls,
    *,
    hub: dict[str, Path] | None = None,
    package: bool = False,
    functions: Path | None = None,
    env: dict[str, str] | None = None,
    timeout: float = TIMEOUT,
    overlay: Path | None = None,
    python: str | Path = sys.executable,
) -> Outcome:
    """Make `calls`, {name: (function, arguments)}, one after the other in one fresh interpreter.

    Args:
        folder: an empty folder for its home, its working directory and what it writes.
        calls: the arguments must be JSON.
        hub: repositories of the offline Hub cache, {"user/name" or "user/name@branch": folder}; none means that
            there is no cache.
        package: whether hf_gpt_scratch can be imported.
        functions: the Python file that the calls are found in; none: this one.
        env: further environment variables.
        timeout: seconds.
        overlay: a folder of packages that are taken in place of the installed ones.
        python: the interpreter; another one has the packages of its own environment.
    """
    folder.mkdir(parents=True)
    for place, repository in (hub or {}).items():
        repo_id, _, branch = place.partition("@")
        add_to_hub_cache(folder / "home" / "hub", repo_id, branch or "main", repository)
    order = {
        "calls": calls,
        "package": package,
        "functions": str(functions or __file__),
        "overlay": [str(overlay)] if overlay else [],
    }
    (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    settings = {
        "HF_HOME": str(folder / "home"),
        # A folder needs no network at all. Without the offline mode an attempt would end at a port that is never open.
        "HF_HUB_OFFLINE": "0" if hub is None else "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.run(
        [python, "-I", __file__, str(folder)],
        cwd=folder,
        env=inherited | settings | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if process.returncode != 0:
        raise RuntimeError(f"the fresh interpreter ended with {process.returncode}:\n{process.stderr}")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Outcome(folder, report, process.stderr)


def commit_of(repository: Path) -> str:
    """The commit hash under which a folder lies in the Hub cache: made of its content, as a true one is."""
    digest = hashlib.sha1()
    for file in sorted(repository.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def add_to_hub_cache(cache: Path, repo_id: str, branch: str, repository: Path) -> None:
    """Lay a folder out as a download from the Hub does: content in blobs/, names as links in snapshots/<commit>/."""
    commit = commit_of(repository)
    storage = cache / f"models--{repo_id.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (storage / part).mkdir(parents=True, exist_ok=True)
    for file in repository.iterdir():
        content = file.read_bytes()
        blob = hashlib.sha256(content).hexdigest()
        (storage / "blobs" / blob).write_bytes(content)
        (storage / "snapshots" / commit / file.name).symlink_to(Path("..") / ".." / "blobs" / blob)
    (storage / "refs" / branch).write_text(commit, encoding="utf-8")


# The calls. They import what they need themselves: the settings above must be in place before.


def import_package(module: str = PACKAGE) -> dict[str, Any]:
    """Import hf_gpt_scratch or a module of it, or fail to."""
    return {"file": importlib.import_module(module).__file__}


def load_config(path: str) -> dict[str, Any]:
    """AutoConfig."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    return {"class": type(config).__name__, "module": type(config).__module__, "fields": config.to_dict()}


def load_model(
    path: str,
    auto_class: str,
    input_ids: list[list[int]],
    output: str,
    trust_remote_code: bool | None = True,
    revision: str | None = None,
    save: str | None = None,
) -> dict[str, Any]:
    """One of the model Auto classes: its first output goes to the file `output`, the model to the folder `save`."""
    import torch
    import transformers
    from safetensors.torch import save_file

    model, loading_info = getattr(transformers, auto_class).from_pretrained(
        path, trust_remote_code=trust_remote_code, revision=revision, output_loading_info=True
    )
    with torch.no_grad():
        save_file({"output": model(torch.tensor(input_ids))[0]}, output)
    if save is not None:
        model.save_pretrained(save)
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "training": model.training,
        "tied": weights_are_tied(model),
        "loading_info": {kind: sorted(map(str, keys)) for kind, keys in loading_info.items()},
    }


def weights_are_tied(model: Any) -> bool:
    """Whether the output head of a model is its embedding matrix, in memory and not only in value."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def download(path: str, revision: str | None = None) -> dict[str, Any]:
    """All files of a repository, in the cache."""
    from huggingface_hub import snapshot_download

    return {"folder": snapshot_download(path, revision=revision)}


def load_tokenizer(
    path: str, texts: list[str], trust_remote_code: bool | None = True, revision: str | None = None
) -> dict[str, Any]:
    """AutoTokenizer, what it makes of texts, and how often it asked the user, who does not answer."""
    from transformers import AutoTokenizer

    with mock.patch("builtins.input", side_effect=EOFError) as asked:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    return {
        "class": type(tokenizer).__name__,
        "token_ids": tokenizer(texts)["input_ids"],
        "pad_token": tokenizer.pad_token,
        "padding_side": tokenizer.padding_side,
        "model_max_length": tokenizer.model_max_length,
        "questions": asked.call_count,
    }


def continue_prompts(
    path: str, prompts: list[str], max_new_tokens: int, batch_size: int, trust_remote_code: bool | None = True
) -> dict[str, Any]:
    """The text-generation pipeline, greedy."""
    from transformers import pipeline

    generator = pipeline("text-generation", model=path, trust_remote_code=trust_remote_code)
    outputs = generator(prompts, max_new_tokens=max_new_tokens, do_sample=False, batch_size=batch_size)
    return {"texts": [output[0]["generated_text"] for output in outputs]}


def sample_with_processor(path: str, input_ids: list[list[int]], max_new_tokens: int) -> dict[str, Any]:
    """Our logits processor out of the repository; at temperature 0 sampling is greedy."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    processor_class = get_class_from_dynamic_module("generation_gpt_scratch.TemperatureTopKLogitsProcessor", path)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    token_ids = model.generate(
        torch.tensor(input_ids),
        attention_mask=torch.ones_like(torch.tensor(input_ids)),
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        logits_processor=[processor_class(temperature=0.0)],
    )
    return {"module": processor_class.__module__, "token_ids": token_ids.tolist()}


def go_on_past_context(path: str, input_ids: list[list[int]], prompts: list[str]) -> dict[str, Any]:
    """More tokens than the context has, through generate() in both modes and through the pipeline."""
    import torch
    from transformers import AutoModelForCausalLM, pipeline

    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    ids = torch.tensor(input_ids)
    num_new = 2 * model.config.max_position_embeddings
    options = {"max_new_tokens": num_new, "do_sample": False, "eos_token_id": None}
    report = {
        mode: model.generate(ids, attention_mask=torch.ones_like(ids), past_context=mode, **options).tolist()
        for mode in ("exact", "rolling")
    }
    generator = pipeline("text-generation", model=path, trust_remote_code=True)
    outputs = generator(prompts, batch_size=len(prompts), past_context="exact", **options)
    report["texts"] = [output[0]["generated_text"] for output in outputs]
    return report


def import_code_without_warning(path: str, class_references: list[str]) -> dict[str, Any]:
    """Import the classes of a repository; a Python warning is an error, what is printed or logged is returned."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    printed = io.StringIO()
    logged = BufferingHandler(capacity=1000)
    logging.getLogger("transformers").addHandler(logged)
    with warnings.catch_warnings(), contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        warnings.simplefilter("error")
        modules = [get_class_from_dynamic_module(reference, path).__module__ for reference in class_references]
    logging.getLogger("transformers").removeHandler(logged)
    messages = [record.getMessage() for record in logged.buffer]
    return {"modules": modules, "printed": printed.getvalue(), "logged": messages}


def run_example(card: str, path: str) -> dict[str, Any]:
    """The Python example of a card, with its placeholders filled in."""
    examples = re.findall(r"^```python\n(.*?)^```$", Path(card).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for example in examples:
            filled_in = example.replace('"USER/NAME"', repr(path)).replace('"<commit>"', '"main"')
            exec(filled_in, {"__name__": "__main__"})  # noqa: S102
    return {
        "filled_in": ['"USER/NAME"' in example and '"<commit>"' in example for example in examples],
        "printed": printed.getvalue(),
    }


def load_side_by_side(
    paths: list[str], revisions: list[str | None], input_ids: list[list[int]], outputs: list[str]
) -> dict[str, Any]:
    """Several language models, used and saved only when all are loaded."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(path, revision=revision, trust_remote_code=True)
        for path, revision in zip(paths, revisions, strict=True)
    ]
    for model, output in zip(models, outputs, strict=True):
        with torch.no_grad():
            save_file({"output": model(torch.tensor(input_ids)).logits}, output)
        model.save_pretrained(f"saved/{output}")
    return {"modules": [type(model).__module__ for model in models]}


def load_without_trust(path: str, auto_class: str, trust_remote_code: bool | None) -> dict[str, Any]:
    """An Auto class, or the pipeline, without the trust that the code in the repository needs."""
    import transformers

    if auto_class == "pipeline":
        loaded = transformers.pipeline("text-generation", model=path, trust_remote_code=trust_remote_code)
    else:
        loaded = getattr(transformers, auto_class).from_pretrained(path, trust_remote_code=trust_remote_code)
    return {"class": type(loaded).__name__}


def remote_code(home: str, marker: str) -> dict[str, Any]:
    """What is there of a repository's code: imported modules, files in the modules cache, marks that the code left."""
    marks = Path(marker)
    return {
        "imported": sorted(
            name for name in sys.modules if name.startswith("transformers_modules.") and name.endswith("_gpt_scratch")
        ),
        "copied": sorted(path.name for path in Path(home, "modules").rglob("*_gpt_scratch.py")),
        "marks": sorted(marks.read_text(encoding="utf-8").split()) if marks.exists() else [],
    }


def load_by_package(path: str, input_ids: list[list[int]], output: str) -> dict[str, Any]:
    """Our own function for it."""
    import torch
    from safetensors.torch import save_file

    from hf_gpt_scratch.hub.loading import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(path)
    with torch.no_grad():
        save_file({"output": model(torch.tensor(input_ids)).logits}, output)
    return {"module": type(model).__module__, "training": model.training, "tokenizer": type(tokenizer).__name__}


def load_all(path: str, input_ids: list[list[int]], texts: list[str], remote_code: bool) -> dict[str, Any]:
    """Model and tokenizer, by the Auto classes with remote code or by our own function; all that came, in short."""
    import torch

    if remote_code:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    else:
        from hf_gpt_scratch.hub.loading import load_model_and_tokenizer

        model, tokenizer = load_model_and_tokenizer(path)
    with torch.no_grad():
        logits = model(torch.tensor(input_ids)).logits
    generation = model.generation_config
    return {
        "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
        "token_ids": tokenizer(texts)["input_ids"],
        "pad_token": tokenizer.pad_token,
        "special_token_ids": [generation.bos_token_id, generation.eos_token_id, generation.pad_token_id],
    }


def push(path: str, repo_id: str) -> dict[str, Any]:
    """Our own function for it."""
    from hf_gpt_scratch.hub.push import push_folder

    return {"commit": push_folder(path, repo_id).commit}


class NotInstalled:
    """First finder of the import system: the package is not there, wherever it may be installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.split(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def make_calls(calls: Calls, functions: dict[str, Any]) -> Report:
    """One after the other; an exception ends only its own call."""
    report = {}
    for name, (function, arguments) in calls.items():
        try:
            call: Callable[..., dict[str, Any]] = functions[function]
            report[name] = call(**arguments)
        except Exception as error:
            report[name] = {
                "error": [ancestor.__name__ for ancestor in type(error).__mro__],
                "message": str(error),
                "traceback": traceback.format_exc(),
            }
    return report


if __name__ == "__main__":
    own_folder = Path(sys.argv[1])
    order = json.loads((own_folder / "order.json").read_text(encoding="utf-8"))
    if not order["package"]:
        sys.meta_path.insert(0, NotInstalled())
    sys.path[:0] = order["overlay"]
    report = make_calls(order["calls"], runpy.run_path(order["functions"]))
    (own_folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
