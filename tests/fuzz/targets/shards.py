"""What reads the folders of shards and the tables that `extract` writes, and pairs of their rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import cli
from semobridge_ext.cli.commands import extract, report, search
from semobridge_ext.cli.shard_writer import Writer
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.table_writer import ParquetWriter
from tests.fuzz.runner import Target
from tests.fuzz.targets.common import rows

SETTINGS = {
    "command": "extract",
    "model": "picto",
    "pretrained": None,
    "weights": "blake2b:0",
    "normalized": True,
    "features": "projected",
}
FEATURES, METADATA = "img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"
PART = "features/part-00000.parquet"


def written_shards(attacked: str) -> Callable[[Path], Path]:
    """A finished folder of eight rows of width three."""

    def make(folder: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        out = Writer("extract", folder / "feats")
        out.path.mkdir()
        settings = dict(SETTINGS)
        out.begin(settings)
        table = pa.table({"image_path": [f"{i}.png" for i in range(8)], "label": list("aabbccdd")})
        corrupt = json.dumps([["x.png", "cut short"]])
        table = table.replace_schema_metadata({"inputs": "9", "corrupt": corrupt})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = torch.nn.functional.normalize(rows(3, 8).sin() + 0.1, dim=1).numpy()
        out.write(0, lambda file: np.save(file, data, allow_pickle=False), sink.getvalue().to_pybytes())
        out.finish({"inputs": 9, "rows": 8, "corrupt": 1, "seconds": 1.0, "images_per_second": 9.0})
        return out.path / attacked

    return make


def written_table(attacked: str) -> Callable[[Path], Path]:
    """The same as a finished table."""

    def make(folder: Path) -> Path:
        (folder / "plain").mkdir()
        plain = written_shards(FEATURES)(folder / "plain")
        metadata = (plain.parents[1] / METADATA).read_bytes()
        out = ParquetWriter("extract", folder / "feats")
        out.path.mkdir()
        out.begin(dict(SETTINGS))
        out.add(0, 8, [np.load(plain)], np.dtype("float32"), metadata)
        out.finish({"inputs": 9, "rows": 8, "corrupt": 1, "seconds": 1.0, "images_per_second": 9.0})
        return out.path / attacked

    return make


def _folder(path: Path) -> Path:
    return next(p for p in path.parents if p.name == "feats")


def _run(*words: object) -> None:
    args = cli.build_parser().parse_args([str(w) for w in words])
    cli.COMMANDS[args.command].run(args)


# -- commands that read them -------------------------------------------------------------------------


def use_retrieve(path: Path) -> Sequence[Tensor]:
    folder, out = _folder(path), _folder(path).parent / "figures.json"
    _run("retrieve", folder, "--json", out)
    found = json.loads(out.read_text())[str(folder)]
    return [torch.tensor(found[name]) for name in ("mAP", "R-Precision", "Recall@1")]


def make_table(folder: Path) -> Path:
    """Rows as Ray Data writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.array(rows(3, 8).sin().add(0.1).tolist(), pa.list_(pa.float32(), 3))
    pq.write_table(pa.table({"features": vectors, "label": list("aabbccdd")}), folder / "table.parquet")
    return folder / "table.parquet"


def use_table(path: Path) -> Sequence[Tensor]:
    out = path.parent / "figures.json"
    _run("retrieve", path, "--json", out)
    found = json.loads(out.read_text())[str(path)]
    return [torch.tensor(found[name]) for name in ("mAP", "R-Precision", "Recall@1")]


def make_pairs(folder: Path) -> Path:
    written_shards(FEATURES)(folder)
    (folder / "pairs.csv").write_text('query,gallery,"a, note"\n0,1,\n7,2,"x\ny"\n3,3,\n')
    return folder / "pairs.csv"


def use_pairs(path: Path) -> Sequence[Tensor]:
    feats, out = path.parent / "feats", path.parent / "figures.json"
    _run("retrieve", feats, "--queries", feats, "--pairs", path, "--json", out)
    found = json.loads(out.read_text())[str(feats)]
    return [torch.tensor(found[name]) for name in ("mAP", "R-Precision", "Recall@1")]


def use_search(path: Path) -> Sequence[Tensor]:
    """With a query of the right width in place of the model's."""
    folder, out = _folder(path), _folder(path).parent / "hits.json"
    plain = search._queries
    search._queries = lambda args, settings: torch.eye(3)[:1]
    try:
        _run("search", folder, "--text", "x", "-k", 2, "--json", out)
    finally:
        search._queries = plain
    return [torch.tensor([hit["score"] for hit in json.loads(out.read_text())[0]["hits"]])]


def use_report(path: Path) -> Sequence[Tensor]:
    """What it takes from settings and summary, without the measuring."""
    folder = Folder("report", _folder(path))
    found, labels = folder.labelled("label", {})
    texts = report._texts_for(folder, torch.eye(3), 3)
    assert len(report._run_of(folder)) == 4
    return [found, labels, *([] if texts is None else [texts])]


