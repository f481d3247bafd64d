"""Proves the command as users type it: a proved folder, or one line and exit code 1 with nothing left behind.

The corrupted inputs come from fixed lists and seeds. For each, the outcome is a refusal in one line, or an output that
is identical to that of the good input; anything else would be a silently wrong conversion.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hf_gpt_scratch.conversion.convert import convert_checkpoint
from tests.conversion.bundle_writer import gpt2_shapes, gpt2_tensors, write_bundle
from tests.conversion.foreign_models import NanoGPT, TutorialGPT, draw


TINY = {"hidden_size": 16, "num_layers": 2, "vocab_size": 29, "context_length": 12}
HPARAMS = {"n_vocab": 29, "n_ctx": 12, "n_embd": 16, "n_head": 4, "n_layer": 2}
SIZES = {"vocab": 29, "context": 12, "width": 16, "num_layers": 2, "num_heads": 4}
DATA, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not Found</body></html>"

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def run_script(project_root: Path) -> Callable[..., subprocess.CompletedProcess]:
    def run(*arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        command = [sys.executable, str(project_root / "scripts" / "convert_gpt2.py"), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
        return subprocess.run([*prefix, *command], capture_output=True, text=True, env=environment, timeout=300)

    return run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One good checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("good")
    kinds = {kind: folder / kind for kind in ("openai", "gpt2", "sharded", "tutorial", "nanogpt")}
    write_bundle(kinds["openai"] / "model.ckpt", gpt2_tensors(**TINY))
    (kinds["openai"] / "hparams.json").write_text(json.dumps(HPARAMS, indent=2))
    config = GPT2Config(vocab_size=29, n_positions=12, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    stock = draw(GPT2LMHeadModel(config))
    stock.save_pretrained(kinds["gpt2"])
    stock.save_pretrained(kinds["sharded"], max_shard_size="8KB")
    for kind in ("tutorial", "nanogpt"):
        kinds[kind].mkdir()
    torch.save(draw(TutorialGPT(**SIZES)).state_dict(), kinds["tutorial"] / "model.pth")
    content = {"model": draw(NanoGPT(**SIZES)).state_dict(), "model_args": {"n_head": 4, "n_embd": 16}}
    torch.save(content, kinds["nanogpt"] / "ckpt.pt")
    return kinds


def convert(source: Path, output: Path) -> None:
    convert_checkpoint(source, output, num_heads=4 if source.name == "tutorial" else None, verify=False)


def edit(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def flip(position: float, bit: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        place = int(position * len(content))
        return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]

    return change


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


def edit_json(name: str, **changes: object) -> Change:
    return edit(name, lambda content: json.dumps(json.loads(content) | changes).encode())


def rewrite(change: Callable[[dict[str, np.ndarray]], object]) -> Change:
    """Write the TensorFlow checkpoint again, checksums and all, with other tensors."""

    def apply(folder: Path) -> None:
        tensors = gpt2_tensors(**TINY)
        change(tensors)
        write_bundle(folder / "model.ckpt", tensors)

    return apply


def rename(old: str, new: str) -> Change:
    return rewrite(lambda tensors: tensors.update({new: tensors.pop(old)}))


def reshape(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return rewrite(lambda tensors: tensors.update({name: change(tensors[name])}))


def edit_torch(name: str, change: Callable[[dict], object]) -> Change:
    def apply(folder: Path) -> None:
        content = torch.load(folder / name, weights_only=True)
        torch.save(change(content) or content, folder / name)

    return apply


def faults_of_files(kind: str, names: list[str], flips: int, cuts: int) -> Iterator[tuple[str, str, Change]]:
    """Missing, empty, HTML, zeros, appended, flipped and cut files."""
    generator = random.Random(f"{kind} 1")
    for name in names:
        yield kind, f"{name} missing", lambda folder, name=name: (folder / name).unlink()
        yield kind, f"{name} empty", edit(name, lambda _: b"")
        yield kind, f"{name} HTML", edit(name, lambda _: HTML)
        yield kind, f"{name} zeros", edit(name, lambda content: bytes(len(content)))
        yield kind, f"{name} appended", edit(name, lambda content: content + b"\n<!-- proxy -->")
        for _ in range(flips):
            position, bit = generator.random(), generator.randrange(8)
            yield kind, f"{name} bit {bit} at {position:.3f}", edit(name, flip(position, bit))
        for _ in range(cuts):
            share = generator.random()
            yield kind, f"{name} cut at {share:.3f}", edit(name, cut(share))


def faults() -> Iterator[tuple[str, str, Change]]:
    yield from faults_of_files("openai", [DATA, INDEX], flips=12, cuts=4)
    yield from faults_of_files("tutorial", ["model.pth"], flips=12, cuts=4)
    yield from faults_of_files("nanogpt", ["ckpt.pt"], flips=8, cuts=3)
    # A safetensors file has no checksum: flips of its values cannot be seen, so only its other faults are tried.
    yield from faults_of_files("gpt2", ["model.safetensors", "config.json"], flips=0, cuts=4)
    yield from faults_of_files("sharded", ["model.safetensors.index.json"], flips=0, cuts=4)
    for changes in (
        {"n_layer": 1}, {"n_layer": 3}, {"n_layer": "2"}, {"n_layer": 0}, {"n_embd": 32}, {"n_embd": -16},
        {"n_ctx": 1024}, {"n_ctx": 12.5}, {"n_vocab": 50257}, {"n_vocab": True}, {"n_head": 3}, {"n_head": 32},
        {"n_head": "four"}, {"n_head": [4]}, {"n_head": -4},
        {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    ):  # fmt: skip
        yield "openai", f"hparams {changes}", edit_json("hparams.json", **changes)
    for content in (b"", HTML, b"[1, 2]", b'{"n_head": 4', b"null", b"\xff\xfe", b"[" * 100_000):
        yield "openai", f"hparams.json {content[:9]!r}", edit("hparams.json", lambda _, content=content: content)
    yield "openai", "hparams missing", lambda folder: (folder / "hparams.json").unlink()
    for old, new in (
        ("model/wte", "model/wtf"), ("model/wpe", "wpe"), ("model/ln_f/g", "model/ln_f/gamma"),
        ("model/h0/attn/c_attn/w", "model/h0/attn/c_attn/kernel"), ("model/h1/ln_1/b", "model/h5/ln_1/b"),
        ("model/h1/mlp/c_proj/b", "model/h01/mlp/c_proj/b"), ("model/h0/ln_2/g", "MODEL/h0/ln_2/g"),
    ):  # fmt: skip
        yield "openai", f"{old} renamed", rename(old, new)
    for name, change in (
        ("model/h0/attn/c_attn/w", lambda w: w.transpose(0, 2, 1).copy()), ("model/h1/mlp/c_fc/w", lambda w: w[0]),
        ("model/h1/mlp/c_proj/w", lambda w: w.transpose(0, 2, 1).copy()), ("model/wte", lambda w: w.T.copy()),
        ("model/wte", lambda w: w[:, :8].copy()), ("model/wpe", lambda w: w.reshape(-1)),
        ("model/ln_f/b", lambda w: w[:3].copy()), ("model/h0/attn/c_attn/b", lambda w: w[:16].copy()),
        ("model/wte", lambda w: w.astype(np.float64)), ("model/wpe", lambda w: w.astype(np.int32)),
        ("model/h0/ln_1/g", lambda w: w.astype(np.int64)), ("model/wte", lambda w: w[:0].copy()),
        ("model/ln_f/g", lambda w: np.float32(1.0) * np.ones((), np.float32)),
    ):  # fmt: skip
        yield "openai", f"{name} reshaped", reshape(name, change)
    for changes in (
        {"model_type": "llama"}, {"model_type": 3}, {"n_head": 3}, {"n_layer": 12}, {"activation_function": "gelu2"},
        {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False}, {"vocab_size": "29"},
        {"layer_norm_epsilon": None, "n_inner": 65},
    ):  # fmt: skip
        yield "gpt2", f"config {changes}", edit_json("config.json", **changes)
    yield "gpt2", "config is a list", edit("config.json", lambda _: b"[]")
    yield "sharded", "a shard is missing", lambda folder: next(folder.glob("model-*")).unlink()
    yield "sharded", "a shard is cut", edit("model-00001-of-00005.safetensors", cut(0.7))
    yield "sharded", "index of another", edit_json("model.safetensors.index.json", weight_map={"a": "b"})
    yield "tutorial", "a list", edit_torch("model.pth", lambda content: [1, 2])
    yield "tutorial", "a tensor missing", edit_torch("model.pth", lambda content: dict(list(content.items())[1:]))
    yield (
        "tutorial",
        "a tensor more",
        edit_torch("model.pth", lambda content: content | {"pos_emb.bias": torch.ones(2)}),
    )
    yield (
        "tutorial",
        "int8",
        edit_torch("model.pth", lambda content: {k: v.to(torch.int8) for k, v in content.items()}),
    )
    yield "nanogpt", "no head count", edit_torch("ckpt.pt", lambda content: content | {"model_args": {}})
    yield "nanogpt", "other width", edit_torch("ckpt.pt", lambda content: content | {"model_args": {"n_embd": 32}})
    yield "nanogpt", "empty", edit_torch("ckpt.pt", lambda content: {"model": {}})


def result(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_bytes()


def test_corrupted_inputs_are_refused_in_one_line_or_harmless(good: dict[str, Path], tmp_path: Path) -> None:
    expected = {}
    for kind, folder in good.items():
        convert(folder, tmp_path / f"expected-{kind}")
        expected[kind] = result(tmp_path / f"expected-{kind}")
    refused, harmless, wrong = 0, [], []
    work = tmp_path / "work"
    work.mkdir()
    for kind, name, change in faults():
        folder = tmp_path / "input" / kind
        shutil.copytree(good[kind], folder)
        change(folder)
        try:
            convert(folder, work / "out")
            (harmless if result(work / "out") == expected[kind] else wrong).append(f"{kind} {name}")
            shutil.rmtree(work / "out")
        except (ValueError, OSError) as error:
            refused += 1
            if "\n" in str(error) or not str(error):
                wrong.append(f"{kind} {name}: {error!r}")
        if any(work.iterdir()):
            wrong.append(f"{kind} {name}: left {os.listdir(work)}")
        shutil.rmtree(folder)
    print(f"{refused} refused, {len(harmless)} harmless: {harmless}")
    assert not wrong
    assert refused >= 120
    assert len(harmless) <= 10


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("openai", edit(DATA, flip(0.5, 3)), "corrupt"),
        ("openai", edit(INDEX, lambda _: HTML), "index"),
        ("openai", edit_json("hparams.json", n_layer=3), "n_layer is 3 in the settings, 2 in the tensors"),
        ("gpt2", edit_json("config.json", model_type="llama"), "'llama' model"),
        ("tutorial", edit("model.pth", cut(0.5)), "truncated"),
    ],
)
def test_the_script_says_it_in_one_line(
    kind: str, change: Change, message: str, good: dict[str, Path], run_script: Callable, tmp_path: Path
) -> None:
    shutil.copytree(good[kind], tmp_path / "input")
    change(tmp_path / "input")
    process = run_script("--from-dir", tmp_path / "input", "--output", tmp_path / "out", "--n-head", 4, "--no-verify")
    assert process.returncode == 1
    assert process.stdout == ""
    *steps, last = process.stderr.splitlines()
    assert len(steps) <= 1  # what the checkpoint is, where it came so far
    assert last.startswith("error: ")
    assert message in last
    assert os.listdir(tmp_path) == ["input"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "x"), "nothing to convert: give --size 124M to download it, or --from_dir"),
        (("--size", "125M", "--output", "x"), "unknown GPT-2 size '125M': choose from 124M"),
        (("--from-dir", "/nowhere/gpt2", "--output", "x"), "/nowhere/gpt2 does not exist"),
        (("--from-dir", "x", "--output", "x", "--max-shard-size", "big"), "--max_shard_size: 'big' is not a size"),
        (("--output", "x", "--export-stock"), "name its folder with --from_dir"),
    ],
)
def test_wrong_options_are_explained(arguments: tuple, message: str, run_script: Callable) -> None:
    process = run_script(*arguments)
    assert (process.returncode, process.stderr.count("\n")) == (1, 1)
    assert message in process.stderr


def test_the_command_of_the_readme(run_script: Callable, tmp_path: Path, shared_data: Path) -> None:
    shape = {"hidden_size": 16, "num_layers": 2, "vocab_size": 50257, "context_length": 64}
    write_bundle(tmp_path / "gpt2" / "model.ckpt", gpt2_tensors(**shape))
    (tmp_path / "gpt2" / "hparams.json").write_text(json.dumps(HPARAMS | {"n_vocab": 50257, "n_ctx": 64}))
    text = shared_data / "the-verdict.txt"
    output = tmp_path / "deep" / "out"
    process = run_script("--from-dir", tmp_path / "gpt2", "--output", output, "--text", text, "--dtype", "bfloat16")
    assert process.returncode == 0, process.stderr
    report = json.loads((output / "conversion_report.json").read_text())
    assert report["verification"]["class"] == "GPTScratchForCausalLM"
    assert report["verification"]["losses"].keys() == {"first_nine_tenths", "last_tenth", "all"}
    assert report["verification"]["max_logit_difference"]["float64"]["text"] < 1e-8
    for line in (f"{report['num_parameters']:,} parameters", "loss on last tenth", "verified: largest difference"):
        assert line in process.stdout
    for name, facts in report["files"].items():
        assert (output / name).stat().st_size == facts["bytes"]
        assert f"sha256 {facts['sha256']}  {name}" in process.stdout
    assert set(os.listdir(output)) == {*report["files"], "README.md", "conversion_report.json"}
    assert {"LICENSE", "tokenizer.json", "generation_config.json", "modeling_gpt_scratch.py"} <= set(report["files"])

    # Loaded here, the losses of the report come out again: windows of 64, nine tenths of the characters.
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    content = text.read_text(encoding="utf-8")
    ids = torch.tensor(AutoTokenizer.from_pretrained(output).encode(content[int(0.9 * len(content)) :]))
    starts = range(0, len(ids) - 64, 64)
    with torch.no_grad():
        losses = [model(ids[None, s : s + 64], shift_labels=ids[None, s + 1 : s + 65]).loss.item() for s in starts]
    assert report["verification"]["losses"]["last_tenth"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_failed_push_keeps_the_folder(good: dict[str, Path], run_script: Callable, tmp_path: Path) -> None:
    """This checkpoint has not GPT-2's vocabulary, so the folder has no tokenizer and is not for the Hub as it is."""
    output = tmp_path / "out"
    arguments = ("--from-dir", good["openai"], "--output", output, "--no-verify", "--push-to-hub", "nobody/nothing")
    process = run_script(*arguments)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].endswith(
        f"cannot push {output}: it lacks tokenizer.json, tokenizer_config.json"
    )
    assert "Traceback" not in process.stderr
    assert (output / "model.safetensors").is_file()


