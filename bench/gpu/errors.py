"""Runs every CUDA kernel in emulation and every Triton kernel in its interpreter; tabulates the worst errors.

`python bench/gpu/errors.py [--docs docs/gpu.md]`. Needs g++ and the test tools, no GPU. The cases are those
of the test suite, which bounds what is only reported here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MARKS = ("<!-- errors: written by bench/gpu/errors.py -->", "<!-- end of errors -->")
DTYPES = ("float32", "float16", "bfloat16")


def last_json(*words: object, **environment: str) -> dict:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([str(w) for w in words], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"gpu_errors: {words[1]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def emulated() -> dict[str, float]:
    from tests.cuda_emulation.build import HERE, Emulation

    module = Emulation().build().module
    return last_json(sys.executable, HERE / "run_cases.py", module, "shuffled")["worst"]


def interpreted() -> dict[str, float]:
    program = ROOT / "tests" / "ops" / "triton" / "interpret.py"
    return last_json(sys.executable, program, TRITON_INTERPRET="1")["worst"]


def table(kind: str, worst: dict[str, float]) -> str:
    """A row for each result, a column for each dtype; names are `result/dtype`."""
    found: dict[str, dict[str, float]] = {}
    for name, error in worst.items():
        result, _, dtype = name.rpartition("/")
        found.setdefault(result, {})[dtype] = error
    lines = [f"| {kind} | {' | '.join(DTYPES)} |", "|---|---|---|---|"]
    for result, errors in found.items():
        cells = [f"{errors[d]:.1e}" if d in errors else "–" for d in DTYPES]
        lines.append(f"| {result} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    options = parser.parse_args(argv)
    text = "\n\n".join([
        "The worst error of any case against float64: a fraction of the row's largest value, half types "
        "beyond half a unit in the last place of the result.",
        table("CUDA C++, emulated", emulated()),
        table("Triton, interpreted", interpreted()),
    ])  # fmt: skip
    if options.docs:
        from resources import write_between  # beside this script

        write_between(options.docs, MARKS, text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
