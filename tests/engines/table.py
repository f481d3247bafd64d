"""README.md's table of the environments: what each holds, and the seconds and MB that it took.

What environments.py measured on this machine goes into the record, and the table is written from that:

python -m tests.engines.table
"""

import json
from pathlib import Path
from typing import Any

from tests.engines.environments import COMPLETE, ENGINES, root


RECORD = Path(__file__).with_name("environments.json")
README = Path(__file__).with_name("README.md")
MARKS = "<!-- environments -->\n", "<!-- end of environments -->"
HEAD = "| environment | holds | seconds to make | MB | on |\n|---|---|---|---|---|"

Record = dict[str, dict[str, Any]]  # of environments by their names: requirements, unwanted, seconds, mb, date


def environments_table(record: Record) -> str:
    """A Markdown table with a row for each environment."""
    lines = [HEAD]
    for name, made in record.items():
        holds = ", ".join(requirement.replace("==", " ") for requirement in made["requirements"])
        if made["unwanted"]:
            holds += f"; not {', '.join(made['unwanted'])}"
        lines.append(f"| {name} | {holds} | {made['seconds']} | {made['mb']:,} | {made['date']} |")
    return "\n".join(lines)


def with_table(readme: str, record: Record) -> str:
    """The text of the README with the table between its marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}{environments_table(record)}\n{MARKS[1]}{after}"


def recorded() -> Record:
    return json.loads(RECORD.read_text(encoding="utf-8"))


if __name__ == "__main__":
    made = {engine.name: root() / engine.name / COMPLETE for engine in ENGINES}
    measured = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in made.items() if file.is_file()}
    known = recorded() | measured
    record = {name: known[name] for name in made}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), record), encoding="utf-8")
