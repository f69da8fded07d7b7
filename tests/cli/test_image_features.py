"""encode_images: its features against the model's own pass, what is found, kept, reported and refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import semobridge_ext as sb
from semobridge_ext.clip.preprocess import preprocess_of
from tests.support.assertions import assert_row_relative, assert_same_bits
from tests.support.towers import hugging_face_model, open_clip_model, openai_model


@pytest.fixture(scope="module")
def picto() -> tuple:
    return sb.load_picto_clip()


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (40 + 3 * i, 50, 3), np.uint8)) for i in range(count)]


def wanted(model: torch.nn.Module, preprocess, images: list[Image.Image]) -> torch.Tensor:
    """Unit rows by the model's own pass, lengths in float64."""
    with torch.no_grad():
        rows = model.encode_image(torch.stack([preprocess(image) for image in images])).double()
    return rows / (rows * rows).sum(dim=1, keepdim=True).sqrt()


# -- features --------------------------------------------------------------------------------------------


def test_paths_pictures_and_arrays_mixed(picto: tuple, tmp_path: Path):
    model, preprocess, _ = picto
    images = pictures(5)
    images[1].save(tmp_path / "one.png")
    images[2].convert("L").save(tmp_path / "two.png")
    given = [
        images[0], str(tmp_path / "one.png"), tmp_path / "two.png",
        np.asarray(images[3]), torch.from_numpy(np.array(images[4])),
    ]  # fmt: skip
    found = sb.encode_images(model, given, batch_size=2)
    images[2] = images[2].convert("L")
    assert_row_relative(found.features, wanted(model, preprocess, images), "features")
    assert found.indices.tolist() == [0, 1, 2, 3, 4] and not found.corrupt
    assert found.names == [
        "image 0",
        str(tmp_path / "one.png"),
        str(tmp_path / "two.png"),
        "image 3",
        "image 4",
    ]
    assert found.labels == [None] * 5


def test_one_image_and_a_generator(picto: tuple, tmp_path: Path):
    model, images = picto[0], pictures(3)
    images[0].save(tmp_path / "one.png")
    one = sb.encode_images(model, images[0]).features
    assert one.shape == (1, 192)
    for same in (str(tmp_path / "one.png"), np.asarray(images[0]), [images[0]]):
        assert_same_bits(sb.encode_images(model, same).features, one)
    whole = sb.encode_images(model, images).features
    assert_same_bits(sb.encode_images(model, (image for image in images)).features, whole)


def test_raw_features_and_those_before_the_projection(picto: tuple):
    model, preprocess, _ = picto
    images = pictures(2)
    pixels = torch.stack([preprocess(image) for image in images])
    raw = sb.encode_images(model, images, normalize=False).features
    assert_same_bits(raw, sb.clip.encode_image(model, pixels))
    hidden = sb.encode_images(model, images, project=False, normalize=False).features
    assert_same_bits(hidden, sb.clip.encode_image(model, pixels, project=False))


def test_a_folder_with_labels(picto: tuple, tmp_path: Path):
    model, preprocess, _ = picto
    images = pictures(3)
    for i, (image, label) in enumerate(zip(images, ("b", "a", "b"), strict=True)):
        (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "in" / label / f"{i}.png")
    found = sb.encode_images(model, tmp_path / "in")
    assert found.labels == ["a", "b", "b"]
    assert [Path(name).name for name in found.names] == ["1.png", "0.png", "2.png"]
    assert_row_relative(
        found.features, wanted(model, preprocess, [images[1], images[0], images[2]]), "features"
    )


def test_images_are_turned_upright_and_left_alone(picto: tuple):
    model = picto[0]
    (image,) = pictures(1)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(file, "PNG", exif=exif)
    turned = Image.open(file)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert_same_bits(sb.encode_images(model, [turned]).features, sb.encode_images(model, [upright]).features)
    assert turned.size == image.size and turned.getpixel((0, 0)) == image.getpixel(
        (0, 0)
    )  # open, and as it was


@pytest.mark.slow
def test_workers_give_the_same_bits(picto: tuple):
    model, images = picto[0], pictures(5)
    here = sb.encode_images(model, images, batch_size=2)
    there = sb.encode_images(model, iter(images), batch_size=2, workers=2)
    assert_same_bits(there.features, here.features)
    assert there.names == here.names and torch.equal(there.indices, here.indices)


def test_the_model_stays_in_its_mode(picto: tuple):
    model = sb.load_picto_clip()[0].train()
    assert_same_bits(
        sb.encode_images(model, pictures(1)).features, sb.encode_images(picto[0], pictures(1)).features
    )
    assert model.training


# -- what is corrupt -------------------------------------------------------------------------------------


