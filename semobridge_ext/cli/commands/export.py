"""`semobridge-ext export`: a gallery for FAISS, cuVS, Lance or Milvus, with the map of its queries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from semobridge_ext.cli.arguments import count

_DESCRIPTION = """\
Writes the features of a folder of shards, mapped and normalised, for another engine. Beside them lies the
folded map of a query, one matrix, and a README.txt with the lines that search: they need the engine and no
code of this package. Reads 16384 rows at a time; interrupted, the same command goes on or begins anew, and
a folder without summary.json is unfinished.
"""
_EPILOG = """\
formats:
  faiss              index.faiss, an exact IndexFlatIP
  faiss:FACTORY      what FAISS's factory makes of the string, trained on a sample; its recall@10 of 200
                     rows is told for 1, 2, 4 .. lists visited, and the first number that reaches 0.95 stored
  fbin, f16bin       gallery.fbin: two uint32 and float32 (float16) rows, as cuVS reads them
  lance              gallery.lance, which LanceDB opens as a table
  milvus-parquet     part_00000.parquet .. for Milvus's bulk import

mappings:
  none is needed for shards of `map`, whose own mapping goes along; for raw shards bridge, pca (with the
  defaults of `map`) or FILE.safetensors of a mapping

examples:
  semobridge-ext export feats-bridge/ flat/ --format faiss
  semobridge-ext export feats/ ivf/ --format faiss:IVF1024,Flat --mapping bridge --metadata
  semobridge-ext export feats/ gpu/ --format f16bin --mapping map.safetensors
  semobridge-ext export feats/ table/ --format lance --metadata --ids number
  semobridge-ext export rows.parquet gpu/ --format fbin
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="a gallery for FAISS, cuVS, Lance or Milvus, with the map of its queries",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="IN", type=Path, help="folder of shards; .parquet, .lance")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; made if absent")
    kinds = "faiss, faiss:FACTORY, fbin, f16bin, lance, milvus-parquet"
    parser.add_argument("--format", required=True, metavar="FORMAT", help=kinds)
    parser.add_argument("--mapping", metavar="NAME", help="bridge|pca|FILE.safetensors, for raw shards")
    parser.add_argument("--ids", metavar="COLUMN", help="whole numbers as ids (default: row numbers)")
    parser.add_argument("--metadata", action="store_true", help="take the columns of the shards along")
    text = "rows that an index is trained on (default: 50 a list, at least 50000)"
    parser.add_argument("--train", type=count, metavar="N", help=text)
    parser.add_argument("--seed", type=lambda w: count(w, 0), default=0, metavar="N", help="of samples (0)")
    parser.add_argument("--file-rows", type=count, metavar="N",
                        help="milvus-parquet: rows a file (default: 1 GiB of vectors)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from semobridge_ext.handover import export_gallery
    from semobridge_ext.handover.faiss_index import told

    found = export_gallery(
        args.input, args.out, format=args.format, mapping=args.mapping, ids=args.ids,
        metadata=args.metadata, train=args.train, seed=args.seed, file_rows=args.file_rows,
        progress=not args.quiet,
    )  # fmt: skip
    if found.get("finished_already"):
        print(f"{args.out}: finished already, {found['rows']} rows")
        return 0
    recall = f", recall@{found['recall_k']} {told(found)}" if "recall" in found else ""
    what = f"{found['rows']} rows of {found['width']} as {args.format}"
    print(f"{args.out}: {what}, {found['seconds']:.2f} s{recall}")
    print(f"how to search: {args.out / 'README.txt'}")
    return 0
