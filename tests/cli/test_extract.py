"""`semobridge-ext extract`: every kind of input, losses, kills, refusals, names of models."""

from __future__ import annotations

import io
import json
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.cli import models, sources
from tests.support.assertions import assert_row_relative
from tests.support.fresh import command_line, fresh_processes
from tests.support.images import command, write

pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")


def read(folder: Path) -> tuple[np.ndarray, dict[str, list]]:
    """All shards of a folder, by NumPy and pyarrow alone."""
    count = len(list((folder / "img_emb").iterdir()))
    tables = [pq.read_table(folder / "metadata" / f"metadata_{i}.parquet").to_pydict() for i in range(count)]
    rows = [np.load(folder / "img_emb" / f"img_emb_{i}.npy") for i in range(count)]
    for table, part in zip(tables, rows, strict=True):
        assert {len(column) for column in table.values()} == {len(part)}
    joined = {name: [value for t in tables for value in t[name]] for name in tables[0]}
    return np.concatenate([r for r in rows if r.size]), joined


def oracle(paths: list[Path]) -> torch.Tensor:
    from PIL import Image

    model, preprocess, _ = sb.load_picto_clip()
    with torch.inference_mode():
        return model.encode_image(torch.stack([preprocess(Image.open(p)) for p in paths])).double()


def extract(*words: object) -> int:
    return command("extract", *words, "--quiet", "--workers", 0)


def test_folder_with_losses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    paths = write(images)
    (images / "notes.txt").write_text("no image")
    paths[3].write_bytes(paths[3].read_bytes()[:90])
    paths[9].write_bytes(b"")
    paths[23].write_bytes(b"\x89PNG but not really")
    lost = [paths[i] for i in (3, 9, 23)]
    words = ["extract", images, out, "--quiet", "--workers", 2, "--batch-size", 5, "--shard-size", 7]
    assert command(*words) == 0
    said = capsys.readouterr().out
    assert "21 features of 24 images, 3 corrupt" in said and "1 other files ignored" in said
    rows, table = read(out)
    good = [p for p in paths if p not in lost]
    assert table["image_path"] == [str(p) for p in good]
    assert table["label"] == [p.parent.name for p in good]
    assert rows.dtype == np.float16
    assert_row_relative(torch.from_numpy(rows), oracle(good), "features")
    listed = [line.split("\t") for line in (out / "corrupt.tsv").read_text().splitlines()]
    assert [line[0] for line in listed] == [str(p) for p in lost] and all(line[1] for line in listed)
    assert sorted(p.name for p in (out / "img_emb").iterdir()) == [f"img_emb_{i}.npy" for i in range(4)]
    assert command(*words) == 0 and "finished already, 21" in capsys.readouterr().out


def test_list_csv_and_tar_agree(tmp_path: Path) -> None:
    paths = write(tmp_path / "images", 2, 3)
    names = [str(p.relative_to(tmp_path)) for p in paths]
    (tmp_path / "list.txt").write_text("\n".join(names))
    lines = [f'{name},"word, {i}"' for i, name in enumerate(names)]
    (tmp_path / "table.csv").write_text("\n".join(["where,caption", *lines]) + "\n")
    for part, members in (("0", paths[:4]), ("1", paths[4:])):
        with tarfile.open(tmp_path / f"part-{part}.tar", "w") as tar:
            for path in members:
                key = f"{path.parent.name}_{path.stem}"
                for ext, data in (("png", path.read_bytes()), ("txt", b"a flag"), ("cls", b"7")):
                    info = tarfile.TarInfo(f"{key}.{ext}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    found = {}
    for name, given, more in (
        ("list", tmp_path / "list.txt", ()),
        ("csv", tmp_path / "table.csv", ("--path-column", "where")),
        ("tar", f"{tmp_path}/part-{{0..1}}.tar", ()),
    ):
        assert extract(given, tmp_path / name, *more, "--shard-size", 4, "--dtype", "float32") == 0
        found[name] = read(tmp_path / name)
    want = oracle(paths)
    for rows, _ in found.values():
        assert_row_relative(torch.from_numpy(rows), want, "features")
    assert found["list"][1]["image_path"] == found["csv"][1]["image_path"] == [str(p) for p in paths]
    assert found["csv"][1]["caption"] == [f"word, {i}" for i in range(6)]
    assert found["tar"][1]["caption"] == ["a flag"] * 6 and found["tar"][1]["label"] == ["7"] * 6
    assert found["tar"][1]["image_path"][4] == f"{tmp_path}/part-1.tar/class_01_001.png"


def test_a_truncated_tar_loses_its_end_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = write(tmp_path / "images", 1, 5)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
    with tarfile.open(tmp_path / "a.tar") as tar:
        cut = tar.getmembers()[3].offset_data + 40
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:cut])
    assert extract(tmp_path / "a.tar", tmp_path / "out") == 0
    assert "3 features of" in capsys.readouterr().out
    assert "a.tar" in (tmp_path / "out" / "corrupt.tsv").read_text()


