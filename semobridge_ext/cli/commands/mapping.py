"""`semobridge-ext map`: a mapping applied to shards of features, streaming."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from semobridge_ext import _digest, _files
from semobridge_ext.cli import mappings
from semobridge_ext.cli.arguments import count
from semobridge_ext.cli.engine import add_engine, cluster_of
from semobridge_ext.cli.output import Tell, bar_off, tell
from semobridge_ext.cli.results import Mapped
from semobridge_ext.cli.shard_files import arrow
from semobridge_ext.cli.shard_writer import Writer, source_facts
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.table_writer import add_format, open_writer
from semobridge_ext.cli.tables import open_features, texts_beside

_DESCRIPTION = """\
Applies a mapping to every row of a folder of shards and writes another one: unit rows, the same order,
the same metadata; text_emb goes along through the texts' side of the mapping. Reads 16384 rows at a time;
interrupted, the same command goes on, and refuses shards, a mapping or a version that have changed since.
"""
_EPILOG = """\
mappings:
  bridge             norm(f W+ W): images into the text modality (SeMoBridge). Changes cosines little
                     where W has nearly full rank
  centering          norm(f - m), m the mean of the unit rows of IN (or of --fit); texts lose theirs: that of
                     the class names or of --texts. Texts and images then lie around one point (GR-CLIP)
  pca                norm(f V), V the first principal directions of the class names' text features;
                     --texts takes them from a file of texts instead. Half the width unless --components,
                     and never more than the texts span
  procrustes         norm(f Q), Q the orthogonal map of another model's features of the same images, --onto;
                     fitted on IN or on --fit, whose rows --onto then matches. At most 65536 rows are taken
  isoclip            needs shards of extract --before-projection; --k-top and --k-bottom, or --published.
                     Its images cannot be compared with texts any more
  FILE.safetensors   what a mapping's .save() wrote: Bridge (closed form or trained), IsoCLIP, LinearMap
                     or RoleCentering; OUT/mapping.safetensors of an earlier run
An option that the mapping does not read is refused.

examples:
  semobridge-ext map feats/ feats-bridge/ --mapping bridge
  semobridge-ext map feats/ feats-pca/ --mapping pca --components 64 --template "a drawing of {}"
  semobridge-ext map hidden/ feats-iso/ --mapping isoclip --k-top 150 --k-bottom 50
  semobridge-ext map feats/ feats-centred/ --mapping centering
  semobridge-ext map old/ as-new/ --mapping procrustes --fit old-sample/ --onto new-sample/
  semobridge-ext map feats.parquet feats-bridge/ --mapping bridge.safetensors   # or .lance, or a folder
  semobridge-ext map feats/ bridged/ --mapping bridge --format parquet   # bridged/features/part-00000.parquet
then: semobridge-ext retrieve feats/ feats-bridge/ feats-pca/
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "map",
        help="apply the bridge, PCA, IsoCLIP, centring or a saved mapping to shards, streaming",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="IN", type=Path, help="folder of shards; .parquet, .lance")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; made if absent")
    names = "|".join(mappings.MAKERS)
    parser.add_argument("--mapping", required=True, metavar="NAME", help=f"{names}|FILE.safetensors")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of OUT")
    add_format(parser)
    add = parser.add_argument
    add("--atol", type=float, help=f"bridge: singular values dropped ({mappings.ATOL})")
    add("--components", type=count, metavar="K", help="pca: directions (default: D/2)")
    add("--texts", type=Path, metavar="FILE", help="pca, centering: one text a line")
    add("--template", help=f"pca, centering: around a class name ({mappings.TEMPLATE!r})")
    add("--fit", type=Path, metavar="FOLDER", help="centering, procrustes: shards to fit on (default: IN)")
    add("--onto", type=Path, metavar="FOLDER", help="procrustes: the other model's shards")
    add("--center", action="store_true", help="procrustes: fitted to centred rows, with an offset")
    add("--k-top", type=lambda w: count(w, 0), metavar="K", help="isoclip: directions cut")
    add("--k-bottom", type=lambda w: count(w, 0), metavar="K", help="isoclip: directions cut")
    add("--published", metavar="MODEL", help="isoclip: the paper's cuts for MODEL")
    add("--compress", action="store_true", help="isoclip: narrow rows, the same ranking")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_engine(parser)


