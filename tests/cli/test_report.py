"""The report's page: what it says, its digits, how large it grows, and how it meets a narrow screen."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from semobridge_ext._version import __version__
from semobridge_ext.cli import page_style, report_charts, report_images, report_page
from semobridge_ext.cli.shards import Folder
from tests.support.images import command, write

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
NAMES = ("<script>alert(1)<", "猫" * 30, "a" * 70, "قطة صغيرة", "plain")
LONG = "a folder whose name " + "is long " * 5 + "W" * 60


class Page(HTMLParser):
    """What a screen reader meets: elements with their attributes, and their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of hostile names, one damaged file, a mapped folder with a long name, two reports."""
    home = tmp_path_factory.mktemp("report")
    write(home / "images", 5, 6)
    for i, name in enumerate(NAMES):
        (home / "images" / f"class_{i:02d}").rename(home / "images" / name)
    (home / "images" / "plain" / "<b>broken.png").write_bytes(b"no image")
    assert command("extract", home / "images", home / "feats", "--quiet", "--workers", 0) == 0
    pca = ["--mapping", "pca", "--components", 3, "--quiet"]
    assert command("map", home / "feats", home / LONG, *pca) == 0
    words = ["report", home / "feats", home / LONG, "--shots", 1, 2, "--out"]
    assert command(*words, home / "report.html") == 0
    return home


@pytest.fixture(scope="module")
def page(home: Path) -> str:
    return (home / "report.html").read_text()


def test_a_reader_finds_its_way(page: str) -> None:
    read = Page(page)
    assert read.all("html") == [{"lang": "en"}] and len(read.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in read.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    assert read.all("main") == [{"id": "main", "tabindex": "-1"}] and read.all("header") and read.all("nav")
    targets = {attributes.get("id") for _, attributes in read.found}
    links = [a["href"] for a in read.all("a")]
    assert links[0] == "#main" and all(link and link[1:] in targets for link in links)
    assert len(links) == 1 + len(read.all("section"))
    tables = read.all("table")
    assert len(tables) == page.count("<caption>") >= 8
    assert all(cell.get("scope") in ("row", "col") for cell in read.all("th"))
    regions = [a for a in read.all("div") if a.get("class") == "scroll"]
    assert len(regions) == len(tables)
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in regions)
    charts = [a for a in read.all("div") if a.get("role") == "img"]
    assert len(charts) >= 5 and all(a.get("aria-label") for a in charts)
    assert all(a.get("alt") for a in read.all("img")) and not read.all("script")


def test_names_are_shown_and_run_nothing(page: str) -> None:
    read = Page(page)
    for name in (*NAMES, LONG):
        assert f"<bdi>{html.escape(name)}</bdi>" in page, name
    assert "<b>broken.png" in read.words and "&lt;b&gt;broken.png" in page
    assert report_charts.text("a\x00\x1b\u202e\ud800<") == "a\\x00\\x1b\\u202e\\ud800&lt;"


def test_date_version_corrupt_files_and_worst_classes(home: Path, page: str) -> None:
    found = json.loads((home / "report.json").read_text())
    assert re.search(rf"Made 20\d\d-\d\d-\d\d \d\d:\d\d UTC with semobridge-ext {__version__}\.", page)
    ((lost, why),) = found["corrupt"]
    assert lost.endswith("<b>broken.png") and "cannot identify" in why
    unit = normalize(Folder("test", home / "feats").load().double(), dim=1)
    labels = np.array(Folder("test", home / "feats").column("label"))
    near = labels[(unit @ unit.T).fill_diagonal_(-2).argmax(dim=1).numpy()]
    for row in found["by_class"]:
        mine = near[labels == row["name"]]
        assert row["images"] == 6 and row["right"]["feats"] == int((mine == row["name"]).sum())
        wrong = {other: int((mine == other).sum()) for other in mine if other != row["name"]}
        assert dict(row["confused"]) == wrong
    shares = [row["right"]["feats"] for row in found["by_class"]]
    assert shares == sorted(shares) and shares[0] < 6
    with open(home / "report_classes.csv", newline="") as file:
        assert [line[0] for line in csv.reader(file)][1:] == [row["name"] for row in found["by_class"]]


def test_intervals_are_of_paired_resamples(home: Path) -> None:
    """A difference is that of the values and lies in its interval; a folder's twin differs by nothing."""
    found = json.loads((home / "report.json").read_text())["folders"]
    assert "change" not in found["feats"]
    for figure, (value, low, high) in found[LONG]["change"].items():
        old, new = (found[n]["intervals"][figure] for n in ("feats", LONG))
        assert value == pytest.approx(new[0] - old[0]) and low <= value <= high, figure
    out = home / "same.html"
    shutil.copytree(home / "feats", home / "twin")
    assert command("report", home / "feats", home / "twin", "--no-text", "--no-images", "--out", out) == 0
    twin = json.loads(out.with_suffix(".json").read_text())["folders"]["twin"]["change"]
    assert all(interval == [0, 0, 0] for interval in twin.values()), twin
    assert "<img" not in out.read_text() and "Sample images" not in out.read_text()


