"""A tokenizer of one id a word, for the small models whose vocabularies are not CLIP's."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
from torch import Tensor


class Words(NamedTuple):
    """Begin, one id a word, end, padding; ids of words are their checksums."""

    words: int  # of the vocabulary
    context: int
    end: int
    pad: int
    padded: bool = True  # to the whole context

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor:  # [N, L] int64
        rows = []
        length = self.context if context_length is None else context_length
        for text in texts:
            ids = [8 + zlib.crc32(word.encode()) % (self.words - 16) for word in text.split()]
            rows.append([4, *ids, self.end][:length])
        width = length if self.padded else max(map(len, rows))
        return torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
