"""bench/report.py on figures made by hand, and the bench files end to end on one small member."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source_tree import environment
from tests.support.tolerances import tolerance

BENCH = Path(__file__).resolve().parents[2] / "bench"
if not BENCH.is_dir():
    pytest.skip("the bench folder is not beside these tests", allow_module_level=True)
spec = importlib.util.spec_from_file_location("bench_report", BENCH / "report.py")
assert spec is not None and spec.loader is not None
report = importlib.util.module_from_spec(spec)
sys.modules["bench_report"] = report
spec.loader.exec_module(report)


def bench(group: str, member: str, median: float, error: float | None = 1e-7) -> dict:
    return {
        "group": group,
        "stats": {"median": median, "iqr": 0.1 * median},
        "extra_info": {"member": member, "error": error, "isa": "avx512", "threads": 2, "torch": "2.14"},
    }


def record(scale: float = 1.0) -> dict:
    return {
        "machine_info": {"cpu": {"brand_raw": "Test CPU", "count": 2}, "python_version": "3.11.7"},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [
            bench("op/1x8/float32", "eager", 40e-6 * scale),
            bench("op/1x8/float32", "native", 10e-6 * scale, 2e-7),
            bench("op/1x8/float32", "mm", 8e-6 * scale, None),
            bench("op/9x8/float32", "native", 1.234e-3 * scale),
        ],
    }


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table():
    header, rule, *rows = cells(report.render([record()]))
    assert header[:3] == ["group", "member", "median"] and set("".join(rule)) <= {"-", ":"}
    assert rows == [
        ["op/1x8/float32", "eager", "40.0 µs", "10 %", "1.00", "5.00", "1.0e-07"],
        ["op/1x8/float32", "native", "10.0 µs", "10 %", "0.25", "1.25", "2.0e-07"],
        ["op/1x8/float32", "mm", "8.00 µs", "10 %", "0.20", "1.00", "–"],
        ["op/9x8/float32", "native", "1.23 ms", "10 %", "–", "–", "1.0e-07"],
    ]
    widths = {len(line) for line in report.table(report.rows([record()])).splitlines()}
    assert len(widths) == 1


def test_machine_is_named_and_the_commit_marked():
    line = report.render([record()]).splitlines()[0]
    for part in ("Test CPU", "2 cores", "avx512", "PyTorch 2.14", "0123456789ab with changes", "2026-01-02"):
        assert part in line


def test_several_runs_give_the_median_of_medians():
    text = report.render([record(1.0), record(3.0), record(1.2)])
    assert "medians of 3 runs" in text
    assert cells(text)[2][2] == "48.0 µs"


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.994e-6, "9.99 µs"), (99.96e-6, "100 µs"), (0.99951e-3, "1.00 ms"), (0.470, "470 ms"), (2.5, "2.50 s"),
     (4e-8, "0.04 µs")],
)  # fmt: skip
def test_seconds(value, text):
    assert report.seconds(value) == text


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"benchmarks": []}'])
def test_a_foreign_file_is_named(tmp_path, capsys, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    assert report.main([str(path)]) == 2
    err = capsys.readouterr().err
    assert str(path) in err and err.count("\n") == 1
    assert report.main([str(tmp_path / "none.json")]) == 2


def test_output_file(tmp_path):
    source, target = tmp_path / "r.json", tmp_path / "r.md"
    source.write_text(json.dumps(record()))
    assert report.main([str(source), "--out", str(target)]) == 0
    assert target.read_text(encoding="utf-8") == report.render([record()])


def test_one_bench_end_to_end(tmp_path):
    pytest.importorskip("pytest_benchmark")
    results = tmp_path / "r.json"
    command = [
        sys.executable, "-m", "pytest", str(BENCH / "ops" / "bench_project_normalize.py"), "-q",
        "-p", "no:cacheprovider",
        "-k", "test_bridge and (1-native or 1-eager or 1-mm) and not 16",
        f"--benchmark-json={results}",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=BENCH.parent, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(results.read_text())
    assert "node" not in data["machine_info"]
    found = {row.member: row for row in report.rows([data])}
    assert set(found) == {"eager", "native", "mm"}
    assert {row.group for row in found.values()} == {"bridge/1x512/float32"}
    for one in data["benchmarks"]:
        extra = one["extra_info"]
        assert 0 < extra["error"] <= tolerance("bridge", "float32").relative
        assert extra["flops"] > 0 and extra["bytes"] > 0
        assert extra["isa"] and extra["threads"] > 0


@pytest.mark.slow
def test_every_bench_is_collected():
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", str(BENCH), "-q", "-p", "no:cacheprovider", "--collect-only"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=BENCH.parent, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = {p.name for folder in ("ops", "engines") for p in (BENCH / folder).glob("bench_*.py")}
    assert len(files) > 5 and not {name for name in files if f"/{name}::" not in done.stdout}
