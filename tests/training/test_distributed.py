"""Proves that a step is the same however it is split: over micro-batches, processes (DDP), or weights too (FSDP2).

All runs of several processes share one group of them over gloo, started by `accelerate launch` with the committed
config for FSDP2. References are the same runs in one process, and for those a plain PyTorch loop.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from hf_gpt_scratch import GPTScratchForCausalLM
from hf_gpt_scratch.data.documents import read_text
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.data.tokenizer import load_encoding
from hf_gpt_scratch.data.windows import (
    IGNORE_INDEX,
    TokenWindows,
    encode_text,
    epoch_order_seed,
)
from hf_gpt_scratch.training.checkpoints.manifest import find_corruption
from hf_gpt_scratch.training.loop import train
from hf_gpt_scratch.training.optim import build_optimizer, learning_rate_at, set_learning_rate
from hf_gpt_scratch.training.settings import TrainingSettings
from tests.texts import split_text
from tests.training.histories import rows, without_speed
from tests.training.runs_in_one_world import copy_at_step


STEPS = 7  # more than an epoch of 5, whose last step has 2 of 8 windows; in one window 5 of 16 labels are masked
TOLERANCE = 1e-6  # relative, in float32: sums in another order
TINY = {
    "vocabulary": "bytes",
    "peak_flops": 1e12,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "dropout": 0.0,
    "warmup_steps": 2,
    "max_steps": STEPS,
    "eval_steps": 4,
    "sample_tokens": 5,
    "save_steps": 3,
    "save_total_limit": 9,
    "max_grad_norm": 0.0,  # Adam's first moment is then a sum of gradients, which can be compared
}
# name: (windows of a micro-batch, micro-batches, processes, FSDP2); the product of the first three is 8
SPLITS = {
    "one 8x1": (8, 1, 1, False),
    "one 4x2": (4, 2, 1, False),
    "one 1x8": (1, 8, 1, False),
    "DDP 4x1": (4, 1, 2, False),
    "DDP 2x2": (2, 2, 2, False),
    "FSDP2 4x1": (4, 1, 2, True),
    "FSDP2 2x2": (2, 2, 2, True),
}
DROPOUT = {"dropout": 0.1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CLIPPED = {"max_grad_norm": 0.5}
MUON = {"optim": "muon"}
WORSE = {"load_best_model_at_end": True, "learning_rate": 1.0, "eval_steps": 1}  # at this rate the first is the best
HALVES = {"per_device_train_batch_size": 4}
BF16 = {"mixed_precision": "bf16"}
MORE_OF_ONE = {"one clipped": CLIPPED, "one muon": MUON, "one bf16": BF16}
# name: (FSDP2, settings, the run that it goes on from)
MORE_OF_TWO = {
    "FSDP2 dropout": (True, DROPOUT, None),
    "FSDP2 resumed": (True, DROPOUT, "FSDP2 dropout"),
    "FSDP2 clipped": (True, HALVES | CLIPPED, None),
    "FSDP2 after one": (True, HALVES, "one 8x1"),
    "DDP after FSDP2": (False, HALVES, "FSDP2 4x1"),
    "FSDP2 muon": (True, HALVES | MUON, None),
    "FSDP2 bf16": (True, HALVES | BF16, None),
    "FSDP2 best": (True, HALVES | WORSE, None),
    "DDP NaN stop": (False, HALVES, None),
    "DDP NaN skip": (False, HALVES | {"on_bad_step": "skip"}, None),
    "FSDP2 NaN skip": (True, HALVES | {"on_bad_step": "skip"}, None),
}
POISONED_STEP = 5


def series(folder: Path, key: str = "loss", event: str = "step") -> list[float]:
    return [row[key] for row in rows(folder, event)]


def state(folder: Path, file: str = "model", step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{file}.safetensors")


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], part: str = "") -> float:
    """Norm of the difference over norm, of all tensors with `part` in their names together."""
    assert found.keys() == expected.keys()
    names = [name for name in expected if part in name]
    assert names
    assert all(found[name].shape == expected[name].shape for name in names)
    whole = [torch.cat([tensors[name].double().flatten() for name in names]) for tensors in (found, expected)]
    return ((whole[0] - whole[1]).norm() / whole[1].norm()).item()


def launch(folder: Path, config: Path) -> None:
    """Train the cases of `folder` in one group of two processes."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    result = subprocess.run(
        [*launcher, "--main_process_port", "0", str(Path(__file__).with_name("runs_in_one_world.py")), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if result.returncode != 0:
        pytest.fail(f"training failed:\n{result.stdout}\n{result.stderr}")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainingSettings]:
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "short.txt"
    text.write_bytes(bundled_text_path().read_bytes()[:600])

    def settings(name: str, **changes: object) -> TrainingSettings:
        values = {**TINY, "train_file": [str(text)], "output_dir": str(folder / name.replace(" ", "-"))}
        return TrainingSettings(**{**values, **changes})

    return settings


