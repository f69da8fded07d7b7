"""`semobridge-ext demo` on a stand-in for the embedded model; test_demo_real.py runs the real one."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from semobridge_ext import Bridge, cli
from semobridge_ext.cli import demo_measure, demo_plot, demo_text
from semobridge_ext.cli.commands import demo
from semobridge_ext.fewshot.study import Problem
from semobridge_ext.fewshot.study_cosines import METHODS
from tests.support import fake_picto as fake
from tests.support.assertions import assert_figures, assert_same_bits


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One whole run: (printed text, figures from the JSON file, path of the picture)."""
    folder = tmp_path_factory.mktemp("demo")
    picture, figures = folder / "demo.png", folder / "demo.json"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        fake.install(patch)
        code = cli.main(["demo", "--set", "things", "--out", str(picture), "--json", str(figures)])
    assert code == 0
    return out.getvalue(), json.loads(figures.read_text()), picture


def test_figures(ran):
    _, record, _ = ran
    assert record["schema"] == demo.SCHEMA
    assert set(record) == {"schema", "sets", "speed", "environment"}
    figures = record["sets"]["things"]
    assert figures["classes"] == fake.CLASSES and figures["chance"] == pytest.approx(1 / fake.CLASSES)
    assert figures["train_images"] == fake.CLASSES * fake.TRAIN
    assert figures["test_images"] == fake.CLASSES * fake.TEST
    assert figures["fewest_per_class"] == figures["most_per_class"] == fake.TRAIN
    assert set(figures["accuracy"]) == set(METHODS) == set(demo_text.NAMES)
    for method, by_shots in figures["accuracy"].items():
        assert list(by_shots) == ["1", "2", "4", "8"]
        for cell in by_shots.values():
            values = np.array(cell["values"])
            assert len(values) == 5 and (values >= 0).all() and (values <= 1).all()
            assert cell["mean"] == pytest.approx(values.mean())
            assert cell["std"] == pytest.approx(values.std(ddof=1))
            assert cell["mean"] > 3 * figures["chance"], method
    direct = figures["accuracy"]["direct"]
    assert direct["8"]["mean"] > direct["1"]["mean"]
    for pair, by_shots in figures["differences"].items():
        ours, other = pair.split(" - ")
        for k, row in by_shots.items():
            means = [figures["accuracy"][m][k]["mean"] for m in (ours, other)]
            assert_figures(row["mean"], means[0] - means[1], "figure", scale=1.0, context=pair)
            assert isinstance(row["beyond_noise"], bool)
    for row in (record["speed"]["one"], record["speed"]["batch"]):
        assert row["native_seconds"] > 0 and row["eager_seconds"] > 0
        assert_figures(row["largest_difference"], 0.0, "backends", dtype=torch.float32, scale=1.0)
    assert record["environment"]["torch"] == torch.__version__


def test_table_prints_the_figures(ran):
    out, record, _ = ran
    figures = record["sets"]["things"]
    for method, name in demo_text.NAMES.items():
        line = next(line for line in out.splitlines() if line.startswith(f"{name}  "))
        printed = [float(word) for word in re.findall(r"(\d+\.\d)(?!\d)", line[len(name) :])]
        cells = figures["accuracy"][method].values()
        expected = [100 * c[k] for c in cells for k in (("mean",) if method == "text" else ("mean", "std"))]
        assert printed == [float(f"{value:.1f}") for value in expected]
    assert "time per image" in out and "µs" in out
    for sentence in demo_text.findings(figures):
        assert sentence in " ".join(out.split())


def test_picture_is_a_picture(ran):
    from PIL import Image

    out, _, picture = ran
    assert f"picture: {picture}" in out
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width >= 1500 and image.height >= 600
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    white = (pixels == 255).all(axis=1).mean()
    assert 0.5 < white < 0.99
    # Every curve's colour is there.
    for colour, _marker in demo_plot.STYLES.values():
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - rgb).max(axis=1) < 4).sum() > 100, colour
    assert sorted(p.name for p in picture.parent.iterdir()) == ["demo.json", "demo.png"]


def test_runs_are_reproducible(ran, fake_picto, tmp_path):
    _, first, _ = ran
    again = tmp_path / "again.json"
    assert cli.main(["demo", "--set", "things", "--no-plot", "--json", str(again)]) == 0
    first, second = (
        {k: v for k, v in record["sets"]["things"].items() if k != "seconds_per_image_encoding"}
        for record in (first, json.loads(again.read_text()))
    )
    assert second == first


