"""IsoCLIP's construction against an SVD of A Wᵀ: `python bench/studies/isoclip_construction.py`.

Both make the image projector U_k U_kᵀ A from random projections of a CLIP's shapes whose spectrum falls to a
hundredth; the plain one in float32 and in float64. Times are medians of turns in one run. The error is the
largest difference of a mapped unit row from the projector in float64 by eigenvectors of (A Wᵀ)(A Wᵀ)ᵀ.
"""

from __future__ import annotations

import argparse
import statistics
import time

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
    psi = image.double() @ text.double().T
    vectors = torch.linalg.eigh(psi @ psi.T).eigenvectors.flip(1)
    kept = vectors[:, top : image.shape[1] - bottom]
    return kept @ (kept.T @ image.double())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    for name, (v, t, d, top, bottom) in SHAPES.items():
        image, text = projection(v, d, 1), projection(t, d, 2)
        programs = {
            "ours": lambda: sb.IsoCLIP(image, text, k_top=top, k_bottom=bottom).map().matrix,  # noqa: B023
            "plain float32": lambda: plain(image, text, top, bottom, torch.float32),  # noqa: B023
            "plain float64": lambda: plain(image, text, top, bottom, torch.float64),  # noqa: B023
        }
        seconds: dict[str, list[float]] = {label: [] for label in programs}
        for _ in range(args.rounds):
            for label, program in programs.items():
                began = time.perf_counter()
                program()
                seconds[label].append(time.perf_counter() - began)
        medians = {label: statistics.median(times) for label, times in seconds.items()}
        x = normalize(torch.randn(500, v, generator=torch.Generator().manual_seed(3)), dim=1).double()
        want = normalize(x @ exact(image, text, top, bottom), dim=1)
        for label, program in programs.items():
            error = float((normalize(x @ program().double(), dim=1) - want).abs().max())
            print(
                f"{name}, {v} x {d} and {t} x {d}, {label}: {1000 * medians[label]:.1f} ms, "
                f"{medians['plain float32'] / medians[label]:.2f} times the speed of plain float32, "
                f"{medians['plain float64'] / medians[label]:.2f} of plain float64; error {error:.1e}"
            )


if __name__ == "__main__":
    main()
