"""README's table of what works with whose library: recorded while the tests run, and written from that record.

The record needs this folder in the command, with any number of processes; then the table is written:

python -m pytest -n 2 --dist loadfile -m ecosystem tests/ecosystem --ecosystem-results tests/ecosystem/results.json
python tests/ecosystem/works_table.py
"""

import itertools
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest


RESULTS = Path(__file__).with_name("results.json")
README = Path(__file__).parents[2] / "README.md"
MARKS = "<!-- works -->\n", "<!-- end of works -->"
HEAD = "| with | version | what | result |\n|---|---|---|---|"
WORDS = {"passed": "works", "failed": "**fails**", "skipped": "**not run**"}

Rows = dict[str, dict[str, str]]  # of tests by their ids: package, version, what, outcome


class Recorder:
    """Keep the outcome of each test that says what it proves, and write all at the end.

    With pytest-xdist the reports come from other processes; what a test says of itself comes with them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: Rows = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        says = getattr(report, "says", None)
        if says and (report.when == "call" or not report.passed):
            self.rows[report.nodeid] = says | {"outcome": report.outcome}

    def pytest_sessionfinish(self) -> None:
        rows = dict(sorted(self.rows.items()))
        self.path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ecosystem-results", help="JSON file for what the tests of this folder found to work")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("ecosystem_results", None)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> pytest.TestReport:
    """Let the report say what the test proves, and with which version."""
    report = yield
    marker = item.get_closest_marker("works")
    if marker:
        package, what = marker.args
        report.says = {"package": package, "version": installed_version(package), "what": what}
    return report


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def works_table(rows: Rows) -> str:
    """A Markdown table with a row for each package, and a row of their own for its tests that did not pass."""

    def group(row: dict[str, str]) -> tuple[str, str, int]:
        return row["package"], row["version"], list(WORDS).index(row["outcome"])

    lines = [HEAD]
    for _, same in itertools.groupby(sorted(rows.values(), key=group), key=group):
        package, *others = same
        what = "; ".join(row["what"] for row in (package, *others))
        lines.append(f"| {package['package']} | {package['version']} | {what} | {WORDS[package['outcome']]} |")
    return "\n".join(lines)


def with_table(readme: str, rows: Rows) -> str:
    """The text of the README with the table between its marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}{works_table(rows)}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    README.write_text(with_table(README.read_text(encoding="utf-8"), recorded), encoding="utf-8")
