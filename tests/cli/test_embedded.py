"""The embedded sets on the command line: names, and drawings encoded on a real open_clip model."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from semobridge_ext.cli import embedded
from tests.support.assertions import assert_row_relative


def test_names_of_sets(fake_picto):
    assert embedded.chosen_sets("all") == ["things", "flags"]
    assert embedded.chosen_sets("flags") == ["flags"]
    with pytest.raises(ValueError, match=r"got 'flag'; did you mean 'flags'\?"):
        embedded.chosen_sets("flag")


@pytest.fixture(scope="module")
def tiny_clip():
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(
        embed_dim=12,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        text_cfg={"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    ).eval()
    open_clip.set_model_preprocess_cfg(
        model.visual, {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "size": (16, 16)}
    )
    preprocess = open_clip.image_transform(16, is_train=False, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return model, preprocess


@pytest.mark.parametrize("side", [16, 20], ids=["model's size", "other size"])
def test_images_are_encoded_as_the_preprocessing_says(tiny_clip, side):
    model, preprocess = tiny_clip
    images = np.random.randint(0, 256, size=(5, side, side, 3), dtype=np.uint8)
    got = embedded.encode_drawings(model, preprocess, images, batch_size=2)
    with torch.no_grad():
        expected = torch.cat(
            [model.encode_image(preprocess(Image.fromarray(image))[None]) for image in images]
        )
    assert expected.std() > 0.01
    assert_row_relative(got, expected.double(), "features")


def test_no_images_are_refused(tiny_clip):
    model, preprocess = tiny_clip
    with pytest.raises(ValueError, match="must not be empty"):
        embedded.encode_drawings(model, preprocess, np.zeros((0, 16, 16, 3), dtype=np.uint8))
