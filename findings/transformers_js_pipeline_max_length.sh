#!/usr/bin/env bash
# npm's @huggingface/transformers 4.3.1 (transformers.js) in Node, a text-generation pipeline called with max_length.
# Behavior: max_length is ignored without a word, and 256 new tokens are written. The pipeline puts max_new_tokens: 256
# before the caller's options, and generate() lets max_new_tokens win over max_length. So neither the option nor the
# max_length of generation_config.json keeps a text within the context of the model; model.generate() heeds both.
# max_new_tokens, or max_new_tokens: null beside max_length, mends it.
# Seen on 2026-11-30 with Node 20.20.2, onnx 1.23.2: "generate 10, pipeline 257, with null 10". The script fails when
# that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip --quiet --disable-pip-version-check install onnx==1.23.2
npm install --ignore-scripts --no-audit --no-fund --loglevel=error @huggingface/transformers@4.3.1 > /dev/null
mkdir -p model/onnx
# A model of two words: after each comes the other.
cat > make.py <<'PYTHON'
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

names = "input_ids", "attention_mask"
ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in names)
logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "t", 2])
table = numpy_helper.from_array(np.array([[0, 1], [1, 0]], np.float32), "table")
node = helper.make_node("Gather", ["table", "input_ids"], ["logits"])
graph = helper.make_graph([node], "two", [ids, mask], [logits], [table])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model/onnx/model.onnx")
words = {"type": "WordLevel", "vocab": {"tick": 0, "tock": 1}, "unk_token": "tick"}
tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}}
tokenizer |= {"post_processor": None, "decoder": None, "model": words}
config = {"model_type": "gpt2", "n_layer": 0, "n_head": 1, "n_embd": 1, "vocab_size": 2}
for name, content in {
    "config": config,
    "generation_config": {"max_length": 10},
    "tokenizer": tokenizer,
    "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizer", "pad_token": "tick"},
}.items():
    Path(f"model/{name}.json").write_text(json.dumps(content))
PYTHON
env/bin/python make.py
cat > run.mjs <<'JAVASCRIPT'
import { pipeline } from "@huggingface/transformers";
const write = await pipeline("text-generation", "./model", { dtype: "fp32", local_files_only: true });
const count = async (options) => (await write("tick", options))[0].generated_text.split(" ").length;
const generated = await write.model.generate({ ...write.tokenizer("tick") });
const piped = await count({ max_length: 10 });
const nulled = await count({ max_length: 10, max_new_tokens: null });
console.log(`generate ${generated.dims[1]}, pipeline ${piped}, with null ${nulled}`);
JAVASCRIPT
result=$(node run.mjs)
echo "$result"
[ "$result" = "generate 10, pipeline 257, with null 10" ]
