"""`semobridge-ext demo` on a stand-in for the embedded model; test_demo_real.py runs the real one."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

from semobridge_ext import cli
from semobridge_ext.cli import (
    demo_fewshot,
    demo_plot,
    demo_retrieval,
    demo_speed,
    demo_text,
    fewshot_problems,
)
from semobridge_ext.cli.commands import demo
from semobridge_ext.cli.embedded import Clip
from semobridge_ext.fewshot import study
from tests.support import fake_picto as fake
from tests.support.assertions import assert_figures, assert_same_bits


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One whole run on two sets: (printed text, figures from the JSON file, path of the picture)."""
    folder = tmp_path_factory.mktemp("demo")
    picture, figures = folder / "demo.png", folder / "demo.json"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        fake.install(patch)
        fake.shrink_demo(patch)
        words = ["--set", "things", "flags", "--out", str(picture), "--json", str(figures)]
        assert cli.main(["demo", *words]) == 0
    return out.getvalue(), json.loads(figures.read_text()), picture


# -- figures -------------------------------------------------------------------------------------------


def test_few_shot_figures(ran):
    _, record, _ = ran
    assert record["schema"] == demo.SCHEMA
    assert list(record["sets"]) == ["things", "flags"]
    figures = record["sets"]["things"]
    assert figures["classes"] == fake.CLASSES
    assert figures["train_images"] == fake.CLASSES * fake.TRAIN
    assert figures["test_images"] == fake.CLASSES * fake.TEST
    assert list(figures["accuracy"]) and set(figures["accuracy"]) == set(demo_fewshot.METHODS)
    for by_shots in figures["accuracy"].values():
        assert list(by_shots) == ["1", "2", "4"]
        for cell in by_shots.values():
            values = np.array(cell["values"])
            assert len(values) == 3 and (values >= 0).all() and (values <= 1).all()
            assert cell["mean"] == pytest.approx(values.mean())
            assert cell["std"] == pytest.approx(values.std(ddof=1))
    means = figures["accuracy"]["nearest class mean"]
    assert means["4"]["mean"] > means["1"]["mean"] > 2 / fake.CLASSES
    for pair, by_shots in figures["differences"].items():
        ours, other = pair.split(" - ")
        for k, row in by_shots.items():
            both = [figures["accuracy"][m][k]["mean"] for m in (ours, other)]
            assert_figures(row["mean"], both[0] - both[1], "figure", scale=1.0, context=pair)


def test_the_mean_takes_the_most_shots_that_a_set_has():
    def made(shots, level):
        values = {k: [level + 0.1 * k, level + 0.1 * k + 0.02] for k in shots}
        cell = {m: {str(k): {"values": v} for k, v in values.items()} for m in demo_fewshot.METHODS}
        row = {
            f"{a} - {b}": {str(k): study.Difference(level, 0.02, 0.03, True)._asdict() for k in shots}
            for a, b in demo_fewshot.COMPARISONS
        }
        return {"shots": list(shots), "accuracy": cell, "differences": row}

    mean = demo_fewshot.mean_figures([made((1, 2), 0.1), made((1, 2, 4), 0.3)])
    assert mean["shots"] == [1, 2, 4]
    cell = mean["accuracy"]["GDA"]["4"]  # 0.1 + 0.2 and 0.3 + 0.4
    assert cell["mean"] == pytest.approx((0.3 + 0.7) / 2 + 0.01)
    row = mean["differences"]["GDA - zero-shot"]["4"]
    assert row["mean"] == pytest.approx(0.2)
    assert row["error"] == pytest.approx((2 * 0.03**2) ** 0.5 / 2)
    assert row["std"] == pytest.approx((2 * 0.02**2) ** 0.5 / 2)
    assert row["beyond_noise"]
    assert not study.averaged([study.Difference(0.1, 0, 0.1, False), study.Difference(0, 0, 0, False)])[3]


