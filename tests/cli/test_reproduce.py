"""`semobridge-ext reproduce` and data sets by name in the commands: whole paths on tiny data sets."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import cli
from semobridge_ext.cli.arguments import input_first
from semobridge_ext.cli.commands import reproduce
from semobridge_ext.cli.named import fetch
from semobridge_ext.cli.reproduction import fewshot, prompts, retrieval
from semobridge_ext.cli.reproduction.published import AT_R, MAP, SEEN, UNSEEN
from semobridge_ext.fewshot.study import Problem
from tests.support.assertions import assert_figures, assert_row_relative
from tests.support.data_sets import CLASSES, drawing, own, put, write
from tests.support.images import command

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
PICTO = ("--model", "picto", "--quiet", "--workers", 0)


def rows(out: Path) -> dict[tuple[str, str, str, str], float]:
    with open(out / "reproduce.csv", encoding="utf-8") as file:
        return {
            (r["set"], r["method"], r["measure"], r["shots"]): float(r["ours"]) for r in csv.DictReader(file)
        }


def records(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record for line in lines for record in line.get("records", ())]


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def features(root: Path, name: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """By the model itself, of the images that torchvision's class lists."""
    from PIL import Image

    model, preprocess, _ = sb.load_picto_clip()
    listed = sorted(own(name, root, part)[0])
    with torch.inference_mode():
        x = model.encode_image(torch.stack([preprocess(Image.open(path)) for path, _ in listed]))
    return x.double(), torch.tensor([label for _, label in listed])


# -- words ---------------------------------------------------------------------------------------------


def test_dataset_stands_for_input_wherever_it_stands() -> None:
    want = ["torchvision:DTD", "out", "--root", "data"]
    assert input_first(["--dataset", "torchvision:DTD", "out", "--root", "data"]) == want
    assert input_first(["out", "--dataset=torchvision:DTD", "--root", "data"]) == want
    assert input_first(["out", "--root", "data", "--dataset", "torchvision:DTD"]) == want
    assert input_first(["in", "out"]) == ["in", "out"]
    args = cli.build_parser().parse_args(["extract", "out", "--dataset", "hf:a/b", "--root", "data"])
    assert (args.input, str(args.out)) == ("hf:a/b", "out")


def test_what_cannot_be_run_is_said_before_anything_is_encoded(tmp_path: Path, capsys) -> None:
    root = write(tmp_path / "data", "DTD")
    out = tmp_path / "out"
    where = ("--out", out, *PICTO)
    for words, told in (
        (["gda"], "--root must say where data sets lie, got none; pass --root FOLDER"),
        (["gda", "--root", tmp_path], "--root must hold one of ImageNet, Caltech101"),
        (["gda", "--root", root, "--datasets", "DTT"], "known names, got 'DTT'; did you mean DTD?"),
        (["gda", "--root", root, "--datasets", "DTD", "EuroSAT"], f"must hold EuroSAT, got {root} without"),
        (["gda", "--root", root, "--datasets", "ImageNet"], "given on request: https://image-net.org)"),
        (["gda", "--root", root, "--datasets", "DTD[test]"], "must give images to train, validate and test"),
        (["gda", "--root", root, "--teacher", "picto"], "--teacher must stand with kdpl, got gda"),
        (["gdda", "--root", root], "invalid choice: 'gdda'"),
    ):
        assert command("reproduce", *words, *where) == 2
        line = last_line(capsys)
        assert line.startswith("semobridge-ext reproduce: ") and told in line, line
    write(tmp_path / "data", "EuroSAT")
    assert command("reproduce", "gda", "--root", root, "--split", "x.json", *where) == 2
    assert "--split must stand with one data set, got 2" in last_line(capsys)


def test_missing_libraries_are_said_first(tmp_path: Path, monkeypatch, capsys) -> None:
    write(tmp_path, "DTD")
    monkeypatch.setattr(reproduce, "find_spec", lambda name: None)
    assert command("reproduce", "semobridge", "--root", tmp_path, "--out", tmp_path / "out", *PICTO) == 2
    assert "pip install 'semobridge-ext[search]', or pass --sampler random" in last_line(capsys)
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    assert command("extract", "torchvision:StanfordCars", tmp_path / "out", "--root", tmp_path, *PICTO) == 2
    assert "read the MATLAB files of StanfordCars, got none; pip install" in last_line(capsys)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert command("extract", "hf:a/b", tmp_path / "out", "--root", tmp_path, *PICTO) == 2
    assert "datasets must be installed for hf: names, got none; pip install" in last_line(capsys)