def in_one_process(settings: TrainingSettings) -> Path:
    train(settings)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return Path(settings.output_dir)


@pytest.fixture(scope="module")
def one(build: Callable) -> dict[str, Path]:
    """The folders of the runs of one process."""
    cases = {
        name: {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        for name, (size, accumulated, processes, _) in SPLITS.items()
        if processes == 1
    }
    cases |= {name: {"per_device_train_batch_size": 8, **more} for name, more in MORE_OF_ONE.items()}
    return {name: in_one_process(build(name, **changes)) for name, changes in cases.items()}


@pytest.fixture(scope="module")
def two(
    one: dict[str, Path], build: Callable, project_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], dict[str, dict]]:
    """The folders of the runs of two processes, and what the processes said of each run."""
    splits = {
        name: (fsdp, {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}, None)
        for name, (size, accumulated, processes, fsdp) in SPLITS.items()
        if processes == 2
    }
    folders, cases = dict(one), []
    for name, (fsdp, changes, origin) in (splits | MORE_OF_TWO).items():
        settings = build(name, resume=origin is not None, **changes)
        folders[name] = Path(settings.output_dir)
        case = {"name": name, "fsdp": fsdp, "settings": settings.to_dict()}
        case |= {"copy_of": str(folders[origin])} if origin else {}
        case |= {"poisoned_step": POISONED_STEP} if "NaN" in name else {}
        cases.append(case)
    folder = tmp_path_factory.mktemp("world")
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    launch(folder, project_root / "scripts" / "configs" / "fsdp2.yaml")
    return folders, json.loads((folder / "results.json").read_text(encoding="utf-8"))


def plain_training(settings: TrainingSettings) -> tuple[list[float], GPTScratchForCausalLM]:
    """The same training without Accelerate, loaders, padding or micro-batches: sum of nats over number of labels."""
    train_text, _ = split_text(read_text(Path(settings.train_file[0])), settings.train_split)
    windows = TokenWindows(
        encode_text(train_text, load_encoding(settings.vocabulary)), settings.max_position_embeddings
    )
    torch.manual_seed(settings.seed)
    model = GPTScratchForCausalLM(settings.model_config()).train()
    optimizer = build_optimizer(model, settings)
    losses: list[float] = []
    for epoch in range(settings.num_train_epochs):
        generator = torch.Generator().manual_seed(epoch_order_seed(settings.seed, epoch))
        for indices in torch.randperm(len(windows), generator=generator).split(8):
            if len(losses) == settings.max_steps:
                return losses, model
            items = [windows[int(index)] for index in indices]
            labels = torch.cat([item["shift_labels"] for item in items])
            logits = model(torch.stack([item["input_ids"] for item in items]), use_cache=False).logits.flatten(0, 1)
            nats = torch.logsumexp(logits, dim=-1) - logits.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
            counts = labels != IGNORE_INDEX
            loss = nats[counts].sum() / counts.sum()
            loss.backward()
            set_learning_rate(optimizer, learning_rate_at(len(losses), settings.max_steps, settings))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    raise AssertionError("the text is too short for the steps")


def test_one_process_is_a_plain_pytorch_loop(one: dict[str, Path], build: Callable) -> None:
    """The reference of all comparisons below, an uneven end of an epoch and masked labels included."""
    losses, model = plain_training(build("plain", per_device_train_batch_size=8))
    tokens = [row["tokens_seen"] for row in rows(one["one 8x1"], "step")]
    per_step = [now - before for before, now in zip([0, *tokens], tokens, strict=False)]
    assert len(set(per_step)) == 3  # full steps, the step with the masked window, and the short end of the epoch
    assert series(one["one 8x1"]) == pytest.approx(losses, rel=TOLERANCE)
    assert difference(state(one["one 8x1"]), dict(model.named_parameters())) < TOLERANCE
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("split", [name for name in SPLITS if name != "one 8x1"])
def test_loss_gradient_and_weights_do_not_depend_on_the_split(two: tuple, split: str) -> None:
    folders, results = two
    reference, folder = folders["one 8x1"], folders[split]
    assert series(folder) == pytest.approx(series(reference), rel=TOLERANCE)
    measured, expected = (series(path, "validation_loss", "evaluation") for path in (folder, reference))
    assert measured == pytest.approx(expected, rel=TOLERANCE)
    assert difference(state(folder), state(reference)) < TOLERANCE
    # A sum of the gradients of all steps.
    assert difference(state(folder, "optimizer"), state(reference, "optimizer"), ".exp_avg") < TOLERANCE
    assert rows(folder, "sample")[-1] == rows(reference, "sample")[-1]
    assert find_corruption(folder / "checkpoints" / f"step-{STEPS:08d}") is None
    if split in results:
        micro_batches = STEPS * SPLITS[split][1]
        assert results[split]["losses_without_logits"] > micro_batches, "all of training, and the evaluations"
        assert results[split]["kind"] == f"DistributedType.{'FSDP' if split.startswith('FSDP2') else 'MULTI_CPU'}"


