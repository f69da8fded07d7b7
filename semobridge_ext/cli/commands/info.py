"""`semobridge-ext info`: what this installation can do, and why something is absent."""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from typing import Any

from semobridge_ext.runtime.info import build_info

_EPILOG = """\
reading it:
  native        the compiled core; without it every call runs the eager PyTorch program
  isa           instruction set in use, chosen at run time (SEMOBRIDGE_ISA=portable forces one)
  threads       from torch.set_num_threads, or OMP_NUM_THREADS in the environment
  openmp        runtimes in this process; two of them would start twice the threads
  backend       what SEMOBRIDGE_BACKEND asks for; auto picks by device, dtype and shape
  choices       what auto takes here, call by call: by the rule of a GPU's architecture, or as calibrated

examples:
  semobridge-ext info
  semobridge-ext info --json | python -m json.tool
  SEMOBRIDGE_ISA=avx2 semobridge-ext info
"""

_GROUPS = {
    "versions": ("semobridge_ext", "python", "torch", "open_clip", "numpy", "platform"),
    "native core": ("native", "compiler", "isa", "isa_available", "threads", "openmp"),
    "gpu": ("cuda", "cuda_architectures", "triton"),
    "choice": ("backend", "choices"),
}
_ABSENT = {
    "semobridge_ext": "not installed, running from a source tree (pip install -e .)",
    "open_clip": "not installed (pip install open_clip_torch)",
    "numpy": "not installed (pip install numpy)",
    "compiler": "none: the native core is missing",
    "isa": "none: the native core is missing",
    "isa_available": "none: the native core is missing",
    "openmp": "none found in this process, or not Linux",
    "cuda_architectures": "none: no CUDA kernels were built",
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "info",
        help="versions, instruction set, threads, GPU state, and why something is absent",
        description="Prints what this installation can do, and why something is absent.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def plots_state() -> str:
    """Whether the demo can draw."""
    try:
        return f"matplotlib {metadata.version('matplotlib')}"
    except metadata.PackageNotFoundError:
        return "absent: no matplotlib, the demo prints no picture (pip install 'semobridge-ext[plots]')"


def _text(key: str, value: Any) -> list[str]:
    if value is None or value == [] or value == "":
        return [_ABSENT.get(key, "absent")]
    if key == "openmp":
        extra = ["more than one: threads may double"] if len(value) > 1 else []
        return [*value, *extra]
    if isinstance(value, dict):
        width = max(map(len, value))
        return [f"{name:<{width}}  {words}" for name, words in value.items()]
    return [", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)]


def render(info: dict[str, Any]) -> str:
    """Aligned text, one group after another; keys that no group names come last."""
    known = {key for keys in _GROUPS.values() for key in keys}
    groups = {**_GROUPS, "more": tuple(key for key in info if key not in known)}
    width = max(len(key) for key in info)
    lines = []
    for title, keys in groups.items():
        present = [key for key in keys if key in info]
        if present:
            lines += ["", title]
        for key in present:
            first, *rest = _text(key, info[key])
            lines.append(f"  {key:<{width}}  {first}")
            lines += [f"  {'':<{width}}  {line}" for line in rest]
    return "\n".join(lines[1:])


def run(args: argparse.Namespace) -> int:
    info = build_info()
    info["plots"] = plots_state()
    print(json.dumps(info, indent=2) if args.json else render(info))
    return 0
