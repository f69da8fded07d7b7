"""Textual inversion by steps: how good OTI features are as image queries, against the native ones.

    python examples/oti_study.py --set logos --queries 200 --tokens 1

Each query's feature is inverted once; `record_steps` keeps the features on the way. A query is compared
with the native features of the other drawings of the test part.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import semobridge_ext as sb


def mean_average_precision(queries: Tensor, gallery: Tensor, rows: Tensor, labels: Tensor) -> float:
    """Of queries [N, D] that are gallery rows themselves; a query never finds itself."""
    found = sb.topk(queries, gallery, len(gallery) - 1, exclude=rows)
    relevant = labels[found.indices] == labels[rows][:, None]
    ranks = torch.arange(1, relevant.shape[1] + 1)
    precision = relevant.cumsum(1) / ranks * relevant
    count = relevant.sum(1)
    return float((precision.sum(1) / count)[count > 0].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--set", default="arrows", choices=sorted(sb.list_picto()))
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    model, _, tokenizer = sb.load_picto_clip()
    drawings = sb.load_picto(args.set)
    with torch.inference_mode():
        raw = model.encode_image(sb.picto_transform(drawings.images[drawings.test])).clone()
    labels = drawings.labels[drawings.test]
    gallery = torch.nn.functional.normalize(raw, dim=1)
    rows = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(0))[: args.queries]

    steps = tuple(s for s in (1, 5, 17, 50, 150) if s <= args.steps)
    begin = time.perf_counter()
    inversion = sb.oti(
        model, raw[rows], tokenizer=tokenizer, num_tokens=args.tokens, steps=args.steps, record_steps=steps,
        generator=torch.Generator().manual_seed(0), progress=True,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    print(f"{args.set}: {len(rows)} queries, {len(gallery)} drawings; {seconds:.1f} s, {args.steps} steps, "
          f"loss {inversion.losses[0]:.3f} -> {inversion.losses[-1]:.3f}")  # fmt: skip
    print(f"native      mAP {mean_average_precision(gallery[rows], gallery, rows, labels):6.1%}")
    for step in steps:
        score = mean_average_precision(inversion.recorded[step], gallery, rows, labels)
        print(f"step {step:5}  mAP {score:6.1%}")


if __name__ == "__main__":
    main()
