"""Compiles the Triton kernels ahead of time and records registers, shared memory and spills.

`python bench/gpu/triton_resources.py [--docs docs/gpu.md]`. Every kernel with every tile that may
be taken: the fixed one and those that a GPU would measure. Needs Triton with its own ptxas, no GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from semobridge_ext._engines.bridge_training import triton as entropy
from semobridge_ext._ops.support_logits import triton as support
from semobridge_ext._ops.support_logits import triton_backward as support_bwd
from semobridge_ext._ops.topk import triton as topk
from semobridge_ext.runtime.triton_tuning import Kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.own_kernels import functions

MARKS = ("<!-- triton: written by bench/gpu/triton_resources.py -->", "<!-- end of triton -->")
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that a block may have
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_ALIGNED = (
    "k",
    "d",
    "m",
    "split_rows",
    "split_keys",
    "z_split",
)  # multiples of 16 on real calls, like strides


class Case(NamedTuple):
    kernel: Kernel
    shape: str
    dtype: str
    types: dict[str, str]  # of the arguments: pointers; every other one is an i32 or, if named so, a float
    constants: dict[str, Any]
    sizes: dict[str, int]  # what the choice of a tile looks at


class Compiled(NamedTuple):
    kernel: str
    shape: str
    dtype: str
    architecture: int
    tile: str
    threads: int
    registers: int
    shared: int
    bound: int  # of shared memory, that the choice relies on; 0: SMALLEST_SHARED
    spills: int  # bytes of local memory per thread
    multiplies: bool  # has a matrix product
    tensor_cores: bool  # the product's instruction
    stores_input_type: bool
    rounds: bool  # a half-type result is rounded to nearest


def _figures(cubin: bytes) -> tuple[int, int]:
    """Registers and local bytes per thread, from the object itself."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    registers = re.search(r"REG:(\d+)", done.stdout)
    stack, local = re.search(r"STACK:(\d+)", done.stdout), re.search(r"LOCAL:(\d+)", done.stdout)
    assert registers and stack and local, done.stdout
    return int(registers[1]), int(stack[1]) + int(local[1])


def target(architecture: int | str) -> GPUTarget:
    """NVIDIA's by number, AMD's by name (CDNA's, whose warps have 64 lanes)."""
    if isinstance(architecture, str):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", architecture, 32)