def test_a_name_that_no_repository_has_is_refused_before_the_conversion(
    good: dict[str, Path], run_script: Callable, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = run_script("--from-dir", good["openai"], "--output", output, "--push-to-hub", "nothing")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("error: 'nothing' is not the name of a repository")
    assert not output.exists()


LIGHT = """
import os, sys
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
bare = peak()
from hf_gpt_scratch.conversion.convert import convert_checkpoint
convert_checkpoint(sys.argv[1], sys.argv[2], verify=False)
heavy = {"torch", "transformers", "tensorflow", "tokenizers", "huggingface_hub"} & set(sys.modules)
print(peak() - bare, sorted(heavy))
"""


def test_conversion_imports_nothing_heavy_and_streams(tmp_path: Path, project_root: Path) -> None:
    shape = {"hidden_size": 768, "num_layers": 1, "vocab_size": 40_000, "context_length": 1024}
    tensors = {name: np.full(values, 0.5, np.float32) for name, values in gpt2_shapes(**shape).items()}
    write_bundle(tmp_path / "source" / "model.ckpt", tensors)
    assert (tmp_path / "source" / DATA).stat().st_size > 150e6
    process = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path / "source"), str(tmp_path / "out")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(project_root)}, check=True,
    )  # fmt: skip
    kibibytes, heavy = process.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert int(kibibytes) < 64 * 1024


