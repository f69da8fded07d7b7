"""Base to new by learned prompts on the embedded sets: the table of docs/guides/prompt_learning.md.

    python bench/studies/prompts.py                    # three sets, three seeds: some minutes on a core
    python bench/studies/prompts.py --set emoji --seeds 1 --epochs 5

The first half of the classes is learned from, four drawings each; accuracy is read on their other drawings,
and on all drawings of the second half among its own names, with the same context. The embedded CLIP has 16
text positions, so contexts are of four vectors. No second CLIP is embedded: KDPL's teacher is the same model
with the mean of four prompts, on the same drawings. It was trained on prompts without a full stop, but CoOp's
end with one: a context has this to mend first.
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

import semobridge_ext as sb
from semobridge_ext.clip import encode_image

RESULTS = Path(__file__).resolve().parents[1] / "results" / "prompts.json"
SETS = ("arrows", "emoji", "logos")
SHOTS = 4
LR = 0.02  # ten times the published rate: a few hundred steps are all there are
STOP, PLAIN = ("a photo of a {}.",), ("a photo of a {}",)
ENSEMBLE = ("{}", "a photo of {}", "an icon of {}", "a drawing of {}")
KEEP = 50


def text(names: list[str], templates: tuple[str, ...]) -> Tensor:
    model, _, tokenizer = sb.load_picto_clip()
    return sb.class_text_features(model, names, templates, tokenizer=tokenizer).projected


def one_seed(data: Any, x: Tensor, seed: int, epochs: int) -> dict[str, list[float]]:
    model, _, tokenizer = sb.load_picto_clip()
    names = list(data.class_names)
    half = -(-len(names) // 2)
    base, new = names[:half], names[half:]
    labels, generator = data.labels, torch.Generator().manual_seed(seed)
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(half):
        rows = (labels == c).nonzero().flatten()
        drawn[rows[torch.randperm(len(rows), generator=generator)[:SHOTS]]] = True
    shots, y = x[drawn], [names[c] for c in labels[drawn].tolist()]
    others = (labels < half) & ~drawn
    parts = [(x[others], labels[others], base), (x[labels >= half], labels[labels >= half] - half, new)]

    def read(features_of: Any) -> list[float]:
        found = []
        for rows, codes, part in parts:
            features = features_of(part)
            found.append(float(((rows @ features.T).argmax(1) == codes).double().mean()))
        return [*found, statistics.harmonic_mean(found)]

    words: dict[str, Any] = {"n_ctx": 4, "lr": LR, "epochs": epochs, "seed": seed, "tokenizer": tokenizer}
    taught = {**words, "ctx_init": "a photo of a"}
    everything = sorted({n for s in sb.list_picto() for n in sb.load_picto(s).class_names})
    learners: dict[str, Any] = {
        "CoOp, random start": lambda: sb.CoOp(model, base, **words).fit(shots, y),
        "CoOp, from words": lambda: sb.CoOp(model, base, **taught).fit(shots, y),
        "KDPL, class names": lambda: sb.KDPL(model, text(base, ENSEMBLE), base, **taught).fit(shots, shots),
        f"KDPL, {len(everything)} names, {KEEP} a step": lambda: sb.KDPL(
            model, text(everything, ENSEMBLE), dictionary=everything, keep=KEEP, **taught
        ).fit(shots, shots),
    }
    scores = {
        "zero-shot, a photo of a {}.": read(lambda part: text(part, STOP)),
        "zero-shot, a photo of a {}": read(lambda part: text(part, PLAIN)),
        "zero-shot, mean of four (the teacher)": read(lambda part: text(part, ENSEMBLE)),
    }
    for method, learn in learners.items():
        start = time.process_time()
        scores[method] = read(learn().features_for)
        told = [round(100 * v, 1) for v in scores[method]]
        print(seed, method, told, f"{time.process_time() - start:.0f} s", flush=True)
    return scores


def table(results: list[dict[str, Any]]) -> str:
    """Means over seeds in per cent, new with its standard deviation: base / new / harmonic mean."""
    names = list(dict.fromkeys(r["set"] for r in results))
    lines = ["| base / new / harmonic mean, % | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for method in results[0]["scores"]:
        cells = []
        for name in names:
            runs = [r["scores"][method] for r in results if r["set"] == name]
            means = [100 * statistics.mean(part) for part in zip(*runs, strict=True)]
            spread = 100 * statistics.stdev(run[1] for run in runs) if len(runs) > 1 else 0.0
            cells.append(f"{means[0]:.1f} / {means[1]:.1f} ± {spread:.1f} / {means[2]:.1f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=SETS, choices=sb.list_picto())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = []
    for name in given.set:
        data = sb.load_picto(name)
        x = encode_image(sb.load_picto_clip()[0], sb.picto_transform(data.images))
        for seed in range(given.seeds):
            scores = one_seed(data, x, seed, given.epochs)
            results.append({"set": name, "seed": seed, "scores": scores})
            kept = {"epochs": given.epochs, "lr": LR, "shots": SHOTS, "keep": KEEP, "results": results}
            given.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
