#!/usr/bin/env bash
# convert_hf_to_gguf.py of the llama.cpp in llama-cpp-python 0.3.36, on a stock GPT-2 whose vocabulary is its own: a
# byte-level BPE trained with tokenizers, the same splitting rules as GPT-2's.
# Behavior: NotImplementedError "BPE pre-tokenizer was not recognized". The converter does not read the splitting rules
# from tokenizer.json. It encodes a fixed text, hashes the ids and looks the hash up in a list of published models, so
# that every vocabulary that is not in the list is refused, though its rules are. Told that they are "gpt-2", it writes
# the file.
# Seen on 2026-11-29 with transformers 5.24.0, gguf 0.19.0, torch 2.13.0: exit code 1 and that error, then exit code 0.
# The script fails when that changes.
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
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
)
bpe.train_from_iterator(["Der Fährmann fährt über den Fluss. " * 20], trainer)
bpe.save("trained.json")
GPT2Tokenizer(tokenizer_file="trained.json").save_pretrained("model")
size = bpe.get_vocab_size()
sizes = dict(vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=32, n_ctx=32)
GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained("model")
PYTHON
cat > told.py <<'PYTHON'
import runpy
import sys
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
from conversion.base import TextModel

TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(sys.argv[0], run_name="__main__")
PYTHON
export HF_HUB_OFFLINE=1
env/bin/python make.py > /dev/null 2>&1
converter=llama_cpp_python-0.3.36/vendor/llama.cpp/convert_hf_to_gguf.py
code=0
env/bin/python "$converter" model --outfile plain.gguf > plain.log 2>&1 || code=$?
echo "as it is: exit code $code, $(grep -o 'NotImplementedError: .*recognized' plain.log || echo 'no such error')"
told=0
env/bin/python told.py "$converter" model --outfile told.gguf > told.log 2>&1 || told=$?
echo "told that the rules are gpt-2: exit code $told"
[ "$code" = 1 ] && grep -q "BPE pre-tokenizer was not recognized" plain.log && [ "$told" = 0 ] && [ -s told.gguf ]
