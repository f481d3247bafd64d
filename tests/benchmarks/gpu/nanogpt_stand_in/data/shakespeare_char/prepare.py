"""Stands in for nanoGPT's file of this name: a number for each character, nine tenths of the text to train on."""

from pathlib import Path

import numpy as np


folder = Path(__file__).parent
text = (folder / "input.txt").read_text(encoding="utf-8")
numbers = {character: number for number, character in enumerate(sorted(set(text)))}
ids = np.array([numbers[character] for character in text], np.uint16)
cut = int(0.9 * len(ids))
ids[:cut].tofile(folder / "train.bin")
ids[cut:].tofile(folder / "val.bin")
