"""Loaders of the command line: folders of shards, lists, feature files, results; and thresholds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import cli
from semobridge_ext.cli import fewshot_problems, fewshot_store
from semobridge_ext.cli.commands import extract, report, search
from semobridge_ext.cli.commands.invert import _read_features
from semobridge_ext.cli.listing import first_difference
from semobridge_ext.cli.named.prompt_file import read_prompts
from semobridge_ext.cli.named.split_file import read_split
from semobridge_ext.cli.named.torchvision_set import Place
from semobridge_ext.cli.shard_writer import Writer
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.sources import open_source
from semobridge_ext.cli.table_writer import ParquetWriter
from semobridge_ext.runtime import thresholds
from tests.fuzz.runner import Target
from tests.fuzz.targets import P, rows

SETTINGS = {
    "command": "extract",
    "model": "picto",
    "pretrained": None,
    "weights": "blake2b:0",
    "normalized": True,
    "features": "projected",
}
FEATURES, METADATA = "img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"


# -- shards ------------------------------------------------------------------------------------------


def shards(attacked: str) -> Callable[[Path], Path]:
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


PART = "features/part-00000.parquet"


def written_table(attacked: str) -> Callable[[Path], Path]:
    """The same as a finished table."""

    def make(folder: Path) -> Path:
        (folder / "plain").mkdir()
        plain = shards(FEATURES)(folder / "plain")
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
    shards(FEATURES)(folder)
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


# -- lists, features, results, thresholds ------------------------------------------------------------


def lists(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def use_list(path: Path) -> Sequence[Tensor]:
    listing, old = path.parent / "inputs.jsonl", path.parent / "old.jsonl"
    source = open_source("extract", str(path), listing, label="parent", column=None)
    if not old.exists():
        shutil.copy(listing, old)
    first_difference(old, listing)
    found = sum(1 for _ in source.items(0))
    return [torch.tensor(bool(found >= 0))]


def features_file(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        values = {
            "features": P.shots,
            "labels": P.labels,
            "text": P.text,
            "hidden": P.hidden,
            "text_projection": P.projection,
        }
        path = folder / f"train{suffix}"
        if suffix == ".npz":
            np.savez(path, **{k: v.numpy() for k, v in values.items()})
        else:
            from safetensors.torch import save_file

            save_file(values, path, {"format": "semobridge no format"})
        np.savez(folder / "test.npz", features=P.queries.numpy(), labels=P.targets.numpy())
        return path

    return make


def use_problem(path: Path) -> Sequence[Tensor]:
    found = fewshot_problems.of_files(path, None, path.parent / "test.npz")
    return [found.train[0].isfinite(), found.val[1], found.test[1]]


def make_results(folder: Path) -> Path:
    problem = fewshot_problems.of_files(features_file(".npz")(folder), None, folder / "test.npz")
    store = fewshot_store.Store(folder / "results.jsonl")
    store.open(problem, {"a": 1})
    store.add(problem, 1, 0, [{"set": "train", "shots": 1, "seed": 0, "method": "m", "accuracy": 0.5}])
    return folder / "results.jsonl"


def use_results(path: Path) -> Sequence[Tensor]:
    problem = fewshot_problems.of_files(path.parent / "train.npz", None, path.parent / "test.npz")
    found = fewshot_store.Store(path).open(problem, {"a": 1})
    for records in found.values():
        for record in records:
            assert 0 <= record["accuracy"] <= 1 and isinstance(record["method"], str)
    return [torch.tensor(len(found) >= 0)]


def make_npy(folder: Path) -> Path:
    np.save(folder / "file.npy", rows(4).numpy(), allow_pickle=False)
    return folder / "file.npy"


def make_pt(folder: Path) -> Path:
    torch.save(rows(4), folder / "file.pt")
    return folder / "file.pt"


def use_features(path: Path) -> Sequence[Tensor]:
    return [_read_features(str(path), "features").float()]


def make_thresholds(folder: Path) -> Path:
    path = folder / "thresholds.json"
    thresholds.write(path, "card", sb.__version__, {"topk float32": [(0, "eager"), (1000, "native")]})
    return path


def use_thresholds(path: Path) -> Sequence[Tensor]:
    thresholds._name = lambda device: "card"  # type: ignore[assignment]
    os.environ[thresholds.VARIABLE] = str(path)
    thresholds.measured.cache_clear()
    for size in (1, 10**6):
        backend = thresholds.choose("topk", torch.device("cuda"), torch.float32, size)
        assert backend in ("eager", "native", "triton", None), backend
    thresholds.write(path, "other", sb.__version__, {})
    return [torch.tensor(len(thresholds.read(path)) > 0)]


def make_split(folder: Path) -> Path:
    lines = {"train": [["a/1.jpg", 0, "a"], ["b/1.jpg", 1, "b"]], "val": [], "test": [["a/2.jpg", 0, "a"]]}
    (folder / "split.json").write_text(json.dumps(lines))
    return folder / "split.json"


def use_split(path: Path) -> Sequence[Tensor]:
    found = read_split("extract", path)
    assert all(one.path and one.name and one.part for one in found)
    return [torch.tensor(bool(found))]


def make_prompts(folder: Path) -> Path:
    (folder / "prompts.json").write_text(json.dumps({"a": ["An a.", "One a."], "B_b": ["A b."]}))
    return folder / "prompts.json"


def use_prompts(path: Path) -> Sequence[Tensor]:
    found = read_prompts("fewshot", path, ["a", "b b"])
    assert all(sentence.encode() for sentences in found.values() for sentence in sentences)
    return [torch.tensor(len(found) == 2)]


def make_pets(folder: Path) -> Path:
    """A data set in torchvision's folders; its images are not opened."""
    base = folder / "oxford-iiit-pet"
    for name in ("images", "annotations"):
        (base / name).mkdir(parents=True)
    for part, numbers in (("trainval", (1, 2)), ("test", (3, 4))):
        lines = [f"{name}_{i} {label} 1 1" for label, name in ((1, "a"), (2, "b")) for i in numbers]
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            (base / "images" / f"{line.split()[0]}.jpg").touch()
    return base / "annotations" / "trainval.txt"


