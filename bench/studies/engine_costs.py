"""What a search costs by engine and size, from rates that stand here with their origin.

`python bench/studies/engine_costs.py` prints the tables; with `--docs docs/guides/engines.md` they go into
the page. Nothing is measured here: the rates of this package are those of docs/ops/topk.md, the others are
published or follow from bytes and bandwidth, and then are limits that no program goes below.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MARKS = ("<!-- costs: written by bench/studies/engine_costs.py -->", "<!-- end of costs -->")
SIZES = [10**n for n in range(5, 10)]
WIDTH = 512
HOST = 448e9  # bytes for rows on a host of 512 GB
DEVICE = 72e9  # bytes for rows on a GPU of 80 GB
# Bytes a second of the two cores of docs/ops/topk.md: 10⁷ rows of 524 bytes of codes in 86 ms.
CORES = 1e7 * (WIDTH + 12) / 0.086
GPU = 1e6 * 128 * 4 / 0.430e-3  # NVIDIA/cuvs#277: 10⁶ x 128 float32 by an H100, one call
GPU_PRODUCTS = 495e12  # half of the dense float16 rate of its data sheet, operations a second


FLAT = 0.879 / 2e5  # seconds of 1000 queries a row, FAISS's IndexFlatIP on those cores, docs/ops/topk.md
CODES = 64 + 8  # bytes of PQ64, and of an id
PROBED = 64  # lists


class Engine(NamedTuple):
    """One way to search."""

    name: str
    exact: bool
    bytes_a_row: float  # in memory
    room: float  # bytes of rows on one machine or GPU
    unit: str
    seconds: Callable[[float, int], float]  # of one machine, by its rows and the queries, 1 or 1000


def _gallery(rows: float, queries: int) -> float:
    """86 ms a query and 5.3 s for 1000 on 10⁷ rows, docs/ops/topk.md."""
    return rows * (0.086 if queries == 1 else 5.3) / 1e7


def _flat(rows: float, queries: int) -> float:
    return rows * (4 * WIDTH / CORES if queries == 1 else FLAT)


def _gpu(rows: float, queries: int) -> float:
    """The rows are read once, or the products take longer."""
    return rows * 2 * WIDTH * max(1 / GPU, queries / GPU_PRODUCTS)


def _ivf(rows: float, queries: int) -> float:
    """All centres, then the codes of the lists that are visited; about 4·√N lists."""
    lists = 2 ** round(math.log2(4 * math.sqrt(rows)))
    return _flat(lists, queries) + queries * min(PROBED / lists, 1) * rows * CODES / CORES


ENGINES = (
    Engine("`sb.Gallery`, two cores", True, WIDTH + 12, HOST, "host", _gallery),
    Engine("FAISS flat, two cores", True, 4 * WIDTH, HOST, "host", _flat),
    Engine("float16 rows on GPUs", True, 2 * WIDTH, DEVICE, "GPU", _gpu),
    Engine("FAISS IVF,PQ64, two cores", False, CODES, HOST, "host", _ivf),
)


def machines(engine: Engine, rows: int) -> int:
    return math.ceil(rows * engine.bytes_a_row / engine.room)


def seconds(engine: Engine, rows: int, queries: int) -> float:
    """Machines search their parts at the same time."""
    return engine.seconds(rows / machines(engine, rows), queries)


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def _time(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            shown = value / size
            return f"{shown:.0f} {unit}" if shown >= 100 else f"{shown:.2g} {unit}"
    return "below 1 µs"


def table() -> str:
    lines = [
        f"| rows of {WIDTH} | engine | exact | memory | machines | one query | 1000 queries |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    for rows in SIZES:
        for engine in ENGINES:
            many = machines(engine, rows)
            cells = [
                f"10{'⁰¹²³⁴⁵⁶⁷⁸⁹'[round(math.log10(rows))]}", engine.name, "yes" if engine.exact else "no",
                _bytes(rows * engine.bytes_a_row), f"{many} {engine.unit}{'s' * (many > 1)}",
                _time(seconds(engine, rows, 1)), _time(seconds(engine, rows, 1000)),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def largest(engine: Engine, within: float) -> float:
    """Rows of one machine that a query passes in the time, as far as the memory goes."""
    low, high = 1.0, engine.room / engine.bytes_a_row
    if engine.seconds(high, 1) <= within:
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if engine.seconds(middle, 1) <= within else (low, middle)
    return low


def limits() -> str:
    lines = ["| one machine, one query within | 10 ms | 100 ms | 1 s |", "|---|---:|---:|---:|"]
    for engine in ENGINES:
        found = [_rows(largest(engine, t)) for t in (0.01, 0.1, 1.0)]
        lines.append(f"| {engine.name} | {' | '.join(found)} |")
    return "\n".join(lines)


def _rows(count: float) -> str:
    """In words of two digits."""
    power = math.floor(math.log10(count))
    return f"{count / 10**power:.1f} · 10{'⁰¹²³⁴⁵⁶⁷⁸⁹'[power]}"


def text() -> str:
    return f"{table()}\n\n{limits()}"


def write_between(path: Path, marks: tuple[str, str], new: str) -> None:
    """Replaces what stands between two marks of a page."""
    before, rest = path.read_text(encoding="utf-8").split(marks[0])
    path.write_text(f"{before}{marks[0]}\n\n{new}\n\n{marks[1]}{rest.split(marks[1])[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the tables into this page")
    options = parser.parse_args()
    if options.docs is None:
        print(text())
    else:
        write_between(options.docs, MARKS, text())


if __name__ == "__main__":
    main()
