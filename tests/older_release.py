"""A model folder as an older release would have made it: one file more, and none that goes with those of today."""

import json
from pathlib import Path


DROPPED = "helper_gpt_scratch.py"  # a file of the older release alone
ENTRIES = ("configuration_gpt_scratch.py", "modeling_gpt_scratch.py")


def make_older(folder: Path) -> Path:
    """Turn a folder of today into one of an older release, in place."""
    (folder / DROPPED).write_text("HELP = 1\n", encoding="utf-8")
    for name, text in zip(
        ENTRIES,
        ("OLD = 1\n", "from .configuration_gpt_scratch import OLD\nfrom .helper_gpt_scratch import HELP\n"),
        strict=True,
    ):
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["tokenizer_class"], config["auto_map"]["AutoModelForTokenClassification"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder
