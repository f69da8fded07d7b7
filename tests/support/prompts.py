"""Texts that share beginnings, as text towers of tests/support/towers.py take them."""

from __future__ import annotations

from open_clip.tokenizer import SimpleTokenizer

TOKENIZER = SimpleTokenizer(context_length=16)
LONG = "a photo of the big cat that sleeps on the roof of a very old red house by the sea"
TEXTS = [
    "a photo of a cat", "a photo of a dog", "", "a photo of a cat", LONG, "dog", "a photo of a cat.",
    "a photo", LONG + " and dreams", "a bad photo of a cat", "a photo of the cat.",
]  # fmt: skip
