"""A text that searches a gallery of texts, images and both, before and after centring by role.

    python bench/studies/role_centering.py             # the tables of docs/guides/roles.md; about a minute

Per embedded set: the class name in one prompt is the query; documents are another prompt of every class
("text"), drawings ("image"), and drawings with a prompt fused half and half ("both"), a third of the judged
drawings each. A document is relevant where its class is the query's. The means of the roles come from the
classes of the other half, which are not judged. Then: queries of a "new model" (the embedded one with its
rows turned, cut to three quarters and blurred) in the old one's gallery, by Procrustes on half of the items.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.cli.embedded import encode_drawings

QUERY, DOCUMENT = "a photo of {}", "an icon of {}"


def texts(model: torch.nn.Module, tokenizer: object, names: list[str], template: str) -> Tensor:
    prompts = [template.format(name) for name in names]
    return normalize(sb.encode_text(model, prompts, tokenizer=tokenizer).float(), dim=1)


def shares(ranked: Tensor, kinds: Tensor) -> list[float]:
    """Of the ten best documents of every query, how many are text, image and both."""
    found = kinds[ranked].flatten()
    return [float((found == kind).double().mean()) for kind in range(3)]


def line(label: str, query: Tensor, gallery: Tensor, wanted: Tensor, labels: Tensor, kinds: Tensor) -> None:
    figures = sb.retrieval_metrics(query, gallery, wanted, labels)
    parts = shares(sb.topk(query, gallery, 10).indices, kinds)
    print(
        f"| {label} | {100 * figures['mAP']:.1f} | {100 * figures['Recall@1']:.1f} | "
        + " / ".join(f"{100 * p:.0f}" for p in parts)
        + " |"
    )


def mixed(name: str, model: torch.nn.Module, preprocess: object, tokenizer: object) -> None:
    data = sb.load_picto(name)
    images = normalize(encode_drawings(model, preprocess, data.images).float(), dim=1)
    labels = torch.as_tensor(data.labels).long()
    names = list(data.class_names)
    query, document = (texts(model, tokenizer, names, t) for t in (QUERY, DOCUMENT))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    held = order < len(names) // 2
    roles = sb.RoleCentering().fit(
        {"query_text": query[held], "document_text": document[held], "document_image": images[held[labels]]}
    )
    judged = (~held[labels]).nonzero().squeeze(1)
    judged = judged[torch.randperm(len(judged), generator=torch.Generator().manual_seed(1))]
    third = len(judged) // 3
    alone, both = judged[:third], judged[third : 2 * third]
    classes = (~held).nonzero().squeeze(1)
    wanted, own = classes, torch.cat([classes, labels[alone], labels[both]])
    kinds = torch.arange(3).repeat_interleave(torch.tensor([len(classes), len(alone), len(both)]))
    plain = normalize(0.5 * document[labels[both]] + 0.5 * images[both], dim=1)
    gallery = torch.cat([document[classes], images[alone], plain])
    centred = torch.cat(
        [
            roles.map_for("document_text")(document[classes]),
            roles.map_for("document_image")(images[alone]),
            roles.fuse(document[labels[both]], images[both]),
        ]
    )
    print(f"\n**{name}**: {len(classes)} queries, {len(gallery)} documents\n")
    print("| gallery | mAP, % | Recall@1, % | text / image / both among the ten best, % |\n|---|---|---|---|")
    held_shares = " / ".join(f"{100 * float((kinds == kind).double().mean()):.0f}" for kind in range(3))
    print(f"| (in the gallery) | | | {held_shares} |")
    line("as it is", query[classes], gallery, wanted, own, kinds)
    line("centred by role", roles.map_for("query_text")(query[classes]), centred, wanted, own, kinds)


def turned(name: str, model: torch.nn.Module, preprocess: object) -> None:
    """A gallery of one model, queries of another."""
    data = sb.load_picto(name)
    old = normalize(encode_drawings(model, preprocess, data.images).float(), dim=1)
    labels = torch.as_tensor(data.labels).long()
    g = torch.Generator().manual_seed(2)
    width = old.shape[1]
    turn = torch.linalg.qr(torch.randn(width, width, generator=g)).Q[:, : 3 * width // 4]
    new = normalize(old @ turn + 0.02 * torch.randn(len(old), turn.shape[1], generator=g), dim=1)
    order = torch.randperm(len(old), generator=g)
    pairs, judged = order[: len(old) // 2], order[len(old) // 2 :]
    map_ = sb.LinearMap.procrustes(new[pairs], old[pairs])
    y = labels[judged]

    def score(rows: Tensor, gallery: Tensor) -> float:
        return 100 * sb.retrieval_metrics(rows, gallery, y, y, same_set=True)["mAP"]

    padded = torch.nn.functional.pad(new, (0, width - new.shape[1]))
    print(
        f"{name}: mAP of old queries in the old gallery {score(old[judged], old[judged]):.1f}, new in new "
        f"{score(new[judged], new[judged]):.1f}, new in old by Procrustes "
        f"{score(map_(new[judged]), old[judged]):.1f}, new in old unmapped "
        f"{score(padded[judged], old[judged]):.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=sb.list_picto())
    args = parser.parse_args()
    model, preprocess, tokenizer = sb.load_picto_clip()
    model.eval()
    with torch.no_grad():
        for name in args.set:
            mixed(name, model, preprocess, tokenizer)
        print()
        for name in args.set:
            turned(name, model, preprocess)


if __name__ == "__main__":
    main()
