"""The kernels' machine code: wide loads where the source promises them, tensor cores, no local memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scripts import load_script
from tests.support.source_tree import need

sass = load_script("gpu/sass")
SOURCES = sass.sources()
WIDE = 16  # bytes that a lane can move at a time
# Kernels whose every instantiation loads less at a time, with the reason.
NARROW = {
    "adamw_flat_kernel": "one value a thread: a step's few megabytes",
    "adamw_kernel": "one value a thread, gathered from its slots",
    "bias_loss_kernel": "a few rows of odd width",
    "class_sums_kernel": "a thread owns a column and sums rows in order",
    "cosine_loss_kernel": "one row a sample",
    "topk_merge_kernel": "a few entries a row",
    "total_loss_kernel": "one block for a few values",
}

_LISTING = """
		Function : _ZN10semobridge15some_fwd_kernelIfLi4EEEvPKf
        /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;    /* 0x00000a00ff017b82 */
                                                                                /* 0x000fe20000000800 */
        /*0010*/               @P0 STS.128 [R9], R4 ;                           /* 0x0000000000027919 */
        /*0020*/              @!P1 HMMA.1688.F32.TF32 R4, R4, R5, R8 ;          /* 0x0000000000027919 */
        /*0030*/                   STG.E [R2], R4 ;                             /* 0x0000000000027919 */
        /*0040*/                   LDS.64 R4, [R9] ;                            /* 0x0000000000027919 */
        /*0050*/                   IMAD.MOV.U32 R13, RZ, RZ, RZ ;               /* 0x0000000000027919 */
		Function : _ZN10semobridge15some_fwd_kernelIfLi1EEEvPKf
        /*0000*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;             /* 0x00000a00ff017b82 */
        /*0010*/                   STL.64 [R1], R4 ;                            /* 0x00000a00ff017b82 */
"""


def listed() -> list:
    need("c++filt", "name the kernels")
    return sass.parse(_LISTING, "90")


def test_the_listing_is_read():
    wide, narrow = listed()
    assert (wide.kernel, wide.variant, wide.architecture) == ("some_fwd_kernel", "float, 4", "90")
    assert wide.widest("loads") == wide.widest("shared stores") == 16 and wide.widest("shared loads") == 8
    assert wide.widest("stores") == 4 and wide.count("tensor") == 1 and wide.count("local") == 0
    assert narrow.widest("loads") == 2 and narrow.count("local") == 1 and narrow.count("tensor") == 0
    assert "| `some_fwd_kernel` | 16 | 4 | 8 / 16 | 1 | 1 |" in sass.table([wide, narrow])


def test_broken_promises_are_told():
    wide, narrow = listed()
    promised = {"some_fwd_kernel": sass.Declared(("T", "kStep"), tensor=True, packs=True)}
    assert sass.problems([wide], promised) == [
        "some_fwd_kernel<float, 4> on sm_90 stores 4 bytes at most, not 16"
    ]
    local, tensor = sass.problems([narrow], promised)
    assert "1 accesses of local memory" in local and "no tensor-core instruction" in tensor
    meets = {"some_fwd_kernel": sass.Declared(("T", "kStep"), tensor=False, packs=False, meets=True)}
    (read,) = sass.problems([wide], meets)
    assert "1 loads by the read-only path" in read
    loads = sass.problems([narrow._replace(variant="__half, 8")], promised)
    assert any("loads 2 bytes at most, not 16" in problem for problem in loads)


def test_promises_are_read_from_the_functions_that_a_kernel_calls(tmp_path: Path):
    (tmp_path / "cuda_parts.cuh").write_text("""
template <class T>
__device__ __forceinline__ void outer(T* y) {
  inner<T>(y);
}

__device__ void inner(float* y) {
  store(x, y);
  grid_barrier(y, y);
}

__device__ void another(float* y) {
  wmma::mma_sync(a, b, c, a);
}
""")
    source = tmp_path / "cuda.cu"
    source.write_text("__global__ void one_kernel(float* y) {\n  outer(y);\n}\n")
    assert sass.declared(source) == {"one_kernel": sass.Declared((), tensor=False, packs=True, meets=True)}


def test_promises_are_read_from_the_source(tmp_path: Path):
    source = tmp_path / "cuda.cu"
    source.write_text("""
template <bool kBlock, int kStep, class T = float>
__global__ void __launch_bounds__(kThreads, 2)
    one_kernel(const T* x) {
  store(x, y);
}

__global__ void two_kernel(float* y) {
  wmma::mma_sync(a, b, c, a);
}
""")
    assert sass.declared(source) == {
        "one_kernel": sass.Declared(("kBlock", "kStep", "T"), tensor=False, packs=True),
        "two_kernel": sass.Declared((), tensor=True, packs=False),
    }
    one = sass.declared(source)["one_kernel"]
    variants = {"true, 8, __half": 16, "true, 4, float": 16, "true, 2, float": 8, "true, 1, float": 0}
    assert {v: sass.expected_width(one, v) for v in variants} == variants


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=() if a == "90" else pytest.mark.campaign) for a in sass.ARCHITECTURES],
)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_machine_code_keeps_what_the_source_promises(source: Path, architecture: str):
    need("nvcc", "compile the CUDA kernels")
    if sass.find_tool("cuobjdump") is None:
        pytest.skip("no cuobjdump: neither the CUDA toolkit nor Triton's wheel has brought it")
    found = sass.read(source, architecture)
    kernels = sass.declared(source)
    assert {code.kernel for code in found} == set(kernels)
    assert not (wrong := sass.problems(found)), "\n".join(wrong)
    for kernel in kernels.keys() - NARROW.keys():
        widest = max(code.widest("loads", "copies") for code in found if code.kernel == kernel)
        assert widest >= WIDE, (
            f"{kernel} loads {widest} bytes a lane at most; load packs (core/device.cuh), or enter it in "
            "NARROW with the reason"
        )
