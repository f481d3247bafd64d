#!/usr/bin/env bash
# convert_hf_to_gguf.py of the llama.cpp in llama-cpp-python 0.3.36, on a GPT-2 that transformers 5.24.0 has just saved.
# Behavior: KeyError 'n_ctx'. The converter reads the context from that key alone, which the published gpt2 has.
# transformers' GPT2Config lost the field: save_pretrained() writes n_positions only. So a GPT-2 that was made or resized
# with transformers cannot be converted, and one whose config.json came from the Hub can. GPT2Config(n_ctx=...) keeps the
# key and mends it. The vocabulary is never reached.
# Seen on 2026-11-29 with transformers 5.24.0, gguf 0.19.0, torch 2.13.0: exit code 1, that error. The script fails when
# that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
pip="env/bin/pip --quiet --disable-pip-version-check"
$pip install torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3 gguf==0.19.0 sentencepiece protobuf
$pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz --wildcards '*/vendor/llama.cpp/*.py'
cat > make.py <<'PYTHON'
from transformers import GPT2Config, GPT2LMHeadModel

GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32)).save_pretrained("model")
PYTHON
export HF_HUB_OFFLINE=1
env/bin/python make.py > /dev/null 2>&1
code=0
env/bin/python llama_cpp_python-0.3.36/vendor/llama.cpp/convert_hf_to_gguf.py model --outfile model.gguf > log 2>&1 ||
    code=$?
echo "exit code $code, $(tail -n 1 log); config.json: $(grep -c n_ctx model/config.json || true) times n_ctx"
[ "$code" = 1 ] && [ "$(tail -n 1 log)" = "KeyError: 'n_ctx'" ] && ! grep -q n_ctx model/config.json
