"""Separate training from evaluation: drop training drawings that nearly equal a held-out one.

`python bench/picto/split.py --work DIR` writes DIR/train.npy and DIR/held.npy, int64 rows of the
manifest. Icon sets copy one another, so whole held-out sets are not enough: a training drawing goes
when a held-out one has a 63-bit DCT hash within 6 bits and, both cropped to their ink and brought to
12x12 pixels, a root-mean-square difference under 0.09 (white to black is 1).
"""

from __future__ import annotations

import argparse
import json
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch

HASH_BITS, RMS, THUMB = 6, 0.09, 12


def describe(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (63 hash signs as +-1 int8, thumbnail [12*12*3] uint8) of one drawing cropped to its ink."""
    from PIL import Image
    from scipy.fft import dctn

    ink = image.min(axis=2) < 230
    rows, cols = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    cropped = Image.fromarray(image).crop((cols[0], rows[0], cols[-1] + 1, rows[-1] + 1))
    gray = np.asarray(cropped.convert("L").resize((32, 32), Image.BILINEAR), dtype=np.float32)
    low = dctn(gray, norm="ortho")[:8, :8].ravel()[1:]
    thumb = np.asarray(cropped.resize((THUMB, THUMB), Image.BOX), dtype=np.uint8)
    return np.where(low > np.median(low), 1, -1).astype(np.int8), thumb.ravel()


def _describe_chunk(job: tuple[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    images = np.load(job[0], mmap_mode="r")
    pairs = [describe(np.asarray(images[i])) for i in job[1]]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def describe_all(work: Path, rows: np.ndarray, processes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hash signs [N, 63] float32 and thumbnails [N, 432] float32 in 0..1."""
    from tqdm import tqdm

    jobs = [(str(work / "images.npy"), rows[i : i + 2000]) for i in range(0, len(rows), 2000)]
    with Pool(processes) as pool:
        parts = list(tqdm(pool.imap(_describe_chunk, jobs), total=len(jobs), unit="chunk", mininterval=5))
    signs = np.concatenate([p[0] for p in parts])
    thumbs = np.concatenate([p[1] for p in parts])
    return torch.from_numpy(signs).float(), torch.from_numpy(thumbs).float() / 255


def find_copies(train: tuple, held: tuple) -> torch.Tensor:
    """bool [N_train]: has a near-duplicate among the held-out drawings."""
    signs, thumbs = train
    bits = signs.shape[1]
    copies = torch.zeros(len(signs), dtype=torch.bool)
    for start in range(0, len(signs), 2048):
        near = signs[start : start + 2048] @ held[0].T >= bits - 2 * HASH_BITS
        row, col = near.nonzero(as_tuple=True)
        rms = torch.cat(
            [
                (thumbs[start + r] - held[1][c]).square().mean(1).sqrt()
                for r, c in zip(row.split(20_000), col.split(20_000), strict=True)
            ]
        )
        copies[start + row[rms < RMS]] = True
    return copies


def main() -> None:
    """Write the two row lists and print what was dropped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    held_flag = np.array([json.loads(line)["held"] for line in (args.work / "manifest.jsonl").open()])
    drawn = np.load(args.work / "rendered.npy") == 1
    train, held = np.flatnonzero(drawn & ~held_flag), np.flatnonzero(drawn & held_flag)
    copies = find_copies(*(describe_all(args.work, rows, args.processes) for rows in (train, held))).numpy()
    np.save(args.work / "train.npy", train[~copies])
    np.save(args.work / "held.npy", held)
    np.save(args.work / "dropped.npy", train[copies])
    print(f"train {(~copies).sum()}, dropped as copies {copies.sum()}, held out {len(held)}")


if __name__ == "__main__":
    main()
