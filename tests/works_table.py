"""README's table of what works with whose library: recorded while the tests run, and written from the records.

A test says what it shows by the marker `works(package, what)`. What is recorded of tests that do not run stays, so a
record can be renewed one engine at a time. With any number of processes:

python -m pytest -n 2 --dist loadfile -m ecosystem tests/ecosystem --works-results tests/ecosystem/results.json
python -m pytest -m engines tests/engines --works-results tests/engines/results.json
python tests/works_table.py
"""

import itertools
import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest


TESTS = Path(__file__).parent
RESULTS = [TESTS / "ecosystem" / "results.json", TESTS / "engines" / "results.json"]
README = TESTS.parent / "README.md"
MARKS = "<!-- works -->\n", "<!-- end of works -->"
HEAD = "| with | version | what | result |\n|---|---|---|---|"
WORDS = {"passed": "works", "failed": "**fails**", "skipped": "**not run**"}

Rows = dict[str, dict[str, str]]  # of tests by their ids: package, version, what, outcome, date


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
        known: Rows = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        # Of a test that ran no case stays that did not: it may be gone.
        ran = {name.partition("[")[0] for name in self.rows}
        known = {name: row for name, row in known.items() if name.partition("[")[0] not in ran}
        rows = dict(sorted((known | self.rows).items()))
        self.path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--works-results", help="JSON file for what the tests found to work with whose library")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("works_results", None)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> pytest.TestReport:
    """Let the report say what the test proves, when, and with which version: that of this environment, or the one that
    the test names in its `user_properties`.
    """
    report = yield
    marker = item.get_closest_marker("works")
    if marker:
        package, what = marker.args
        version = dict(item.user_properties).get("version") or installed_version(package)
        report.says = {"package": package, "version": version, "what": what, "date": time.strftime("%Y-%m-%d")}
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
        what = "; ".join(dict.fromkeys(row["what"] for row in (package, *others)))
        lines.append(f"| {package['package']} | {package['version']} | {what} | {WORDS[package['outcome']]} |")
    return "\n".join(lines)


def with_table(readme: str, rows: Rows) -> str:
    """The text of the README with the table between its marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}{works_table(rows)}\n{MARKS[1]}{after}"


def recorded_rows() -> Rows:
    """The rows of all records."""
    return {name: row for path in RESULTS for name, row in json.loads(path.read_text(encoding="utf-8")).items()}


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8"), recorded_rows()), encoding="utf-8")
