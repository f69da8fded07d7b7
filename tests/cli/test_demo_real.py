"""`semobridge-ext demo` on the embedded CLIP and its smallest set: real figures, far from chance."""

from __future__ import annotations

import json

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import cli
from semobridge_ext.data import load_picto, load_picto_clip
from semobridge_ext.fewshot.draws import sample_support
from tests.support.assertions import assert_figures

SET = "arrows"


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    target, picture = folder / "f.json", folder / "p.png"
    arguments = [
        "--set",
        SET,
        "--shots",
        "1",
        "4",
        "--seeds",
        "3",
        "--json",
        str(target),
        "--out",
        str(picture),
    ]
    assert cli.main(["demo", *arguments]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 30_000
    return json.loads(target.read_text())


def test_real_figures_are_far_from_chance(figures):
    measured = figures["sets"][SET]
    for method, by_shots in measured["accuracy"].items():
        assert by_shots["4"]["mean"] > 4 * measured["chance"], method
        assert by_shots["4"]["mean"] < 1, method
    direct = measured["accuracy"]["direct"]
    assert direct["4"]["mean"] > direct["1"]["mean"]
    assert 0 < measured["gap"]["rank"] <= measured["gap"]["width"] == 192
    assert 0.9 < measured["gap"]["mean_cosine_to_bridged"] < 1


def test_real_zero_shot_accuracy_against_the_plain_program(figures):
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
            for template in figures["sets"][SET]["templates"]
        )
        text = torch.nn.functional.normalize(text, dim=1)
        images = torch.stack([preprocess(Image.fromarray(dataset.images[row].numpy())) for row in rows])
        hits = (model.encode_image(images) @ text.T).argmax(dim=1) == dataset.labels[rows]
    measured = figures["sets"][SET]["accuracy"]["text"]["1"]["mean"]
    assert_figures(hits.double().mean(), measured, "figure")


def test_real_text_length_and_rank(figures):
    model, _, _ = load_picto_clip()
    measured = figures["sets"][SET]
    assert measured["gap"]["rank"] == sb.Bridge.from_clip(model).rank
    # ln_final has no fixed length; a projected unit row would have 1.
    assert measured["text_length"] > 1


@pytest.mark.parametrize("name", sb.list_picto())
def test_every_set_can_be_sampled(name):
    dataset = load_picto(name)
    labels = dataset.labels[dataset.train]
    rows = sample_support(labels, 2, seed=0)
    assert set(labels[rows].tolist()) == set(range(dataset.num_classes))
    assert not (dataset.train & (dataset.test | dataset.val)).any()