def test_as_few_validation_images_as_shots_and_four_at_most() -> None:
    labels = torch.tensor([0, 1] * 10)
    part = torch.arange(20.0)[:, None], labels
    problem = Problem("a", part, part, part, before=(part[0], part[0] + 0.5, part[0]))
    for shots, want in ((1, 1), (3, 3), (16, 4)):
        found = fewshot.held(problem, shots, 0)
        assert torch.bincount(found.val[1]).tolist() == [want, want]
        assert torch.equal(found.before[1], found.val[0] + 0.5) and found.train is problem.train


def test_accuracy_is_of_the_named_classes_alone() -> None:
    x, y = torch.eye(4), torch.arange(4)
    assert prompts._accuracy(x, y, torch.eye(4)[2:], 2) == 1.0
    assert prompts._accuracy(x, y, torch.eye(4)[[3, 2]], 2) == 0.0
    assert prompts._accuracy(x, torch.tensor([0, 0, 1, 2]), torch.eye(4)[:2], 0) == pytest.approx(1 / 3)


# -- whole paths -----------------------------------------------------------------------------------------


def test_isoclip_and_the_baseline_beside_it(tmp_path: Path, capsys) -> None:
    """Native figures against a ranking of the model's own features, query by query."""
    hard = ("login", "newspaper", "save", "stop")
    root = write(tmp_path / "data", "DTD", hard, train=2, val=2, test=6)
    out = tmp_path / "out"
    assert command("reproduce", "isoclip", "--root", root, "--out", out, *PICTO) == 0
    said = capsys.readouterr()
    assert "splits: official train, val and test, partition 1; train, val and test as given" in said.err
    found = rows(out)
    assert {method for name, method, *_ in found if name == "DTD"} == {
        "native",
        "IsoCLIP",
        "PCA of class texts",
    }
    x, y = features(root, "DTD", "test")
    unit = x / x.norm(dim=1, keepdim=True)
    values = []
    for i, row in enumerate(unit):
        order = [j for j in (unit @ row).argsort(descending=True).tolist() if j != i]
        right = torch.tensor([float(y[j] == y[i]) for j in order])
        count = int(right.sum())
        prec = right.cumsum(0) / torch.arange(1, len(order) + 1)
        values.append(((prec * right).sum() / count, (prec * right)[:count].sum() / count))
    want = torch.tensor(values).mean(dim=0)
    assert bool((want < 0.99).all())  # a ranking with errors in it
    (native,) = (r for r in records(out) if r["method"] == "native")
    assert_figures([native[MAP], native[AT_R]], want, "metric", dtype=torch.float32)
    assert found["DTD", "native", MAP, "0"] == float(f"{100 * native[MAP]:.6g}")
    assert (out / "report.html").read_text(encoding="utf-8").count("45.1") == 1  # of ViT-B/32 alone
    before = (out / "results.jsonl").read_bytes()
    assert command("reproduce", "isoclip", "--root", root, "--out", out, *PICTO) == 0
    assert (out / "results.jsonl").read_bytes() == before and "finished already" in capsys.readouterr().err


