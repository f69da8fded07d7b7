"""map, search, retrieve and report on small shards."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext import _digest
from semobridge_ext.cli.shards import Folder
from tests.support.assertions import assert_close, assert_figures, assert_same_bits
from tests.support.images import command, write

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("shards")
    write(home / "images", 8, 6)
    words = ["--quiet", "--workers", 0, "--shard-size", 20]
    assert command("extract", home / "images", home / "feats", *words) == 0
    assert command("map", home / "feats", home / "bridged", "--mapping", "bridge", "--quiet") == 0
    pca = ["--mapping", "pca", "--components", 5, "--quiet"]
    assert command("map", home / "feats", home / "pca", *pca) == 0
    return home


def rows(folder: Path) -> torch.Tensor:
    found = Folder("test", folder)
    return torch.cat([found.features(i) for i in found.shards()])


def test_map_is_the_library_call(shards: Path) -> None:
    model, _, tokenizer = sb.load_picto_clip()
    raw = rows(shards / "feats")
    want = sb.reference.bridge(raw.double(), model.text_projection.detach().double())
    assert_close(rows(shards / "bridged"), want, "bridge")
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([f"a photo of class {i:02d}" for i in range(8)]))
    texts = normalize(texts.double(), dim=1)
    directions = torch.linalg.eigh((texts - texts.mean(0)).T @ (texts - texts.mean(0))).eigenvectors
    v = directions.flip(1)[:, :5]
    # Directions have no sign: compare the inner products.
    want = normalize(raw.double() @ v, dim=1)
    got = rows(shards / "pca").double()
    assert_close(got @ got.T, want @ want.T, "written", dtype=torch.float16)
    assert [p.read_bytes() for p in sorted((shards / "pca" / "metadata").iterdir())] == [
        p.read_bytes() for p in sorted((shards / "feats" / "metadata").iterdir())
    ]


def test_map_from_a_file_and_goes_on(shards: Path, tmp_path: Path, capsys) -> None:
    model, _, _ = sb.load_picto_clip()
    sb.Bridge.from_clip(model, atol=0.8).save(tmp_path / "b.safetensors")
    words = ["map", shards / "feats", tmp_path / "out", "--mapping", tmp_path / "b.safetensors", "--quiet"]
    assert command(*words) == 0
    first = rows(tmp_path / "out")
    # As a kill between two shards leaves it.
    (tmp_path / "out" / "summary.json").unlink()
    (tmp_path / "out" / "metadata" / "metadata_2.parquet").unlink()
    assert command("retrieve", tmp_path / "out") == 2
    assert "metadata" in capsys.readouterr().err
    assert command(*words) == 0 and "2 shards are done" in capsys.readouterr().err
    assert torch.equal(rows(tmp_path / "out"), first)
    sb.Bridge.from_clip(model, atol=0.1).save(tmp_path / "b.safetensors")
    assert command(*words) == 2 and "mapping_digest" in capsys.readouterr().err


def test_map_refuses_what_changed(shards: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Other shards under the same name, a damaged shard of its own, another version."""
    feats, out = tmp_path / "feats", tmp_path / "out"
    shutil.copytree(shards / "feats", feats)
    words = ["map", feats, out, "--mapping", "bridge", "--quiet"]
    assert command(*words) == 0
    whole = (out / "img_emb" / "img_emb_1.npy").read_bytes()
    (out / "summary.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(_digest, "__version__", "9.9")
        assert command(*words) == 2 and 'version "' in capsys.readouterr().err
    (out / "img_emb" / "img_emb_1.npy").write_bytes(whole[:-64] + bytes(64))
    assert command(*words) == 2 and "img_emb_1.npy must hold what was written" in capsys.readouterr().err
    (out / "img_emb" / "img_emb_1.npy").unlink()
    assert command(*words) == 0 and "1 shards are done" in capsys.readouterr().err
    assert (out / "img_emb" / "img_emb_1.npy").read_bytes() == whole
    settings = (feats / "settings.json").read_bytes().replace(b'"shard_size": 20', b'"shard_size": 21')
    for name, data in (("shards.jsonl", b'[0, "a", "b"]\n'), ("settings.json", settings)):
        kept = (feats / name).read_bytes()
        (feats / name).write_bytes(data)
        assert command(*words) == 2 and "source_digest" in capsys.readouterr().err, name
        (feats / name).write_bytes(kept)
    assert command(*words) == 0 and "finished already" in capsys.readouterr().out


def test_folders_of_the_first_version_are_read(shards: Path, tmp_path: Path, capsys) -> None:
    """Their settings name the weights by a sha256; another model's are refused as ever."""
    model, _, _ = sb.load_picto_clip()
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(f"{name}{value.dtype}{list(value.shape)}".encode() + value.numpy().tobytes())
    settings = json.loads((shards / "feats" / "settings.json").read_text())
    settings = {
        k: v for k, v in settings.items() if k not in ("format", "version", "weights", "inputs_digest")
    }
    for name, digest in (("old", weights.hexdigest()), ("other", "0" * 64)):
        shutil.copytree(shards / "feats", tmp_path / name)
        (tmp_path / name / "shards.jsonl").unlink()
        (tmp_path / name / "settings.json").write_text(json.dumps({**settings, "weights_sha256": digest}))
    words = ["--mapping", "bridge", "--quiet"]
    assert command("map", tmp_path / "old", tmp_path / "out", *words) == 0
    assert torch.equal(rows(tmp_path / "out"), rows(shards / "bridged"))
    assert command("search", tmp_path / "out", "--text", "a star") == 0
    assert command("map", tmp_path / "other", tmp_path / "out2", *words) == 2
    assert "got other weights under the name picto" in capsys.readouterr().err


def test_one_pca(shards: Path, tmp_path: Path) -> None:
    """`map --mapping pca` is LinearMap.pca of the class texts, and files of the older format still work."""
    from safetensors.torch import save_file

    written = sb.LinearMap.load(shards / "pca" / "mapping.safetensors")
    model, _, tokenizer = sb.load_picto_clip()
    texts = sb.encode_text(model, [f"a photo of class {i:02d}" for i in range(8)], tokenizer=tokenizer)
    want = sb.LinearMap.pca(normalize(texts.double(), dim=1), 5)
    assert_same_bits(written.matrix, want.matrix)
    old = {"components": written.matrix.float().contiguous()}
    save_file(old, tmp_path / "old.safetensors", {"format": "semobridge-ext pca 1"})
    words = ["--mapping", tmp_path / "old.safetensors", "--quiet"]
    assert command("map", shards / "feats", tmp_path / "out", *words) == 0
    assert_same_bits(rows(tmp_path / "out"), rows(shards / "pca"))


def test_a_shard_without_rows_is_mapped(shards: Path, tmp_path: Path) -> None:
    """As extract leaves it where a whole shard of images was corrupt."""
    import pyarrow.parquet

    folder = tmp_path / "feats"
    shutil.copytree(shards / "feats", folder)
    np.save(folder / "img_emb" / "img_emb_1.npy", np.empty((0, 0), np.float16))
    (folder / "shards.jsonl").unlink()  # it speaks of other files
    table = pyarrow.parquet.read_table(folder / "metadata" / "metadata_1.parquet")
    pyarrow.parquet.write_table(table.slice(0, 0), folder / "metadata" / "metadata_1.parquet")
    assert command("map", folder, tmp_path / "out", "--mapping", "bridge", "--quiet") == 0
    found = [np.load(tmp_path / "out" / "img_emb" / f"img_emb_{i}.npy") for i in range(3)]
    assert [len(part) for part in found] == [20, 0, 8]
    np.testing.assert_array_equal(found[2], np.load(shards / "bridged" / "img_emb" / "img_emb_2.npy"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--mapping", "bridg"], "bridge, centering, isoclip, pca, procrustes or an existing .safetensors"),
        (["--mapping", "pca", "--components", "8"], "at most 7"),
        (["--mapping", "pca", "--template", "photo"], "--template must contain {}"),
        (["--mapping", "isoclip"], "--k-top and --k-bottom must be given for isoclip"),
    ],
)
def test_map_errors(shards: Path, tmp_path: Path, capsys, words: list[str], part: str) -> None:
    assert command("map", shards / "feats", tmp_path / "out", *words) == 2
    assert part in capsys.readouterr().err


def test_search(shards: Path, tmp_path: Path, capsys) -> None:
    from PIL import Image

    queries = sorted((shards / "images").rglob("*.png"))[::17]
    for folder, sheet in (("feats", "a.png"), ("bridged", "a.html"), ("pca", "b.png")):
        out = tmp_path / sheet
        words = ["search", shards / folder, "--text", "a flag", "--image", *queries, "-k", 7, "--out", out]
        assert command(*words, "--json", tmp_path / "hits.json") == 0
        found = json.loads((tmp_path / "hits.json").read_text())
        unit = normalize(rows(shards / folder).double(), dim=1)
        paths = Folder("test", shards / folder).column("image_path")
        for query, one in zip(queries, found[1:], strict=True):
            best = (unit @ unit[paths.index(str(query))]).sort(descending=True)
            assert one["hits"][0]["path"] == str(query)
            scores = [hit["score"] for hit in one["hits"]]
            assert_figures(scores, best.values[:7], "kept_scores", dtype=torch.float16)
        assert len(found[0]["hits"]) == 7
        if sheet.endswith("png"):
            with Image.open(out) as picture:
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
        else:
            assert out.read_text().count("data:image/png;base64,") == 4 * 7 - 7 + 3 + 7 * (len(queries) - 2)
    assert command("search", shards / "feats") == 2
    assert "--text or --image" in capsys.readouterr().err


def test_retrieve(shards: Path, tmp_path: Path, capsys) -> None:
    words = ["--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json", "--recall-at", 1, 3]
    assert command("retrieve", shards / "feats", shards / "bridged", *words) == 0
    assert "48 queries, 48 images, 8 classes" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    labels = torch.arange(48) // 6
    for name in ("feats", "bridged"):
        unit = normalize(rows(shards / name).double(), dim=1)
        scores = (unit @ unit.T).fill_diagonal_(-2)
        ranked = labels[scores.argsort(dim=1, descending=True)[:, :47]] == labels.unsqueeze(1)
        precision = ranked.cumsum(1) / torch.arange(1, 48)
        want = ((precision * ranked).sum(1) / 5).mean()
        got = [found[str(shards / name)][figure] for figure in ("mAP", "Recall@1")]
        assert_figures(got, [want, ranked[:, 0].double().mean()], "metric", dtype=torch.float32)
    with open(tmp_path / "r.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["mAP"]) == found[str(shards / "bridged")]["mAP"]
    assert command("retrieve", shards / "feats", "--label", "colour") == 2
    assert "image_path, label" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(shards: Path) -> Path:
    out = shards / "report.html"
    words = ["--shots", 1, 2, 50, "--seeds", 3, "--out", out]
    assert command("report", shards / "feats", shards / "bridged", shards / "pca", *words) == 0
    return out


def test_report(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r'(?:src|href)=(?!"data:|#)|url\(|@import|<script', text), (
        "the page refers to something outside"
    )
    assert text.count("<svg ") == 1 + 3 + 2 and text.count('class="chart dots"') == 1
    titles = ("Retrieval", "Differences", "Accuracy by shots", "Worst classes", "Sample images", "Cosines")
    for title in (*titles, "Spectra", "Timings", "Installation"):
        assert re.search(rf"<h2 id=part-\d+>{title}", text), title
    found = json.loads(page.with_suffix(".json").read_text())
    assert found["shots"] == [1, 2] and list(found["folders"]) == ["feats", "bridged", "pca"]
    one = found["folders"]["feats"]
    unit = normalize(rows(page.parent / "feats").double(), dim=1)
    labels = torch.arange(48) // 6
    pairs = torch.triu(torch.ones(48, 48, dtype=torch.bool), 1)
    same = labels.unsqueeze(1) == labels
    assert one["cosines"]["pairs"] == [int((pairs & same).sum()), int((pairs & ~same).sum())]
    mean = (unit @ unit.T)[pairs & same].mean()
    assert_figures(one["cosines"]["intra_mean"], mean, "figure", dtype=torch.float32)
    assert sum(one["cosines"]["inter"]) == pytest.approx(1)
    variance = torch.linalg.eigvalsh(torch.cov(unit.T)).flip(0)
    shares = (variance / variance.sum())[:40]
    assert_figures(one["spectrum"]["shares"][:40], shares, "figure", dtype=torch.float32)
    figures = sb.diagnose(unit, labels, bins=100, resamples=2).before
    assert_figures(one["cosines"]["overlap"], figures["overlap"].value, "overlap", dtype=torch.float32)
    rank = figures["effective rank"].value
    assert_figures(one["spectrum"]["effective_rank"], rank, "figure", dtype=torch.float32)
    assert len(one["accuracy"]["2"]) == 3 and 1 / 8 < np.mean(one["accuracy"]["2"]) <= 1
    for name in ("retrieval", "accuracy", "classes", "cosines", "spectra", "timings", "backend"):
        with open(page.with_name(f"report_{name}.csv"), newline="") as file:
            assert len(list(csv.reader(file))) >= 4


def test_report_opens_in_a_browser(page: Path, tmp_path: Path) -> None:
    browser = next(
        (b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None
    )
    if browser is None:
        pytest.skip("no chromium on this machine; needed to open the report")
    from PIL import Image

    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words = [browser, *flags, "--window-size=1000,2600", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(words, capture_output=True, timeout=60, check=False)
    with Image.open(shot) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 200, "the page is blank or its pictures are missing"
    dots = {(0, 0x72, 0xB2), (0xB3, 0x59, 0), (0, 0x78, 0x5A)}
    assert dots <= {colour for _, colour in colours}, "a folder's colour is nowhere"


def test_a_lost_shard_and_a_later_format_are_refused(shards: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(shards / "feats", tmp_path / "feats")
    lost = tmp_path / "feats" / "img_emb" / "img_emb_1.npy"
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(
        ValueError, match=r"shards must hold every shard of shards.jsonl, got no img_emb_1.npy"
    ):
        sb.read_shards(tmp_path / "feats")
    assert command("search", tmp_path / "feats", "--text", "a") == 2
    assert "got no img_emb_1.npy" in capsys.readouterr().err
    lost.write_bytes(kept)
    assert len(sb.read_shards(tmp_path / "feats")[0]) == 48
    file = tmp_path / "feats" / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 3}))
    with pytest.raises(ValueError, match=r"format 2 or older, got 3 .* upgrade semobridge-ext"):
        sb.retrieve(tmp_path / "feats")


def test_a_lost_part_of_a_table_is_refused(shards: Path, tmp_path: Path) -> None:
    words = ["--mapping", "bridge", "--quiet", "--format", "parquet"]
    assert command("map", shards / "feats", tmp_path / "table", *words) == 0
    assert len(sb.read_shards(tmp_path / "table")[0]) == 48
    part = max((tmp_path / "table" / "features").iterdir())
    table = pytest.importorskip("pyarrow.parquet").read_table(part)
    pytest.importorskip("pyarrow.parquet").write_table(table.slice(0, 5), part)
    with pytest.raises(ValueError, match=r"every shard of shards.jsonl, got \d+ of 48 rows"):
        sb.read_shards(tmp_path / "table")