def test_mean_of_means_would_differ(one: dict[str, Path], build: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: each micro-batch divided by its own labels, as most loops do, is seen by the test above."""
    forward = GPTScratchForCausalLM.forward

    def mean_of_means(self: GPTScratchForCausalLM, *args: object, num_items_in_batch: object = None, **kwargs: object):
        output = forward(self, *args, **kwargs)
        if num_items_in_batch is not None:
            output.loss = torch.nan_to_num(output.loss) / 4
        return output

    monkeypatch.setattr(GPTScratchForCausalLM, "forward", mean_of_means)
    wrong = build("mean of means", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    folder, reference = in_one_process(wrong), one["one 8x1"]
    worst = max(abs(a / b - 1) for a, b in zip(series(folder), series(reference), strict=True))
    assert worst > 100 * TOLERANCE
    assert difference(state(folder), state(reference)) > 100 * TOLERANCE
    assert difference(state(folder, "optimizer"), state(reference, "optimizer"), ".exp_avg") > 100 * TOLERANCE


def test_fsdp2_spreads_every_layer_and_keeps_the_embeddings_tied(two: tuple) -> None:
    result = two[1]["FSDP2 2x2"]
    layers = {name for name in result["units"] if name.startswith("model.layers")}
    assert layers == {"model.layers.0", "model.layers.1"}  # _no_split_modules, and nothing inside
    assert result["is_tied"]
    assert result["part"] == pytest.approx(0.5, abs=0.01)  # each process holds half of the weights
    assert two[1]["DDP 2x2"]["units"] == []
    assert two[1]["DDP 2x2"]["part"] == 1.0
    names = state(two[0]["FSDP2 2x2"]).keys()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_fsdp2_clips_the_norm_of_the_whole_gradient(two: tuple) -> None:
    folders, _ = two
    norms = series(folders["one clipped"], "grad_norm")
    assert min(norms) > CLIPPED["max_grad_norm"]
    assert series(folders["FSDP2 clipped"], "grad_norm") == pytest.approx(norms, rel=TOLERANCE)
    assert series(folders["FSDP2 clipped"]) == pytest.approx(series(folders["one clipped"]), rel=TOLERANCE)
    assert difference(state(folders["FSDP2 clipped"]), state(folders["one clipped"])) < TOLERANCE


def test_fsdp2_with_muon_makes_whole_matrices_orthogonal(two: tuple) -> None:
    """Not each process its part. Muon calculates in bfloat16, so that rounding is larger here."""
    folders, _ = two
    assert difference(state(folders["FSDP2 muon"]), state(folders["one muon"])) < 1e-3
    assert difference(state(folders["one 8x1"]), state(folders["one muon"])) > 1e-2


def test_fsdp2_multiplies_in_bf16_and_adds_in_float32(two: tuple) -> None:
    """Accelerate's own policy rounds losses to bf16, here to 1/32, and adds the gradients of the processes in it."""
    folders, results = two
    assert results["FSDP2 bf16"]["sums"] == results["FSDP2 4x1"]["sums"] == ["torch.float32"]
    for key, event in (("loss", "step"), ("validation_loss", "evaluation")):
        losses = series(folders["FSDP2 bf16"], key, event)
        assert losses == pytest.approx(series(folders["one bf16"], key, event), rel=1e-4)
        assert losses != series(folders["FSDP2 4x1"], key, event)  # the control: bf16 does something
        assert torch.tensor(losses).bfloat16().tolist() != pytest.approx(losses, rel=1e-4)  # and would be seen
    assert difference(state(folders["FSDP2 bf16"]), state(folders["one bf16"])) < 1e-2


def test_fsdp2_resumes_bit_for_bit(two: tuple) -> None:
    """With dropout and accumulation, in the middle of an epoch."""
    folders, _ = two
    resumed, unbroken = folders["FSDP2 resumed"], folders["FSDP2 dropout"]
    for event in ("step", "evaluation", "sample"):
        assert [*map(without_speed, rows(resumed, event))] == [*map(without_speed, rows(unbroken, event))]
    for name in ("model", "optimizer", "rng_0", "rng_1"):
        file = Path("checkpoints", f"step-{STEPS:08d}", f"{name}.safetensors")
        assert (resumed / file).read_bytes() == (unbroken / file).read_bytes(), name
    assert series(unbroken) != series(folders["FSDP2 2x2"])  # dropout does something


def test_fsdp2_scores_and_writes_the_best_weights(two: tuple[dict[str, Path], dict]) -> None:
    """Not weights that an earlier forward pass left whole on every process; the last ones are far worse."""
    folder = two[0]["FSDP2 best"]
    *during, at_end = series(folder, "validation_loss", "evaluation")
    assert at_end == pytest.approx(min(during), rel=TOLERANCE)
    assert during[-1] > at_end + 0.1
    result = load_file(folder / "model" / "model.safetensors")
    best = state(folder, step=during.index(min(during)))
    assert result.keys() == best.keys()
    assert all(torch.equal(result[name], weight) for name, weight in best.items())


@pytest.mark.parametrize("way", ["FSDP2 after one", "DDP after FSDP2", "one after FSDP2"])
def test_checkpoint_is_continued_by_another_kind_of_run(two: tuple, build: Callable, way: str) -> None:
    folders, _ = two
    if way == "one after FSDP2":
        settings = build(way, per_device_train_batch_size=8, resume=True)
        copy_at_step(folders["FSDP2 4x1"], Path(settings.output_dir), step=3)
        folders[way] = in_one_process(settings)
    reference = folders["one 8x1"]
    assert rows(folders[way], "run")[-1]["resumed_at_step"] == 3
    assert series(folders[way]) == pytest.approx(series(reference), rel=TOLERANCE)
    assert difference(state(folders[way]), state(reference)) < TOLERANCE
    assert difference(state(folders[way], "optimizer"), state(reference, "optimizer"), ".exp_avg") < TOLERANCE


def test_nan_on_one_process_is_judged_alike_on_all(two: tuple) -> None:
    """If they did not, the group would hang or its weights part; the last process has it, the first speaks."""
    folders, results = two
    stopped = results["DDP NaN stop"]["stopped"]
    assert f"stopped at step {POISONED_STEP}, which was not applied: loss nan" in stopped
    assert find_corruption(folders["DDP NaN stop"] / "checkpoints" / "step-00000003") is None
    for name in ("DDP NaN skip", "FSDP2 NaN skip"):
        assert results[name]["skipped_steps"] == 1
        skipped = [row["global_step"] for row in rows(folders[name], "step") if row.get("skipped")]
        assert skipped == [POISONED_STEP]
        assert series(folders[name])[POISONED_STEP] is not None


def test_exported_folder_of_fsdp2_is_a_normal_repository(two: tuple) -> None:
    """A fresh process without this package gets the logits of the trained weights, and the loss that was measured."""
    folder = two[0]["FSDP2 2x2"]
    assert sorted(path.name for path in (folder / "model").iterdir()) == sorted(
        path.name for path in (two[0]["one 8x1"] / "model").iterdir()
    )
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GPTScratchForCausalLM"]
    input_ids = torch.arange(32).view(2, 16) * 7
    code = """
import sys, torch
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_gpt_scratch":
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained("model", trust_remote_code=True)
assert model.lm_head.weight is model.model.embed_tokens.weight
with torch.no_grad():
    save_file({"logits": model(torch.arange(32).view(2, 16) * 7).logits}, "logits.safetensors")
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf_home")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    trained = GPTScratchForCausalLM(build_config(folder)).eval()
    trained.load_state_dict(state(folder), strict=False)
    trained.tie_weights()
    with torch.no_grad():
        expected = trained(input_ids).logits
    assert torch.equal(load_file(folder / "logits.safetensors")["logits"], expected)


def build_config(folder: Path) -> object:
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return TrainingSettings(**settings).model_config()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed precision fp8 is not supported: launch with no, bf16 or fp16"),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "ONNXRT"},
            "launcher's --dynamo_backend onnxrt is not in this PyTorch: there is ",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported.* launch with scripts/configs/fsdp2.yaml"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
            "FSDP version 1 is not supported: set fsdp_version: 2",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    build: Callable, environment: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = build("refused")
    with pytest.raises(ValueError, match=reason):
        train(settings)
    assert not Path(settings.output_dir).exists()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