def test_no_drawing_of_the_validation_or_test_part_becomes_a_shot(fake_picto):
    """The features that go in as shots are those of the training rows, and only those."""
    model, dataset = fake_picto
    clip = Clip(model, fake.preprocess, fake.tokenize)
    problem = fewshot_problems.of_drawings(clip, dataset, ("{}",))
    with torch.no_grad():
        everything = model.encode_image(fake.prepare(dataset.images))
    for part, name in ((problem.train, "train"), (problem.val, "val"), (problem.test, "test")):
        rows = getattr(dataset, name)
        assert_same_bits(part[0], everything[rows])
        assert part[1].tolist() == dataset.labels[rows].tolist()
    shots, queries = problem.train[0], torch.cat([problem.val[0], problem.test[0]])
    assert not (shots[:, None] == queries[None]).all(dim=2).any()


def test_a_part_of_a_set_is_whole_classes(fake_picto):
    _, dataset = fake_picto
    part = demo_fewshot.every(dataset, 4)
    assert part.class_names == [dataset.class_names[c] for c in (0, 4, 8)]
    for new, old in enumerate((0, 4, 8)):
        for name in ("train", "val", "test"):
            kept, whole = getattr(part, name), getattr(dataset, name)
            assert torch.equal(part.images[kept & (part.labels == new)],
                               dataset.images[whole & (dataset.labels == old)])  # fmt: skip
    assert len(part.styles) == len(part.labels) == 3 * (fake.TRAIN + fake.VAL + fake.TEST)


def test_retrieval_figures_against_loops(ran, fake_picto):
    """mAP of the native rows by hand, on the third of the classes that no map was fitted to."""
    model, dataset = fake_picto
    problem = fewshot_problems.of_drawings(Clip(model, fake.preprocess, fake.tokenize), dataset)
    rows = demo_retrieval.rows_of(problem)
    fitted, judged, tested = (set(rows.labels[rows.of(third)].tolist()) for third in range(3))
    assert not fitted & judged and not (fitted | judged) & tested
    assert len(fitted | judged | tested) == fake.CLASSES
    with torch.no_grad():
        features = model.encode_image(fake.prepare(dataset.images)).double()
    features = features / features.norm(dim=1, keepdim=True)
    chosen = [i for i, y in enumerate(dataset.labels.tolist()) if y in tested]
    scores = []
    for i in chosen:
        others = sorted((j for j in chosen if j != i), key=lambda j: -float(features[i] @ features[j]))
        hits = [float(dataset.labels[j] == dataset.labels[i]) for j in others]
        precisions = [sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit]
        scores.append(sum(precisions) / len(precisions))
    figures = ran[1]["retrieval"]["things"]
    assert figures["queries"] == len(chosen) and figures["classes"] == len(tested)
    native = next(row for row in figures["rows"] if row["method"] == demo_retrieval.NATIVE)
    # Cosines that float32 cannot tell apart may change places: equal as it is printed.
    assert f"{100 * native['mAP']:.1f}" == f"{100 * float(np.mean(scores)):.1f}"
    methods = [row["method"] for row in figures["rows"]]
    assert {"bridge", "IsoCLIP", "whitening", "LDA map", demo_retrieval.INVERSION} <= set(methods)
    for row in figures["rows"]:
        assert_figures(row["difference"]["mean"], row["mAP"] - native["mAP"], "figure", scale=1.0)
    assert figures["chosen"] in methods


def test_error_of_a_difference_counts_classes():
    """Two queries of one class that move together are one observation."""
    native = torch.zeros(4, dtype=torch.float64)
    values = torch.tensor([0.4, 0.4, 0.0, 0.0], dtype=torch.float64)
    row = demo_retrieval._row("x", "", values, native, torch.tensor([0, 0, 1, 1]))
    assert row["difference"]["mean"] == pytest.approx(0.2)
    assert row["difference"]["error"] == pytest.approx((0.4**2 + 0.4**2) ** 0.5 / 4)
    assert not row["difference"]["beyond_noise"]