def test_a_sample_of_the_images_asks(home: Path) -> None:
    """Of 30 images 12: they find all the others, the page says so, and the worst classes count them."""
    out = home / "sampled.html"
    words = ["report", home / "feats", "--no-text", "--no-images", "--queries", 12, "--out", out]
    assert command(*words) == 0
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["asked"] == found["folders"]["feats"]["retrieval"]["queries"] == 12 < found["images"] == 30
    assert "12 images, drawn once for all folders, ask" in out.read_text()
    assert sum(row["images"] for row in found["by_class"]) == 12
    x = normalize(Folder("test", home / "feats").load(), dim=1)
    names = Folder("test", home / "feats").column("label")
    own = {name: i for i, name in enumerate(found["class_names"])}
    labels = torch.tensor([own[name] for name in names])
    asked = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:12]
    order = (x[asked] @ x.T).scatter_(1, asked[:, None], -2.0).argmax(dim=1)
    share = float((labels[order] == labels[asked]).float().mean())
    assert found["folders"]["feats"]["retrieval"]["Recall@1"] == pytest.approx(share)
    assert sum(row["right"]["feats"] for row in found["by_class"]) == round(12 * share)


@pytest.mark.parametrize(
    ("low", "high", "places"),
    [(33.0, 35.4, 1), (30, 37, 0), (0.1, 0.7, 1), (0.121, 0.127, 3), (0.0002, 0.9, 4), (-0.2, 0.9, 1),
     (5, 5, 1), (float("nan"), 1, 1), (-9, -0.3, 1)],
)  # fmt: skip
def test_digits_are_those_of_the_interval(low: float, high: float, places: int) -> None:
    assert report_charts.decimals(low, high) == places


def test_dots_show_small_differences(page: str) -> None:
    """Of 80.00 and 80.03 with narrow intervals the dots lie apart, and no bar begins at 0."""
    drawn = report_charts.dots(
        "mAP",
        [report_charts.Dot("a", 80.0, 79.99, 80.01), report_charts.Dot("b", 80.03, 80.02, 80.04)],
        least=0,
    )
    first, second = (float(v) for v in re.findall(r'class=dot style="left:([\d.]+)%', drawn))
    assert second - first > 30 and 'aria-label="mAP: a 80.000, b 80.030"' in drawn


def _ratio(a: str, b: str) -> float:
    def light(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["LIGHT", "DARK"])
def test_contrast(scheme: str) -> None:
    """WCAG 2: 4.5 for text, 3 for marks; both schemes are in the page."""
    colours = getattr(page_style, scheme)
    for name, least in (("ink", 4.5), ("soft", 4.5), ("link", 4.5), *((f"c{i}", 3.0) for i in range(7))):
        assert _ratio(colours[name], colours["ground"]) >= least, name
        assert f"--{name}:{colours[name]};" in page_style.STYLE
    assert "prefers-color-scheme:dark" in page_style.STYLE and ":focus-visible" in page_style.STYLE


