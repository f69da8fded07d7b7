"""The steps of the command line as functions: the command's files to the byte, its figures, its refusals."""

from __future__ import annotations

import csv
import inspect
import json
import signal
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.cli import models
from semobridge_ext.cli.calls import discovering, inverting, reading, reporting, writing
from tests.support.assertions import assert_close, assert_figures
from tests.support.images import command, write

pq = pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")

CLASSES, EACH, SHARD = 4, 3, 5
TIMES = ("seconds", "images_per_second", "rows_per_second")
FEW = {"model": "picto", "shard_size": SHARD, "batch_size": 2}


@pytest.fixture(scope="module", autouse=True)
def one_model() -> Iterator[None]:
    """The embedded CLIP is loaded once: most of a run's time would go to it."""
    once = cache(partial(models.load, "test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", lambda _, name, tag, device="cpu": once(name, tag, device))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, one_model: None) -> Path:
    """What the commands make of a few drawings, the eighth of which is broken."""
    folder = tmp_path_factory.mktemp("calls")
    write(folder / "images", CLASSES, EACH)[7].write_bytes(b"no image")
    words = ["--quiet", "--workers", 0, "--shard-size", SHARD, "--batch-size", 2]
    assert command("extract", folder / "images", folder / "feats", *words) == 0
    assert command("map", folder / "feats", folder / "bridged", "--mapping", "bridge", "--quiet") == 0
    return folder


