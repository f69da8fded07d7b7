"""Generalized category discovery on the embedded sets: the tables of docs/guides/discovery.md.

    python bench/studies/discovery.py                        # five sets, three seeds: an hour on a core
    python bench/studies/discovery.py --set arrows --seeds 1 --epochs 20

Half of the classes are old, drawn anew for each seed; half of each old class's drawings are labelled. All
drawings are trained on, as the task has it, and All, Old and New are read on the unlabelled ones. Concepts:
the names of all five sets, what the filter keeps of them, and the old names. Four views of a drawing: itself,
and shifted by up to three pixels. No second CLIP is embedded, so the teacher is the same model on the
unshifted drawing: the divergences can hold z in place here, but bring no knowledge.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

import semobridge_ext as sb
from semobridge_ext.clip import encode_image, encode_text
from semobridge_ext.discovery import merge_concepts

RESULTS = Path(__file__).resolve().parents[1] / "results" / "discovery.json"
SETS = ("arrows", "logos", "emoji", "flags", "icons")
# Narrower than the paper's, for a CLIP of width 192 and some thousand drawings; not tuned.
SETTINGS = {"width": 256, "hidden": 256, "projection": 64, "entropy_weight": 2.0}
METHODS: dict[str, dict[str, Any]] = {
    "no concepts (SimGCD's form)": {"concepts": False},
    "no divergence": {"forward_kl": 0.0, "reverse_kl": 0.0},
    "KL(T‖S) alone": {"reverse_kl": 0.0},
    "KL(S‖T) alone": {"forward_kl": 0.0},
    "both": {},
}


def views_of(images: Tensor, count: int) -> Tensor:  # [N, 48, 48, 3] uint8 -> [V, N, 48, 48, 3]
    """The drawings, then shifted by up to three pixels, white coming in."""
    generator = torch.Generator().manual_seed(0)
    wide = pad(images.permute(0, 3, 1, 2).float(), (3, 3, 3, 3), value=255).to(torch.uint8)
    found = [images]
    for _ in range(1, count):
        shifts = torch.randint(7, (len(images), 2), generator=generator).tolist()
        cut = [w[:, y : y + 48, x : x + 48] for w, (y, x) in zip(wide, shifts, strict=True)]
        found.append(torch.stack(cut).permute(0, 2, 3, 1))
    return torch.stack(found)


def prompts(names: list[str]) -> Tensor:  # [K, D]
    model, _, tokenizer = sb.load_picto_clip()
    return encode_text(model, tokenizer([f"a photo of {name}" for name in names]))


def encoded(images: Tensor) -> Tensor:  # [V, N, 48, 48, 3] -> [V, N, D]
    model = sb.load_picto_clip()[0]
    return torch.stack([encode_image(model, sb.picto_transform(view)) for view in images])


def k_means(rows: Tensor, clusters: int, seed: int) -> list[int]:
    from sklearn.cluster import KMeans

    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(rows.numpy()).tolist()


def one_seed(name: str, x: Tensor, seed: int, epochs: int) -> dict[str, Any]:
    data = sb.load_picto(name)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(data.num_classes, generator=generator)
    old = set(order[: data.num_classes // 2].tolist())
    labels = data.labels.tolist()
    known = torch.zeros(len(labels), dtype=torch.bool)
    for code in old:
        rows = (data.labels == code).nonzero().flatten()
        known[rows[torch.randperm(len(rows), generator=generator)[: len(rows) // 2]]] = True
    y = [code if k else None for code, k in zip(labels, known.tolist(), strict=True)]
    dictionary = merge_concepts(*(sb.load_picto(other).class_names for other in sb.list_picto()))
    made = sb.SpectralFilter().fit(x[0], prompts(dictionary))
    kept = merge_concepts(
        [dictionary[i] for i in made.kept_.tolist()], [data.class_names[i] for i in sorted(old)]
    )
    concepts = prompts(kept)
    hidden = ~known
    true = [c for c, k in zip(labels, known.tolist(), strict=True) if not k]

    def read(predictions: list[int]) -> list[float]:
        found = [p for p, k in zip(predictions, known.tolist(), strict=True) if not k]
        return list(sb.gcd_accuracy(true, found, old))

    scores = {"k-means": read(k_means(normalize(x[0], dim=1), data.num_classes, seed))}
    for method, changed in METHODS.items():
        settings = {**SETTINGS, **changed}
        with_concepts = settings.pop("concepts", True)
        taught = with_concepts and method != "no divergence"
        gcd = sb.SpectralGCD(
            concepts if with_concepts else None,
            num_classes=data.num_classes,
            epochs=epochs,
            seed=seed,
            **settings,
        )
        start = time.perf_counter()
        gcd.fit(x, y, teacher=(x[0], concepts) if taught else None)
        scores[method] = read(gcd.predict(x[0]).tolist())
        print(name, seed, method, [round(100 * v, 1) for v in scores[method]],
              f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    counts = {"images": len(labels), "unlabelled": int(hidden.sum()), "classes": data.num_classes}
    return {
        "set": name,
        "seed": seed,
        "concepts": len(kept),
        "dictionary": len(dictionary),
        **counts,
        "scores": scores,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds, in per cent, All / Old / New."""
    names = list(dict.fromkeys(r["set"] for r in results))
    lines = ["| All / Old / New, % | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for method in results[0]["scores"]:
        cells = []
        for name in names:
            runs = [r["scores"][method] for r in results if r["set"] == name]
            means = [100 * statistics.mean(part) for part in zip(*runs, strict=True)]
            spread = 100 * statistics.stdev(run[0] for run in runs) if len(runs) > 1 else 0.0
            cells.append(f"{means[0]:.1f} ± {spread:.1f} / {means[1]:.1f} / {means[2]:.1f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=SETS, choices=sb.list_picto())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = []
    for name in given.set:
        x = encoded(views_of(sb.load_picto(name).images, given.views))
        for seed in range(given.seeds):
            results.append(one_seed(name, x, seed, given.epochs))
            kept = {"settings": SETTINGS, "epochs": given.epochs, "views": given.views, "results": results}
            given.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
