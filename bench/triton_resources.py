"""Compiles the Triton kernels ahead of time and records registers, shared memory and spills.

`python bench/triton_resources.py [--docs docs/gpu.md]`. Needs Triton with its own ptxas, no GPU.
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

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from semobridge_ext.ops.triton import project_normalize as project
from semobridge_ext.ops.triton import support_logits as support

MARKS = ("<!-- triton: written by bench/triton_resources.py -->", "<!-- end of triton -->")
ARCHITECTURES = (80, 90, 100)
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


class Compiled(NamedTuple):
    kernel: str
    shape: str
    dtype: str
    architecture: int
    threads: int
    registers: int
    shared: int
    spills: int  # bytes of local memory per thread
    tensor_cores: bool  # the product's instruction
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


def compile_one(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, int], architecture: int
) -> Any:
    """One instantiation; pointers and the strides are known to be multiples of 16, as on real calls."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = [n for n in names if signature[n].startswith("*") or n in ("k", "d", "m")]
    aligned += [n for n in names if n.endswith("_stride")]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def instances(dtype: str) -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    pointer = f"*{dtype}"
    integers = dict.fromkeys(("n", "k", "m", "d", "classes", "x_stride", "m_stride", "out_stride"), "i32")
    integers |= {"q_stride": "i32", "k_stride": "i32", "scale": "fp32", "beta": "fp32"}
    found = []
    for columns in (512, 768):
        types = integers | {name: pointer for name in ("x_ptr", "m_ptr", "out_ptr")}
        types |= {"bias_ptr": "*fp32", "norms_ptr": "*fp32"}
        constants = {"WIDEN": False, "HAS_BIAS": False, "NORMALIZE": True, **project.blocks(columns)}
        kernel = project.project_normalize_fwd_kernel
        found.append((f"[N, {columns}] · [{columns}, {columns}]", kernel, types, constants, project.OPTIONS))
    for keys, classes in ((16_000, 1000), (1_281_167, 1000)):
        types = integers | {"q_ptr": pointer, "k_ptr": pointer, "order_ptr": "*i64", "offsets_ptr": "*i64"}
        types |= {"weights_ptr": "*fp32", "out_ptr": "*fp32"}
        constants = {"WIDEN": False, "HAS_ORDER": True, "HAS_WEIGHTS": False}
        constants |= support.blocks(1024, keys, classes)
        kernel = support.support_logits_fwd_kernel
        found.append((f"1024 × {keys}, C = {classes}", kernel, types, constants, support.OPTIONS))
    return found


def compile_all(architectures: Sequence[int] = ARCHITECTURES) -> list[Compiled]:
    found = []
    for dtype in DTYPES:
        for shape, kernel, types, constants, options in instances(dtype):
            for architecture in architectures:
                done = compile_one(kernel, types, constants, options, architecture)
                registers, spills = _figures(done.asm["cubin"])
                ptx = done.asm["ptx"]
                rounds = f"cvt.rn.{'bf16' if dtype == 'bf16' else 'f16'}" in ptx
                found.append(
                    Compiled(
                        kernel.fn.__name__, shape, DTYPES[dtype], architecture, 32 * options["num_warps"],
                        registers, done.metadata.shared, spills,
                        re.search(r"mma\.sync|wgmma|tcgen05\.mma", ptx) is not None, rounds,
                    )
                )  # fmt: skip
    return found


def table(found: Sequence[Compiled]) -> str:
    header = ["kernel", "shape", "threads", *(f"sm_{a}" for a in sorted({c.architecture for c in found}))]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for kernel, shape, threads in dict.fromkeys((c.kernel, c.shape, c.threads) for c in found):
        cells = [f"`{kernel}`", shape, str(threads)]
        for a in sorted({c.architecture for c in found}):
            mine = [c for c in found if (c.kernel, c.shape, c.architecture) == (kernel, shape, a)]
            registers, shared, spills = (max(c[i] for c in mine) for i in (5, 6, 7))
            cells.append(f"{registers} / {shared / 1024:.0f} KiB / {spills}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="document whose marked part is replaced")
    options = parser.parse_args(argv)
    text = (
        f"Triton {triton.__version__}, bfloat16 and float16 (the worse): registers per thread / shared "
        f"memory per program / bytes spilled per thread.\n\n{table(compile_all())}"
    )
    if options.docs:
        from gpu_resources import write_between  # beside this script

        write_between(options.docs, MARKS, text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