def _large(classes: int) -> dict[str, Any]:
    """What the page reads, as if of many classes with long names."""
    names = [f"class {i} 猫 {'long name ' * 8}" for i in range(classes)]
    interval = [0.5, 0.4, 0.6]
    folder = {
        "width": 8, "accuracy": {"1": [0.5, 0.6]}, "zero_shot": None, "gap": None,
        "retrieval": {"mAP": 0.5, "mAP@R": 0.5, "R-Precision": 0.5, "Recall@1": 0.5, "Recall@5": 0.5,
                      "Recall@10": 0.5, "queries": 9, "seconds": 1.0},
        "cosines": {"intra": [0.01] * 100, "inter": [0.01] * 100},
        "spectrum": {"shares": [0.5, 0.5]}, "run": ["model", 9, 1.0, 9.0],
        "intervals": {n: interval for n in report_page.tables.CHANGES},
    }  # fmt: skip
    return {
        "made": "2026-01-01 00:00 UTC", "version": "1", "images": 9, "classes": classes, "shots": [1],
        "class_names": names, "shot_classes": 2, "seeds": 2, "sampled": 9, "asked": 9,
        "text_projection": None, "folders": {"feats": folder},
        "corrupt": [[f"file {i}", "why"] for i in range(300)],
        "environment": {}, "by_class": [
            {"name": n, "images": 3, "right": {"feats": 1}, "confused": [[names[0], 2]]} for n in names
        ],
    }  # fmt: skip


def test_the_page_of_500_classes_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the worst kind for JPEG: the bound holds, every class has one before any has two."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (72, 72, 3), dtype=np.uint8)
    monkeypatch.setattr(report_images.thumbnails, "opened_small", lambda *_: Image.fromarray(noise))
    labels = [c for c in range(500) for _ in range(3)]
    shown = report_images.samples(["x"] * len(labels), labels, 500)
    counts = [len(images) for images in shown.images]
    assert shown.full and min(counts) == 1 == counts[-1] and max(counts) == 2
    data = report_page.page(_large(500), shown)
    assert 2_000_000 < len(data) < 5_000_000
    text = data.decode()
    assert "476 more classes</summary>" in text and "some classes show fewer images" in text
    assert "file 99<" in text and "file 100<" not in text and "The first 100 are shown" in text


def test_samples_lie_evenly_and_tell_what_is_gone(home: Path) -> None:
    folder = Folder("test", home / "feats")
    paths = report_images.paths(folder, "label")
    assert paths == folder.column("image_path")
    shown = report_images.samples([*paths[:5], str(home / "gone.png")], [0] * 5 + [1], 2)
    assert [len(images) for images in shown.images] == [3, 0] and shown.unread == 1 and not shown.full
    assert all(a.startswith("data:image/jpeg;base64,") for a in shown.images[0])
    assert len(set(shown.images[0])) == 3


def _browser() -> str:
    found = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
    if found is None:
        pytest.skip("no chromium on this machine; needed to measure the page")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5, 500])
def test_nothing_leaves_a_narrow_screen(page: str, tmp_path: Path, classes: int) -> None:
    browser = _browser()
    shown = page if classes == 5 else report_page.page(_large(500)).decode()
    frames = "".join(
        f'<iframe style="width:{wide}px;height:900px;border:0" srcdoc="{html.escape(shown)}"></iframe>'
        for wide in (320, 400, 1280)
    )
    script = (
        "<script>onload=()=>{document.title=[...document.querySelectorAll('iframe')].map(f=>"
        "f.contentDocument.documentElement).map(d=>d.scrollWidth-d.clientWidth).join(' ')+' measured'}"
        "</script>"
    )
    (tmp_path / "frames.html").write_text(f"<!doctype html><meta charset=utf-8>{frames}{script}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words = [browser, *flags, "--dump-dom", (tmp_path / "frames.html").as_uri()]
    told = subprocess.run(words, capture_output=True, timeout=60, check=False, text=True).stdout
    measured = re.search(r"<title>(.*) measured</title>", told)
    assert measured, "the browser measured nothing"
    assert [int(v) for v in measured[1].split()] == [0, 0, 0]
