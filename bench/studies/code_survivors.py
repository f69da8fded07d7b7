"""What 8-bit codes leave to be scored in float32: rows a query in searches, and scores undecided in metrics.

    python bench/studies/code_survivors.py

Searches are leave-one-out, k = 10, one thread. "undecided" is the share of scores whose interval holds the
score of a relevant row: for those a retrieval metric needs the float32 score after all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from streams import rows_of_classes

import semobridge_ext as sb
from semobridge_ext._ops.quantize_rows.op import quantize_rows
from semobridge_ext._ops.quantize_rows.reference import quantize_rows as code_queries
from semobridge_ext._ops.quantize_rows.reference import unpack
from semobridge_ext._ops.topk import cpu

K, FEW, PLANE = 10, 200, 254


def survivors(rows: Tensor, queries: Tensor, own: Tensor) -> tuple[float, dict[str, int]]:
    """Rows scored in float32, a query; and how the search went."""
    _, _, found = cpu.topk_filtered(queries, rows, K, own, coded=quantize_rows(rows))
    return (found["scored"] + found["scored_early"]) / len(queries), found


def undecided(rows: Tensor, labels: Tensor) -> list[float]:
    """Share of scores, with one plane of the query and with two; the first rows are the queries."""
    queries = rows[:FEW]
    coded = quantize_rows(rows)
    scale, norm, error = coded.bounds.permute(1, 0, 2).reshape(3, -1)[:, : len(rows)].double()
    codes = unpack(coded.codes, *rows.shape).double() * scale[:, None]
    whole, scales, rest = code_queries(queries)
    left = queries.double() - whole * scales[:, None]
    second = (left / scales[:, None] * PLANE).round()
    length = torch.linalg.vector_norm(queries.double(), dim=1)
    finer = whole + second / PLANE
    exact = (queries @ rows.T).double()
    shares = []
    for plane, missed in ((whole, rest), (finer, rest / PLANE)):
        middle = (plane * scales[:, None]) @ codes.T
        room = missed[:, None] * norm + length[:, None] * error
        each = []
        for i in range(len(queries)):
            relevant = labels == labels[i]
            relevant[i] = False
            if relevant.any():
                marked = exact[i][relevant].sort().values
                below = torch.searchsorted(marked, middle[i] - room[i])
                above = torch.searchsorted(marked, middle[i] + room[i], right=True)
                each.append(float((below != above).double().mean()))
        shares.append(sum(each) / len(each))
    return shares


def outliers(rows: Tensor) -> Tensor:
    """Two columns of twelve standard deviations, as features of large models have them."""
    rows = rows.clone()
    rows[:, [7, 300]] += 12 * rows.std()
    return normalize(rows, dim=1)


@torch.inference_mode()
def data_sets() -> dict[str, tuple[Tensor, Tensor]]:
    model, found = sb.load_picto_clip()[0], {}
    for name in ("icons", "emoji", "logos"):
        drawings = sb.load_picto(name)
        features = torch.cat(
            [model.encode_image(part) for part in sb.picto_transform(drawings.images).split(256)]
        )
        found[f"embedded CLIP, {name}"] = normalize(features, dim=1), torch.as_tensor(drawings.labels)
    clustered = rows_of_classes(50_000, 1000, 0)
    found["clustered"] = clustered
    found["clustered, two outlier columns"] = outliers(clustered[0]), clustered[1]
    random = normalize(torch.randn(50_000, 512), dim=1)
    found["random directions"] = random, torch.arange(50_000) // 50
    found["all rows equal"] = torch.full((50_000, 512), 0.37), torch.arange(50_000) // 50
    return found


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(
        "| rows | G × D | scored a query | chunks by one plane / two / float32 | undecided, one plane | two |"
    )
    print("|---|---|---:|---|---:|---:|")
    for name, (rows, labels) in data_sets().items():
        rows = rows.contiguous()
        each, found = survivors(rows, rows[:FEW], torch.arange(FEW))
        ways = " / ".join(str(found[way]) for way in ("one_plane", "two_planes", "float32"))
        one, two = undecided(rows, labels)
        shape = f"{len(rows)} × {rows.shape[1]}"
        print(f"| {name} | {shape} | {each:.0f} | {ways} | {one:.2f} | {two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
