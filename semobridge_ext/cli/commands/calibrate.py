"""`semobridge-ext calibrate`: measures on this GPU which backend `auto` should take."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from semobridge_ext.cli.arguments import count

_EPILOG = """\
Each call is timed at several sizes and dtypes with plain PyTorch, the CUDA kernels and the Triton kernels, on
features of --width and with --classes. A kernel that does not fit or whose result differs from plain
PyTorch's is never chosen, and said, as is a tile of Triton's that cannot run here. The choices are written
to a file of yours, one section a GPU; `auto` reads it from then on, until another PyTorch, Triton, driver or
version of this package runs. Remove the file to go back to the rules of the architecture.

examples:
  semobridge-ext calibrate
  semobridge-ext calibrate --width 768 --classes 1000                    features of a ViT-L/14, ImageNet
  SEMOBRIDGE_THRESHOLDS=/etc/semobridge.json semobridge-ext calibrate    for all users of a machine
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help="measure on this GPU which backend the automatic choice should take",
        description="Measures on this GPU which backend the automatic choice should take, and keeps it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda (the default) or cuda:N")
    parser.add_argument("--width", type=count, default=512, metavar="D", help="of your features (512)")
    parser.add_argument("--classes", type=lambda w: count(w, 2), default=100, metavar="C",
                        help="of your classifiers (100)")  # fmt: skip
    parser.add_argument("--out", type=Path, help="file of the choices (default: where auto looks)")


def _micro(value: float | None) -> str:
    return "–" if value is None else f"{value * 1e6:.1f}"


def run(args: argparse.Namespace) -> int:
    import torch

    from semobridge_ext._version import __version__
    from semobridge_ext.runtime import calibration, thresholds

    if not args.device.startswith("cuda"):
        raise ValueError(
            f"calibrate: device must be cuda or cuda:N, got {args.device!r}; on the CPU auto has one choice"
        )
    if not torch.cuda.is_available():
        raise RuntimeError(
            "calibrate: needs a GPU that PyTorch can use, got none; run it on the machine that has one"
        )
    device = torch.device(args.device)
    file = args.out or thresholds.path()
    if file.exists():
        thresholds.read(file, remake=True)  # a foreign file is refused before minutes are spent
    name = torch.cuda.get_device_name(device)
    found = measure_all(device, name, width=args.width, classes=args.classes)
    thresholds.write(file, name, __version__, calibration.thresholds(found))
    print(f"written to {file}")
    return 0


def skipped_tiles() -> list[str]:
    """What Triton's tuner had to leave out so far, if it ran."""
    tuning = sys.modules.get("semobridge_ext.runtime.triton_tuning")
    return [] if tuning is None else tuning.skipped


def measure_all(device: Any, name: str, **options: Any) -> list[Any]:
    """All cases, a line each."""
    from semobridge_ext.cli import calibration_cases
    from semobridge_ext.runtime import calibration

    print(f"{name}, microseconds\n")
    print(f"{'call':<28}{'size':>10}" + "".join(f"{b:>10}" for b in calibration.BACKENDS) + "  choice")
    found: list[Any] = []
    told: set[object] = set()
    for case in calibration_cases.cases(device, **options):
        m = calibration.measure(case, device)
        found.append(m)
        times = "".join(f"{_micro(m.seconds.get(b)):>10}" for b in calibration.BACKENDS)
        dtype = str(case.dtype).removeprefix("torch.")
        print(f"{case.op + ' ' + dtype:<28}{case.size:>10}{times}  {m.choice}", flush=True)
        for backend, why in m.refused.items():
            if (case.op, backend, why) not in told:
                told.add((case.op, backend, why))
                print(f"  {case.op}, {backend}: {why}", file=sys.stderr)
        for line in skipped_tiles():
            if line not in told:
                told.add(line)
                print(f"  {line}", file=sys.stderr)
    return found
