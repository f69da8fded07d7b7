"""The estimated number of classes beside the true one, on the embedded sets.

    python bench/studies/class_count.py                     # five sets, three seeds: the tables; minutes
    python bench/studies/class_count.py --set arrows --train 40    # and a training with either count

Half of the classes are old, drawn anew for each seed, and half of each old class's drawings are labelled, as
in discovery.py. First the estimate: without anchors, as the authors' program has it, and with half of the old
classes as anchors. Then All, Old and New of semi-supervised k-means on the unlabelled drawings, with the true
count and with the first estimate; --train adds those of the parametric classifier without concepts.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.clip import encode_image
from semobridge_ext.discovery.semi_supervised import Points, Seeds, clustered

SETS = ("arrows", "logos", "emoji", "flags", "icons")
TRAINING = {"width": 256, "hidden": 256, "projection": 64, "entropy_weight": 2.0}


def problem(name: str, seed: int) -> tuple[list[int | None], list[int]]:
    """Labels, None where there is none, and the old classes."""
    data = sb.load_picto(name)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(data.num_classes, generator=generator)
    old = order[: data.num_classes // 2].tolist()
    known = torch.zeros(len(data.labels), dtype=torch.bool)
    for code in sorted(old):
        rows = (data.labels == code).nonzero().flatten()
        known[rows[torch.randperm(len(rows), generator=generator)[: len(rows) // 2]]] = True
    pairs = zip(data.labels.tolist(), known.tolist(), strict=True)
    return [code if labelled else None for code, labelled in pairs], old


def k_means(x: Tensor, y: list[int | None], clusters: int, seed: int) -> list[int]:
    place = {code: i for i, code in enumerate(sorted({code for code in y if code is not None}))}
    known = torch.tensor([-1 if code is None else place[code] for code in y])
    points = Points(x)
    seeds = Seeds(points, known, clusters, torch.Generator().manual_seed(seed))
    return clustered(points, seeds, clusters, 100).tolist()


def trained(x: Tensor, y: list[int | None], clusters: int, seed: int, epochs: int) -> list[int]:
    gcd = sb.SpectralGCD(num_classes=clusters, epochs=epochs, seed=seed, **TRAINING)
    return gcd.fit(x, y).predict(x).tolist()


def read(name: str, y: list[int | None], old: list[int], predicted: list[int]) -> list[float]:
    true = sb.load_picto(name).labels.tolist()
    hidden = [i for i, code in enumerate(y) if code is None]
    return list(sb.gcd_accuracy([true[i] for i in hidden], [predicted[i] for i in hidden], old))


def cell(runs: list[list[float]]) -> str:
    return " / ".join(f"{100 * statistics.mean(part):.1f}" for part in zip(*runs, strict=True))


def one_set(name: str, seeds: int, anchors: list[float], epochs: int) -> dict[str, Any]:
    data = sb.load_picto(name)
    x = encode_image(sb.load_picto_clip()[0], sb.picto_transform(data.images)).float()
    counts: dict[float, list[int]] = {share: [] for share in anchors}
    scores: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        y, old = problem(name, seed)
        for share in anchors:
            counts[share].append(sb.estimate_num_classes(x, y, anchors=share, seed=seed).num_classes)
        for key, count in (("known", data.num_classes), ("estimated", counts[anchors[0]][-1])):
            found = {"semi-supervised k-means": k_means(x, y, count, seed)}
            if epochs:
                found["trained"] = trained(x, y, count, seed, epochs)
            for method, predicted in found.items():
                scores.setdefault(f"{method}, {key} count", []).append(read(name, y, old, predicted))
        print(name, seed, counts, {key: runs[-1] for key, runs in scores.items()}, flush=True)
    return {"counts": counts, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=SETS, choices=sb.list_picto())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--anchors", type=float, nargs="+", default=[0.0, 0.5], metavar="SHARE")
    parser.add_argument("--train", type=int, default=0, metavar="EPOCHS")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: one_set(name, given.seeds, given.anchors, given.train) for name in given.set}
    print("| set | classes | old | " + " | ".join(f"anchors={share:g}" for share in given.anchors) + " |")
    print("|---|---:|---:|" + "---|" * len(given.anchors))
    for name, one in found.items():
        count = sb.load_picto(name).num_classes
        told = (", ".join(map(str, counts)) for counts in one["counts"].values())
        print(f"| {name} | {count} | {count // 2} | " + " | ".join(told) + " |")
    print("| All / Old / New, % | " + " | ".join(found) + " |")
    print("|---|" + "---:|" * len(found))
    for method in next(iter(found.values()))["scores"]:
        print(f"| {method} | " + " | ".join(cell(one["scores"][method]) for one in found.values()) + " |")


if __name__ == "__main__":
    main()
