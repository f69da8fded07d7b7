"""`semobridge-ext demo` on the embedded CLIP and its smallest set: real figures, far from chance."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import cli
from semobridge_ext.cli import demo_fewshot
from semobridge_ext.data import load_picto, load_picto_clip
from semobridge_ext.fewshot.draws import sample_support
from tests.support.assertions import assert_figures

SET = "arrows"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(figures, printed text) of the smallest set."""
    folder = tmp_path_factory.mktemp("real")
    target, picture = folder / "f.json", folder / "p.png"
    words = ["--set", SET, "--shots", "1", "4", "--seeds", "2", "--json", str(target), "--out", str(picture)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(demo_fewshot, "OPTIONS", demo_fewshot.OPTIONS._replace(steps=40))
        assert cli.main(["demo", *words]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 30_000
    return json.loads(target.read_text()), out.getvalue()


def test_real_figures_are_far_from_chance(ran):
    figures, out = ran
    measured = figures["sets"][SET]
    for method, by_shots in measured["accuracy"].items():
        assert 4 / measured["classes"] < by_shots["4"]["mean"] < 1, method
    means = measured["accuracy"]["nearest class mean"]
    assert means["4"]["mean"] > means["1"]["mean"]
    assert out.startswith("What helped: ")


def test_real_retrieval_is_far_from_chance(ran):
    figures = ran[0]["retrieval"][SET]
    assert figures["queries"] > 50
    for row in figures["rows"]:
        assert 2 / figures["classes"] < row["mAP"] < 1, row["method"]


def test_real_results_are_those_of_the_plain_programs(ran):
    """Whatever the times: they depend on the machine, the errors do not."""
    for row in ran[0]["speed"]:
        family = "features" if row["what"].startswith("OTI") else "backends"
        assert_figures(row["error"], 0.0, family, dtype=torch.float32, scale=1.0, context=row["what"])
        assert row["ratio"] > 0


def test_real_zero_shot_accuracy_against_the_plain_program(ran):
    """The model's own preprocessing, drawing by drawing, and the prompts averaged by hand."""
    from PIL import Image

    model, preprocess, tokenizer = load_picto_clip()
    dataset = load_picto(SET)
    rows = dataset.test.nonzero().flatten()
    with torch.no_grad():
        text = sum(
            torch.nn.functional.normalize(
                model.encode_text(tokenizer([template.format(n) for n in dataset.class_names])), dim=1
            )
            for template in ran[0]["templates"]
        )
        text = torch.nn.functional.normalize(text, dim=1)
        images = torch.stack([preprocess(Image.fromarray(dataset.images[row].numpy())) for row in rows])
        hits = (model.encode_image(images) @ text.T).argmax(dim=1) == dataset.labels[rows]
    measured = ran[0]["sets"][SET]["accuracy"]["zero-shot"]["1"]["mean"]
    assert_figures(hits.double().mean(), measured, "figure")


@pytest.mark.parametrize("name", sb.list_picto())
def test_every_set_can_be_sampled(name):
    dataset = load_picto(name)
    labels = dataset.labels[dataset.train]
    rows = sample_support(labels, 2, seed=0)
    assert set(labels[rows].tolist()) == set(range(dataset.num_classes))
    assert not (dataset.train & (dataset.test | dataset.val)).any()
