"""bench/history.py on figures made by hand."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
if not BENCH.is_dir():
    pytest.skip("the bench folder is not beside these tests", allow_module_level=True)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "history.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def record(processor: str, **cpu: int) -> dict:
    benches = [
        {
            "group": "op/1x8/float32",
            "stats": {"data": [scale * i for i in range(1, 12)]},
            "extra_info": {"member": member, "error": error, "threads": 2, "isa": "avx2", "torch": "2.14"},
        }
        for member, scale, error in (("ours", 1e-6, 1.25e-7), ("eager", 1e-3, None))
    ]
    return {
        "machine_info": {"cpu": {"brand_raw": processor, **cpu}},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": benches,
    }


def test_each_release_appends_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "history.csv"
    for processor in ("one", "two"):
        (tmp_path / f"{processor}.json").write_text(json.dumps(record(processor)))
    for processor, version in (("one", "0.1.0"), ("one", "0.2.0"), ("two", "0.2.0")):
        done = run(tmp_path / f"{processor}.json", version, "--out", out)
        assert done.returncode == 0, done.stderr
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["version"], r["processor"], r["member"]) for r in rows[1::2]] == [
        ("0.1.0", "one", "eager"), ("0.2.0", "one", "eager"), ("0.2.0", "two", "eager"),
    ]  # fmt: skip
    ours = rows[0]
    assert [ours[name] for name in ("p20", "p50", "p80", "error", "date")] == [
        "3e-06", "6e-06", "9e-06", "1.2e-07", "2026-01-02",
    ]  # fmt: skip
    assert rows[1]["error"] == ""


def test_a_version_is_not_written_twice(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(record("one")))
    words = (tmp_path / "bench.json", "0.2.0", "--out", tmp_path / "history.csv")
    assert run(*words).returncode == 0
    before = (tmp_path / "history.csv").read_bytes()
    done = run(*words)
    assert done.returncode == 2 and "VERSION must be new for this machine, got 0.2.0 on one" in done.stderr
    assert (tmp_path / "history.csv").read_bytes() == before


def test_generations_of_one_brand_are_two_machines(tmp_path: Path) -> None:
    out = tmp_path / "history.csv"
    for model in (17, 2):
        (tmp_path / "bench.json").write_text(json.dumps(record("one", family=26, model=model)))
        assert run(tmp_path / "bench.json", "0.2.0", "--out", out).returncode == 0
    with open(out, newline="") as file:
        names = [row["processor"] for row in csv.DictReader(file)]
    assert names == ["one (family 26 model 17)"] * 2 + ["one (family 26 model 2)"] * 2
