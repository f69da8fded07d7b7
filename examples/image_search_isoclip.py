"""Image search with IsoCLIP on the embedded drawings: cuts chosen on one part, searched in another.

    python examples/image_search_isoclip.py --set flags --queries 3

With a model of your own, replace the first lines of `main`: what follows needs the features before the
image projection (`semobridge_ext.clip.encode_image(..., project=False)`) and labels of some of the images.
"""

from __future__ import annotations

import argparse

import torch

import semobridge_ext as sb
from semobridge_ext.clip import encode_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--set", default="arrows", choices=sorted(sb.list_picto()))
    parser.add_argument("--queries", type=int, default=3, help="whose neighbours are printed")
    args = parser.parse_args()
    model, _, _ = sb.load_picto_clip()
    drawings = sb.load_picto(args.set)
    x = encode_image(model, sb.picto_transform(drawings.images), project=False)  # [N, V]
    choose, search = drawings.train, drawings.test  # masks over the drawings
    labels = drawings.labels
    gallery, y = x[search], labels[search]

    native = sb.IsoCLIP.from_clip(model, k_top=0, k_bottom=0)  # nothing cut: the native features
    chosen = sb.IsoCLIP.from_clip(model).tune(x[choose], labels[choose])
    print(f"{args.set}: {len(gallery)} drawings are searched; cuts chosen on {int(choose.sum())} others: "
          f"top {chosen.k_top}, bottom {chosen.k_bottom}")  # fmt: skip
    for name, iso in (("native", native), ("IsoCLIP", chosen)):
        rows = iso.image(gallery, compress=True)  # [N, k] unit rows with the cosines of the D-wide ones
        metrics = sb.retrieval_metrics(rows, rows, y, y, same_set=True)
        print(f"{name:8} {rows.shape[1]:4} columns   mAP {metrics['mAP']:6.1%}")

    count = min(args.queries, len(gallery))
    own = torch.arange(count)
    rows = chosen.image(gallery, compress=True)
    found = sb.topk(rows[:count], rows, min(5, len(gallery) - 1), exclude=own)
    for query, (scores, neighbours) in enumerate(zip(found.scores, found.indices, strict=True)):
        near = ", ".join(
            f"{drawings.class_names[int(y[i])]} {s:.2f}" for s, i in zip(scores, neighbours, strict=True)
        )
        print(f"{drawings.class_names[int(y[query])]}: {near}")


if __name__ == "__main__":
    main()
