"""Proves that README.md says what making the environments took, and that they were made with the pinned versions."""

from tests.engines.environments import ENGINES
from tests.engines.table import README, recorded, with_table


def test_readme_has_the_recorded_table() -> None:
    readme, record = README.read_text(encoding="utf-8"), recorded()
    assert with_table(readme, record) == readme
    record[ENGINES[0].name]["seconds"] += 1
    assert with_table(readme, record) != readme  # the control


def test_the_record_is_of_the_environments_as_they_are_made() -> None:
    pins = {engine.name: [[*engine.requirements], [*engine.unwanted]] for engine in ENGINES}
    assert {name: [made["requirements"], made["unwanted"]] for name, made in recorded().items()} == pins