@pytest.mark.parametrize("own", [None, "20"])
def test_idle_threads_of_numpy_are_told_to_sleep_before_numpy_is_there(own: str | None, project_root: Path) -> None:
    """Unless the user has said how long they shall wait."""
    program = "import sys, os, hf_gpt_scratch.conversion as c; print('numpy' in sys.modules)\n"
    program += "print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    environment |= {"PYTHONPATH": str(project_root)}
    environment |= {} if own is None else {"OPENBLAS_THREAD_TIMEOUT": own}
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert process.stdout.split() == ["False", own or "4"], process.stderr


KILLED = """
import os, signal, sys
from pathlib import Path
from hf_gpt_scratch.conversion.convert import convert_checkpoint
source, parent = sys.argv[1], Path(sys.argv[2])
for moment in range(1, 1000):
    child = os.fork()
    if child == 0:
        seen = 0
        def watch(event, arguments):
            global seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.mkdir", "os.rename", "os.chmod", "shutil.rmtree", "shutil.copyfile"):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        convert_checkpoint(source, parent / "out", verify=False)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    assert not (parent / "out").exists() or (parent / "out" / "conversion_report.json").is_file()
    if (parent / "out").exists():
        break
print(moment)
"""


def test_kill_at_any_file_event_leaves_no_half_output(
    good: dict[str, Path], tmp_path: Path, project_root: Path
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(good["openai"]), str(tmp_path)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(project_root)}, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 12  # so many moments were tried
    convert(good["openai"], tmp_path / "expected")
    assert result(tmp_path / "out") == result(tmp_path / "expected")
    assert set(os.listdir(tmp_path / "out")) == set(os.listdir(tmp_path / "expected"))


