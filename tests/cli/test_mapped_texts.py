"""`map` of shards with text_emb: texts go along through their own side, and the next command reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from tests.support.assertions import assert_close
from tests.support.galleries import write_shards
from tests.support.images import command

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
N, D, M = 20, 6, 4
SIZES = (8, 8, 4)


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Shards of 8, 8 and 4 pairs: a text lies near its image."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N, D)).astype(np.float32)
    texts = (rows + 0.05 * rng.standard_normal((N, D))).astype(np.float32)
    write_shards(tmp_path / "in", torch.from_numpy(rows), 8)
    store(tmp_path / "in", texts)
    sb.LinearMap(torch.from_numpy(rng.standard_normal((D, M)))).save(tmp_path / "map.safetensors")
    return tmp_path / "in", texts


def store(folder: Path, texts: np.ndarray) -> None:
    (folder / "text_emb").mkdir(exist_ok=True)
    for i, part in enumerate(np.split(texts, np.cumsum(SIZES)[:-1])):
        np.save(folder / "text_emb" / f"text_emb_{i}.npy", part)


def mapped(source: Path, *words: Any, out: str = "out") -> int:
    given = ["--mapping", source.parent / "map.safetensors", "--dtype", "float32", "--quiet", *words]
    return command("map", source, source.parent / out, *given)


def texts_of(out: Path) -> np.ndarray:
    return np.concatenate([np.load(out / "text_emb" / f"text_emb_{i}.npy") for i in range(len(SIZES))])


def through(source: Path, texts: np.ndarray) -> torch.Tensor:
    matrix = sb.LinearMap.load(source.parent / "map.safetensors").matrix
    return normalize(torch.from_numpy(texts).double() @ matrix.double(), dim=1)


def test_texts_of_shards_go_along(source: tuple[Path, np.ndarray]) -> None:
    folder, texts = source
    assert mapped(folder) == 0
    out = folder.parent / "out"
    assert_close(torch.from_numpy(texts_of(out)), through(folder, texts), "written", dtype=torch.float32)
    # Its next command: which image does a text find?
    pairs = folder.parent / "pairs.csv"
    pairs.write_text("query,gallery\n" + "".join(f"{i},{i}\n" for i in range(N)), encoding="utf-8")
    found = sb.retrieve(out, queries=out / "text_emb", pairs=pairs, recall_at=(1,))
    assert found["Recall@1"] > 0.8


def test_texts_of_a_table_become_shards(source: tuple[Path, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, texts = source
    rows = np.concatenate([np.load(folder / "img_emb" / f"img_emb_{i}.npy") for i in range(len(SIZES))])
    table = pa.table(
        {"features": rows.tolist(), "text_features": texts.tolist(), "name": [f"{i}" for i in range(N)]}
    )
    pq.write_table(table, folder.parent / "rows.parquet")
    assert mapped(folder.parent / "rows.parquet", out="of_table") == 0
    found = np.load(folder.parent / "of_table" / "text_emb" / "text_emb_0.npy")
    want = through(folder, texts)
    assert_close(torch.from_numpy(found), want, "written", dtype=torch.float32)
    assert pq.read_table(folder.parent / "of_table" / "metadata" / "metadata_0.parquet").column_names == [
        "name"
    ]


def test_a_killed_run_goes_on_with_its_texts(source: tuple[Path, np.ndarray], capsys) -> None:
    folder, texts = source
    assert mapped(folder) == 0
    out = folder.parent / "out"
    want = texts_of(out)
    (out / "summary.json").unlink()
    (out / "text_emb" / "text_emb_1.npy").unlink()
    capsys.readouterr()
    assert mapped(folder) == 0 and "1 shards are done" in capsys.readouterr().err
    assert np.array_equal(texts_of(out), want)
    store(folder, -texts)  # other texts are another run
    assert mapped(folder) == 2 and "texts_digest" in capsys.readouterr().err


def test_a_folder_that_lacks_texts_is_refused(source: tuple[Path, np.ndarray], capsys) -> None:
    folder, texts = source
    np.save(folder / "text_emb" / "text_emb_1.npy", texts[:3])
    assert mapped(folder, out="short") == 2
    assert "must have a text for each of 8 rows of a shard, got 3" in capsys.readouterr().err
    (folder / "text_emb" / "text_emb_1.npy").unlink()
    for i, layout in enumerate(("shards", "parquet")):
        assert mapped(folder, "--format", layout, out=f"lacking{i}") == 2
        assert "IN must have texts for every shard, got none for shard 1" in capsys.readouterr().err


def test_a_mapping_without_a_side_for_texts_says_so(source: tuple[Path, np.ndarray], capsys) -> None:
    folder, _ = source
    draw = torch.Generator().manual_seed(0)
    iso = sb.IsoCLIP(
        torch.randn(D, 5, generator=draw), torch.randn(7, 5, generator=draw), k_top=1, k_bottom=1
    )
    iso.save(folder.parent / "map.safetensors")
    (folder / "settings.json").write_text('{"features": "before projection"}', encoding="utf-8")
    (folder / "summary.json").write_text(f'{{"rows": {N}}}', encoding="utf-8")
    assert mapped(folder) == 0
    told = capsys.readouterr().err
    assert "its texts are left out, map has no map for them" in told
    assert not (folder.parent / "out" / "text_emb").exists()