@pytest.mark.slow
def test_semobridge_over_three_formats(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("OxfordIIITPet", "DTD", "EuroSAT"):
        write(root, name, train=6, val=2, test=4)
    out = tmp_path / "out"
    words = ("--shots", 1, 2, "--seeds", 2, "--trials", 20, "--sampler", "random", "--steps", 5)
    assert command("reproduce", "semobridge", "--root", root, "--out", out, *words, *PICTO) == 0
    found = rows(out)
    sets = {name for name, *_ in found}
    assert sets == {"mean of 3 data sets", "OxfordIIITPet", "DTD", "EuroSAT"}
    assert {m for _, m, *_ in found} == set(fewshot.METHODS["semobridge"])
    for name, template in (("OxfordIIITPet", "a photo of a {}, a type of pet."), ("DTD", "{} texture.")):
        model, _, tokenizer = sb.load_picto_clip()
        words_of = {"OxfordIIITPet": str.title, "DTD": str}[name]
        prompts_of = [template.format(words_of(c.replace("_", " "))) for c in CLASSES]
        with torch.inference_mode():
            text = model.encode_text(tokenizer(prompts_of)).double()
        x, y = features(root, name, "test")
        right = (x @ (text / text.norm(dim=1, keepdim=True)).T).argmax(dim=1) == y
        assert found[name, "zero-shot", "accuracy", "1"] == pytest.approx(100 * float(right.double().mean()))
    text = (out / "reproduce.md").read_text(encoding="utf-8")
    assert "20% of each class's training images, drawn with seed 0" in text and "50, 20 and 30 %" in text
    # More draws join, other settings are refused.
    assert command("reproduce", "semobridge", "--root", root, "--out", out, *words, "--steps", 6, *PICTO) == 2


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["tip-adapter", "cross-the-gap", "kdpl"])
def test_every_other_protocol(protocol: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data", "DTD", train=4, val=2, test=3)
    more: dict[str, tuple[object, ...]] = {
        "tip-adapter": ("--shots", 2, "--seeds", 1), "cross-the-gap": ("--steps", 2),
        "kdpl": ("--teacher", "picto", "--steps", 2, "--shots", 2, "--seeds", 1),
    }  # fmt: skip
    out = tmp_path / "out"
    assert command("reproduce", protocol, "--root", root, "--out", out, *more[protocol], *PICTO) == 0
    methods = {m for name, m, *_ in rows(out) if name == "DTD"}
    assert methods == {
        "tip-adapter": set(fewshot.METHODS["tip-adapter"]),
        "cross-the-gap": {"native", "OTI", "PCA of class texts"}, "kdpl": {"zero-shot", "CoOp", "KDPL"},
    }[protocol]  # fmt: skip
    if protocol == "kdpl":
        assert {m for _, _, m, _ in rows(out)} == {UNSEEN, SEEN}
        assert not list((out / "checkpoints").glob("*.safetensors"))


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Killed once some draws are written; the same command ends with the figures of an unbroken run."""
    root = write(tmp_path / "data", "DTD", train=4, val=2, test=3)
    words = ["reproduce", "gda", "--root", root, "--shots", 1, "--seeds", 10, *PICTO]
    store = tmp_path / "out" / "results.jsonl"
    line = [sys.executable, "-m", "semobridge_ext.cli", *map(str, words), "--out", str(tmp_path / "out")]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        until = time.monotonic() + 100
        while (not store.is_file() or store.read_bytes().count(b'"episode"') < 1) and run.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
    done = store.read_bytes().splitlines()
    assert run.returncode == -signal.SIGKILL and not (tmp_path / "out" / "reproduce.csv").exists()
    assert command(*words, "--out", tmp_path / "out") == 0
    after = store.read_bytes().splitlines()
    assert after[: len(done) - 1] == done[:-1] and len(after) > len(done)
    assert command(*words, "--out", tmp_path / "whole") == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_other_images_are_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    root = write(tmp_path / "data", "DTD", train=3, val=1, test=2)
    out, ran, plain = tmp_path / "out", [], fewshot.episode

    def dies(protocol, prepared, options, shots, seed):
        ran.append(seed)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return plain(protocol, prepared, options, shots, seed)

    monkeypatch.setattr(fewshot, "episode", dies)
    words = ("reproduce", "gda", "--root", root, "--out", out, "--shots", 1, *PICTO)
    assert command(*words, "--seeds", 3) == 130 and not (out / "reproduce.csv").exists()
    assert command(*words, "--seeds", 3) == 0 and ran == [0, 1, 1, 2]
    assert command(*words, "--seeds", 4) == 0 and ran == [0, 1, 1, 2, 3]  # more draws join
    assert command(*words, "--seeds", 4, "--template", "a {}") == 2
    assert "'DTD' was run with other hidden, text, text_length" in last_line(capsys)
    put(root / "dtd" / "dtd" / "images" / "sun" / "sun_0000.jpg", drawing("heart", 9))
    assert command(*words, "--seeds", 4) == 2
    assert "the first input that differs is" in last_line(capsys) and len(ran) == 5


@pytest.mark.slow
def test_an_interrupted_inversion_is_no_result(tmp_path: Path, monkeypatch) -> None:
    """OTI gives what it has after Ctrl-C; a figure of that would be of other queries."""
    root, out, plain = (
        write(tmp_path / "data", "DTD", train=2, val=1, test=2),
        tmp_path / "out",
        retrieval.oti,
    )

    def stopped(*given, **options):
        return replace(plain(*given, **options), interrupted=True)

    words = ("reproduce", "cross-the-gap", "--root", root, "--out", out, "--steps", 1, *PICTO)
    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "oti", stopped)
        assert command(*words) == 130
    assert not records(out) and not (out / "reproduce.csv").exists()
    assert command(*words) == 0 and len(records(out)) == 3


# -- the other commands ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_fewshot_takes_tars_and_prompts_and_report_the_shards(tmp_path: Path) -> None:
    paths = []
    for part in range(2):
        paths.append(tmp_path / f"part-{part}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for name in CLASSES:
                for i in range(4 * part, 4 * part + 4):
                    put(tmp_path / "x.jpg", drawing(name, i))
                    put(tmp_path / "x.cls", name)
                    for ending in ("jpg", "cls"):
                        tar.add(tmp_path / f"x.{ending}", f"{name}-{i}.{ending}")
    sentences = {name.replace("_", " "): [f"an icon of a {name}", name] for name in CLASSES}
    put(tmp_path / "prompts.json", json.dumps(sentences))
    out, given = (
        tmp_path / "out",
        ("--dataset", f"{tmp_path}/part-*.tar", "--prompts", tmp_path / "prompts.json"),
    )
    words = ("--shots", 1, "--seeds", 1, "--no-plot", "--methods", "zero-shot", "LDA")
    assert command("fewshot", *given, "--out", out, *words, *PICTO) == 0
    with open(out / "fewshot.csv", encoding="utf-8") as file:
        found = {r["method"]: float(r["accuracy"]) for r in csv.DictReader(file)}
    assert set(found) == {"zero-shot", "LDA"} and found["zero-shot"] > 0.7  # chance is 0.25
    assert "50, 20 and 30 % of each class" in (out / "fewshot.md").read_text(encoding="utf-8")
    (shards,) = (out / "features").iterdir()
    page = tmp_path / "report.html"
    assert command("report", shards, "--out", page, "--no-text", "--shots", 1, "--seeds", 1) == 0
    assert "32 images, 4 classes" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_hugging_face_sets_on_disk(tmp_path: Path, capsys) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    parts = {}
    for part, numbers in (("train", range(4)), ("test", range(4, 6))):
        labels = [label for label in range(4) for _ in numbers]
        images = [{"bytes": drawing(CLASSES[label], i), "path": None} for label in range(4) for i in numbers]
        parts[part] = datasets.Dataset.from_dict({"image": images, "label": labels}, features=kinds)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "data" / "owner" / "icons"))
    words = ("--root", tmp_path / "data", *PICTO, "--dtype", "float32", "--batch-size", 5, "--shard-size", 7)
    assert command("extract", "--dataset", "hf:owner/icons", tmp_path / "all", *words) == 0
    folder = cli.shards.Folder("test", tmp_path / "all")
    assert folder.column("label") == [
        CLASSES[c].replace("_", " ") for c in [*parts["train"]["label"], *parts["test"]["label"]]
    ]
    assert folder.column("split") == ["train"] * 16 + ["test"] * 8
    assert folder.column("image_path")[17] == "hf:owner/icons/test/0000001"
    assert command("extract", "hf:owner/icons[test]", tmp_path / "test", *words) == 0
    some = cli.shards.Folder("test", tmp_path / "test")
    assert_row_relative(some.load(), folder.load()[16:].double(), "features")  # of other batches
    for name, told in (("hf:owner/none", "pass --download"), ("hf:owner/icons[val]", "it has train, test")):
        assert command("extract", name, tmp_path / "none", *words) == 2
        assert told in last_line(capsys)


# -- fetching --------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address and the folder that it serves."""
    (tmp_path / "served").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}", tmp_path / "served"
        found.shutdown()
        thread.join()