def compile_one(case: Case, tile: triton.Config, architecture: int | str, ones: bool = False) -> Any:
    """One instantiation; pointers and strides are known to be multiples of 16, as on real calls.

    With ``ones`` every number that a launch may replace by the constant 1, because it is 1, is replaced.
    """
    kernel = case.kernel.function
    constants = {**case.constants, **tile.kwargs}
    signature = {}
    for name in kernel.arg_names:
        single = name in ("scale", "beta", "coefficient")
        signature[name] = case.types.get(name, "fp32" if single else "i32")
        if ones and signature[name] == "i32" and name != "bucket":
            constants.setdefault(name, 1)
        if name in constants:
            signature[name] = "constexpr"
    numbers = [n for n in signature if n in _ALIGNED or n.endswith("_stride")]
    aligned = [n for n in signature if signature[n].startswith("*")]
    aligned += [n for n in numbers if signature[n] == "i32"]
    attributes = {(list(signature).index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return triton.compile(source, target=target(architecture), options=options)


def _support(dtype: str, width: int, queries: int = 1024) -> Case:
    types = {"q_ptr": f"*{dtype}", "k_ptr": f"*{dtype}", "order_ptr": "*i64", "offsets_ptr": "*i64"}
    types |= {name: "*fp32" for name in ("weights_ptr", "out_ptr", "edges_ptr")}
    first, second = support.row_parts(width)
    constants = {"WIDEN": False, "PRECISION": "ieee", "HAS_ORDER": True, "HAS_WEIGHTS": True}
    constants |= {"D0": first, "D1": second, "EVEN": first + second == width}
    return Case(support.KERNEL, f"{queries} queries, D = {width}", dtype, types, constants, {"n": queries})


def _join() -> Case:
    types = {"offsets_ptr": "*i64", "edges_ptr": "*fp32", "out_ptr": "*fp32"}
    return Case(support.JOIN, "128 queries", "fp32", types, {}, {})


def _support_bwd(dtype: str, own_keys: bool, width: int = 512) -> Case:
    types = {"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "labels_ptr": "*i64", "weights_ptr": "*fp32"}
    types |= {name: "*fp32" for name in ("grad_ptr", "out_ptr", "sums_ptr")}
    first, second = support.row_parts(width)
    constants = {
        "WIDEN": False, "PRECISION": "ieee", "EXACT": dtype == "fp32", "OWN_KEYS": own_keys,
        "HAS_WEIGHTS": True, "GRADIENT": True, "SUMS": own_keys,
        "D0": first, "D1": second, "EVEN": first + second == width,
    }  # fmt: skip
    shape = "of keys and weights" if own_keys else "of queries"
    return Case(support_bwd.KERNEL, f"{shape}, D = {width}", dtype, types, constants, {"d": width})


def _topk(slots: int, fresh: bool) -> Case:
    types = {"scores_ptr": "*fp32", "exclude_ptr": "*i64", "lists_ptr": "*i64"}
    constants = {"FRESH": fresh, "HAS_EXCLUDE": True, "SLOTS": slots}
    return Case(topk.KERNEL, f"k ≤ {slots}", "fp32", types, constants, {})


def _merge(slots: int, splits: int) -> Case:
    types = {"lists_ptr": "*i64", "scores_ptr": "*fp32", "indices_ptr": "*i64"}
    constants = {"SLOTS": slots, "WIDTH": slots * splits}
    return Case(topk.MERGE, f"k ≤ {slots}, {splits} splits", "fp32", types, constants, {})


def _entropy(kernel: Kernel) -> Case:
    names = [n for n in kernel.function.arg_names if n.endswith("_ptr")]
    types = {n: "*i64" if n in ("labels_ptr", "bounds_ptr") else "*fp32" for n in names}
    ours = ("HAS_ADD", "HAS_DOT", "HAS_SUMS")
    constants = {n: True for n in ours if n in kernel.function.arg_names} | {"r_column": 1}
    return Case(kernel, "D = 512, with bias", "fp32", types, constants, {"d": 512})


def cases() -> list[Case]:
    found = []
    for dtype in DTYPES:
        found += [_support(dtype, width) for width in (512, 768, 1024)] + [_support(dtype, 512, queries=1)]
        found += [_support_bwd(dtype, own_keys, width) for own_keys in (False, True) for width in (512, 768)]
    found += [_topk(slots, fresh) for slots in (16, 128) for fresh in (True, False)]
    found += [
        _join(),
        _merge(16, 256),
        _merge(128, 32),
        _entropy(entropy.FORWARD),
        _entropy(entropy.BACKWARD),
    ]
    for own in functions("triton_cases").values():
        found += own(Case)
    return found


def arguments(case: Case) -> dict[str, Any]:
    """What the choice of a tile looks at."""
    element = torch.empty(0, dtype=DTYPES[case.dtype])
    return {n: element for n in case.types} | case.sizes | case.constants


def tiles(case: Case, architecture: int, measured: bool = True) -> list[triton.Config]:
    """The tile taken unmeasured on that architecture, and those that would be measured there."""
    found, limit = arguments(case), SHARED[architecture]
    first = case.kernel.unmeasured(found, limit)
    usable = case.kernel.usable(found, limit) if measured else []
    return [first, *(c for c in usable if c != first)]


def compile_case(case: Case, tile: triton.Config, architecture: int) -> Compiled:
    done = compile_one(case, tile, architecture)
    registers, spills = _figures(done.asm["cubin"])
    ptx, text = done.asm["ptx"], case.kernel.function.src
    return Compiled(
        case.kernel.function.fn.__name__, case.shape, case.dtype, architecture, str(tile),
        32 * tile.num_warps, registers, done.metadata.shared,
        case.kernel.shared(tile, arguments(case)), spills, "tl.dot(" in text,
        re.search(r"mma\.sync|wgmma|tcgen05\.mma", ptx) is not None, ".dtype.element_ty)" in text,
        f"cvt.rn.{'bf16' if case.dtype == 'bf16' else 'f16'}" in ptx,
    )  # fmt: skip


def compile_all(
    architectures: Sequence[int] = tuple(SHARED), dtypes: Sequence[str] = tuple(DTYPES), measured: bool = True
) -> list[Compiled]:
    return [
        compile_case(case, tile, architecture)
        for case in cases()
        if case.dtype in dtypes
        for architecture in architectures
        for tile in tiles(case, architecture, measured)
    ]


def table(found: Sequence[Compiled]) -> str:
    """One line per kernel, shape and width of dtype; the worst of its tiles."""

    def width(c: Compiled) -> str:
        return "float32" if c.dtype == "fp32" else "half"

    architectures = sorted({c.architecture for c in found})
    header = ["kernel", "shape", "dtype", "tiles", *(f"sm_{a}" for a in architectures)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for key in dict.fromkeys((c.kernel, c.shape, width(c)) for c in found):
        mine = [c for c in found if (c.kernel, c.shape, width(c)) == key]
        cells = [f"`{key[0]}`", *key[1:], str(len({c.tile for c in mine}))]
        for a in architectures:
            here = [c for c in mine if c.architecture == a]
            registers = max(c.registers for c in here)
            shared, spills = max(c.shared for c in here), max(c.spills for c in here)
            cells.append(f"{registers} / {shared / 1024:.0f} KiB / {spills}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    options = parser.parse_args(argv)
    text = (
        f"Triton {triton.__version__}; the worst of a kernel's tiles (the fixed one and those that a GPU "
        "would measure) and of bfloat16 and float16: registers per thread / shared memory per program / "
        f"bytes spilled per thread.\n\n{table(compile_all())}"
    )
    if options.docs:
        from resources import write_between  # beside this script

        write_between(options.docs, MARKS, text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
