"""serve: what its endpoints answer, against plain sums in float64 and against `search`."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.cli.shards import Folder
from tests.support.assertions import assert_figures
from tests.support.images import command
from tests.support.served import CLASSES, EACH, make

pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
pytest.importorskip("starlette", reason="needed: pip install starlette")
testclient = pytest.importorskip("starlette.testclient", reason="needed: pip install httpx2")

from semobridge_ext.cli.serve_app import make_app  # noqa: E402 - behind the skips
from semobridge_ext.cli.serve_session import Session, leaders  # noqa: E402

ROWS, TEXT = CLASSES * EACH, "alarm clock"


def client_of(session: Session) -> Any:
    return testclient.TestClient(
        make_app(session), base_url="http://127.0.0.1:8765", raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def session(home: Path) -> Session:
    return Session(home / "feats")


@pytest.fixture(scope="module")
def client(session: Session) -> Any:
    return client_of(session)


def ask(client: Any, **query: Any) -> dict[str, Any]:
    answer = client.post("/api/search", json=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stored(folder: Path) -> Tensor:  # [N, D] float64
    found = Folder("test", folder)
    return torch.cat([found.features(i) for i in found.shards()]).double()


def image_of(home: Path, row: int) -> bytes:
    return Path(Folder("test", home / "feats").column("image_path")[row]).read_bytes()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def raw_text(text: str = TEXT) -> Tensor:  # [D] float64
    model, _, tokenizer = sb.load_picto_clip()
    with torch.inference_mode():
        return model.encode_text(tokenizer([text]))[0].double()


def check_ranking(hits: list[dict[str, Any]], want: Tensor) -> None:
    """The hits hold these scores [N] of all rows, best first."""
    rows = [hit["row"] for hit in hits]
    assert len(set(rows)) == len(rows)
    best = want.sort(descending=True).values[: len(rows)]
    assert_figures([hit["score"] for hit in hits], best, "kept_scores", dtype=torch.float16)
    assert_figures(want[rows], best, "kept_scores", dtype=torch.float16)


# -- searching ---------------------------------------------------------------------------------------


def test_a_text_an_image_and_both(home: Path, client: Any) -> None:
    unit, text = normalize(stored(home / "feats"), dim=1), normalize(raw_text(), dim=0)
    check_ranking(ask(client, text=TEXT, k=7)["hits"], unit @ text)
    picture = in_base64(image_of(home, 9))
    hits = ask(client, image=picture, k=7)["hits"]
    check_ranking(hits, unit @ unit[9])
    assert hits[0]["row"] == 9
    for weight in (0.0, 0.3, 1.0):
        mixed = normalize(weight * text + (1 - weight) * unit[9], dim=0)
        found = ask(client, text=TEXT, image=picture, weight=weight, k=ROWS)["hits"]
        check_ranking(found, unit @ mixed)


def test_both_lose_the_same_mix_of_means(home: Path) -> None:
    roles = sb.RoleCentering.load(home / "centred" / "mapping.safetensors")
    means = roles.means_["query_text"], roles.means_["document_image"]
    unit, rows = normalize(stored(home / "feats"), dim=1), stored(home / "centred")
    parts = normalize(raw_text(), dim=0) - means[0], unit[9] - means[1]
    mixed = normalize(0.3 * parts[0] + 0.7 * parts[1], dim=0)
    apart = normalize(0.3 * normalize(parts[0], dim=0) + 0.7 * normalize(parts[1], dim=0), dim=0)
    assert (rows @ mixed - rows @ apart).abs().max() > 0.01, "the two rules cannot be told apart"
    client = client_of(Session(home / "centred"))
    found = ask(client, text=TEXT, image=in_base64(image_of(home, 9)), weight=0.3, k=ROWS)
    check_ranking(found["hits"], rows @ mixed)


def test_the_bits_of_search(home: Path, client: Any, tmp_path: Path) -> None:
    path = Folder("test", home / "feats").column("image_path")[4]
    words = ["search", home / "feats", "--text", TEXT, "--image", path, "-k", 6]
    assert command(*words, "--json", tmp_path / "hits.json") == 0
    want = json.loads((tmp_path / "hits.json").read_text())
    for query, one in zip(({"text": TEXT}, {"image": in_base64(image_of(home, 4))}), want, strict=True):
        hits = ask(client, k=6, **query)["hits"]
        got = [(hit["metadata"]["image_path"], hit["score"]) for hit in hits]
        assert got == [(hit["path"], hit["score"]) for hit in one["hits"]]


def test_many_at_once(client: Any) -> None:
    texts = [
        f"{word} {kind}" for word in ("red", "small", "open") for kind in ("flag", "clock", "door", "star")
    ]
    want = [ask(client, text=text, k=5)["hits"] for text in texts]
    assert len({str(hits) for hits in want}) == len(texts)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda text: ask(client, text=text, k=5)["hits"], texts)) == want


def test_filters(home: Path, client: Any) -> None:
    unit, text = normalize(stored(home / "feats"), dim=1), normalize(raw_text(), dim=0)
    found = ask(client, text=TEXT, k=50, filters={"label": "class_02"})
    rows = [hit["row"] for hit in found["hits"]]
    assert found["candidates"] == found["found"] == EACH and sorted(rows) == list(range(8, 12))
    assert {hit["metadata"]["label"] for hit in found["hits"]} == {"class_02"}
    assert rows == [8 + i for i in (unit[8:12] @ text).argsort(descending=True).tolist()]
    path = found["hits"][1]["metadata"]["image_path"]
    both = ask(client, text=TEXT, filters={"label": "class_02", "image_path": path})
    assert [hit["row"] for hit in both["hits"]] == [rows[1]]
    for filters in ({"label": "class_03", "image_path": path}, {"label": "none"}):
        assert ask(client, text=TEXT, filters=filters)["hits"] == []


def test_groups_of_duplicates(home: Path, client: Any) -> None:
    """By a loop over cosines: a hit joins the best one before it that leads a group."""
    unit = normalize(stored(home / "feats"), dim=1)
    order = [hit["row"] for hit in ask(client, text=TEXT, k=ROWS)["hits"]]
    cosines = (unit @ unit.T).triu(1)
    threshold = 0.9
    assert (cosines - threshold).abs().min() > 1e-4
    want: list[list[int]] = []
    for row in order:
        lead = next((group for group in want if float(unit[row] @ unit[group[0]]) >= threshold), None)
        want.append([row]) if lead is None else lead.append(row)
    assert max(map(len, want)) > 1 and 1 < len(want) < ROWS
    found = ask(client, text=TEXT, k=ROWS, group=threshold)
    got = [[hit["row"], *(other["row"] for other in hit["duplicates"])] for hit in found["hits"]]
    assert got == want and found["found"] == ROWS


def test_a_duplicate_of_a_duplicate_leads_its_own_group() -> None:
    angles = torch.tensor([0.0, 20.0, 40.0, 10.0]).deg2rad()
    assert leaders(torch.stack([angles.cos(), angles.sin()], dim=1), 0.9) == [0, 0, 2, 0]


def test_info(home: Path, client: Any) -> None:
    info = client.get("/api/info").json()
    assert (info["rows"], info["width"], info["text"]) == (ROWS, 192, True)
    labels = [f"class_{i:02d}" for i in range(CLASSES)]
    assert info["columns"] == [{"name": "image_path", "values": None}, {"name": "label", "values": labels}]
    assert info["bytes"] >= ROWS * 192 * 4


def test_hidden_shards_refuse_texts_as_search_does(home: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "iso"
    shutil.copytree(home / "feats", folder)
    settings = json.loads((folder / "settings.json").read_text())
    settings |= {"text": False, "features": "mapped by isoclip"}
    (folder / "settings.json").write_text(json.dumps(settings))
    assert command("search", folder, "--text", TEXT) == 2
    told = capsys.readouterr().err.strip().removeprefix("semobridge-ext search: --")
    client = client_of(Session(folder))
    answer = client.post("/api/search", json={"text": TEXT})
    want = f"serve: {told}".replace("--image", "image")
    assert answer.status_code == 400 and answer.json() == {"error": want} and "isoclip" in want
    info = client.get("/api/info").json()
    assert info["text"] is False and info["text_refusal"] == want
    assert ask(client, image=in_base64(image_of(home, 3)))["hits"][0]["row"] == 3


# -- pictures ----------------------------------------------------------------------------------------


def test_pictures_are_those_of_the_rows(home: Path, client: Any) -> None:
    from PIL import Image

    answer = client.get("/image/7")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as got, Image.open(io.BytesIO(image_of(home, 7))) as want:
        assert list(got.convert("RGB").tobytes()) == list(want.convert("RGB").tobytes())


def test_only_pictures_that_the_metadata_names(home: Path, tmp_path: Path) -> None:
    """Large ones small; what is gone, no image or no file is not found, and a pipe holds nobody up."""
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

    folder = tmp_path / "feats"
    shutil.copytree(home / "feats", folder)
    Image.new("RGB", (900, 300), "red").save(tmp_path / "large.png")
    (tmp_path / "text.txt").write_text("secret")
    os.mkfifo(tmp_path / "pipe.png")
    file = folder / "metadata" / "metadata_0.parquet"
    paths = ["large.png", "gone.png", "text.txt", "pipe.png", ""]
    column = [str(tmp_path / name) for name in paths] + [None] * 3
    parquet.write_table(pa.table({"image_path": pa.array(column, pa.string())}), file)
    client = client_of(Session(folder))
    with Image.open(io.BytesIO(client.get("/image/0").content)) as picture:
        assert picture.size == (256, 85)
    for row in range(1, 8):
        answer = client.get(f"/image/{row}")
        assert answer.status_code == 404 and "secret" not in answer.text, row
        assert answer.json()["error"].startswith("serve: ")
    assert (
        "label"
        not in ask(client, text=TEXT, k=ROWS, filters={"image_path": column[1]})["hits"][0]["metadata"]
    )


@pytest.mark.parametrize(
    "path",
    [
        f"/image/{ROWS}", "/image/-1", "/image/1e3", "/image/" + "9" * 5000, "/image/", "/image/0/../../etc",
        "/image/%2e%2e/%2e%2e/etc/passwd", "/image//etc/passwd", "/%2e%2e/serve_app.py", "/serve_app.py",
        "/page.html", "//etc/passwd", "/page.css/%2e%2e/%2e%2e/serve_app.py", "/api/search", "/docs",
    ],
)  # fmt: skip
def test_other_paths_are_refused(client: Any, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 404, 405) and list(answer.json()) == ["error"]
    assert "import" not in answer.text and "root:" not in answer.text


# -- the page's own files ----------------------------------------------------------------------------


def test_the_page_is_whole_and_refers_to_nothing_outside(client: Any) -> None:
    import re

    page = client.get("/").text
    assert "<style" not in page and " style=" not in page and not re.search(r"\son\w+=", page)
    assert not re.search(r"<script(?![^>]*\ssrc=)", page)
    names = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sorted(names) == ["/icon.svg", "/page.css", "/page.js"]
    for name in names:
        answer = client.get(name)
        assert answer.status_code == 200
        outside = re.findall(r"https?://\S+|@import|url\(", answer.text)
        assert all(word.startswith("http://www.w3.org/2000/svg") for word in outside), name
    script = client.get("/page.js").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    for path in ("/", "/api/info", "/image/0", "/nothing"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == policy and headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
