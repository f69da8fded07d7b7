"""Draws docs/guides/inversion_curve.png: image-to-image mAP of OTI features by step, on the embedded CLIP.

Queries are drawings of the test part, inverted; the gallery is the native image features of the same
part, the query's own drawing left out. `python bench/studies/inversion_curve.py [--set icons] [--queries
600]`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.clip import encode_image

STEPS = (0, 1, 2, 3, 5, 8, 12, 17, 25, 40, 60, 90, 120, 150)
FIGURE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "inversion_curve.png"


def mean_average_precision(
    queries: Tensor,  # [N, D] unit rows
    gallery: Tensor,  # [G, D] unit rows
    places: Tensor,  # [N] each query's own place in the gallery, left out
    query_labels: Tensor,
    gallery_labels: Tensor,
) -> float:
    total = []
    for q, place, label in zip(queries, places.tolist(), query_labels, strict=True):
        scores = gallery @ q
        scores[place] = -float("inf")
        relevant = (gallery_labels == label)[scores.argsort(descending=True)][:-1]
        if relevant.any():
            hits = relevant.cumsum(0)[relevant]
            ranks = torch.nonzero(relevant).flatten() + 1
            total.append((hits / ranks).mean())
    return float(torch.stack(total).mean())


def measure(name: str, count: int, tokens: int) -> dict:
    model, _, tokenizer = sb.load_picto_clip()
    data = sb.load_picto(name)
    with torch.inference_mode():
        images = data.images[data.test]
        raw = torch.cat([model.encode_image(sb.picto_transform(c)) for c in images.split(256)]).clone()
    labels = data.labels[data.test]
    gallery = torch.nn.functional.normalize(raw, dim=1)
    places = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(0))[:count]
    inv = sb.oti(
        model, raw[places], tokenizer=tokenizer, num_tokens=tokens, record_steps=STEPS, progress=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip

    def score(queries: Tensor) -> float:
        return mean_average_precision(queries, gallery, places, labels[places], labels)

    result = {
        "set": name, "queries": len(places), "gallery": len(gallery), "tokens": tokens,
        "native": score(gallery[places]), "oti": {s: score(f) for s, f in inv.recorded.items()},
        "loss": float(inv.losses[-1]),
    }  # fmt: skip
    # Cuts chosen on the training part, as docs/guides/isoclip.md does.
    x = encode_image(model, sb.picto_transform(data.images), project=False)
    iso = sb.IsoCLIP.from_clip(model).tune(x[data.train], data.labels[data.train])
    both = iso.image(x[data.test])
    result["isoclip"] = mean_average_precision(both[places], both, places, labels[places], labels)
    result["isoclip_cuts"] = [iso.k_top, iso.k_bottom]
    return result


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    steps = list(result["oti"])
    axes.plot(steps, [100 * v for v in result["oti"].values()], marker="o", label="OTI query")
    axes.axhline(100 * result["native"], color="black", linestyle="--", label="native image query")
    axes.axhline(100 * result["isoclip"], color="tab:green", linestyle=":", label="IsoCLIP, both sides")
    axes.set(
        xlabel="steps", ylabel="mAP, %",
        title=f"embedded CLIP, {result['set']}, test part: {result['queries']} queries, "
        f"{result['gallery']} images",
    )  # fmt: skip
    axes.title.set_fontsize(9)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="icons")
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    args = parser.parse_args()
    result = measure(args.set, args.queries, args.tokens)
    print(json.dumps(result, indent=2))
    draw(result, args.figure)


if __name__ == "__main__":
    main()
