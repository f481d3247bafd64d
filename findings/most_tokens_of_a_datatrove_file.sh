#!/usr/bin/env bash
# datatrove 0.10.1, DocumentTokenizer(max_tokens_per_file=12), for files that fit somewhere.
# One would guess: no file has more tokens than that, with shuffle_documents=False, which keeps the documents in order,
# as well as without it.
# Behavior: the number counts only where documents are shuffled. There a file ends after the document that exceeds it,
# and where the documents come out even a last file of 0 bytes follows. With shuffle_documents=False the number is
# ignored, without a word: one file has everything.
# Seen on 2026-12-01, 6 documents of 6 tokens: shuffled [18, 18, 0] tokens, in order [36]. The script fails when that
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check 'datatrove[io,processing]==0.10.1' tokenizers==0.23.3
cat > files.py <<'PYTHON'
import logging
import sys
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer
from loguru import logger
from tokenizers import Tokenizer, models, pre_tokenizers

logger.remove()
tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate("abcdef|")}, unk_token="|"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.save("tokenizer.json")
sizes = {}
for name, options in {"shuffled": {"seed": 1}, "in order": {"shuffle_documents": False}}.items():
    step = DocumentTokenizer(name, "tokenizer.json", eos_token="|", max_tokens_per_file=12, **options)
    step.run([Document(text="a b c d e", id=str(number)) for number in range(6)])
    sizes[name] = [path.stat().st_size // 2 for path in sorted(Path(name).glob("*.ds"))]
    print(f"{name}: tokens of the files {sizes[name]}")
if sizes != {"shuffled": [18, 18, 0], "in order": [36]}:
    raise SystemExit("the behavior has changed")
PYTHON
HF_HOME=home env/bin/python files.py
