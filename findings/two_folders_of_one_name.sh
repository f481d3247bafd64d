#!/usr/bin/env bash
# Surprise: two local folders with the same last name, the same configuration file and different modeling files: loaded
# one after the other in one process with trust_remote_code=True, the second runs the code of the first, without an
# error or a warning. With transformers 5.24.0 (from 5.5 on), torch 2.13.0. The class of the configuration is told apart
# by the text of its file and of what that imports; it is the same for both folders, the Auto class has the first
# folder's model registered for it, and takes that. Seen on 2026-11-28: 1.0 and 1.0 where 1.0 and 2.0 are right.
# Way out: let auto_map name the configuration through the modeling file. Exits non-zero if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cat > "$folder/show.py" <<'PYTHON'
import json
import os
import sys
from pathlib import Path

root = Path(sys.argv[1])
os.environ["HF_HOME"] = str(root / "home")
CONFIGURATION = """
from transformers import PretrainedConfig


class ToyConfig(PretrainedConfig):
    model_type = "toy"
"""
MODELING = """
import torch
from transformers import PreTrainedModel

from .configuration_toy import ToyConfig


class ToyModel(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self):
        return {factor} * self.weight
"""


def outputs(name, config_file):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel

    found = []
    for factor in (1, 2):
        folder = root / str(factor) / name
        folder.mkdir(parents=True)
        auto_map = {"AutoConfig": f"{config_file}.ToyConfig", "AutoModel": "modeling_toy.ToyModel"}
        (folder / "config.json").write_text(json.dumps({"model_type": "toy", "auto_map": auto_map}))
        (folder / "configuration_toy.py").write_text(CONFIGURATION)
        (folder / "modeling_toy.py").write_text(MODELING.format(factor=factor))
        save_file({"weight": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        found.append(AutoModel.from_pretrained(folder, trust_remote_code=True)().item())
    return found


by_configuration, by_modeling = outputs("model", "configuration_toy"), outputs("other", "modeling_toy")
print("configuration named by its own file", by_configuration, "through the modeling file", by_modeling)
assert by_configuration == [1.0, 1.0]
assert by_modeling == [1.0, 2.0]
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
