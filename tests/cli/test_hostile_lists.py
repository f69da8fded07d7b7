"""Lists and CSV files as spreadsheets and broken exports write them: read, or refused with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from semobridge_ext.cli import sources
from tests.support.images import command


def items(path: Path, column: str | None = None) -> list[tuple[str, dict[str, str | None]]]:
    source = sources.open_source("extract", str(path), path.parent / "listing", label="none", column=column)
    return [(str(Path(i.path).relative_to(path.parent)), i.fields()) for i in source.items(0)]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, mark: bytes, end: str):
    table, lines = tmp_path / "t.csv", tmp_path / "list.txt"
    table.write_bytes(mark + end.join(["path,label", "a.png,ü", '"b,c.png",y', ""]).encode())
    assert items(table) == [("a.png", {"label": "ü"}), ("b,c.png", {"label": "y"})]
    assert items(table, "path") == items(table)
    lines.write_bytes(mark + end.join(["a.png", "b.png", ""]).encode())
    assert items(lines) == [("a.png", {}), ("b.png", {})]


def test_repeated_rows_are_repeated_inputs(tmp_path: Path):
    """An image with several captions, or drawn several times to balance classes."""
    table = tmp_path / "t.csv"
    table.write_text("path,caption\na.png,x\na.png,y\na.png,y\n")
    assert items(table) == [("a.png", {"caption": c}) for c in "xyy"]


WRONG = {
    "a field less": ("path,label\na.png,x\nb.png\n", "2 fields in every row, got 1 in line 3 of "),
    "a field more": ("path,label\na.png,x,y\n", "2 fields in every row, got 3 in line 2 of "),
    "no path": ("label,path\nx,a.png\n\ny,\n", "empty 'path' in line 4 of "),
    "a blank path": ("path\na.png\n  \n", "empty 'path' in line 3 of "),
    "behind a row of several lines": ('path,label\na.png,"x\ny"\nb.png\n', "got 1 in line 4 of "),
    "columns of one name": (
        "path,label,label\na.png,x,y\n",
        "got 'label' more than once in line 1 of ",
    ),
    "paths of one name": ("path,path\na.png,b.png\n", "got 'path' more than once in line 1 of "),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows_are_named(tmp_path: Path, name: str):
    text, words = WRONG[name]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"^extract: INPUT must .*{re.escape(words)}.*t\.csv; "):
        items(tmp_path / "t.csv")
    assert not (tmp_path / "listing").exists()


ODD = {
    "UTF-16": "path,label\na.png,x\n".encode("utf-16"),
    "latin-1 in the header": "path,größe\na.png,x\n".encode("latin-1"),
    "a field without end": b"path,label\na.png," + b"x" * 200_000 + b"\n",
    "a header without end": b"path," + b"x" * 200_000 + b"\n",
}


@pytest.mark.parametrize("name", ODD)
def test_no_csv(tmp_path: Path, name: str, capsys: pytest.CaptureFixture):
    pytest.importorskip("pyarrow", reason="needed: pip install pyarrow")
    (tmp_path / "t.csv").write_bytes(ODD[name])
    assert command("extract", tmp_path / "t.csv", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "field" not in name or "header" in name or "line 2: field larger" in err
    assert err.count("\n") == 1 and "t.csv" in err and "INPUT must be UTF-8 text" in err