def test_killed_and_resumed_equals_unbroken(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    images = tmp_path / "images"
    paths = write(images, 8, 10)
    paths[5].write_bytes(b"broken")
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--shard-size", 10, "--quiet", "--batch-size", 2]
    assert command("extract", images, whole, *options, "--workers", 0) == 0
    program = command_line("extract", images, out, *options, "--workers", 1)
    child = fresh_processes("open_clip").start(program, tmp_path_factory.mktemp("child") / "pipes")
    status = child.killed_when((out / "metadata" / "metadata_1.parquet").is_file)
    assert status == -signal.SIGKILL, "the run ended before it was killed"
    assert not (out / "summary.json").exists(), "the run ended before it was killed"
    assert command("extract", images, out, *options, "--workers", 0) == 0
    assert json.loads((out / "summary.json").read_text())["resumed_at"] >= 20
    (rows, table), (want, theirs) = read(out), read(whole)
    assert table == theirs and len(rows) == len(paths) - 1
    np.testing.assert_array_equal(rows, want)
    assert not list(out.rglob("*.tmp"))
    assert (out / "corrupt.tsv").read_text() == (whole / "corrupt.tsv").read_text()


def test_other_settings_and_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write(images, 1, 3)
    assert extract(images, out) == 0
    assert extract(images, out, "--dtype", "float32") == 2
    assert "dtype" in capsys.readouterr().err
    write(images / "more", 1, 1)
    assert extract(images, out) == 2
    assert "inputs 3 (now 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["missing", "out"], "INPUT must be a folder"),
        (["part-{0..3}.tar", "out"], "4 of 4 are missing"),
        (["https://host/a.tar", "out"], "must be local"),
        (["empty", "out"], "must hold images"),
        (["empty", "out", "--model", "ViT-B-33"], "did you mean"),
        (["empty", "out", "--model", "vit-b-32"], "laion2b_s34b_b79k"),
        (["empty", "out", "--model", "ViT-B-32", "--pretrained", "gone.pt"], "existing file"),
        (["empty", "out", "--pretrained", "openai"], "--model"),
        (["empty", "out", "--batch-size", "0"], "from 1 up"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, monkeypatch, capsys, words: list[str], part: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert extract(*words) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1 and err.startswith("semobridge-ext extract: ")


def test_names_are_completed() -> None:
    known = ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14", "RN50"]
    for word, name in (("vitb32", "ViT-B-32"), ("ViT-L", "ViT-L-14"), ("rn50", "RN50")):
        assert models.complete("extract", "--model", word, known) == name
    with pytest.raises(ValueError, match=r"did you mean ViT-B-32, ViT-B-32-quickgelu\?"):
        models.complete("extract", "--model", "vit-b", known)
    with pytest.raises(ValueError, match=r"did you mean .*ViT-L-14"):
        models.complete("extract", "--model", "VTi-L-14", known)


def test_braces() -> None:
    assert sources.expand_braces("a{08..10}/{x,y}.tar") == [
        f"a{i}/{c}.tar" for i in ("08", "09", "10") for c in "xy"
    ]


def test_a_local_checkpoint(tmp_path: Path) -> None:
    """An open_clip architecture with weights from a file: the features are that model's."""
    import open_clip
    from PIL import Image
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-S-32-alt")
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    paths = write(tmp_path / "images", 1, 2)
    words = ["--model", "vits32alt", "--pretrained", tmp_path / "weights.safetensors", "--dtype", "float32"]
    assert extract(tmp_path / "images", tmp_path / "out", *words) == 0
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.open(p)) for p in paths])
        want = model.eval().encode_image(pixels).double()
    assert_row_relative(torch.from_numpy(read(tmp_path / "out")[0]), want, "features")


def test_before_the_projection() -> None:
    """The rows that `encode_image(project=False)` gives; the model keeps its projection."""
    from semobridge_ext.clip import encode_image
    from tests.support.towers import open_clip_model

    model, pixels = open_clip_model(), torch.randn(3, 3, 32, 32)
    encoder = models.Encoder(model, None, None)
    hidden = encoder.before_projection("extract")
    assert torch.equal(hidden.images(pixels), encode_image(model, pixels, project=False))
    assert torch.equal(encoder.images(pixels), encode_image(model, pixels)) and model.visual.proj is not None
    resnet = open_clip_model(vision={"layers": (1, 1, 1, 1), "width": 16})
    with pytest.raises(NotImplementedError, match=r"^extract: --before-proj.* got ModifiedResNet; leave"):
        models.Encoder(resnet, None, None).before_projection("extract")