def files(folder: Path) -> dict[str, Any]:
    """Every file's bytes; of the summary all but its times."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    summary = json.loads(found.pop("summary.json"))
    return {**found, "summary.json": {k: v for k, v in summary.items() if k not in TIMES}}


def stored(folder: Path) -> np.ndarray:
    """All rows, by NumPy alone."""
    return np.concatenate([np.load(p) for p in sorted((folder / "img_emb").iterdir())])


# -- the same files ----------------------------------------------------------------------------------


def test_extract_writes_the_commands_files_and_is_silent(home: Path, tmp_path: Path, capsys) -> None:
    found = sb.extract(home / "images", str(tmp_path / "feats"), **FEW)
    assert files(tmp_path / "feats") == files(home / "feats")
    assert found.path == tmp_path / "feats" and not found.finished_already
    assert (found.inputs, found.records, found.corrupt, found.ignored) == (12, 11, 1, 0)
    again = sb.extract(home / "images", tmp_path / "feats", **FEW)
    assert again == found._replace(finished_already=True)
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_call_goes_on(home: Path, tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    calls, plain = [], models.rows_of

    def interrupted(*args: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(models, "rows_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sb.extract(home / "images", tmp_path / "feats", **FEW)
    assert not (tmp_path / "feats" / "summary.json").exists()
    with pytest.raises(ValueError, match=r"^read_shards: shards must be finished, got"):
        sb.read_shards(tmp_path / "feats")
    with caplog.at_level("INFO", "semobridge_ext"):
        found = sb.extract(home / "images", tmp_path / "feats", **FEW, progress=True)
    assert caplog.messages == [f"{tmp_path / 'feats'}: {SHARD} inputs are done, going on"]
    assert found.resumed_at == SHARD and found.records == 11
    told = capsys.readouterr()
    assert told.out == "" and "extract:" in told.err and "12/12" in told.err  # the bar, and nothing else
    want = files(home / "feats")
    want["summary.json"] |= {"resumed_at": SHARD}
    assert files(tmp_path / "feats") == want


def test_map_shards_writes_the_commands_files(home: Path, tmp_path: Path, capsys) -> None:
    """By name, from a file, and from the object that the file was saved from."""
    named = sb.map_shards(home / "feats", tmp_path / "named", mapping="bridge")
    assert files(tmp_path / "named") == files(home / "bridged")
    assert (named.records, named.mapping, named.options["rank"]) == (11, "bridge", 150)
    fitted = sb.LinearMap.centering(torch.linspace(0, 1, 192))
    fitted.save(tmp_path / "linear map.safetensors")
    words = ["--mapping", tmp_path / "linear map.safetensors", "--dtype", "float32", "--quiet"]
    assert command("map", home / "feats", tmp_path / "by-command", *words) == 0
    capsys.readouterr()
    for name, mapping in (("file", tmp_path / "linear map.safetensors"), ("object", fitted)):
        found = sb.map_shards(home / "feats", tmp_path / name, mapping=mapping, dtype="float32")
        assert files(tmp_path / name) == files(tmp_path / "by-command")
        assert found.mapping == "linear map" and not found.finished_already
    assert sb.map_shards(
        home / "feats", tmp_path / "object", mapping=fitted, dtype="float32"
    ).finished_already
    assert capsys.readouterr() == ("", "")
    rows = torch.from_numpy(stored(home / "feats")).double() - torch.linspace(0, 1, 192).double()
    got = torch.from_numpy(stored(tmp_path / "object"))
    assert_close(got, normalize(rows, dim=1), "written", dtype=torch.float32)


def test_a_table_is_the_commands_table(home: Path, tmp_path: Path) -> None:
    words = ["--mapping", "bridge", "--format", "parquet", "--quiet"]
    assert command("map", home / "feats", tmp_path / "by-command", *words) == 0
    sb.map_shards(home / "feats", tmp_path / "table", mapping="bridge", format="parquet")
    assert files(tmp_path / "table") == files(tmp_path / "by-command")
    found, plain = sb.read_shards(tmp_path / "table"), sb.read_shards(home / "bridged")
    assert torch.equal(found.features, plain.features) and found.columns == plain.columns
    hits = [sb.search(place, plain.features[:2], k=3) for place in (tmp_path / "table", home / "bridged")]
    assert torch.equal(hits[0].indices, hits[1].indices) and hits[0].records == hits[1].records


@pytest.mark.slow
def test_texts_as_a_list_are_those_of_a_file(home: Path, tmp_path: Path) -> None:
    texts = [f"a drawing of {i}" for i in range(6)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    words = ["--mapping", "pca", "--texts", tmp_path / "texts.txt", "--components", 4, "--quiet"]
    assert command("map", home / "feats", tmp_path / "file", *words) == 0
    sb.map_shards(home / "feats", tmp_path / "list", mapping="pca", texts=texts, components=4)
    assert files(tmp_path / "list") == files(tmp_path / "file")


# -- reading -----------------------------------------------------------------------------------------


def test_read_shards(home: Path) -> None:
    found = sb.read_shards(home / "feats")
    want = stored(home / "feats")
    assert found.features.dtype is torch.float16
    np.testing.assert_array_equal(found.features.numpy(), want)
    tables = [pq.read_table(p).to_pylist() for p in sorted((home / "feats" / "metadata").iterdir())]
    assert found.records == [record for table in tables for record in table]
    assert found.columns["label"] == [record["label"] for record in found.records]
    unit = sb.read_shards(str(home / "feats"), normalize=True).features
    assert_close(unit, normalize(torch.from_numpy(want).double(), dim=1), "written", dtype=torch.float32)


def test_read_shards_of_another_program(tmp_path: Path) -> None:
    """Texts, of two dtypes, with columns that some shards lack, and a shard without rows."""
    import pyarrow as pa

    parts = [np.eye(3, 4, dtype=np.float16), np.empty((0, 0), np.float16), np.full((2, 4), 0.1, np.float32)]
    columns = [
        {"caption": list("abc"), "m": [7, 8, 9]},
        {"caption": []},
        {"caption": list("de"), "n": [1, 2]},
    ]
    for name in ("text_emb", "metadata"):
        (tmp_path / name).mkdir()
    for i, (rows, table) in enumerate(zip(parts, columns, strict=True)):
        np.save(tmp_path / "text_emb" / f"text_emb_{i}.npy", rows)
        pq.write_table(pa.table(table), tmp_path / "metadata" / f"metadata_{i}.parquet")
    for place in (tmp_path, tmp_path / "text_emb"):
        found = sb.read_shards(place)
        assert found.features.dtype is torch.float32
        np.testing.assert_array_equal(found.features[:3].numpy(), parts[0])
        np.testing.assert_array_equal(found.features[3:].numpy(), parts[2])
        assert found.columns["caption"] == list("abcde")
        assert found.columns["m"] == [7, 8, 9, None, None] and found.columns["n"] == [None, None, None, 1, 2]
    np.save(tmp_path / "text_emb" / "text_emb_2.npy", np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"^read_shards: shards must be of one width, got 4 and 5 in"):
        sb.read_shards(tmp_path)


def test_retrieve_gives_the_commands_figures(home: Path, tmp_path: Path, capsys) -> None:
    words = ["--recall-at", 1, 3, "--json", tmp_path / "r.json"]
    assert command("retrieve", home / "feats", home / "bridged", *words) == 0
    capsys.readouterr()
    want = json.loads((tmp_path / "r.json").read_text())
    found = sb.retrieve([home / "feats", home / "bridged"], recall_at=(1, 3))
    assert capsys.readouterr() == ("", "")
    alone = sb.retrieve(home / "feats", recall_at=[1, 3])
    for one in (*want.values(), *found.values(), alone):
        one.pop("seconds")
    assert found == want and alone == want[str(home / "feats")]
    rows = normalize(torch.from_numpy(stored(home / "feats")).double(), dim=1)
    codes = sb.read_shards(home / "feats").columns["label"]
    scores = (rows @ rows.T).fill_diagonal_(-torch.inf)
    hits = [codes[i] == codes[int(j)] for i, j in enumerate(scores.argmax(dim=1))]
    assert_figures(alone["Recall@1"], sum(hits) / len(hits), "metric", dtype=torch.float32)
    both = sb.retrieve([home / "feats", home / "bridged"], together=True, queries=home / "feats")
    assert both["gallery"] == 22 and set(both["shares"]) == {str(home / "feats"), str(home / "bridged")}


def test_search_finds_what_the_command_finds(home: Path, tmp_path: Path, capsys) -> None:
    image = home / "images" / "class_01" / "001.png"
    words = ["--text", "a flag", "a star", "--image", image, "-k", 4, "--json", tmp_path / "hits.json"]
    assert command("search", home / "bridged", *words) == 0
    capsys.readouterr()
    found = sb.search(home / "bridged", text=["a flag", "a star"], image=image, k=4)
    assert capsys.readouterr() == ("", "")
    for scores, records, row in zip(
        found.scores, found.records, json.loads((tmp_path / "hits.json").read_text()), strict=True
    ):
        assert [hit["path"] for hit in row["hits"]] == [record["image_path"] for record in records]
        assert [hit["score"] for hit in row["hits"]] == scores.tolist()
    assert found.records[2][0] == {"image_path": str(image), "label": "class_01"}


def test_search_by_features(home: Path) -> None:
    rows = sb.read_shards(home / "feats").features
    unit = normalize(rows.double(), dim=1)
    want = (unit[:3] @ unit.T).topk(5, dim=1)
    for given in (rows[:3], 7 * rows[:3].float().numpy()):  # lengths mean nothing
        found = sb.search(home / "feats", given, k=5)
        assert_close(found.scores, want.values, "written", dtype=torch.float32)
        assert torch.equal(found.indices, want.indices)
    paths = sb.read_shards(home / "feats").columns["image_path"]
    got = [[record["image_path"] for record in records] for records in found.records]
    assert got == [[paths[i] for i in row] for row in want.indices.tolist()]
    assert sb.search(home / "feats", rows[:1], k=99).scores.shape == (1, 11)


@pytest.mark.slow
def test_report_shards_writes_the_commands_files(home: Path, tmp_path: Path, capsys) -> None:
    given, words = [home / "feats", home / "bridged"], ["--shots", 1, "--seeds", 2, "--no-text"]
    assert command("report", *given, *words, "--out", tmp_path / "c" / "r.html") == 0
    capsys.readouterr()
    found = sb.report_shards(given, out=tmp_path / "p" / "r.html", shots=[1], seeds=2, text=False)
    assert capsys.readouterr() == ("", "")
    assert list(found["folders"]) == ["feats", "bridged"] and found["images"] == 11
    made = [json.loads((tmp_path / name / "r.json").read_text()) for name in "cp"]
    for one in made:
        one.pop("made")  # the minute
        one.pop("environment")
        for figures in one["folders"].values():
            figures["retrieval"].pop("seconds")
    assert made[0] == made[1]
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "p").iterdir()) and len(names) > 4
    for name in (name for name in names if name.endswith(".csv") and name != "r_timings.csv"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name
    shown = [(tmp_path / name / "r.html").read_text().count("data:image/") for name in "cp"]
    assert shown[0] == shown[1] >= CLASSES


def inverted(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def test_invert_shards_writes_the_commands_file(home: Path, tmp_path: Path, capsys) -> None:
    words = ["--steps", 3, "--tokens", 2, "--record-steps", 1, 2, "--seed", 4, "--limit", 7, "--quiet"]
    assert command("invert", home / "feats", tmp_path / "c.safetensors", *words) == 0
    capsys.readouterr()
    given = {"model": "picto", "steps": 3, "tokens": 2, "record_steps": (1, 2), "seed": 4, "limit": 7}
    found = sb.invert_shards(home / "feats", tmp_path / "p.safetensors", **given)
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert found.path == tmp_path / "p.safetensors" and found.records == 7
    kept = inverted(found.path)
    for name in ("tokens", "features", "steps_done"):
        assert torch.equal(getattr(found.inversion, name), kept[name])
    assert kept["tokens"].shape == (7, 2, 192) and list(found.inversion.recorded) == [1, 2]
    again = sb.invert_shards(str(home / "feats"), str(tmp_path / "p.safetensors"), **given)
    assert torch.equal(again.inversion.tokens, kept["tokens"])
    assert capsys.readouterr() == ("", "")


def test_invert_shards_fits_a_map_and_writes_a_table(
    home: Path, tmp_path: Path, capsys, caplog, monkeypatch
) -> None:
    # What both leave to the library, so that both train as long.
    monkeypatch.setitem(sb.InversionMap.fit.__func__.__wrapped__.__kwdefaults__, "train_steps", 30)
    given = {"model": "picto", "steps": 1, "pilots": 4, "format": "parquet"}
    with caplog.at_level("INFO", "semobridge_ext"):
        found = sb.invert_shards(home / "feats", tmp_path / "p", start=tmp_path / "p.map", **given)
    assert capsys.readouterr() == ("", "")
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"{tmp_path / 'p.map'}: InversionMap(")
    words = ["--steps", 1, "--pilots", 4, "--format", "parquet", "--start", tmp_path / "c.map", "--quiet"]
    assert command("invert", home / "feats", tmp_path / "c", *words) == 0
    assert (tmp_path / "p.map").read_bytes() == (tmp_path / "c.map").read_bytes()
    assert files(tmp_path / "p") == files(tmp_path / "c")
    rows = sb.read_shards(found.path)
    assert torch.equal(rows.features, found.inversion.features)
    assert rows.columns["label"] == sb.read_shards(home / "feats").columns["label"]


def test_an_interrupted_inversion_goes_on(home: Path, tmp_path: Path, monkeypatch) -> None:
    from semobridge_ext.inversion import invert

    given = {"model": "picto", "steps": 2, "batch_size": 4}
    whole = sb.invert_shards(home / "feats", tmp_path / "whole.safetensors", **given)
    plain, calls = invert.run_chunk, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(invert, "run_chunk", interrupted)
        with pytest.raises(KeyboardInterrupt, match="finished chunks are in"):
            sb.invert_shards(home / "feats", tmp_path / "out.safetensors", **given)
    assert not (tmp_path / "out.safetensors").exists()
    sb.invert_shards(home / "feats", tmp_path / "out.safetensors", **given)
    assert (tmp_path / "out.safetensors").read_bytes() == whole.path.read_bytes()


def test_discover_shards_writes_the_commands_files(home: Path, tmp_path: Path, capsys) -> None:
    names = ["star", "flag", "house", "sun", "tree", "moon"]
    (tmp_path / "words.txt").write_text("\n".join(names))
    words = ["--classes", 4, "--epochs", 2, "--old", "class_00", "class_01", "--quiet"]
    words += ["--concepts", tmp_path / "words.txt"]
    assert command("discover", home / "feats", "--out", tmp_path / "c", *words) == 0
    capsys.readouterr()
    given = {"classes": 4, "epochs": 2, "concepts": names}
    found = sb.discover_shards(home / "feats", tmp_path / "p", old=["class_00", "class_01"], **given)
    assert capsys.readouterr() == ("", "")
    paths = {str(p.relative_to(tmp_path / "c")) for p in (tmp_path / "c").rglob("*") if p.is_file()}
    assert paths == {str(p.relative_to(tmp_path / "p")) for p in (tmp_path / "p").rglob("*") if p.is_file()}
    assert len(paths) > 4
    for name in paths:
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name
    with open(tmp_path / "c" / "assignments.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for row, record in zip(table, found.assignments, strict=True):
        told = f"{record['probability']:.4f}"
        assert row == {**record, "cluster": str(record["cluster"]), "label": record["label"] or "",
                       "probability": told}  # fmt: skip
    assert sum(len(one.images) for one in found.classes) == len(table) == 11
    assert all(one.old is (one.cluster < 2) for one in found.classes) and found.num_classes == 4
    assert set(found.written) <= paths and found.estimate is None and found.accuracy is None
    # The same labels by path, as a table of the caller.
    labels = {row["image"]: row["label"] for row in table if row["label"]}
    again = sb.discover_shards(home / "feats", tmp_path / "labels", labels=labels, **given)
    assert again.assignments == found.assignments


@pytest.mark.slow
def test_discover_shards_extracts_images(home: Path, tmp_path: Path, capsys, caplog) -> None:
    given = {
        "classes": "auto",
        "max_classes": 4,
        "epochs": 1,
        "model": "picto",
        "old": ["class_00", "class_01"],
    }
    with caplog.at_level("INFO", "semobridge_ext"):
        found = sb.discover_shards(home / "images", tmp_path / "out", html=True, **given)
    assert capsys.readouterr() == ("", "")
    assert any(
        line.startswith(f"{tmp_path / 'out' / 'features'}: 11 features of 12") for line in caplog.messages
    )
    assert found.num_classes == found.estimate.num_classes
    assert sb.read_shards(tmp_path / "out" / "features").features.shape == (11, 192)


# -- words -------------------------------------------------------------------------------------------


CALLS = {
    call.function: call
    for call in (
        writing.EXTRACT, writing.MAP, reading.RETRIEVE, reading.SEARCH, reporting.REPORT, inverting.INVERT,
        discovering.DISCOVER,
    )
}  # fmt: skip
# What a command has and its function has not: files of the result, and what only words need.
LEFT_OUT = {
    "extract": {"quiet", "dataset"}, "map_shards": {"quiet"}, "retrieve": {"csv", "json"},
    "search": {"out", "json"}, "report_shards": set(), "invert_shards": {"quiet"},
    "discover_shards": {"quiet", "dataset"},
}  # fmt: skip
OWN = {
    "extract": {"model", "workers", "progress"}, "map_shards": {"progress"}, "search": {"queries"},
    "invert_shards": {"model", "progress"}, "discover_shards": {"workers", "progress"},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_function_takes_what_its_command_takes(name: str) -> None:
    """A new option of the command is a new keyword, with its default, or stands in LEFT_OUT."""
    call = CALLS[name]
    taken = inspect.signature(getattr(sb, name)).parameters
    options = {call.keyword(dest): a for dest, a in call.actions.items() if dest not in LEFT_OUT[name]}
    assert set(taken) - OWN.get(name, set()) == set(options) - OWN.get(name, set())
    for keyword, action in options.items():
        default = taken[keyword].default
        if action.option_strings and not action.required and keyword not in OWN.get(name, set()):
            as_list = list(default) if isinstance(default, tuple) else default
            as_list = Path(default) if action.type is Path and default is not None else as_list
            taken_back = action.dest.startswith("no_")  # the keyword says it the other way round
            assert as_list == (not action.default if taken_back else action.default), keyword


@pytest.mark.parametrize("name", CALLS)
def test_no_option_stays_in_a_message(name: str) -> None:
    call = CALLS[name]
    flags = [flag for action in call.actions.values() for flag in action.option_strings]
    for flag in (flag for flag in flags if flag.startswith("--")):
        told = call.told(f"{call.command}: {flag} must stand, got --other OUT/x; 7; pass {flag} FILE")
        assert told.startswith(f"{name}: ") and "got --other OUT/x; 7;" in told
        assert "--" not in told.replace("--other", ""), told


def test_other_errors_are_left_alone() -> None:
    for error in (
        ValueError("topk: --out must be"),
        OSError(2, "none", "x"),
        KeyError(3),
        KeyboardInterrupt(),
    ):
        text, caught = str(error), None
        try:
            with CALLS["search"].own_words():
                raise error
        except BaseException as found:
            caught = found
        assert caught is error and str(caught) == text


REFUSALS: dict[str, tuple[Callable[[Path], Any], type, str]] = {
    "no source": (
        lambda h: sb.extract(h / "none", h / "x", model="picto"), FileNotFoundError,
        "extract: source must be a folder, a list file, a .csv or a .tar, got .*none, which does not exist;",
    ),
    "no path": (lambda h: sb.extract(3, h / "x", model="picto"), TypeError,
                "extract: source must be a str or a path, got int 3"),
    "no model": (lambda h: sb.extract(h / "images", h / "x", model=None), TypeError,
                 "extract: model must be a name, got NoneType None; pass 'picto' for the embedded CLIP"),
    "an unknown model": (lambda h: sb.extract(h / "images", h / "x", model="ViT-B-33"), ValueError,
                         "extract: model must be one of .* known names, got 'ViT-B-33'; did you mean"),
    "no weights": (lambda h: sb.extract(h / "images", h / "x", model="ViT-B-32"), ValueError,
                   "extract: pretrained must be given with model='ViT-B-32', got none;"),
    "no batch": (lambda h: sb.extract(h / "images", h / "x", model="picto", batch_size=0), ValueError,
                 "extract: batch_size must be a whole number from 1 up, got int 0;"),
    "half a worker": (lambda h: sb.extract(h / "images", h / "x", model="picto", workers=0.5), TypeError,
                      "extract: workers must be an int, got float 0.5;"),
    "another dtype": (lambda h: sb.extract(h / "images", h / "x", model="picto", dtype="int8"), ValueError,
                      "extract: dtype must be 'float16' or 'float32', got str 'int8'; choose one"),
    "no flag": (lambda h: sb.extract(h / "images", h / "x", model="picto", normalize=1), TypeError,
                "extract: normalize must be True or False, got int 1;"),
    "other settings": (lambda h: sb.extract(h / "images", h / "feats", model="picto"), ValueError,
                       r"extract: out must hold a run of the same settings .* shard_size 5 \(now 10000\);"),
    "a name of a table": (
        lambda h: sb.extract(h / "images", h / "x.parquet", model="picto"), ValueError,
        "extract: out must be the name of a folder, .*, and pass format='parquet' for a table in it",
    ),
    "an address alone": (lambda h: sb.extract(h / "images", h / "x", model="picto", address="a:1"),
                         ValueError, "extract: address must stand beside engine='ray', got a:1 alone;"),
    "no root": (lambda h: sb.extract("torchvision:DTD", h / "x", model="picto"), ValueError,
                "extract: root must say where .*; pass root=FOLDER, and download=True to fetch into it"),
    "an unknown set": (lambda h: sb.extract("torchvision:XX", h / "x", model="picto", root=h), ValueError,
                       "extract: source must be one of 10 known names, got 'XX';"),
    "onto itself": (lambda h: sb.map_shards(h / "feats", h / "feats", mapping="bridge"), ValueError,
                    "map_shards: out must be another folder than shards, got"),
    "no shards": (lambda h: sb.map_shards(h / "images", h / "x", mapping="bridge"), FileNotFoundError,
                  "map_shards: shards must be a folder with img_emb/img_emb_0.npy, got"),
    "no mapping": (lambda h: sb.map_shards(h / "feats", h / "x", mapping=torch.eye(3)), TypeError,
                   "map_shards: mapping must be a name, a file, or a Bridge, .*, got a float32 tensor of"),
    "an unknown mapping": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="brigde"), ValueError,
                           "map_shards: mapping must be bridge, .* file, got 'brigde';"),
    "no cuts": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="isoclip"), ValueError,
                "map_shards: k_top and k_bottom must be given .* or pass published='ViT-B/32' for"),
    "projected": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="isoclip", k_top=1, k_bottom=1),
                  ValueError, "shards must hold .*; extract the images with before_projection=True for it"),
    "an option of another": (
        lambda h: sb.map_shards(h / "feats", h / "x", mapping="bridge", components=5), ValueError,
        "map_shards: components must stand with mapping pca, got components 5 with bridge, which does not",
    ),
    "an option of a fitted map": (
        lambda h: sb.map_shards(h / "feats", h / "x", mapping=sb.LinearMap(torch.eye(192)), center=True),
        ValueError, "got center=True with a fitted LinearMap, which does not read it; leave it out",
    ),
    "a map of another width": (
        lambda h: sb.map_shards(h / "feats", h / "x", mapping=sb.LinearMap(torch.eye(5))), ValueError,
        "width 5",
    ),
    "one text": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="pca", texts=[1]), TypeError,
                 "map_shards: texts must be a list of texts or a file, got"),
    "two lines": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="pca", texts=["a", "b\nc"]),
                  ValueError, r"map_shards: texts\[1\] must be one line, got"),
    "nothing to read": (lambda h: sb.read_shards(h / "images"), FileNotFoundError,
                        "read_shards: shards must be a folder with img_emb/img_emb_0.npy, got"),
    "a key alone": (lambda h: sb.retrieve(h / "feats", key="a"), ValueError,
                    "retrieve: key must stand beside pairs, got a alone; pass pairs=FILE"),
    "no label": (lambda h: sb.retrieve(h / "feats", label="a"), ValueError,
                 "retrieve: label must be a column of the metadata, got 'a';"),
    "no label of a report": (lambda h: sb.report_shards(h / "feats", label="x"), ValueError,
                             "report_shards: label must be a column of the metadata, got 'x';"),
    "half a shot": (lambda h: sb.report_shards(h / "feats", shots=[1.5]), TypeError,
                    "report_shards: shots must be an int, got float 1.5"),
    "no galleries": (lambda h: sb.retrieve([]), ValueError, r"retrieve: shards must hold one at least, got"),
    "no place": (lambda h: sb.retrieve(h / "feats", recall_at=[0]), ValueError,
                 "retrieve: recall_at must be a whole number from 1 up, got int 0"),
    "no maker": (lambda h: sb.search(h / "feats", text="a", model="picto"), ValueError,
                 "search: model must stand with features that name no model, got picto for .*; leave it out"),
    "no query": (lambda h: sb.search(h / "feats"), ValueError,
                 "search: queries, text or image must be given, got none of them;"),
    "two kinds": (lambda h: sb.search(h / "feats", torch.ones(1, 192), text="a"), ValueError,
                  "search: queries must stand alone, got text beside them;"),
    "another width": (lambda h: sb.search(h / "feats", torch.ones(1, 5)), ValueError,
                      "search: queries must have width 192, got a float32 tensor of shape"),
    "one row": (lambda h: sb.search(h / "feats", torch.ones(192)), ValueError,
                r"search: queries must be \[N, D\], got"),
    "NaN": (lambda h: sb.search(h / "feats", torch.full((2, 192), torch.nan)), ValueError,
            "search: queries must be finite, got NaN or infinity in 2 of 2 rows"),
    "no features": (lambda h: sb.invert_shards(h / "none.npy", h / "o", model="picto"), FileNotFoundError,
                    "invert_shards: shards must be an existing file or picto:<set>, got .*none.npy"),
    "features of no kind": (lambda h: sb.invert_shards(3, h / "o", model="picto"), TypeError,
                            "invert_shards: shards must be a str or a path, got int 3"),
    "no model to invert": (lambda h: sb.invert_shards(h / "feats", h / "o", model=None), TypeError,
                           "invert_shards: model must be a name, got NoneType None; pass 'picto' for"),
    "no pseudo-word": (lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", tokens=0), ValueError,
                       "invert_shards: tokens must be a whole number from 1 up, got int 0"),
    "half a step": (lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", record_steps=[1.5]),
                    TypeError, "invert_shards: record_steps must be an int, got float 1.5"),
    "pilots alone": (lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", pilots=9), ValueError,
                     "invert_shards: pilots must stand beside start, got 9 alone; name the file"),
    "a start of patches": (
        lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", kind="ovi", start="x"), ValueError,
        "invert_shards: start must stand beside kind='oti', got x with ovi; leave it out",
    ),
    "another kind": (lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", kind="owi"), ValueError,
                     "invert_shards: kind must be 'oti' or 'ovi', got str 'owi'; choose one"),
    "no labels": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3), ValueError,
                  "discover_shards: labels or old must be given, got neither; name a CSV"),
    "both labels": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, old="a", labels={}),
                    ValueError, "discover_shards: labels must stand without old, got the labels beside a;"),
    "labels of no image": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, labels={"x": "a"}),
                           ValueError, "labels must name images of source, got none of 11 in the labels;"),
    "numbers as labels": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, labels={"x": 1}),
                          TypeError, "labels must map paths to labels that are str, or None, got str 'x' to"),
    "a list of labels": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, labels=["a"]),
                         TypeError, "discover_shards: labels must be a mapping from paths to labels, or a"),
    "one class": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=1, old="class_00"), ValueError,
                  "discover_shards: classes must be a whole number from 2 up, got int 1;"),
    "another word": (lambda h: sb.discover_shards(h / "feats", h / "d", classes="some", old="class_00"),
                     TypeError, "discover_shards: classes must be an int or 'auto', got str 'some'"),
    "a largest count": (
        lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, max_classes=4, old="class_00"),
        ValueError, "discover_shards: max_classes must stand beside classes='auto', got 4 beside 3;",
    ),
    "fewer classes": (
        lambda h: sb.discover_shards(h / "feats", h / "d", classes=2, old=[f"class_0{i}" for i in range(3)]),
        ValueError, "discover_shards: classes must count the old classes too, got 3 old ones;",
    ),
    "no folder of a label": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, old="class_0x"),
                             ValueError, "discover_shards: old must be one of .*, got 'class_0x';"),
    "images without a model": (
        lambda h: sb.discover_shards(h / "images", h / "d", classes=3, old="class_00"), TypeError,
        "discover_shards: model must be a name where images are extracted, got NoneType None; pass 'picto'",
    ),
    "no images": (lambda h: sb.discover_shards(h / "none", h / "d", classes=3, old="a"), FileNotFoundError,
                  "extract: source must be a folder, a list file, a .csv or a .tar, got .*none, which"),
    "no image": (lambda h: sb.search(h / "feats", image="none.png"), FileNotFoundError,
                 "search: image must be an existing file, got none.png; check the name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(home: Path, case: str) -> None:
    call, kind, told = REFUSALS[case]
    before = sorted(str(p) for p in home.iterdir())
    with pytest.raises(kind, match=told) as caught:
        call(home)
    assert "--" not in str(caught.value)
    left = sorted(str(p) for p in home.iterdir())
    assert [p for p in left if p not in before and any(Path(p).rglob("*.npy"))] == []