def can_mount() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "-rm", "true"]).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="unshare -rm does not work here, so no disk can be made full or read-only")
@pytest.mark.parametrize("options", ["size=4k", "size=16k", "size=32k", "size=48k", "size=64k", "ro"])
def test_full_and_read_only_disks(options: str, good: dict[str, Path], run_script: Callable, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = f'mount -t tmpfs -o {options} none "{disk}" && "$@"; code=$?; ls -A "{disk}"; exit $code'
    process = run_script(
        "--from-dir", good["openai"], "--output", disk / "out", "--no-verify",
        prefix=("unshare", "-rm", "sh", "-c", inside, "sh"),
    )  # fmt: skip
    if process.returncode == 0:
        pytest.fail(f"a disk of {options} was large enough, so nothing was tried")
    assert process.returncode == 1
    assert process.stdout == ""  # nothing is left on the disk
    lines = process.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert ("Read-only file system" if options == "ro" else "No space left") in lines[-1]
    assert len(lines) <= 2


@pytest.mark.slow
def test_1558m_streams(tmp_path: Path, project_root: Path) -> None:
    """All tensors of the largest size, of zeros so that the file is sparse; 6.2 GB are read, checked and written."""
    import google_crc32c

    from tests.conversion.bundle_writer import entry, header, table

    shapes = gpt2_shapes(hidden_size=1600, num_layers=48, vocab_size=50257, context_length=1024)
    entries, offset = {b"": header()}, 0
    (tmp_path / "source").mkdir()
    for name in sorted(shapes):
        size = 4 * int(np.prod(shapes[name]))
        crc = 0
        for start in range(0, size, 1 << 24):
            crc = google_crc32c.extend(crc, bytes(min(1 << 24, size - start)))
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        entries[name.encode()] = entry(shapes[name], offset=offset, size=size, crc32c=masked)
        offset += size
    assert offset == 6_230_444_800
    (tmp_path / "source" / INDEX).write_bytes(table(entries))
    with (tmp_path / "source" / DATA).open("wb") as file:
        file.truncate(offset)
    process = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path / "source"), str(tmp_path / "out")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(project_root)}, check=True,
    )  # fmt: skip
    print(f"{int(process.stdout.split()[0]) / 1024:.1f} MiB above the bare interpreter")
    assert int(process.stdout.split()[0]) < 128 * 1024  # a mapped matrix of 39 MiB and a block
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) > offset
    shutil.rmtree(tmp_path)