def test_speed_figures(ran):
    rows = ran[1]["speed"]
    assert [row["what"].split(",")[0].split(" of")[0] for row in rows] == [
        "bridge", "bridge", "OTI", "blend search", "top 10", "top 10",
    ]  # fmt: skip
    for row in rows:
        assert row["ours_seconds"] > 0 and row["plain_seconds"] > 0
        assert row["ratio"] == pytest.approx(row["plain_seconds"] / row["ours_seconds"])
        family = "features" if row["what"].startswith("OTI") else "backends"
        assert_figures(row["error"], 0.0, family, dtype=torch.float32, scale=1.0, context=row["what"])


def test_a_wrong_result_would_show_as_an_error():
    plain = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert demo_speed._apart(plain, plain) == 0
    assert demo_speed._apart(plain + torch.tensor([[0.0, 0.0], [0.0, 0.5]]), plain) == 0.5


def test_runs_are_reproducible(ran, small, tmp_path):
    _, first, _ = ran
    again = tmp_path / "again.json"
    words = ["--set", "things", "flags", "--no-plot", "--json", str(again)]
    assert cli.main(["demo", *words]) == 0
    second = json.loads(again.read_text())
    assert second["mean"] == first["mean"] and second["retrieval"] == first["retrieval"]


# -- what is printed -------------------------------------------------------------------------------------


def numbers(line: str) -> list[str]:
    return re.findall(r"\d+\.\d", line)


def test_tables_print_the_figures(ran):
    out, record, _ = ran
    lines = out.splitlines()
    for method in demo_fewshot.METHODS:
        label = method + demo_text.NOTES[method]
        line = next(line for line in lines if re.match(re.escape(label) + r"  +\d", line))
        expected = []
        for cell in record["mean"]["accuracy"][method].values():
            expected += [cell["mean"]] + ([] if method == demo_fewshot.BASELINE else [cell["std"]])
        expected += [record["sets"][s]["accuracy"][method]["4"]["mean"] for s in ("things", "flags")]
        assert numbers(line[len(label) :]) == [f"{100 * value:.1f}" for value in expected], method
        rows = record["mean"]["differences"].get(f"{method} - {demo_fewshot.BASELINE}", {})
        assert line.count("*") == sum(row["beyond_noise"] for row in rows.values())
    for row in record["retrieval"]["things"]["rows"]:
        start = lines.index(next(line for line in lines if line.startswith("image to image")))
        line = next(line for line in lines[start:] if line.startswith(row["method"]))
        assert f" {100 * row['mAP']:.1f}" in line
        assert "→" not in line or row["method"] in {f["chosen"] for f in record["retrieval"].values()}
    for row in record["speed"]:
        line = next(line for line in lines if line.startswith(f"{row['what']}  "))
        assert f"{row['ratio']:.1f} ×" in line and f" {row['error']:.0e} ".replace(" 0e+00 ", " 0 ") in line
    words = " ".join(out.split())
    found = demo_text.sentences(
        record["mean"], "mean of things and flags", record["retrieval"], record["speed"]
    )
    assert len(found) == 3
    for sentence in found:
        assert " ".join(sentence.split()) in words
    assert out.startswith("What helped: ")


def test_picture_is_a_picture(ran):
    from PIL import Image

    out, _, picture = ran
    assert f"picture: {picture}" in out
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width >= 1200 and image.height >= 500
        square = np.asarray(image.convert("RGB")).astype(int)
    pixels = square.reshape(-1, 3)
    assert 0.5 < (pixels == 255).all(axis=1).mean() < 0.99
    # Nothing is cut: the border is white all around.
    for edge in (square[:3], square[-3:], square[:, :3], square[:, -3:]):
        assert (edge == 255).all()
    # Every curve's colour is there, and both bars'.
    for colour, _marker in demo_plot.STYLES.values():
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - rgb).max(axis=1) < 4).sum() > 60, colour
    assert sorted(p.name for p in picture.parent.iterdir()) == ["demo.json", "demo.png"]
