"""The record of a part: its items one by one, each on the disk as soon as it has ended."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_gpt_scratch.runtime.files import read_json, write_json


DONE, FAILED, MISSING, UNFINISHED = "done", "FAILED", "not there", "NOT FINISHED"


class MissingError(Exception):
    """This machine lacks what an item needs; the text says what."""


@dataclass(frozen=True)
class Outcome:
    """The result of an item: lines for the table, figures for JSON, and limits as `measuring.describe_limit` has."""

    lines: list[str]
    figures: dict[str, Any] = field(default_factory=dict)
    limits: list[dict[str, Any]] = field(default_factory=list)


class Record:
    """The file `PART.json` of a folder: `items`, `machine` and, once the process has ended, `ended`."""

    def __init__(self, folder: Path, part: str) -> None:
        self.path = folder / f"{part}.json"
        self.content: dict[str, Any] = {"part": part, "items": {}}
        if self.path.exists():
            self.content = read_json(self.path)

    @property
    def items(self) -> dict[str, dict[str, Any]]:
        """The items that have begun, each with `result`, `lines`, `figures`, `limits` and `seconds`."""
        return self.content["items"]

    def note(self, **values: Any) -> None:
        """Write values beside the items."""
        self.content |= values
        write_json(self.path, self.content, sort_keys=False)

    def begin(self, item: str) -> None:
        """Write that an item has begun: if the process dies, that is what stands there."""
        self.items[item] = {"result": UNFINISHED, "lines": [], "figures": {}, "limits": [], "seconds": None}
        self.note()

    def end(self, item: str, result: str, outcome: Outcome, seconds: float) -> None:
        """Write the result of an item, or what it has found so far."""
        self.items[item] = {"result": result, **vars(outcome), "seconds": round(seconds, 2)}
        self.note()
