"""Memory and rate of the commands over time, on as many inputs as one likes.

`python bench/studies/stream_memory.py grow` runs each command in a process of its own and reads its memory
from /proc every second: the resident pages of the command, and with its workers the pages that they share
counted once (PSS). Of what was read at least 20 lines are printed. Temporary files: 1 kB an input or row.

extract: PNG files of 4 x 4 pixels in one tar, a hundredth of them damaged; the encoder is a stand-in that
takes means, since the question is what the command keeps.
retrieve: float16 rows of 512 in shards of 100 000 with 1000 labels, 2000 other rows ask.
report: the same rows, 2000 of which ask.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

LINES = 24
ASKED = 2000
WIDTH, CLASSES = 512, 1000


# -- what runs in a process of its own -------------------------------------------------------------------


class MeanEncoder:
    """Stands for a model: the mean colour of an image, widened."""

    def __init__(self) -> None:
        import torch

        self.model = torch.nn.Linear(1, 1)
        self.preprocess = _pixels

    def images(self, pixels: Any) -> Any:
        return pixels.mean(dim=(2, 3)).repeat(1, 64)


def _pixels(image: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


def run_command(words: list[str]) -> int:
    from semobridge_ext import cli
    from semobridge_ext.cli import models

    models.load = lambda *_: MeanEncoder()  # type: ignore[assignment,return-value]
    return cli.main(words)


# -- inputs ----------------------------------------------------------------------------------------------


def write_tar(path: Path, count: int) -> None:
    """Streams the same four pictures over and over, each under its own name."""
    import tarfile

    from PIL import Image

    kinds = []
    for i in range(4):
        data = io.BytesIO()
        Image.new("RGB", (4, 4), (60 * i, 10, 200)).save(data, "PNG")
        kinds.append(data.getvalue())
    with tarfile.open(path, "w|", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(count):
            data = kinds[i % 4][:40] if i % 100 == 99 else kinds[i % 4]
            info = tarfile.TarInfo(f"{i:09d}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            tar.members.clear()  # type: ignore[attr-defined] # tarfile keeps each


def write_shards(folder: Path, rows: int, seed: int, each: int = 100_000) -> None:
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((CLASSES, WIDTH), np.float32)
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for i, begin in enumerate(range(0, rows, each)):
        labels = rng.integers(CLASSES, size=min(each, rows - begin))
        noise = rng.standard_normal((len(labels), WIDTH), np.float32)
        np.save(folder / "img_emb" / f"img_emb_{i}.npy", (centres[labels] + 3 * noise).astype(np.float16))
        paths = [f"images/{begin + j:09d}.jpg" for j in range(len(labels))]
        table = pyarrow.table({"image_path": paths, "label": [f"class {n}" for n in labels.tolist()]})
        pyarrow.parquet.write_table(table, folder / "metadata" / f"metadata_{i}.parquet")


# -- watching --------------------------------------------------------------------------------------------


class Point(NamedTuple):
    seconds: float
    resident: float  # MiB of the command
    shared: float  # MiB of it and its workers, PSS
    done: int


def _field(path: Path, name: str) -> float:
    """MiB; 0 where the process has gone."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def _family(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    except OSError:
        pass
    return found


def _inputs_done(out: Path, each: int) -> int:
    try:
        with open(out / "shards.jsonl", "rb") as file:
            return each * sum(1 for _ in file)
    except OSError:
        return 0


def watch(words: list[str], out: Path, each: int, interval: float) -> tuple[list[Point], float]:
    """Runs a command of ours; what it held over time, and the high-water mark of the process."""
    began, points, peak = time.monotonic(), [], 0.0
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen(
            [sys.executable, __file__, "run", *words], stdout=printed, stderr=subprocess.STDOUT
        )
        while child.poll() is None:
            time.sleep(interval)
            proc = Path("/proc") / str(child.pid)
            resident = _field(proc / "status", "VmRSS")
            peak = max(peak, _field(proc / "status", "VmHWM"))
            shared = sum(_field(Path(f"/proc/{p}/smaps_rollup"), "Pss:") for p in _family(child.pid))
            if resident:
                points.append(Point(time.monotonic() - began, resident, shared, _inputs_done(out, each)))
        printed.seek(0)
        if child.returncode:
            raise RuntimeError(f"stream_growth: {' '.join(words)} must end with 0, got {printed.read()}")
    return points, peak


def _thinned(points: list[Point]) -> list[Point]:
    if len(points) <= LINES:
        return points
    return [points[i * (len(points) - 1) // (LINES - 1)] for i in range(LINES)]


def show(title: str, points: list[Point], peak: float, count: int) -> None:
    seconds = points[-1].seconds if points else 0.0
    print(f"\n**{title}**: {count} in {seconds:.0f} s, {count / max(seconds, 1e-9):.0f} a second; ", end="")
    print(
        f"peak {peak:.0f} MiB resident, {max((p.shared for p in points), default=0):.0f} MiB with workers\n"
    )
    print("| s | done | a second since | MiB resident | MiB with workers |\n|---:|---:|---:|---:|---:|")
    last = Point(0.0, 0.0, 0.0, 0)
    for p in _thinned(points):
        rate = (p.done - last.done) / (p.seconds - last.seconds) if p.done > last.done else 0
        rate_text = f"{rate:.0f}" if rate else "–"
        print(f"| {p.seconds:.0f} | {p.done or '–'} | {rate_text} | {p.resident:.0f} | {p.shared:.0f} |")
        last = p if p.done > last.done else last
    sys.stdout.flush()


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, nargs="*", default=[100_000, 1_000_000], metavar="N")
    parser.add_argument(
        "--rows", type=int, default=1_000_000, metavar="N", help="of retrieve and report; 0: none"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every point that was read, too")
    options = parser.parse_args(words)
    kept: dict[str, list[Point]] = {}

    def follow(title: str, given: list[Any], out: Path, count: int, each: int = 0) -> None:
        points, peak = watch([str(word) for word in given], out, each, options.interval)
        kept[title] = points
        show(title, points, peak, count)

    with tempfile.TemporaryDirectory(prefix="stream-growth-") as home_name:
        home = Path(home_name)
        for count in options.inputs:
            tar, out, each = home / "tiny.tar", home / f"out-{count}", max(100, min(10_000, count // 50))
            write_tar(tar, count)
            given = ["extract", tar, out, "--quiet", "--workers", options.workers, "--shard-size", each]
            follow(f"extract, {count} inputs", given, out, count, each)
            tar.unlink()
        if options.rows:
            write_shards(home / "rows", options.rows, 1)
            write_shards(home / "asked", ASKED, 2)
            given = ["retrieve", home / "rows", "--queries", home / "asked"]
            follow(f"retrieve, {options.rows} rows", given, home, options.rows)
            given = ["report", home / "rows", "--no-text", "--queries", ASKED, "--shots", 1, 8, "--seeds", 2]
            given += ["--out", home / "r.html"]
            follow(f"report, {options.rows} rows", given, home, options.rows)
    if options.json is not None:
        text = json.dumps({title: [p._asdict() for p in points] for title, points in kept.items()}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        sys.exit(run_command(sys.argv[2:]))
    main(sys.argv[1:])
