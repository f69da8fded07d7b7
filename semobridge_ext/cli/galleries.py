"""What `retrieve` ranks: rows of one folder of shards, or of several together, and what is relevant."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext.cli.pairs import Finder, keys_finder, read_pairs, rows_finder
from semobridge_ext.cli.shard_files import FEATURES, TEXTS
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features
from semobridge_ext.retrieval.shares import group_shares

KINDS = {FEATURES: "image", TEXTS: "text"}


class Side(NamedTuple):
    """Queries or gallery."""

    rows: Tensor  # [n, D] unit rows
    labels: Tensor | None  # [n]
    keys: list[Any] | None  # n values of the key's column
    groups: Tensor  # [n] which of the names
    names: list[str]  # of modalities, or of folders where all are of one


def open_folder(path: Path, function: str = "retrieve") -> Folder:
    """FOLDER/text_emb and FOLDER/img_emb name a part; else the images, or the texts where there are none."""
    if path.name in KINDS and not (path / path.name).is_dir():
        return open_features(function, path.parent, path.name)
    lone = (path / TEXTS).is_dir() and not (path / FEATURES).is_dir()
    return open_features(function, path, TEXTS if lone else FEATURES)


def read_side(args: argparse.Namespace, paths: list[Path], codes: dict[str, int]) -> Side:
    """Rows with a label, `codes` growing by the labels; with --pairs all rows, and their keys."""
    parts = [_read(args, path, codes) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part[0].shape[1] != parts[0][0].shape[1]:
            raise ValueError(
                f"retrieve: SHARDS must be of one width to be ranked together, got {parts[0][0].shape[1]} in "
                f"{paths[0]} and {part[0].shape[1]} in {path}; take them from one model"
            )
    kinds = [KINDS[open_folder(path).part] for path in paths]
    told = kinds if len(set(kinds)) > 1 else [str(path) for path in paths]
    names = list(dict.fromkeys(told))
    places = torch.tensor([names.index(name) for name in told])
    sizes = torch.tensor([len(part[0]) for part in parts])
    labels = None if args.pairs is not None else torch.cat([part[1] for part in parts])
    keys = None if args.key is None else [key for part in parts for key in part[2]]
    groups = torch.repeat_interleave(places, sizes)
    return Side(_joined([parts.pop(0)[0] for _ in paths]), labels, keys, groups, names)


def _joined(parts: list[Tensor]) -> Tensor:
    """One behind the other; the parts go as they are copied, and one alone is no copy."""
    if len(parts) == 1:
        return parts[0]
    found, at = torch.empty(sum(map(len, parts)), parts[0].shape[1]), 0
    while parts:
        part = parts.pop(0)
        found[at : at + len(part)] = part
        at += len(part)
    return found


def _read(args: argparse.Namespace, path: Path, codes: dict[str, int]) -> tuple[Tensor, Tensor, list[Any]]:
    folder = open_folder(path)
    if args.pairs is None:
        rows, labels = folder.labelled(args.label, codes)
        return rows, labels, []
    folder.shards()
    folder.check_finished()
    keys = [] if args.key is None else folder.column(args.key, "--key")
    rows = folder.unit_rows(folder.record_count() if args.key is None else len(keys))
    if not rows.numel():
        raise ValueError(f"retrieve: SHARDS must hold features, got none in {path}; extract some images")
    return rows, torch.empty(0), keys


def pairs_of(args: argparse.Namespace, query: Side, gallery: Side) -> Tensor:  # [M, 2]
    finders, contracts = [], []
    for side in (query, gallery):
        finder, contract = _finder(args, side)
        finders.append(finder)
        contracts.append(contract)
    return read_pairs(args.pairs, finders[0], finders[1], (contracts[0], contracts[1]))


def _finder(args: argparse.Namespace, side: Side) -> tuple[Finder, str]:
    if side.keys is not None:
        return keys_finder(side.keys), f"a value of the column '{args.key}'"
    return rows_finder(len(side.rows)), f"a row from 0 to {len(side.rows) - 1}"


def shares(
    query: Side, gallery: Side, pairs: Tensor | None, ks: tuple[int, ...], same_set: bool
) -> dict[str, dict[str, float]]:
    """By group of the gallery: its share of all items, of the relevant ones, and of the first k."""
    ks = tuple(k for k in ks if k <= len(gallery.rows) - same_set)
    found = group_shares(query.rows, gallery.rows, gallery.groups, at=ks, same_set=same_set)
    items = torch.bincount(gallery.groups, minlength=len(gallery.names)).double()
    relevant = _relevant_by_group(query, gallery, pairs, same_set)
    return {
        name: {
            "gallery": float(items[i] / items.sum()), "relevant": float(relevant[i] / relevant.sum()),
            **{f"first {k}": float(found[j, i]) for j, k in enumerate(ks)},
        }
        for i, name in enumerate(gallery.names)
    }  # fmt: skip


def _relevant_by_group(query: Side, gallery: Side, pairs: Tensor | None, same_set: bool) -> Tensor:
    """Pairs of a query and a relevant item, by the item's group."""
    kinds = len(gallery.names)
    if pairs is not None:
        distinct = torch.unique(pairs, dim=0)
        if same_set:
            distinct = distinct[distinct[:, 0] != distinct[:, 1]]
        return torch.bincount(gallery.groups[distinct[:, 1]], minlength=kinds).double()
    assert query.labels is not None and gallery.labels is not None
    asked = torch.bincount(query.labels, minlength=int(gallery.labels.max()) + 1)
    each = asked[gallery.labels].double() - int(same_set)  # an item does not ask itself
    return torch.zeros(kinds, dtype=torch.float64).index_add_(0, gallery.groups, each)
