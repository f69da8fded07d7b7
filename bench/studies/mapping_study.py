"""Which linear map, if any, helps comparing within one modality: the table of docs/guides/isoclip.md.

    python bench/studies/mapping_study.py                       # every embedded set, images and texts
    python bench/studies/mapping_study.py --set flags --no-oti  # in seconds
    python bench/studies/mapping_study.py --search              # search time and memory by dimension; quiet
    machine

Images: every drawing of the test part is a query among all the others of that part, relevant where the
class is equal. What a map needs (IsoCLIP's cuts, PCA's tuned k, means, covariances) is taken from the other
parts. The test part of "flags" has one drawing per class: there the classes are halved instead, all drawings
of one half tested, those of the other used. Texts: five prompts per class name, each a query for the four
others among the prompts of the tested half of the names; the other half chooses.

Intervals: 95 %, 2000 bootstrap resamples of whole classes, the same for every method, so that the
differences to native are paired.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.clip import encode_image, encode_text
from semobridge_ext.data import PictoDataset

RESULTS = Path(__file__).resolve().parents[1] / "results" / "mapping_study.json"
PROMPTS = ("{}", "a photo of {}", "an icon of {}", "a drawing of {}", "the {} symbol")
RESAMPLES = 2000
# D, what the published cuts leave of L/14, B/32 and B/16, and round widths beside them
SEARCH_WIDTHS = (512, 320, 318, 312, 262, 256)


def average_precision(query: Tensor, gallery: Tensor, labels: Tensor) -> Tensor:  # [N]
    found = sb.retrieval_metrics(query, gallery, labels, labels, same_set=True, per_query=True)
    return found["per_query"]["AP"]


def by_class(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # [C], [C]
    """Sums and counts of the queries that have something to find."""
    valid = ~torch.isnan(values)
    size = int(labels.max()) + 1
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, labels[valid], values[valid])
    return sums, torch.bincount(labels[valid], minlength=size).double()


def resampled_means(values: Tensor, labels: Tensor) -> Tensor:  # [RESAMPLES]
    """Means over whole classes drawn with replacement, with the same draws for every method."""
    sums, counts = by_class(values, labels)
    present = counts > 0
    sums, counts = sums[present], counts[present]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    return sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1)


def summary(name: str, values: Tensor, native: Tensor, labels: Tensor, note: str = "") -> dict:
    valid = ~torch.isnan(values)
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    means = resampled_means(values, labels)
    change = means - resampled_means(native, labels)
    return {
        "method": name, "note": note, "mAP": float(values[valid].mean()),
        "interval": torch.quantile(means, tails).tolist(),
        "difference": float((values - native)[valid].mean()),
        "difference_interval": torch.quantile(change, tails).tolist(),
    }  # fmt: skip


def parts(data: PictoDataset) -> tuple[Tensor, Tensor]:  # [N] bool, [N] bool
    """Drawings that maps are chosen on, and drawings that are tested."""
    if int(torch.bincount(data.labels[data.test]).max()) > 1:
        return ~data.test, data.test
    order = torch.randperm(data.num_classes, generator=torch.Generator().manual_seed(0))
    held = (order < data.num_classes // 2)[data.labels]
    return held, ~held


def tuned_pca(texts: Tensor, rows: Tensor, labels: Tensor, most: int) -> int:
    """The k of PCA on texts with the best leave-one-out mAP on validation rows; the first best."""
    ks = sorted({max(2, round(most * share)) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)})
    scores = []
    for k in ks:
        mapped = sb.LinearMap.pca(texts, k)(rows)
        scores.append(float(average_precision(mapped, mapped, labels).nanmean()))
    return ks[scores.index(max(scores))]


def images_study(name: str, with_oti: bool) -> dict:
    model, _, tokenizer = sb.load_picto_clip()
    data = sb.load_picto(name)
    pre = encode_image(model, sb.picto_transform(data.images), project=False)
    raw = pre @ model.visual.proj.detach()
    labels, (held, test) = data.labels, parts(data)
    texts = normalize(encode_text(model, tokenizer(data.texts("a photo of {}"))), dim=1)
    width = raw.shape[1]
    native_rows = normalize(raw[test], dim=1)
    native = average_precision(native_rows, native_rows, labels[test])
    rows = [summary("native", native, native, labels[test])]

    def add(method: str, map_: Callable[[Tensor], Tensor], source: Tensor, note: str = "") -> None:
        mapped = map_(source[test])
        values = average_precision(mapped, mapped, labels[test])
        rows.append(summary(method, values, native, labels[test], note))

    bridge = sb.Bridge.from_clip(model)
    add("bridge", bridge, raw, f"rank {bridge.rank} of {width}")
    iso = sb.IsoCLIP.from_clip(model).tune(pre[held], labels[held])
    add("IsoCLIP, chosen cuts", iso.image, pre, f"k_top {iso.k_top}, k_bottom {iso.k_bottom}")
    cut = round(0.1 * width)
    fixed = sb.IsoCLIP.from_clip(model, k_top=cut, k_bottom=cut)
    add("IsoCLIP, a tenth off either end", fixed.image, pre, f"k_top {cut}, k_bottom {cut}")
    most = min(width, len(texts) - 1)
    half = min(width // 2, most)
    add("PCA on texts, D/2", sb.LinearMap.pca(texts, half), raw, f"k {half}")
    k = tuned_pca(texts, normalize(raw[held], dim=1), labels[held], most)
    add("PCA on texts, chosen k", sb.LinearMap.pca(texts, k), raw, f"k {k}")
    unit = normalize(raw, dim=1)
    add("centring", sb.LinearMap.centering(unit[held].mean(dim=0)), unit)
    add("whitening", sb.LinearMap.whitening(unit[held], shrinkage=0.1), unit, "shrinkage 0.1")
    if with_oti:
        begin = time.perf_counter()
        inv = sb.oti(model, raw[test], tokenizer=tokenizer, generator=torch.Generator().manual_seed(0))
        seconds = time.perf_counter() - begin
        values = average_precision(inv.features, native_rows, labels[test])
        rows.append(summary("OTI queries", values, native, labels[test], f"150 steps, {seconds:.0f} s"))
    small, wide = iso.image(pre[test], compress=True), iso.image(pre[test])
    near = [sb.topk(f, f, 10, exclude=torch.arange(len(f))).indices for f in (wide, small)]
    return {
        "set": name, "modality": "images", "queries": len(native), "rows": rows,
        "classes": len(torch.unique(labels[test])),
        "compression": {
            "width": [wide.shape[1], small.shape[1]],
            "equal_top10": float((near[0] == near[1]).all(dim=1).double().mean()),
            "worst_score": float((wide @ wide.T - small @ small.T).abs().max()),
        },
    }  # fmt: skip


def texts_study() -> dict:
    model, _, tokenizer = sb.load_picto_clip()
    names = sorted({n for s in sb.list_picto() for n in sb.load_picto(s).class_names})
    prompts = [p.replace("{}", n) for n in names for p in PROMPTS]
    ids = tokenizer(prompts)
    pre = encode_text(model, ids, project=False)
    raw = pre @ model.text_projection.detach()
    labels = torch.arange(len(names)).repeat_interleave(len(PROMPTS))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    held = (order < len(names) // 2)[labels]  # the names that cuts are chosen on
    test = ~held
    codes = torch.unique(labels[test], return_inverse=True)[1]
    native_rows = normalize(raw[test], dim=1)
    native = average_precision(native_rows, native_rows, codes)
    rows = [summary("native", native, native, codes)]
    iso = sb.IsoCLIP.from_clip(model, side="text").tune(pre[held], labels[held])
    mapped = iso.text(pre[test])
    note = f"k_top {iso.text_k_top}, k_bottom {iso.text_k_bottom}"
    values = average_precision(mapped, mapped, codes)
    rows.append(summary("IsoCLIP, chosen cuts", values, native, codes, note))
    unit = normalize(raw, dim=1)
    others = {
        "PCA on texts, D/2": sb.LinearMap.pca(unit[held], raw.shape[1] // 2),
        "centring": sb.LinearMap.centering(unit[held].mean(dim=0)),
        "whitening": sb.LinearMap.whitening(unit[held], shrinkage=0.1),
    }
    for method, map_ in others.items():
        mapped = map_(unit[test])
        rows.append(summary(method, average_precision(mapped, mapped, codes), native, codes))
    return {
        "set": "class names, five prompts", "modality": "texts", "queries": int(test.sum()),
        "classes": len(torch.unique(codes)), "rows": rows,
    }  # fmt: skip


def table(study: dict) -> str:
    lines = [
        f"**{study['set']}**: {study['queries']} {study['modality']}, {study['classes']} classes",
        "",
        "| method | mAP, % | difference to native | |",
        "|---|---|---|---|",
    ]
    for row in study["rows"]:
        low, high = (100 * v for v in row["interval"])
        change, bottom, top = (100 * v for v in (row["difference"], *row["difference_interval"]))
        # What rounds to zero is rounding: a cut of directions that carry nothing.
        mark = " *" if round(bottom, 2) > 0 or round(top, 2) < 0 else ""
        shown = "" if row["method"] == "native" else f"{change:+.2f} [{bottom:+.2f}, {top:+.2f}]{mark}"
        lines.append(
            f"| {row['method']} | {100 * row['mAP']:.2f} [{low:.1f}, {high:.1f}] | {shown} | {row['note']} |"
        )
    return "\n".join(lines)


def search_study(rows: int = 100_000, queries: int = 1000, rounds: int = 5) -> list[dict]:
    """Exact search among random unit rows: it depends on the widths alone."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for width in SEARCH_WIDTHS:
        gallery = normalize(torch.randn(rows, width, generator=generator), dim=1)
        query = gallery[:queries].clone()
        assert torch.equal(sb.topk(query[:50], gallery, 1).indices[:, 0], torch.arange(50))
        seconds = {}
        for count in (1, queries):
            times = []
            for _ in range(rounds * (5 if count == 1 else 1)):
                begin = time.perf_counter()
                sb.topk(query[:count], gallery, 10)
                times.append(time.perf_counter() - begin)
            seconds[count] = statistics.median(times)
        result.append({"width": width, "gallery_MB": rows * width * 4 / 1e6, "seconds": seconds})
    return result


def search_table(result: list[dict]) -> str:
    lines = ["| width | gallery, MB | 1 query, ms | 1000 queries, ms |", "|---|---|---|---|"]
    for row in result:
        times = [f"{1000 * s:.1f}" for s in row["seconds"].values()]
        lines.append(f"| {row['width']} | {row['gallery_MB']:.0f} | {' | '.join(times)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=sb.list_picto())
    parser.add_argument("--no-oti", action="store_true")
    parser.add_argument("--search", action="store_true")
    parser.add_argument(
        "--out", type=Path, help=f"JSON, for example {RESULTS.relative_to(RESULTS.parents[2])}"
    )
    args = parser.parse_args()
    if args.search:
        result: list[dict] = search_study()
        print(search_table(result))
    else:
        result = []
        for name in args.set:
            result.append(images_study(name, not args.no_oti))
            print(table(result[-1]), json.dumps(result[-1]["compression"]), "", sep="\n", flush=True)
        result.append(texts_study())
        print(table(result[-1]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