def use_pets(path: Path) -> Sequence[Tensor]:
    root = path.parents[2]
    place = Place(root)
    given = "torchvision:OxfordIIITPet"
    source = open_source("extract", given, root / "list", label="parent", column=None, place=place)
    found = [(item.path, item.fields()["label"]) for item in source.items(0)]
    assert all(name.startswith(str(root)) and label for name, label in found)
    return [torch.tensor(bool(found))]


INVERT, FEWSHOT = ("invert",), ("fewshot",)
TARGETS = [
    *(
        Target(f"{name}, {file}", form, (name,), shards(file), use, share, depth=2, nan=True)
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
            f"extract, {file}", form, ("extract",), shards(file), use_begin, depth=2, sealed=file == METADATA
        )
        for file, form in (
            (METADATA, "parquet"),
            ("settings.json", "json"),
            ("shards.jsonl", "lines"),
            ("summary.json", "json"),
        )
    ),
    Target("extract, a list", "bytes", ("extract",), lists("list.txt", "a.png\nü.png\n"), use_list),
    Target(
        "extract, a .csv",
        "bytes",
        ("extract",),
        lists("list.csv", 'path,label\na.png,x\n"b, c.png","y\nz"\n'),
        use_list,
    ),
    Target("extract, a split file", "json", ("extract",), make_split, use_split),
    Target("extract, trainval.txt", "bytes", ("extract",), make_pets, use_pets, depth=2),
    Target("fewshot, prompts", "json", FEWSHOT, make_prompts, use_prompts),
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
    Target("invert, .npy", "npy", INVERT, make_npy, use_features, nan=True, free=("shape",)),
    Target("invert, .pt", "bytes", INVERT, make_pt, use_features, free=("flip",)),
    Target("fewshot, .npz", "bytes", FEWSHOT, features_file(".npz"), use_problem),
    Target(
        "fewshot, .safetensors",
        "safetensors",
        FEWSHOT,
        features_file(".safetensors"),
        use_problem,
        free=("labels",),
    ),
    Target("fewshot, results.jsonl", "lines", FEWSHOT, make_results, use_results),
    Target("thresholds", "json", ("calibrate",), make_thresholds, use_thresholds),
]
