"""serve as a process: its page in a browser, by keyboard and at both widths, and its end by Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.served import CLASSES, EACH, make
from tests.support.source_tree import environment

pytestmark = pytest.mark.slow
pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
pytest.importorskip("starlette", reason="needed: pip install starlette")
pytest.importorskip("uvicorn", reason="needed: pip install uvicorn")

LABEL = "<img src=x onerror=\"document.title='taken'\">&amp;"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 20 drawings and 10 more rows alike, the first class under a hostile name."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    feats = make(tmp_path_factory.mktemp("page"), centred=False) / "feats"
    for index in range(3):
        file = feats / "metadata" / f"metadata_{index}.parquet"
        columns = parquet.read_table(file).to_pydict()
        columns["label"] = [LABEL if name == "class_00" else name for name in columns["label"]]
        rows = np.load(feats / "img_emb" / f"img_emb_{index}.npy")
        if index == 2:  # the last class, three times over
            columns = {name: [*values * 3, *values[:2]] for name, values in columns.items()}
            np.save(feats / "img_emb" / f"img_emb_{index}.npy", np.concatenate([rows, rows, rows, rows[:2]]))
        parquet.write_table(pa.table(columns), file)
    (feats / "shards.jsonl").unlink()  # its fingerprints are of the rows before
    return feats


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    words = [sys.executable, "-m", "semobridge_ext.cli", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        try:
            assert lines[1].startswith("open http://127.0.0.1:"), lines
            yield lines[1].split()[1], process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    with running(folder) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needed: pip install playwright")
    found = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)
    if found is None:
        pytest.skip("no chromium on this machine; needed to open the page")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def opened(browser: Any, url: str, width: int, scheme: str) -> tuple[Any, list[str]]:
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: request.url.startswith((url, "blob:")) or told.append(request.url))
    page.goto(url)
    page.wait_for_selector("#columns label", state="attached")
    return page, told


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "dark")])
def test_a_search_by_keyboard(served, browser, folder: Path, width: int, scheme: str) -> None:
    page, told = opened(browser, served + "/", width, scheme)
    page.keyboard.type("alarm clock")  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("#hits > li")
    cards = page.locator("#hits > li")
    total = CLASSES * EACH + 10
    assert cards.count() == 24 and f"24 of {total} images" in page.inner_text("#status")
    scores = [float(card) for card in page.locator("#hits > li > .title data").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert all(image.get_attribute("alt") for image in page.locator("#hits img").all())
    first = page.locator("#hits img").first
    assert first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    page.focus("#more")
    page.keyboard.press("Enter")
    cards.nth(total - 1).wait_for()
    assert cards.count() == total and page.locator("#more").is_hidden()
    holder = "nodes => nodes.findIndex(node => node.contains(document.activeElement))"
    assert cards.evaluate_all(holder) == 24
    light = page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is (scheme == "light")
    unnamed = "nodes => nodes.filter(node => !node.labels.length && !node.ariaLabel).length"
    assert page.locator("input, select").evaluate_all(unnamed) == 0
    assert told == []
    page.context.close()


def test_an_image_groups_filters_and_errors(served, browser, folder: Path) -> None:
    page, told = opened(browser, served + "/", 1280, "light")
    page.click("#search")
    assert page.inner_text("#error") == "Write a text or choose an image."
    image = sorted((folder.parent / "images" / f"class_{CLASSES - 1:02d}").iterdir())[0]
    page.set_input_files("#file", image)
    assert page.locator("#mix").is_hidden()
    page.check("#group")
    page.fill("#cosine", "0.9999")
    page.click("#search")
    page.wait_for_selector("#hits > li")
    assert page.inner_text("#error") == ""
    assert page.locator("#hits > li").first.locator("summary").last.inner_text() == "3 duplicates"
    page.fill("#text", "alarm clock")
    assert page.locator("#mix").is_visible()
    page.click("#filters summary")
    page.get_by_label("label", exact=True).select_option(LABEL)
    page.click("#search")
    page.locator("#status", has_text=f"{EACH} of {EACH} images").wait_for()
    names = page.locator("#hits > li > .title span").all_inner_texts()
    assert set(names) == {LABEL} and page.title() == "Search images"
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"secret"})
    page.click("#search")
    page.locator("#error", has_text="image must be a readable image").wait_for()
    assert page.locator("#hits > li").count() == 0
    assert len(told) == 1 and "400" in told[0]  # the browser's own line about the refused image
    page.context.close()


def test_a_link_holds_a_search(served, browser) -> None:
    page, _ = opened(browser, served + "/?text=alarm+clock", 400, "light")
    page.wait_for_selector("#hits > li")
    assert page.input_value("#text") == "alarm clock"
    page.context.close()


def test_it_ends_by_interrupt(folder: Path) -> None:
    with running(folder) as (url, process):
        with urllib.request.urlopen(f"{url}/api/info", timeout=30) as answer:
            assert json.load(answer)["rows"] == CLASSES * EACH + 10
            assert "uvicorn" not in str(answer.headers).lower()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out.strip(), err) == (0, "serve: ended", "")