def test_corrupt_images(picto: tuple, tmp_path: Path):
    model, images = picto[0], pictures(2)
    (tmp_path / "bad.png").write_bytes(b"no image")
    given = [tmp_path / "bad.png", images[0], tmp_path / "none.png", images[1], Image.new("L", (1, 400))]
    with pytest.raises(ValueError, match=r"^encode_images: images\[0\] must be an image .*bad\.png .*; p"):
        sb.encode_images(model, given)
    found = sb.encode_images(model, given, corrupt="skip", batch_size=2)
    assert found.indices.tolist() == [1, 3] and found.names == ["image 1", "image 3"]
    assert [one.position for one in found.corrupt] == [0, 2, 4]
    assert "UnidentifiedImageError" in found.corrupt[0].reason and "FileNotFound" in found.corrupt[1].reason
    assert "strip beyond" in found.corrupt[2].reason
    assert_same_bits(found.features[0], sb.encode_images(model, images[0]).features[0])
    with pytest.raises(ValueError, match=r"images must hold one that can be decoded, got 1 that cannot, the"):
        sb.encode_images(model, [tmp_path / "bad.png"], corrupt="skip")


def test_too_large_images(picto: tuple):
    found = sb.encode_images(picto[0], pictures(2), max_pixels=41 * 50, corrupt="skip")
    assert found.indices.tolist() == [0] and "more than the limit of 2050" in found.corrupt[0].reason


# -- preprocessing ---------------------------------------------------------------------------------------


def test_the_preprocessing_of_open_clip():
    model, (image,) = open_clip_model(), pictures(1)
    with pytest.raises(ValueError, match=r"preprocess must come with a model that does not say its own"):
        sb.encode_images(model, [image])
    config = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "size": (32, 32), "resize_mode": "squash"}
    model.visual.preprocess_cfg = config
    own = image_transform_v2(PreprocessCfg(**config), is_train=False)
    assert_row_relative(sb.encode_images(model, [image]).features, wanted(model, own, [image]), "features")
    given = sb.encode_images(model, [image], preprocess=lambda image: torch.ones(3, 32, 32)).features
    with torch.no_grad():
        row = model.encode_image(torch.ones(1, 3, 32, 32)).double()
    assert_row_relative(given, row / row.norm(), "features")


def test_the_preprocessing_of_openai():
    """Its own steps, written out: the short side to 32, the middle, the data set's mean and deviation."""
    (image,) = pictures(1)
    width, height = image.size
    scaled = image.resize((int(32 * width / height), 32), Image.Resampling.BICUBIC)
    left = round((scaled.width - 32) / 2)
    pixels = np.asarray(scaled.crop((left, 0, left + 32, 32)), np.float64).transpose(2, 0, 1) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    got = preprocess_of("test", openai_model())(image)
    assert_row_relative(got, torch.from_numpy((pixels - mean) / deviation), "features")


@pytest.mark.slow
def test_the_preprocessing_of_hugging_face(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = hugging_face_model()
    with pytest.raises(ValueError, match="preprocess must come with a model that does not say its own"):
        preprocess_of("test", model)
    model.save_pretrained(tmp_path / "model")
    loaded = transformers.CLIPModel.from_pretrained(tmp_path / "model").eval()
    with pytest.raises(ValueError, match=r"preprocess must be given where .* has no image processor at hand"):
        preprocess_of("test", loaded)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPImageProcessor(**size, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path / "model")
    (image,) = pictures(1)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        row = loaded.visual_projection(loaded.vision_model(pixels).pooler_output).double()
    assert_row_relative(sb.encode_images(loaded, [image]).features, row / row.norm(), "features")
    assert preprocess_of("test", loaded)(image.convert("L")).shape == (3, 32, 32)


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, options, kind, words",
    [
        ([], {}, ValueError, "images must not be empty"),
        (7, {}, TypeError, "images must be a source, an image or an iterable"),
        ([b"x"], {}, TypeError, r"images\[0\] must be a path, a PIL image or a uint8 array"),
        ([np.zeros((4, 4, 3))], {}, TypeError, r"images\[0\] must be a path, .* got float64 \[4, 4, 3\]"),
        (iter([np.zeros((4, 4, 2), np.uint8)]), {}, TypeError, r"images\[0\] must be a path"),
        ("none/at/all", {}, FileNotFoundError, "which does not exist; check the name"),
        ("none.png", {}, FileNotFoundError, "images must exist, got none.png; check the name"),
        (["a"], {"corrupt": "ignore"}, ValueError, "corrupt must be 'raise' or 'skip', got"),
        (["a"], {"batch_size": 0}, ValueError, "batch_size must be positive, got int 0"),
        (["a"], {"workers": 1.5}, TypeError, "workers must be an int"),
        (["a"], {"workers": -1}, ValueError, "workers must not be negative"),
    ],
)
def test_refusals(picto: tuple, images: object, options: dict, kind: type, words: str):
    with pytest.raises(kind, match=rf"^encode_images: .*{words}"):
        sb.encode_images(picto[0], images, **options)


def test_no_clip_model():
    with pytest.raises(TypeError, match=r"^encode_images: model must be"):
        sb.encode_images(torch.nn.Linear(2, 2), ["a"])
