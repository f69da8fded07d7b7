"""`python -m tests.fuzz.guided.run`: every guided target for FUZZ_SECONDS; inputs are kept in build/fuzz.

The loaders need atheris (`pip install atheris`), the kernels clang++ with libFuzzer. What is missing is named
and left out. A find is named by target and file, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz.guided import loaders
from tests.support.build_cache import ROOT, files_below, kept, version_of

HERE = Path(__file__).parent
KEPT = ROOT / "build" / "fuzz"
KERNELS = "kernels"
FLAGS = [
    "-std=c++20", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-DSB_ISA=portable", "-DSB_VEC_BYTES=16",
]  # fmt: skip
NEED_ATHERIS = "the loaders need atheris: pip install atheris"
NEED_CLANG = "the kernels need clang++ with libFuzzer: apt-get install clang"


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def has_clang() -> bool:
    if shutil.which("clang++") is None:
        return False
    words = ["clang++", "-fsanitize=fuzzer", "-x", "c++", "-", "-o", os.devnull]
    empty = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    return subprocess.run(words, input=empty, text=True, capture_output=True).returncode == 0


def sources(csrc: Path) -> list[Path]:
    """The core without its bindings and GPU parts, once: for the portable set."""
    return [p for p in files_below(csrc, ending=".cpp") if p.name != "bind.cpp"]


def built(csrc: Path = ROOT / "csrc") -> Path:
    """The fuzzed program, kept by content."""
    parts = files_below(csrc, HERE, ending=(".h", ".cpp", ".def"))

    def make(folder: Path) -> None:
        objects = []
        for i, source in enumerate([*sources(csrc), HERE / "kernels.cpp"]):
            objects.append(folder / f"{i}.o")
            words = ["clang++", *FLAGS, "-fsanitize=fuzzer-no-link", f"-I{HERE}", f"-I{csrc}", "-c", source]
            subprocess.run([*words, "-o", objects[-1]], check=True)
        link = ["clang++", *FLAGS, "-fsanitize=fuzzer", *objects, "-o", folder / KERNELS]
        subprocess.run(link, check=True)
        for made in objects:
            made.unlink()

    names = [str(part.relative_to(csrc if part.is_relative_to(csrc) else HERE)) for part in parts]
    return kept("fuzzed", [version_of("clang++"), *FLAGS, *names, *parts], make) / KERNELS


def plant(name: str) -> Path:
    """The folder of inputs, with the seeds."""
    folder = KEPT / re.sub(r"\W+", "-", name)
    folder.mkdir(parents=True, exist_ok=True)
    found = [bytes([i]) * 64 for i in range(9)] if name == KERNELS else loaders.seeds(name)
    for data in found:
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return folder


def run(name: str, seconds: float, seed: int = 0) -> tuple[int, str, int]:
    """Exit status, what was told, and executions."""
    folder = plant(name)
    words = [
        folder, f"-max_total_time={max(1, round(seconds))}", f"-artifact_prefix={KEPT}/find-{folder.name}-",
        "-max_len=8192", "-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1", f"-seed={seed}",
    ]  # fmt: skip
    program = [built()] if name == KERNELS else [sys.executable, "-m", "tests.fuzz.guided.loaders", name]
    done = subprocess.run([str(w) for w in (*program, *words)], capture_output=True, text=True, cwd=ROOT)
    told = done.stdout + done.stderr
    counts = re.findall(r"(?:stat::number_of_executed_units:|Done) +(\d+)", told)
    return done.returncode, told, int(counts[-1]) if counts else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "30")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FUZZ_SEED", "1")))
    parser.add_argument("--only", default="", metavar="WORD", help="targets whose name holds it")
    args = parser.parse_args()
    names, total, finds = [], 0, 0
    for has, found, need in (
        (has_clang(), [KERNELS], NEED_CLANG),
        (has_atheris(), loaders.names() if has_atheris() else [], NEED_ATHERIS),
    ):
        if has:
            names += found
        else:
            print(f"left out: {need}")
    for name in (n for n in names if args.only in n):
        status, told, count = run(name, args.seconds, args.seed)
        total += count
        print(f"{name}: {count} executions{'' if status == 0 else ', a find'}", flush=True)
        if status:
            finds += 1
            print("\n".join(line for line in told.splitlines() if not line.startswith(("#", "INFO")))[-3000:])
    print(f"{total} executions, {finds} finds")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
