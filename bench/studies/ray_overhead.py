"""What a cluster costs: extract, map and search by one process and by a Ray cluster on the same cores.

`python bench/studies/ray_overhead.py` prints a Markdown table: seconds of each command in one process, on a
cluster of three nodes on this machine with as many actors as it has cores (at most three), and their ratio.
Actors start anew for every command, as for a user; `of it start` is what a run over one input takes. The
files of both are compared first. Needs `pip install 'semobridge-ext[ray,cli]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def drawings(folder: Path, count: int) -> None:
    """The first drawings of the embedded icons, again and again."""
    from PIL import Image

    import semobridge_ext as sb

    images = sb.load_picto("icons").images
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(images[i % len(images)].numpy()).save(folder / f"{i:06d}.png")


def seconds(*words: object) -> float:
    """Of one command in this process, whose imports are done."""
    from semobridge_ext import cli

    said = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(said):
        code = cli.main([str(word) for word in words])
    if code:
        raise SystemExit(f"ray_overhead: {' '.join(map(str, words))} must end with 0, got {code}")
    return time.perf_counter() - began


def same(a: Path, b: Path) -> None:
    for name in ("img_emb", "metadata"):
        files = sorted(p.name for p in (a / name).iterdir())
        if any((a / name / f).read_bytes() != (b / name / f).read_bytes() for f in files) or not files:
            raise SystemExit(f"ray_overhead: {b} must hold the files of {a}, got others")


@contextlib.contextmanager
def cluster(home: Path) -> Iterator[None]:
    """A head without processors and three nodes of one each; the driver joins it."""
    os.environ.update(RAY_TMPDIR=str(home), RAY_USAGE_STATS_ENABLED="0")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    (home / "ray").mkdir(parents=True)
    import ray
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 200 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    try:
        for _ in range(3):
            made.add_node(**node, num_cpus=1)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=3000, help="(default: 3000)")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # as an actor has; one process decodes in its own workers
    actors = min(3, len(os.sched_getaffinity(0)))
    there = ["--engine", "ray", "--actors", actors]
    home = Path(tempfile.mkdtemp(prefix="sbray-bench-", dir="/tmp"))
    try:
        drawings(home / "images", args.images)
        drawings(home / "one", 1)
        here, mapped = home / "here", home / "here-mapped"

        def words(command: str, name: str, source: Path | None = None) -> list[object]:
            quiet = ["--quiet"]
            if command == "extract":
                return ["extract", source or home / "images", home / name, "--shard-size", 500, *quiet]
            if command == "map":
                return ["map", source or here, home / f"{name}-mapped", "--mapping", "bridge", *quiet]
            return ["search", source or mapped, "--text", "a star", "a house", "-k", 10]

        commands = ("extract", "map", "search")
        alone = {command: seconds(*words(command, "here")) for command in commands}
        with cluster(home / "r"):
            seconds(*words("extract", "one-out", home / "one"))  # a folder of one row for the starts
            seconds(*words("map", "one-out", home / "one-out"))
            starts = {
                "extract": seconds(*words("extract", "one-there", home / "one"), *there),
                "map": seconds(*words("map", "one-there", home / "one-out"), *there),
                "search": seconds(*words("search", "", home / "one-out-mapped")[:-1], 1, *there),
            }
            many = {command: seconds(*words(command, "there"), *there) for command in commands}
        same(here, home / "there")
        same(mapped, home / "there-mapped")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{args.images} images, embedded CLIP, {actors} actors on {os.cpu_count()} cores\n")
    print("| command | one process | three nodes | ratio | of it start |")
    print("|---|---:|---:|---:|---:|")
    for command in commands:
        a, b = alone[command], many[command]
        print(f"| {command} | {a:.2f} s | {b:.2f} s | {b / a:.2f} | {starts[command]:.2f} s |")


if __name__ == "__main__":
    if sys.path[0] != str(ROOT):
        sys.path.insert(0, str(ROOT))
    main()