def test_no_drawing_of_the_validation_or_test_part_becomes_a_shot(fake_picto):
    """The features that go in as shots are those of the training rows, and only those."""
    model, dataset = fake_picto
    clip = demo_measure.Clip(model, fake.preprocess, fake.tokenize)
    problem = demo_measure.load_problem(clip, dataset, ("{}",), None)
    (shots, shot_labels), (queries, query_labels) = problem.train, problem.test
    with torch.no_grad():
        everything = model.encode_image(fake.prepare(dataset.images))
    assert_same_bits(shots, everything[dataset.train])
    assert_same_bits(queries, everything[dataset.test])
    assert shot_labels.tolist() == dataset.labels[dataset.train].tolist()
    assert query_labels.tolist() == dataset.labels[dataset.test].tolist()
    shared = (shots[:, None] == queries[None]).all(dim=2)
    assert not shared.any() and problem.val is None


def test_all_sets_and_options(fake_picto, tmp_path, capsys):
    figures, picture = tmp_path / "f.json", tmp_path / "p.png"
    code = cli.main(
        ["demo", "--set", "all", "--shots", "4", "1", "--seeds", "1", "--prompt", "a {}",
         "--json", str(figures), "--out", str(picture)]
    )  # fmt: skip
    assert code == 0
    out, record = capsys.readouterr().out, json.loads(figures.read_text())
    assert list(record["sets"]) == ["things", "flags"]
    assert "\nthings (" in out and "\nflags (" in out
    assert record["sets"]["things"]["shots"] == [1, 4]
    assert record["sets"]["things"]["templates"] == ["a {}"]
    assert picture.stat().st_size > 10_000
    assert "±" not in demo_text.accuracy_table(record["sets"]["things"])


