"""A gallery of images and texts, as it is and centred by modality: the table of docs/guides/cross_modal.md.

    python bench/studies/mixed_gallery.py          # three sets, half a minute on a core

The gallery holds the test drawings of a set and one text for each class, "a drawing of {}"; an item is
relevant to a query of its class, whatever it is. Text queries say "an icon of {}"; image queries are the val
drawings. Means for centring come from what is not judged: "others" are the training drawings and the names of
the other sets, "own" the set's training drawings and its names in a third template.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.clip import encode_image
from semobridge_ext.retrieval import group_shares

SETS = ("arrows", "icons", "logos")
ASKED, KEPT, SPARE = "an icon of {}", "a drawing of {}", "a picture of {}"


def encoded(model: torch.nn.Module, tokenizer: object, names: list[str], template: str) -> Tensor:
    texts = [template.replace("{}", name) for name in names]
    return normalize(sb.encode_text(model, texts, tokenizer=tokenizer), dim=1)


def figures(query: Tensor, y: Tensor, gallery: Tensor, labels: Tensor, images: int) -> list[float]:
    """mAP over both kinds; mAP of images alone, and of texts alone; share of images among the first ten."""
    relevant = (y[:, None] == labels).nonzero()
    both = sb.retrieval_metrics(query, gallery, relevant=relevant)["mAP"]
    alone = [
        sb.retrieval_metrics(query, gallery[part], y, labels[part])["mAP"]
        for part in (slice(0, images), slice(images, None))
    ]
    kinds = (torch.arange(len(gallery)) >= images).long()
    return [both, *alone, float(group_shares(query, gallery, kinds, at=(10,))[0, 0])]


def encoded_images(name: str) -> Tensor:
    model = sb.load_picto_clip()[0]
    return normalize(encode_image(model, sb.picto_transform(sb.load_picto(name).images)), dim=1)


def one_set(name: str, faces: dict[str, Tensor]) -> None:
    model, _, tokenizer = sb.load_picto_clip()
    data, others = sb.load_picto(name), [other for other in faces if other != name]
    texts = {
        template: encoded(model, tokenizer, data.class_names, template) for template in (ASKED, KEPT, SPARE)
    }
    names = [word for other in others for word in sb.load_picto(other).class_names]
    spare = torch.cat([encoded(model, tokenizer, names, template) for template in (ASKED, KEPT)])
    drawn = torch.cat([faces[other][sb.load_picto(other).train] for other in others])
    mine = faces[name]
    means = {
        "raw": None,
        "centred by others": {"image": drawn.mean(dim=0), "text": spare.mean(dim=0)},
        "centred by its own": {"image": mine[data.train].mean(dim=0), "text": texts[SPARE].mean(dim=0)},
    }
    classes, y, images = torch.arange(data.num_classes), data.labels, int(data.test.sum())
    labels = torch.cat([y[data.test], classes])
    for kind, asked, own in (("text", texts[ASKED], classes), ("image", mine[data.val], y[data.val])):
        for state, mean in means.items():
            kinds = ("image", "text")
            maps = {k: _same if mean is None else sb.LinearMap.centering(mean[k]) for k in kinds}
            gallery = torch.cat([maps["image"](mine[data.test]), maps["text"](texts[KEPT])])
            found = figures(maps[kind](asked), own, gallery, labels, images)
            shown = " | ".join(f"{100 * value:.1f}" for value in found)
            share = 100 * images / len(labels)
            print(f"| {name} ({share:.0f} % images) | {kind} | {state} | {shown} |", flush=True)


def _same(rows: Tensor) -> Tensor:
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=SETS, choices=SETS)
    given = parser.parse_args()
    columns = ("mAP", "mAP, images alone", "mAP, texts alone", "images in the first 10")
    print("| gallery | queries | features | " + " | ".join(columns) + " |")
    print("|---|---|---|---:|---:|---:|---:|")
    faces = {name: encoded_images(name) for name in sb.list_picto()}
    for name in given.set:
        one_set(name, faces)


if __name__ == "__main__":
    main()
