"""Proves that one exported folder does the same with every version of transformers in the table, or says that it does
not: what it computes with the reference version is what it computes with the others.
"""

from typing import Any, NamedTuple

import pytest
import torch
from packaging.version import Version

from tests.versions.matrix import changed_copy
from tests.versions.overlays import NEWEST_KNOWN, OLDEST, REFERENCE, VERSIONS
from tests.versions.probes import PROBES


class Impossible(NamedTuple):
    """What some versions cannot do; there it has to raise, and never to compute something else."""

    probe: str
    first: str  # version
    below: str
    reason: str
    stock: str = ""  # a call that shows that the library's own GPT-2 cannot do it either


EXCEPTIONS = [
    Impossible("dtype", "4.40", "4.56", "the keyword is called `torch_dtype` there"),
    Impossible("attention_switched", "4.40", "4.54", "there is no `set_attn_implementation()`"),
    Impossible("static_cache", "4.40", "4.41", "only for models with a private method of that time"),
    Impossible("continuous_batching", "4.40", "4.52", "there is no `generate_batch()`"),
    Impossible(
        "continuous_batching", "4.52", "5.5", "the library's own GPT-2 fails at it too, on a CPU",
        stock="continuous_batching_of_stock",
    ),
    Impossible(
        "folder_dots", "4.40", "4.57",
        "the library takes a dot in the name of a local folder for the end of a package's name: rename it",
    ),
    Impossible(
        "tokenizer_without_question", "5.0", "99",
        "the library asks about the model's code before it reads what the tokenizer needs: `trust_remote_code=False`",
    ),
]  # fmt: skip


def exception(version: str, probe: str) -> Impossible | None:
    rows = [row for row in EXCEPTIONS if row.probe == probe]
    return next((row for row in rows if Version(row.first) <= Version(version) < Version(row.below)), None)


def check(run: Any, reference: Any, probe: str) -> Impossible | None:
    """Fail unless the probe found what it found with the reference, or raised where an exception says so."""
    row = exception(run.version, probe)
    if row is None:
        values, tensors = run.found(probe)
        # Where the reference cannot do it, a probe returns nothing.
        wanted_values, wanted_tensors = ({}, {}) if exception(reference.version, probe) else reference.found(probe)
        where = f"transformers {run.version}, probe {probe}"
        assert values == wanted_values, where
        assert tensors.keys() == wanted_tensors.keys(), where
        for name, wanted in wanted_tensors.items():
            torch.testing.assert_close(
                tensors[name], wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{where}, {name}: {text}"
            )
        return None
    report = run.report(probe)
    assert "error" in report, f"{run.version} can do {probe}: take the row out of EXCEPTIONS"
    assert "AssertionError" not in report["error"], report["traceback"]  # it went on, and to something wrong
    assert report["message"].strip()
    assert "\n" not in report["message"].strip()
    if row.stock:
        assert "error" in run.report(row.stock), f"{run.version}: the library's own model can do {probe}"
    return row


@pytest.mark.versions
@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("version", [*VERSIONS, "newest"])
def test_version(matrix, record_property, version, probe):
    run = matrix.run(version)
    record_property("version", version)
    record_property("release", run.version)
    record_property("facts", run.facts)
    record_property("probe", probe)
    row = check(run, matrix.run(REFERENCE), probe)
    record_property("reason", row.reason if row else "")


@pytest.mark.versions
@pytest.mark.timeout(1800)  # it waits for all versions
@pytest.mark.parametrize("place", [OLDEST, NEWEST_KNOWN])
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_saved_loads_with_the_oldest_and_the_newest(matrix, version, place):
    jobs = {one: matrix.start(one) for one in VERSIONS}
    folders = {one: job.result().outcome.folder / "saved" for one, job in jobs.items() if job.result().outcome}
    calls = {f"saved_{one}": ("load_saved", {"path": str(folder)}) for one, folder in folders.items()}
    matrix.run(version).found("save_and_load")
    matrix.run(place, "saved", calls=calls).found(f"saved_{version}")


BROKEN = {
    "the head is not tied": (
        "def _apart(self, *args, **kwargs):\n"
        "    self.lm_head.weight = nn.Parameter(self.model.embed_tokens.weight.detach().clone())\n"
        "GPTScratchForCausalLM.tie_weights = _apart\n",
        "load_report",
    ),
    "padding shifts the positions": (
        "_forward = GPTScratchModel.forward\n"
        "def _shifted(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):\n"
        "    if past_key_values is None and input_ids is not None:\n"
        "        position_ids = torch.arange(input_ids.shape[1])[None]\n"
        "    return _forward(self, input_ids, attention_mask, position_ids, past_key_values, **kwargs)\n"
        "GPTScratchModel.forward = _shifted\n",
        "logits_left_padded",
    ),
    "a logit is 1e-4 too high": (
        "_forward = GPTScratchForCausalLM.forward\n"
        "def _higher(self, *args, **kwargs):\n"
        "    output = _forward(self, *args, **kwargs)\n"
        "    output.logits = output.logits + 1e-4\n"
        "    return output\n"
        "GPTScratchForCausalLM.forward = _higher\n",
        "logits",
    ),
}  # fmt: skip


@pytest.mark.versions
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("version", [OLDEST, NEWEST_KNOWN])
def test_broken_code_is_noticed(matrix, exported, tmp_path, version, broken):
    code, probe = BROKEN[broken]
    for folder in ("bytes", "older"):
        (tmp_path / folder).symlink_to(exported / folder)
    changed_copy(exported / "tiny", tmp_path / "tiny", "modeling", f"\n\n{code}")
    run = matrix.run(version, broken, exported=tmp_path, calls={probe: PROBES[probe], "config": PROBES["config"]})
    check(run, matrix.run(REFERENCE), "config")
    with pytest.raises((AssertionError, pytest.fail.Exception), match=f"{run.version}, probe {probe}"):
        check(run, matrix.run(REFERENCE), probe)


@pytest.mark.versions
def test_a_hang_is_told(matrix, exported, tmp_path):
    for folder in ("bytes", "older"):
        (tmp_path / folder).symlink_to(exported / folder)
    changed_copy(exported / "tiny", tmp_path / "tiny", "configuration", "\n\nwhile True:\n    pass\n")
    run = matrix.run(NEWEST_KNOWN, "hang", exported=tmp_path, calls={"config": PROBES["config"]}, limit=40)
    with pytest.raises(pytest.fail.Exception, match=f"{NEWEST_KNOWN}: hangs in the probe config"):
        run.found("config")


@pytest.mark.versions
def test_what_cannot_be_installed_is_a_failure(matrix):
    run = matrix.run("4.0.9999")
    with pytest.raises(pytest.fail.Exception, match=r"4\.0\.9999: not installed"):
        run.found("config")
