#!/usr/bin/env bash
# tokenizers 0.23.3, Tokenizer.train_from_iterator() over a Python generator.
# Behavior: Ctrl-C is heard only after the whole training, although the texts come from a Python generator that runs the
# whole time: the library calls it from threads of its own, while the main thread, which alone hears signals, waits
# inside the library. With a million documents that is minutes.
# Seen on 2026-11-29: a SIGINT one second into a training whose texts take six becomes a KeyboardInterrupt after the
# sixth. The script fails when it is heard before the fifth, or not at all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check tokenizers==0.23.3
cat > train.py <<'PYTHON'
import os
import signal
import threading
import time

from tokenizers import Tokenizer, models, pre_tokenizers, trainers, __version__


def texts():
    for number in range(60):
        time.sleep(0.1)
        yield f"text number {number}"


tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
started = time.monotonic()
try:
    tokenizer.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=300, show_progress=False))
    heard = "not at all"
except KeyboardInterrupt:
    heard = f"after {time.monotonic() - started:.0f} s"
print(f"tokenizers {__version__}: SIGINT after 1 s is heard {heard}")
if heard in ("not at all", *(f"after {second} s" for second in range(5))):
    raise SystemExit("the behavior has changed")
PYTHON
env/bin/python train.py
