"""Proves that README, the cards and the table of the versions say what the recorded run found, and that the run had
every version and every probe.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.versions.overlays import REFERENCE, VERSIONS
from tests.versions.probes import PROBES
from tests.versions.table import RESULTS, SENTENCE, SUITE, TABLE, TEXTS, range_of, table, with_sentence


@pytest.fixture
def recorded():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_texts_say_what_was_recorded(recorded):
    assert TABLE.read_text(encoding="utf-8") == table(recorded, REFERENCE)
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        assert SENTENCE.search(text), path
        assert with_sentence(text, recorded) == text, path


def test_the_record_has_every_version_and_probe(recorded):
    assert list(recorded["versions"]) == [*VERSIONS, "newest"]
    for row in recorded["versions"].values():
        assert {*row["equal"], *row["failed"], *row["exceptions"]} == set(PROBES)


def test_another_record_makes_other_texts():
    good = {"release": "5.1.0", "equal": ["greedy", "beam"], "failed": [], "exceptions": {}, "mb": 60}
    record = {"environment": {"torch": "2.13.0"}, "versions": {}}
    for release in ("4.9.1", "4.10.0", "5.1.0"):
        record["versions"][release] = good | {"release": release}
    record["versions"]["newest"] = good
    assert range_of(record) == ("4.9", "5.1")
    assert with_sentence("It was tested with transformers 1.2 to 3.4.", record).endswith(" 4.9 to 5.1.")
    assert table(record, "5.1.0").count("2 equal") == 3
    broken = copy.deepcopy(record)
    broken["versions"]["4.9.1"] |= {"equal": ["greedy"], "failed": ["beam"]}
    broken["versions"]["4.10.0"] |= {"equal": ["greedy"], "exceptions": {"beam": "not there"}}
    assert range_of(broken) == ("4.10", "5.1")
    assert "| 1 equal, **1 failed**: beam |" in table(broken, "5.1.0")
    assert table(broken, "5.1.0").endswith("| beam | 4.10.0 | not there |\n" + SUITE)
    broken["versions"]["newest"] = good | {"release": "5.2.0", "failed": ["beam"]}
    assert range_of(broken) == ("4.10", "5.1")
    for row in broken["versions"].values():
        row["failed"] = ["beam"]
    with pytest.raises(ValueError, match="with every version"):
        range_of(broken)


TESTS = """
import pytest

@pytest.mark.parametrize("probe", ["one", "two", "three"])
def test_version(record_property, probe):
    says = {"version": "newest", "release": "5.1.0", "facts": {"mb": 60}, "probe": probe}
    for name, value in says.items():
        record_property(name, value)
    assert probe != "two"
    record_property("reason", "it is so" if probe == "three" else "")

def test_that_is_no_probe(): pass
"""


def test_the_recorder(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "table", "--versions-results", "found.json"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        timeout=240,
    )
    (row,) = json.loads((tmp_path / "found.json").read_text())["versions"].values()
    assert row == {
        "release": "5.1.0", "mb": 60, "equal": ["one"], "failed": ["two"], "exceptions": {"three": "it is so"},
    }  # fmt: skip