def _file_facts(path: Path) -> str:
    """What a mapping's file says; safetensors writes metadata in any order."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return _digest.marked(_digest.digest([file.metadata() or {}, tensors]))


def _check(args: argparse.Namespace, folder: Folder, mapping: mappings.Mapping) -> None:
    found = folder.settings().get("features", mappings.PROJECTED)
    if found != mapping.takes:
        option = " with --before-projection" if mapping.takes == mappings.HIDDEN else ""
        raise ValueError(
            f"map: IN must hold features of the kind '{mapping.takes}' for {mapping.name}, got '{found}' in "
            f"{folder.path}; "
            f"extract the images{option or ' without --before-projection'} for it"
        )
    if args.out.resolve() == args.input.resolve():
        raise ValueError(f"map: OUT must be another folder than IN, got {args.out} twice; choose another")


def _mapped(
    args: argparse.Namespace, folder: Folder, indices: list[int], mapping: mappings.Mapping, data: bytes
) -> Iterator[np.ndarray]:
    """The mapped rows of every part of these shards, one after another."""
    parts = (part for index in indices for part in folder.parts(index))
    cluster = cluster_of("map", args)
    if cluster is None:
        rows = (folder.features(index)[first:end] for index, first, end in parts)
        return (mappings.mapped_rows(mapping, part, args.dtype) for part in rows)
    from semobridge_ext.ray.jobs import mapped

    return mapped(folder.path, parts, data, args.dtype, cluster)


def _texts_beside(folder: Folder, mapping: mappings.Mapping, tell: Tell) -> Folder | None:
    """The texts that go along through their own side of the mapping."""
    texts = texts_beside(folder)
    if texts is not None and mapping.text is None:
        tell(f"{folder.path}: its texts are left out, {mapping.name} has no map for them")
        return None
    if texts is not None and (lacking := sorted(set(folder.shards()) - set(texts.shards()))):
        raise ValueError(
            f"map: IN must have texts for every shard, got none for shard {lacking[0]} in {folder.path}; "
            "make the folder again"
        )
    return texts


def _text_rows(texts: Folder, index: int, size: int, mapping: mappings.Mapping, dtype: str) -> np.ndarray:
    """Those of one shard, [n, M]."""
    assert mapping.text is not None
    rows = texts.features(index)
    if len(rows) != size:
        raise ValueError(
            f"map: IN must have a text for each of {size} rows of a shard, got {len(rows)}; "
            "make the folder again"
        )
    return mapping.text(rows.float()).numpy().astype(dtype) if size else np.empty((0, 0), dtype)


def _apply(
    folder: Folder,
    out: Writer,
    index: int,
    mapped: Iterator[np.ndarray],
    dtype: str,
    texts: np.ndarray | None,
) -> int:
    """One shard, whose parts come next; its rows."""
    parts = folder.parts(index)
    size = parts[-1][2] if parts else 0
    out.add(index, size, islice(mapped, len(parts)), dtype, folder.metadata_bytes(index), texts)
    return size


def run(args: argparse.Namespace) -> int:
    found = perform(args, tell)
    if found.finished_already:
        print(f"{args.out}: finished already, {found.records} rows")
    else:
        print(f"{args.out}: {found.records} rows by {found.mapping} {found.options}, {found.seconds:.2f} s")
    return 0


def perform(args: argparse.Namespace, tell: Tell) -> Mapped:
    """The whole of the command but its last line; `tell` takes what it says on the way."""
    from tqdm import tqdm

    arrow("map")
    cluster_of("map", args)
    folder = open_features("map", args.input)
    indices = folder.shards()
    folder.check_finished()
    mapping = mappings.make(args.mapping, args, folder)
    _check(args, folder, mapping)
    for index in indices:
        folder.check_rows(index)
    if indices != list(range(len(indices))):
        raise ValueError(
            f"map: IN must have the shards 0 to {len(indices) - 1}, got {indices}; extract again"
        )
    with tempfile.TemporaryDirectory() as place:
        stored = Path(place) / "mapping.safetensors"
        mapping.save(stored)
        digest, data = _file_facts(stored), stored.read_bytes()
    settings = {
        **{
            k: v
            for k, v in folder.settings().items()
            if k in ("model", "pretrained", "weights", "weights_sha256")
        },
        "command": "map",
        "mapping": mapping.name,
        "mapping_digest": digest,
        "mapping_options": mapping.facts,
        "features": f"mapped by {mapping.name}",
        "takes": mapping.takes,
        "text": mapping.text is not None,
        "normalized": True,
        "dtype": args.dtype,
        "source": str(args.input.resolve()),
        "source_digest": source_facts(folder),
    }
    out, began, rows = open_writer("map", args.out, args.format), time.perf_counter(), 0
    texts = _texts_beside(folder, mapping, tell)
    out.texts = texts is not None
    if texts is not None:
        settings["texts_digest"] = source_facts(texts)
    with out.claim():
        first = out.begin(settings)
        if out.summary() and first == len(indices):
            return Mapped.of_summary(args.out, out.summary(), mapping.name, mapping.facts, already=True)
        out.reopen()
        _files.write_bytes(args.out / "mapping.safetensors", data)
        if first:
            tell(f"{args.out}: {first} shards are done, going on")
        mapped = _mapped(args, folder, indices[first:], mapping, data)
        for index in tqdm(indices[first:], unit="shard", desc="map", disable=bar_off(args.quiet)):
            beside = (
                None
                if texts is None
                else _text_rows(texts, index, folder.shape(index)[0], mapping, args.dtype)
            )
            rows += _apply(folder, out, index, mapped, args.dtype, beside)
        seconds = time.perf_counter() - began
        summary = {
            "rows": out.row_total(), "resumed_at": first, "seconds": seconds,
            "rows_per_second": rows / seconds,
        }  # fmt: skip
        out.finish(summary)
    return Mapped.of_summary(args.out, summary, mapping.name, mapping.facts, already=False)
