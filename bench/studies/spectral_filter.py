"""Seconds and memory of SpectralFilter beside other ways to the same scores.

    python bench/studies/spectral_filter.py                      # 500 x 3000, three ways; a minute
    python bench/studies/spectral_filter.py 2000 20000 --ways gram covariance
    python bench/studies/spectral_filter.py 2000 22131 --ways gram
    python bench/studies/spectral_filter.py 20000 20930 --ways gram      # minutes, gigabytes

gram: the filter, which takes the N×N Gram matrix for N < K. covariance: the filter's other route, forced: the
K×K covariance, summed over blocks of images. plain: the paper's program in float64: Q, torch.cov, eigh.
Each way runs in a process of its own, so that its peak of memory is its own; of two ways the largest
difference of the scores is printed. The features stand in for CLIP's: 512 columns, a common offset,
directions that fall off as the root of their number.
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.discovery import covariance
from semobridge_ext.discovery.centred import unit

ENERGY, TEMPERATURE = 0.95, 0.01


class Taken(NamedTuple):
    scores: Tensor  # [K]
    components: int
    seconds: float
    processors: float  # seconds of all threads
    gigabytes: float  # at the peak, less what the process held before


def features(images: int, concepts: int, width: int) -> tuple[Tensor, Tensor]:  # [N, D], [K, D]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mix = draw(width, width) * (torch.arange(1, width + 1).float() ** -0.5)[:, None]
    texts = draw(concepts, width) @ mix
    shown = texts[torch.randint(concepts, (200,), generator=generator)]
    rows = 0.35 * shown[torch.randint(200, (images,), generator=generator)]
    rows += 0.6 * draw(images, width) @ mix + 2 * draw(1, width)
    return rows, texts + draw(1, width)


def by_gram(rows: Tensor, texts: Tensor) -> tuple[Tensor, int]:
    made = sb.SpectralFilter(ENERGY, temperature=TEMPERATURE).fit(rows, texts)
    return made.scores_, len(made.spectrum_)


def by_covariance(rows: Tensor, texts: Tensor) -> tuple[Tensor, int]:
    sums = covariance.Covariance(unit(texts), TEMPERATURE)
    for part in rows.split(covariance.IMAGES):
        sums.add(part)
    scores, spectrum = sums.scores(ENERGY)
    return scores, len(spectrum)


def plainly(rows: Tensor, texts: Tensor) -> tuple[Tensor, int]:
    q = torch.softmax(unit(rows) @ unit(texts).T / TEMPERATURE, dim=1)
    values, vectors = torch.linalg.eigh(torch.cov(q.T))
    values, vectors = values.flip(0), vectors.flip(1)
    m = int((values.cumsum(0) < ENERGY * values.sum()).sum()) + 1
    return vectors[:, :m].square() @ values[:m], m


WAYS = {"gram": by_gram, "covariance": by_covariance, "plain": plainly}


def take(way: str, images: int, concepts: int, width: int, threads: int) -> Taken:
    torch.set_num_threads(threads)
    rows, texts = features(images, concepts, width)
    small = rows[: min(64, images)], texts[:96]
    WAYS[way](*small)  # libraries are loaded and threads started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, used = time.perf_counter(), time.process_time()
    scores, components = WAYS[way](rows, texts)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Taken(scores, components, seconds, used, peak / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=int, nargs="?", default=500)
    parser.add_argument("concepts", type=int, nargs="?", default=3000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    print(f"{given.images} images x {given.concepts} concepts, {given.threads} threads")
    first: Taken | None = None
    for way in given.ways:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            taken = pool.submit(take, way, given.images, given.concepts, given.width, given.threads).result()
        told = f"{way:<11}{taken.seconds:8.2f} s {taken.processors:8.2f} s of processors "
        told += f"{taken.gigabytes:6.2f} GiB   m = {taken.components}"
        if first is not None:
            error = float((taken.scores - first.scores).abs().max() / first.scores.max())
            ratio = taken.seconds / first.seconds
            told += f"   {ratio:.1f} times the first's time, scores differ by {error:.1e} of the largest"
        print(told, flush=True)
        first = first or taken


if __name__ == "__main__":
    main()