def use_map(path: Path) -> Sequence[Tensor]:
    out = _folder(path).parent / "mapped"
    shutil.rmtree(out, ignore_errors=True)
    mapping = _folder(path).parent / "map.safetensors"
    if not mapping.exists():
        sb.LinearMap(torch.eye(3)[:, :2] + 0.1).save(mapping)
    _run("map", _folder(path), out, "--mapping", mapping, "--quiet", "--dtype", "float32")
    return [Folder("map", out).load()] if Folder("map", out).shards() else []


# -- extract, which goes on with them ----------------------------------------------------------------


def use_begin(path: Path) -> Sequence[Tensor]:
    """What extract does with a folder that it goes on with, and its list of corrupt images."""
    folder = Writer("extract", _folder(path))
    settings = dict(SETTINGS)
    folder.begin(settings)
    counts = extract._collect(folder)
    return [torch.tensor(counts), torch.tensor(extract._resume_at(folder, 1, 100))]


def use_table_begin(path: Path) -> Sequence[Tensor]:
    """What extract does with a table that it goes on with; a line that is none makes its shard again."""
    folder = ParquetWriter("extract", _folder(path))
    done = folder.begin(dict(SETTINGS))
    counts = [folder.counts(index)[:2] for index in range(done)]
    return [torch.tensor(done), torch.tensor(counts or [(0, 0)])]


def parquet_edits(folder: Path, path: Path) -> list[tuple[str, bytes]]:
    """Well-formed Parquet files that say something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    meta = dict(table.schema.metadata)
    n = len(table)
    tables: dict[str, Any] = {
        "no rows": table.slice(0, 0),
        "one row less": table.slice(1),
        "a row more": pa.concat_tables([table, table.slice(0, 1)]),
        "no columns": table.select([]),
        "no label": table.drop_columns(["label"]),
        "no path": table.drop_columns(["image_path"]),
        "twice label": table.append_column("label", table["label"]),
        "no metadata": table.replace_schema_metadata(None),
        "numbers": table.set_column(1, "label", pa.array(range(n))),
        "lists": table.set_column(1, "label", pa.array([[i] for i in range(n)])),
        "bytes": table.set_column(1, "label", pa.array([b"\xff"] * n)),
        "NaN": table.set_column(1, "label", pa.array([float("nan")] * n)),
        "null labels": table.set_column(1, "label", pa.nulls(n)),
        "null paths": table.set_column(0, "image_path", pa.nulls(n)),
        "structs": table.set_column(1, "label", pa.array([{"a": i} for i in range(n)])),
        "far times": table.set_column(1, "label", pa.array([2**62] * n, pa.timestamp("us"))),
    }
    for key in ("inputs", "corrupt"):
        for word in (
            "",
            "x",
            "-1",
            "null",
            "{}",
            "[1]",
            "[[1]]",
            '[["a","b","c"]]',
            "[[1, 2]]",
            "[" * 100000,
            "9" * 5000,
            "\ufeff",
        ):
            tables[f"{key} = {word[:20]!r}"] = table.replace_schema_metadata(
                meta | {key.encode(): word.encode()}
            )
        tables[f"{key} no UTF-8"] = table.replace_schema_metadata(meta | {key.encode(): b'"\xff"'})
    found = []
    for label, changed in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(changed, sink)
        found.append((label, sink.getvalue().to_pybytes()))
    return found


TARGETS = [
    *(
        Target(f"{name}, {file}", form, (name,), written_shards(file), use, share, depth=2, nan=True)
        for name, use, share in (
            ("retrieve", use_retrieve, 1.0),
            ("search", use_search, 0.5),
            ("report", use_report, 1.0),
            ("map", use_map, 0.2),
        )
        for file, form in (
            (FEATURES, "npy"),
            (METADATA, "parquet"),
            ("settings.json", "json"),
            ("summary.json", "json"),
        )
    ),
    *(
        Target(
            f"extract, {file}",
            form,
            ("extract",),
            written_shards(file),
            use_begin,
            depth=2,
            sealed=file == METADATA,
        )
        for file, form in (
            (METADATA, "parquet"),
            ("settings.json", "json"),
            ("shards.jsonl", "lines"),
            ("summary.json", "json"),
        )
    ),
    Target("retrieve, a table", "bytes", ("retrieve",), make_table, use_table, nan=True),
    Target(
        "extract, a table", "bytes", ("extract",), written_table(PART), use_table_begin, depth=2, sealed=True
    ),
    Target(
        "extract, a table's shards.jsonl",
        "lines",
        ("extract",),
        written_table("shards.jsonl"),
        use_table_begin,
        depth=2,
        free=("",),
    ),
    Target("retrieve, pairs.csv", "bytes", ("retrieve",), make_pairs, use_pairs),
]
