"""Images from strangers: bounded, upright, scaled from more than eight bits; the rest is the model's."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import semobridge_ext as sb
from semobridge_ext.cli import images, sheet
from tests.support.images import command, write

GREY = (np.arange(12 * 20).reshape(12, 20) % 251).astype(np.uint8)  # [H, W], no symmetry
COLOUR = np.stack([GREY, GREY[::-1], GREY // 2], axis=-1)  # [H, W, 3]

# What EXIF 2.3 says of the stored rows and columns, as they are to be shown.
TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    data = io.BytesIO()
    image.save(data, kind, **options)
    data.seek(0)
    return data


def pixels(source: Any, most: int = images.PIXELS, mode: str | None = None) -> np.ndarray:
    with images.opened(source, most) as image:
        return np.asarray(image.convert(mode) if mode else image)


def reason(source: Any, most: int = images.PIXELS) -> str:
    with pytest.raises(Exception) as caught, images.opened(source, most):  # Pillow's own too
        pass
    return str(caught.value)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


# -- orientation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation(kind: str, orientation: int):
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = file(Image.fromarray(COLOUR), kind, exif=exif(orientation), **lossless)
    np.testing.assert_array_equal(pixels(data), TURNED[orientation](COLOUR))


def test_orientation_of_jpeg():
    big = np.kron(COLOUR, np.ones((8, 8, 1), np.uint8))
    data = file(Image.fromarray(big), "JPEG", quality=100, subsampling=0, exif=exif(6))
    found = pixels(data)
    assert found.shape == (160, 96, 3)
    assert np.abs(found.astype(int) - np.rot90(big, -1).astype(int)).max() <= 6


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_are_none(orientation: int):
    np.testing.assert_array_equal(pixels(file(Image.fromarray(GREY), exif=exif(orientation))), GREY)


@pytest.mark.parametrize(
    "data", [b"", b"junk", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + bytes(30)], ids=repr
)
def test_damaged_exif_costs_no_image(data: bytes):
    np.testing.assert_array_equal(pixels(file(Image.fromarray(GREY), exif=b"Exif\0\0" + data)), GREY)


def test_turned_palettes_keep_their_transparency():
    image = Image.fromarray(GREY % 4).convert("P")
    data = file(image, "PNG", transparency=2, exif=exif(8))
    want = TURNED[8](np.asarray(Image.open(file(image, "PNG", transparency=2)).convert("RGBA")))
    np.testing.assert_array_equal(pixels(data, mode="RGBA"), want)


# -- more than eight bits ------------------------------------------------------------------------------

DEEP = (np.arange(12 * 20, dtype=np.uint32) * 65535 // 239).reshape(12, 20)


def deep_files() -> dict[str, io.BytesIO]:
    little, big = DEEP.astype("<u2"), DEEP.astype(">u2")
    return {
        "PNG": file(Image.fromarray(little), "PNG"),
        "TIFF": file(Image.fromarray(little), "TIFF"),
        "TIFF of the other order": file(Image.frombytes("I;16B", (20, 12), big.tobytes()), "TIFF"),
        "PGM": io.BytesIO(b"P5\n20 12\n65535\n" + big.tobytes()),
        "32 bits": file(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    }


@pytest.mark.parametrize("name", deep_files())
def test_sixteen_bits(name: str):
    found = pixels(deep_files()[name])
    want = np.rint(DEEP / 257).astype(np.uint8)
    assert want.min() == 0 and want.max() == 255
    np.testing.assert_array_equal(found, want)


def test_floats():
    values = (DEEP / 65535).astype(np.float32)
    want = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels(file(Image.fromarray(values), "TIFF")), want)


@pytest.mark.parametrize(
    "value,kind,words",
    [
        (70000, np.int32, "from 3 to 70000, and only 0 to 65535"), (-1, np.int32, "from -1 to 3"),
        (1.5, np.float32, "from 1.5 to 3, and only 0 to 1 can"), (-0.1, np.float32, "from -0.1"),
        (np.nan, np.float32, "from nan"), (np.inf, np.float32, "to inf"),
    ],
)  # fmt: skip
def test_ranges_without_a_meaning(value: float, kind: type, words: str):
    values = np.full((4, 4), 3, kind)
    values[1, 2] = value
    assert re.search(words, reason(file(Image.fromarray(values), "TIFF")))


# -- what is the model's -------------------------------------------------------------------------------


def of_every_mode() -> dict[str, io.BytesIO]:
    rgb = Image.fromarray(COLOUR)
    alpha = Image.fromarray(GREY)
    rgba, la = rgb.copy(), alpha.copy()
    rgba.putalpha(alpha)
    la.putalpha(alpha.transpose(Image.Transpose.ROTATE_180))
    palette = rgb.quantize(16)
    return {
        "RGB": file(rgb), "L": file(alpha), "1": file(alpha.convert("1")), "RGBA": file(rgba),
        "LA": file(la), "P": file(palette), "P with transparency": file(palette, transparency=3),
        "CMYK": file(rgb.convert("CMYK"), "JPEG"), "P of GIF": file(palette, "GIF", transparency=1),
    }  # fmt: skip


@pytest.mark.parametrize("name", of_every_mode())
def test_other_modes_are_left_to_the_preprocessing(name: str):
    import open_clip

    transforms = open_clip.image_transform(16, is_train=False), sb.load_picto_clip()[1]
    for transform in transforms:
        with Image.open(of_every_mode()[name]) as plain:
            want = transform(plain)
        with images.opened(of_every_mode()[name]) as image:
            assert torch.equal(transform(image), want) and want.std() > 0.01


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_many(kind: str):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels(data, mode="RGB"), np.asarray(frames[0]))


# -- bounds --------------------------------------------------------------------------------------------


def plain(width: int, height: int, mode: str = "L") -> Image.Image:
    return Image.new(mode, (width, height))


def test_pixels_are_bounded():
    assert pixels(file(plain(100, 100)), 10_000).shape == (100, 100)
    assert reason(file(plain(100, 101)), 10_000) == (
        "it has 100 x 101 pixels, more than the limit of 10000 (--max-pixels)"
    )
    assert "decompression bomb" in reason(file(plain(200, 101)), 10_000)


def test_the_bound_unless_another_is_given():
    """89 Mpx, as Pillow warns from: 9460² lies above, 9459² below."""
    assert 9459**2 < images.PIXELS < 9460**2 and images.PIXELS == Image.MAX_IMAGE_PIXELS
    assert "more than the limit of 89478485" in reason(file(plain(9460, 9460, "1")))


def test_large_jpegs_are_read_at_half_their_size():
    wave = np.rint(127 + 120 * np.sin(np.arange(300) / 40)).astype(np.uint8)
    image = np.broadcast_to(wave, (201, 300))
    data = file(Image.fromarray(image), "JPEG", quality=95)
    assert pixels(data, 201 * 300).shape == (201, 300)
    data.seek(0)
    half = pixels(data, 201 * 300 - 1)
    assert half.shape == (101, 150)
    assert np.abs(half[50].astype(int) - image[0].reshape(-1, 2).mean(axis=1)).max() < 6
    assert "decompression bomb" in reason(file(plain(300, 201), "JPEG"), 30_000)
    assert "more than the limit" in reason(file(plain(300, 201), "JPEG", progressive=True), 60_000)


def test_a_wider_bound_than_pillows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert pixels(file(plain(50, 50)), 2500).shape == (50, 50)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert reason(file(plain(50, 50)), 2499) and reason(io.BytesIO(b"none"))
    assert Image.MAX_IMAGE_PIXELS == 100, "put back after an error too"


def test_strips():
    assert pixels(file(plain(256, 1))).shape == (1, 256)
    for size in ((257, 1), (1, 257)):
        assert "a strip beyond 1:256" in reason(file(plain(*size)))


def test_a_long_image_becomes_no_huge_square(monkeypatch: pytest.MonkeyPatch):
    """8 Mpx of 40000 x 200 became a page of 1600 Mpx, 6.4 GB."""
    made, new = [], Image.new
    monkeypatch.setattr(
        Image, "new", lambda mode, size, *rest: (made.append(size), new(mode, size, *rest))[1]
    )
    page = sb.load_picto_clip()[1](plain(5000, 1000, "RGB"))
    assert page.shape == (3, 48, 48) and made and max(w * h for w, h in made) <= 4096**2
    assert page[:, 24].max() == -1 and page[:, 0].min() == 1, "black in the middle, white above"


def test_postscript_is_not_run():
    data = io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    assert reason(data) == "it is EPS, which Pillow would hand to Ghostscript"


def test_no_warning_leaves():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(file(plain(150, 100), "JPEG"), 14_000).shape == (50, 75)


# -- the commands --------------------------------------------------------------------------------------


def test_extract_and_search(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    (path,) = write(tmp_path / "images", 1, 1)
    with Image.open(path) as image:
        upright = image.convert("RGB")
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(path.with_name("turned.png"), exif=exif(6))
    upright.resize((150, 150)).save(path.with_name("wide.png"))
    words = ["extract", tmp_path / "images", tmp_path / "out", "--quiet", "--workers", 0]
    assert command(*words, "--max-pixels", 20_000, "--dtype", "float32") == 0
    assert "2 features of 3 images, 1 corrupt" in capsys.readouterr().out
    assert "150 x 150 pixels, more than the limit of 20000" in (tmp_path / "out/corrupt.tsv").read_text()
    assert json.loads((tmp_path / "out/settings.json").read_text())["max_pixels"] == 20_000
    rows = np.load(tmp_path / "out/img_emb/img_emb_0.npy")
    assert np.array_equal(rows[0], rows[1]) and np.abs(rows).max() > 0.1
    assert command(*words, "--dtype", "float32") == 2
    assert "max_pixels 20000 (now 89478485)" in capsys.readouterr().err
    sheets = [np.asarray(sheet.thumbnail(str(p))) for p in (path, path.with_name("turned.png"))]
    np.testing.assert_array_equal(*sheets)
    plain(14_000, 14_000, "1").save(tmp_path / "bomb.png")
    assert command("search", tmp_path / "out", "--image", tmp_path / "bomb.png") == 2
    err = capsys.readouterr().err
    assert "--image must be a readable image" in err and "decompression bomb" in err and err.count("\n") == 1


@pytest.mark.parametrize("ending", ["html", "png"])
def test_the_limit_of_search(tmp_path: Path, capsys: pytest.CaptureFixture, ending: str):
    """Both ways: a larger query is refused, and a gallery's larger image is an empty frame of the sheet."""
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    (path,) = write(tmp_path / "images", 1, 1)
    with Image.open(path) as image:
        image.resize((150, 150)).save(path)
    command("extract", tmp_path / "images", tmp_path / "out", "--quiet", "--workers", 0)
    found = ["search", tmp_path / "out", "--image", path, "--max-pixels"]
    assert command(*found, 22_499) == 2
    told = "150 x 150 pixels, more than the limit of 22499 (--max-pixels)"
    assert told in capsys.readouterr().err
    sheets = []
    for limit in (22_500, 22_499):
        out = tmp_path / f"{limit}.{ending}"
        assert command("search", tmp_path / "out", "--text", "x", "--out", out, "--max-pixels", limit) == 0
        sheets.append(out.read_bytes())
    empty = np.asarray(sheet.thumbnail(str(tmp_path / "none.png")))
    if ending == "png":
        frame = [Image.open(io.BytesIO(data)).convert("RGB") for data in sheets]
        left, top = 3 * sheet.MARGIN + sheet.SIDE + sheet.MARGIN, sheet.MARGIN
        inner = (left + 2, top + 2, left + sheet.SIDE - 2, top + sheet.SIDE - 2)
        shown = [np.asarray(page.crop(inner)) for page in frame]
        assert np.array_equal(shown[1], empty[2:-2, 2:-2]) and not np.array_equal(*shown)
    else:
        none = sheet._embedded(str(tmp_path / "none.png"), 1).encode()
        assert none in sheets[1] and none not in sheets[0]


def test_search_finds_a_turned_query_first(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    paths = write(tmp_path / "images", 3, 1)
    command("extract", tmp_path / "images", tmp_path / "out", "--quiet", "--workers", 0, "--dtype", "float32")
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for path, orientation in zip(paths, back, strict=True):
        query = tmp_path / f"query_{path.parent.name}.png"
        with Image.open(path) as image:
            image.convert("RGB").transpose(back[orientation]).save(query, exif=exif(orientation))
        capsys.readouterr()
        assert command("search", tmp_path / "out", "--image", query, "-k", 1) == 0
        line = capsys.readouterr().out.splitlines()[1]
        assert " 1.000 " in line and str(path) in line