def test_small_classes_are_mentioned(fake_picto, capsys):
    _, dataset = fake_picto
    dataset.train &= ~((dataset.labels == 3) & (torch.arange(len(dataset.labels)) % 2 == 0))
    assert cli.main(["demo", "--set", "things", "--no-plot", "--shots", "2", "8", "16", "--seeds", "2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No class has more than 9 drawings to take shots from: 16 left out." in out
    assert "give all they have: 1 of 12 with 8 shots." in out and "16 shots" not in out


def test_seeds_without_a_choice_are_mentioned(fake_picto, capsys):
    assert cli.main(["demo", "--set", "things", "--no-plot", "--shots", "9", "--seeds", "2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Every class has exactly 9 drawings to take shots from: with 9 shots all seeds take" in out
    assert "± 0.0" in out


def test_large_classes_need_no_remark(ran):
    assert demo_text.remarks(ran[1]["sets"]["things"]) == []


def test_without_matplotlib(fake_picto, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "has_matplotlib", lambda: False)
    picture = tmp_path / "p.png"
    assert cli.main(["demo", "--set", "things", "--seeds", "1", "--out", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "direct prototypes" in out and "pip install 'semobridge-ext[plots]'" in out
    assert not picture.exists()


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--set", "thing"], ["--set must be one of things, flags or all, got 'thing'", "'things'"]),
        (["--set", "things", "--prompt", "a photo"], ["must contain {}", "a photo"]),
        (["--json", "/no/such/folder/f.json"], ["--json", "/no/such/folder/f.json"]),
        (["--out", "/"], ["--out", "is a folder"]),
        (["--set", "things", "--shots", "10"], ["--shots must be at most 9 for the set 'things'", "got 10"]),
    ],
)
def test_errors_are_one_line(fake_picto, capsys, argv, parts):
    assert cli.main(["demo", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("semobridge-ext demo: ")
    for part in parts:
        assert part in err


def test_targets_behind_links_and_devices(tmp_path, monkeypatch):
    """A FIFO needs no right to its folder; a link is as good as the folder that it leads to."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "lost").symlink_to(tmp_path / "gone" / "f.json")
    (tmp_path / "found").symlink_to(tmp_path / "f.json")
    demo._check_target("--json", tmp_path / "found")
    with pytest.raises(ValueError, match="which lies in no folder that can be written"):
        demo._check_target("--json", tmp_path / "lost")
    monkeypatch.setattr(os, "access", lambda *_: False)
    demo._check_target("--json", tmp_path / "fifo")
    demo._check_target("--json", Path("/dev/null"))
    with pytest.raises(ValueError, match="which lies in no folder that can be written"):
        demo._check_target("--json", tmp_path / "f.json")


def test_interrupted_picture_leaves_nothing_behind(fake_picto, tmp_path, capsys, monkeypatch):
    from matplotlib.figure import Figure

    picture = tmp_path / "p.png"
    picture.write_bytes(b"an older picture")

    def interrupt(self, file, **_):
        file.write(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupt)
    assert cli.main(["demo", "--set", "things", "--seeds", "1", "--out", str(picture)]) == 130
    assert picture.read_bytes() == b"an older picture"
    assert list(tmp_path.iterdir()) == [picture]


# -- sentences follow the figures, whichever way they fall ------------------------------------------------


def row(mean: float, beyond: bool) -> dict:
    return {"mean": mean, "std": 0.01, "error": 0.01, "beyond_noise": beyond}


def crafted(**differences) -> dict:
    shots = ["1", "2"]
    accuracy = {m: {k: {"mean": 0.3, "std": 0.0} for k in shots} for m in METHODS}
    accuracy["text"] = {k: {"mean": 0.35, "std": 0.0} for k in shots}
    rows = {f"{a} - {b}": {k: row(0.0, False) for k in shots} for a, b in demo_measure.COMPARISONS}
    for pair, values in differences.items():
        rows[pair.replace("__", " - ")] = dict(zip(shots, values, strict=True))
    gap = {"gap_before": 0.8, "gap_after": 0.799, "mean_cosine_to_bridged": 0.999, "rank": 7, "width": 8}
    return {"shots": [1, 2], "chance": 0.05, "accuracy": accuracy, "differences": rows, "gap": gap}


def test_nothing_found_is_said():
    words = demo_text.findings(crafted())
    assert words[0] == (
        "Zero-shot text gets 35.0 %, 7 times guessing. Direct image prototypes stay below it, up to 2 shots."
    )
    assert words[1].endswith("against direct prototypes: no difference beyond noise.")
    assert words[2].endswith("prototypes: no difference beyond noise.") and "voices" not in words[2]
    assert words[3].endswith("without the bridge: no difference beyond noise.")
    assert "0.800 before and 0.799 after bridging, the same to within 1 %" in words[4]
    assert "keeps 7 of 8 dimensions and hardly turns a feature: mean cosine 0.9990" in words[4]


def test_where_direct_prototypes_pass_text():
    figures = crafted()
    figures["accuracy"]["direct"]["2"]["mean"] = 0.4
    assert demo_text.findings(figures)[0].endswith("above it from 2 shots on.")
    figures["accuracy"]["direct"] = {"1": {"mean": 0.4}, "2": {"mean": 0.3}}
    assert demo_text.findings(figures)[0].endswith("above it only with 1 shot.")
    figures["accuracy"]["direct"]["2"]["mean"] = 0.4
    assert demo_text.findings(figures)[0].endswith("above it at every number of shots.")


def test_gains_and_losses_are_said_with_their_shots():
    words = demo_text.findings(
        crafted(
            bridged_prototypes__direct=[row(-0.05, True), row(0.01, False)],
            bridged_queries__direct=[row(0.05, True), row(0.05, True)],
            blend__text=[row(0.04, True), row(-0.04, True)],
        )
    )
    assert "a loss beyond noise with 1 shot; no difference beyond noise with 2 shots" in words[1]
    assert "bridged queries show a gain beyond noise at every number of shots" in words[1]
    assert "a gain beyond noise with 1 shot; a loss beyond noise with 2 shots" in words[2]
    assert "two of three voices" in words[2]
    assert "comes from joining text and images, not from the bridge" in words[3]


def test_the_bridge_gets_the_credit_where_it_earns_it():
    words = demo_text.findings(
        crafted(
            blend__text=[row(0.04, True), row(0.04, True)],
            blend__blend_unbridged=[row(0.02, True), row(0.0, False)],
        )
    )
    assert "bridge: a gain beyond noise with 1 shot; no difference beyond noise with 2 shots." in words[3]
    assert "not from the bridge" not in words[3]


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.25, "4.0 times faster"), (1.0, "just as fast"), (2.0, "2.0 times slower")]
)
def test_speed_is_said_either_way(ratio, words):
    cell = {"images": 8, "ratio": ratio, "largest_difference": 1e-7}
    assert words in demo_text.speed_finding({"one": cell, "batch": cell})


# -- the modality gap -------------------------------------------------------------------------------------


def test_picture_axes_show_the_gap():
    """Two wide clouds whose gap is the fourth of six spreads: it still lies across, at its length."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.30, 0.25, 0.20, 0.01, 0.01, 0.01])
    noise = spread * torch.randn(340, 6, generator=generator)
    offset = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 3.0])  # the last keeps the rows' lengths alike
    queries, text = noise[:300] + offset * torch.tensor([1, 1, 1, -1, 1, 1]), noise[300:] + offset
    text = torch.nn.functional.normalize(text, dim=1)
    labels = torch.zeros(300, dtype=torch.long)
    problem = Problem("made", (queries, labels), None, (queries, labels), text)
    figures, cloud = demo_measure.gap_figures(problem, Bridge(torch.eye(6)))
    assert abs(figures["gap_before"] - 0.2 / 3) < 0.02
    assert_figures(figures["mean_cosine_to_bridged"], 1.0, "length", dtype=torch.float32)
    assert cloud.components == (3, 0) and cloud.share[1] > cloud.share[0] > 0
    assert (cloud.text[:, 0] > 0).double().mean() > 0.95 < (cloud.before[:, 0] < 0).double().mean()
    assert abs(float(cloud.centres[2, 0] - cloud.centres[0, 0]) - 0.2 / 3) < 0.01
    assert_figures(cloud.after, cloud.before, "figure", dtype=torch.float32, scale=1.0)