def test_a_set_is_fetched_when_asked_and_a_wrong_archive_refused(
    server, tmp_path: Path, monkeypatch, capsys
) -> None:
    from torchvision.datasets import DTD

    address, folder = server
    write(tmp_path / "made", "DTD", train=1, val=1, test=1)
    archive = folder / "dtd.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "dtd" / "dtd", "dtd")
    monkeypatch.setattr(DTD, "_URL", f"{address}/dtd.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(DTD, "_MD5", hashlib.md5(b"another archive").hexdigest())
    words = ("extract", "torchvision:DTD", tmp_path / "out", "--root", tmp_path / "data", *PICTO)
    assert command(*words) == 2
    assert "pass --download, or check the folder" in last_line(capsys) and not (tmp_path / "data").exists()
    assert command(*words, "--download") == 2
    line = last_line(capsys)
    assert "--download must fetch DTD whole" in line and "corrupted" in line and "try again" in line
    monkeypatch.setattr(DTD, "_URL", f"{address}/none.tar.gz")
    assert command(*words, "--download") == 2 and "HTTP Error 404" in last_line(capsys)
    monkeypatch.setattr(DTD, "_URL", f"{address}/dtd.tar.gz")
    monkeypatch.setattr(DTD, "_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert command(*words, "--download") == 0
    assert (
        cli.shards.Folder("test", tmp_path / "out").column("split")
        == ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    )
    assert os.path.isdir(tmp_path / "data" / "dtd" / "dtd" / "images" / "sun")


def test_words_for_data_sets(tmp_path: Path) -> None:
    assert reproduce.spec_of("dtd") == "torchvision:DTD"
    assert reproduce.spec_of("torchvision:eurosat[train]") == "torchvision:EuroSAT[train]"
    assert reproduce.spec_of("hf:a/b") == "hf:a/b" and reproduce.spec_of("x-*.tar") == "x-*.tar"
    assert reproduce.spec_of(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ValueError, match="got 'pets'; for example ImageNet"):
        reproduce.spec_of("pets")
