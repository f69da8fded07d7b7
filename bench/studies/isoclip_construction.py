"""IsoCLIP's construction against an SVD of A Wᵀ: `python bench/studies/isoclip_construction.py`.

Both make the image projector U_k U_kᵀ A from random projections of a CLIP's shapes, whose spectra fall to a
tenth; the plain one in float32 and in float64. Times are medians of turns in one run, and beside them the
least processor time of the calling thread, which tells programs apart on a busy machine with `--threads 1`.
The error is the largest difference of a mapped unit row from the projector in NumPy's long double.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb

SHAPES = {"B/32": (768, 512, 512, 150, 50), "L/14": (1024, 768, 768, 250, 200)}  # V, T, D, k_top, k_bottom


def projection(rows: int, width: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    u, _, vt = torch.linalg.svd(torch.randn(rows, width, generator=g), full_matrices=False)
    return (u * torch.logspace(0, -1, u.shape[1])) @ vt


def plain(image: Tensor, text: Tensor, top: int, bottom: int, dtype: torch.dtype) -> Tensor:
    a, w = image.to(dtype), text.to(dtype)
    u, s, _ = torch.linalg.svd(a @ w.T, full_matrices=False)
    kept = u[:, top : min(len(s), a.shape[1]) - bottom]
    return kept @ (kept.T @ a)


def exact(image: Tensor, text: Tensor, top: int, bottom: int) -> Tensor:
    """The float64 decomposition, its kept and cut directions turned apart once in long double."""
    a, w = (m.numpy().astype(np.longdouble) for m in (image, text))
    psi = a @ w.T
    v = np.linalg.svd(psi.astype(np.float64), full_matrices=False)[2].T.astype(np.longdouble)
    v = v @ (1.5 * np.eye(v.shape[1], dtype=v.dtype) - 0.5 * (v.T @ v))
    y = psi @ v
    values = (y**2).sum(0)
    kept = np.arange(top, len(values) - bottom)
    cut = np.setdiff1d(np.arange(len(values)), kept)
    turn = (y[:, cut].T @ y[:, kept]) / (values[kept] - values[cut][:, None])
    u = (y[:, kept] + y[:, cut] @ turn) / np.sqrt(values[kept])
    rows = u.T @ a
    rows = 2 * rows - (u.T @ u) @ rows
    return torch.from_numpy((u @ rows).astype(np.float64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, (v, t, d, top, bottom) in SHAPES.items():
        image, text = projection(v, d, 1), projection(t, d, 2)
        programs = {
            "ours": lambda: sb.IsoCLIP(image, text, k_top=top, k_bottom=bottom).map().matrix,  # noqa: B023
            "plain float32": lambda: plain(image, text, top, bottom, torch.float32),  # noqa: B023
            "plain float64": lambda: plain(image, text, top, bottom, torch.float64),  # noqa: B023
        }
        seconds: dict[str, list[float]] = {label: [] for label in programs}
        busy = dict.fromkeys(programs, float("inf"))
        for _ in range(args.rounds):
            for label, program in programs.items():
                spent, began = time.thread_time(), time.perf_counter()
                program()
                seconds[label].append(time.perf_counter() - began)
                busy[label] = min(busy[label], time.thread_time() - spent)
        medians = {label: statistics.median(times) for label, times in seconds.items()}
        x = normalize(torch.randn(500, v, generator=torch.Generator().manual_seed(3)), dim=1).double()
        want = normalize(x @ exact(image, text, top, bottom), dim=1)
        for label, program in programs.items():
            error = float((normalize(x @ program().double(), dim=1) - want).abs().max())
            print(
                f"{name}, {v} x {d} and {t} x {d}, {label}: {1000 * medians[label]:.1f} ms, "
                f"{medians['plain float32'] / medians[label]:.2f} times the speed of plain float32, "
                f"{medians['plain float64'] / medians[label]:.2f} of plain float64; thread "
                f"{1000 * busy[label]:.1f} ms, {busy['plain float32'] / busy[label]:.2f}; error {error:.1e}"
            )


if __name__ == "__main__":
    main()
