"""Names in every script: on contact sheets, on their pages, in the picture of `fewshot`, in tables."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from semobridge_ext.cli import discovery_output, fewshot_output, fonts, sheet
from semobridge_ext.fewshot.study_estimators import METHODS


def _pixels(text: str, size: int = 20) -> np.ndarray:
    page = Image.new("L", (400, 40), 255)
    fonts.draw(ImageDraw.Draw(page), (4, 28), text, size, "black")
    return np.asarray(page)


def _box(path: str, size: int = 20) -> np.ndarray:
    """What a font draws for a character that it has not."""
    page = Image.new("L", (400, 40), 255)
    font = ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
    ImageDraw.Draw(page).text((4, 28), "\U0010fffe", fill="black", font=font, anchor="ls")
    return np.asarray(page)


@pytest.mark.parametrize("character", ["猫", "한", "ก", "ع", "क", "Ж", "ñ"])
def test_a_character_is_drawn_and_no_box(character: str) -> None:
    path = fonts.font_for(character)
    if path is None:
        assert fonts.escaped(character) == character.encode("unicode_escape").decode()
        pytest.skip(f"no font on this machine has {character}")
    drawn = _pixels(character)
    assert (drawn < 128).any()
    assert not any(np.array_equal(drawn, _box(p)) for p in ("", path))


def test_what_no_font_has_is_shown_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts.font_for.cache_clear()
    monkeypatch.setattr(fonts, "system", lambda: ())
    try:
        assert fonts.escaped("cat 猫\x00") == "cat \\u732b\\x00"
        np.testing.assert_array_equal(_pixels("猫"), _pixels("\\u732b"))
        assert not np.array_equal(_pixels("猫"), _box(""))
    finally:
        fonts.font_for.cache_clear()
    for character in ("\U0010fffe", "\ud800", "\u202e", "\n"):
        assert fonts.escaped(character) == character.encode("unicode_escape").decode()


def test_runs_and_widths() -> None:
    text = "a cat, 猫 and ñandú"
    assert "".join(piece for piece, _ in fonts.runs(text)) == fonts.escaped(text)
    assert fonts.width("", 11) < fonts.width("a", 11) < fonts.width("ab", 11) < fonts.width("ab", 22)
    for most in (30, 60, 111):
        cut = fonts.fitted("a name of many words", most, 11)
        assert cut.endswith("…") and fonts.width(cut, 11) <= most
    assert fonts.fitted("short", 111, 11) == "short"


@pytest.mark.parametrize("text", ["one two three four five six seven eight nine ten", "W" * 80, "short", ""])
def test_lines_fit_their_cell(text: str) -> None:
    lines = fonts.lines(text, 112, 11, 3)
    assert len(lines) <= 3 and all(fonts.width(line, 11) <= 112 for line in lines)
    joined = "".join(lines).rstrip("…").replace(" ", "")
    assert text.replace(" ", "").startswith(joined) and bool(joined) == bool(text)
    assert (len(joined) < len(text.replace(" ", ""))) == (bool(lines) and lines[-1].endswith("…"))


def _rows(names: list[str], query: str = "query") -> list[sheet.Row]:
    return [sheet.Row(query, False, [sheet.Hit("gone.png", name, 0.5) for name in names])]


def test_the_sheet_draws_a_name_in_its_script() -> None:
    """Two names of one length in a script that Pillow's own font lacks do not look the same."""
    if fonts.font_for("猫") is None or fonts.font_for("犬") is None:
        pytest.skip("no font on this machine has 猫")
    first, second = (np.asarray(Image.open(io.BytesIO(sheet.png(_rows([name]))))) for name in ("猫", "犬"))
    assert first.shape == second.shape and not np.array_equal(first, second)


def test_a_long_query_stays_in_its_row() -> None:
    short, long = (
        np.asarray(Image.open(io.BytesIO(sheet.png(_rows(["a"], query) + _rows(["b"], "second")))))
        for query in ("word", "word " * 200)
    )
    height = sheet.SIDE + sheet.LINE + sheet.MARGIN
    np.testing.assert_array_equal(short[sheet.MARGIN + height - 2 :], long[sheet.MARGIN + height - 2 :])
    assert not np.array_equal(short, long)


def test_the_page_of_a_sheet() -> None:
    name = "<img src=x onerror=alert(1)>"
    text = sheet.page(_rows([name, "猫"], name), "found in <b>").decode()
    assert '<html lang="en">' in text and "<h1>found in &lt;b&gt;</h1>" in text and "<main " in text
    assert "<bdi>猫</bdi>" in text and text.count("<img ") == 2 and "<b>" not in text
    assert not re.search(r"src=(?!\"data:)", text.replace("&lt;img src=x", "")) and text.count("alt=") == 2


def _summary(sets: list[str]) -> list[dict]:
    rows = []
    for name in sets:
        for i, method in enumerate(METHODS):
            for k in (1, 4):
                rows.append(
                    {"set": name, "shots": k, "method": method, "accuracy": 0.3 + i / 99, "std": 0.01}
                )
    return rows


@pytest.mark.parametrize("sets", [["one"], ["猫 $x^$", "b", "c", "d"]])
def test_the_legend_of_fewshot_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str]
) -> None:
    """Every entry lies within the picture and below every panel."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.figure import Figure

    seen: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k)))
    fewshot_output.draw(tmp_path / "fewshot.png", _summary(sets))
    (figure,) = seen
    figure.set_dpi(110)  # saved with it, and laid out for it
    figure.canvas.draw()
    (legend,) = figure.legends
    texts = legend.get_texts()
    assert [t.get_text() for t in texts] == list(METHODS)
    wide, high = figure.get_size_inches() * figure.dpi
    boxes = [t.get_window_extent() for t in texts]
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= wide and b.y1 <= high for b in boxes)
    panels = [axis.get_tightbbox() for axis in figure.axes if axis.get_visible()]
    assert len(panels) == len(sets) and max(b.y1 for b in boxes) <= min(p.y0 for p in panels)
    with Image.open(tmp_path / "fewshot.png") as picture:
        assert picture.format == "PNG" and picture.width >= 500


def test_names_stay_in_their_cell_of_a_report() -> None:
    found = [discovery_output.Found(0, "a|b\nc", True, ["x"], [0], 1),
             discovery_output.Found(1, "new", False, ["d|e", "f"], [1], 0)]  # fmt: skip
    text = discovery_output.report(found, [])
    assert "| 0 | a\\|b c | 1 | 1 |" in text and "| 1 | d\\|e, f | 1 |" in text
