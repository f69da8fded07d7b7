"""The drawings and texts as training reads them, and the plain zero-shot check during training."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

CONTEXT = 16
TEMPLATES = ("{}", "a photo of {}", "a photo of a {}", "an icon of {}", "a drawing of {}")
PLAIN_SHARE = 0.6


def read_manifest(work: Path) -> list[dict]:
    """All manifest rows."""
    return [json.loads(line) for line in (work / "manifest.jsonl").open()]


class Corpus:
    """Training drawings with their tokenised texts.

    Token ids are compacted to the used ones, in the tokenizer's order, so that the end-of-text id stays
    the largest and open_clip's argmax pooling finds it. `used` holds the tokenizer's ids [U].
    """

    def __init__(self, work: Path):
        import open_clip

        rows = read_manifest(work)
        train = np.load(work / "train.npy")
        self.images = np.load(work / "images.npy", mmap_mode="r")[train]  # uint8 [N, 48, 48, 3]
        texts = [rows[i]["text"] for i in train]
        self.names = sorted(set(texts))
        index = {name: i for i, name in enumerate(self.names)}
        self.text_ids = np.array([index[t] for t in texts])
        # Texts with the same words in any order count as equal: they are no negatives of one another.
        keys: dict[str, int] = {}
        bags = [" ".join(sorted(name.split())) for name in self.names]
        self.keys = torch.tensor([keys.setdefault(bag, len(keys)) for bag in bags])
        tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
        ids = torch.stack([tokenizer([t.format(n) for n in self.names]) for t in TEMPLATES])
        self.used = ids.unique()
        self.tokens = torch.searchsorted(self.used, ids)  # [T, U_names, 16]
        self.tokenizer = tokenizer

    def compact(self, texts: list[str]) -> torch.Tensor:
        """Compact ids [B, 16] of any texts; words that training never saw are left out."""
        ids = self.tokenizer(texts)
        known = torch.isin(ids, self.used)
        return torch.stack(
            [
                torch.nn.functional.pad(
                    torch.searchsorted(self.used, row[keep]), (0, CONTEXT - int(keep.sum()))
                )
                for row, keep in zip(ids, known, strict=True)
            ]
        )

    def texts(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Compact tokens [B, L] of the rows' names under random templates, and the names' keys [B]."""
        names = torch.from_numpy(self.text_ids[rows])
        template = torch.randint(1, len(TEMPLATES), (len(rows),)) * (torch.rand(len(rows)) >= PLAIN_SHARE)
        tokens = self.tokens[template, names]
        return tokens[:, : int((tokens != 0).sum(1).max())], self.keys[names]


def concept_rows(work: Path, least_styles: int = 12) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Held-out rows [M], labels [M] and names of concepts drawn in at least so many held-out sets."""
    rows, styles, members = read_manifest(work), defaultdict(set), defaultdict(list)
    for i in np.load(work / "held.npy"):
        styles[rows[i]["text"]].add(rows[i]["set"])
        members[rows[i]["text"]].append(i)
    names = sorted(n for n in members if len(styles[n]) >= least_styles)
    labels = np.concatenate([[c] * len(members[n]) for c, n in enumerate(names)])
    return np.concatenate([members[n] for n in names]), labels, names
