"""Broken on purpose, the kernels must turn the C++ test red: proof that it can fail.

Each mutation replaces one exact piece of source text, which must exist once.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.support.source_tree import PORTABLE_ONLY, core_test, run

pytestmark = pytest.mark.slow

# name: file, text, what stands there instead
MUTATIONS = {
    "residual with a flipped sign": (
        "csrc/project_normalize/project_rows.h",
        "row[i] = line[i] - row[i];",
        "row[i] = line[i] + row[i];",
    ),
    "norm dropped": (
        "csrc/core/row_norm.h",
        "return {norm, T(1) / norm};",
        "return {norm, T(1)};",
    ),
    "no guard for a zero row": (
        "csrc/core/row_norm.h",
        "if (largest == 0) return {T(0), T(0)};",
        "",
    ),
    "no guard for overflowing squares": (
        "csrc/core/row_norm.h",
        "if (squares > tiny && squares < huge) {",
        "if (squares > tiny) {",
    ),
    "no guard for underflowing squares": (
        "csrc/core/row_norm.h",
        "if (squares > tiny && squares < huge) {",
        "if (squares == squares && squares < huge) {",
    ),
    "norms of the wrong row": (
        "csrc/project_normalize/project_rows.h",
        "(norms)[row0 + r] = measured.norm;",
        "(norms)[r] = measured.norm;",
    ),
    "bias of the block's first row": (
        "csrc/project_normalize/project_rows.h",
        "+ (row0 + r) * stage.bias.row_stride;",
        "+ row0 * stage.bias.row_stride;",
    ),
    "bias skips its last column": (
        "csrc/project_normalize/project_rows.h",
        "i < stage.matrix.cols; ++i) row[i] += bias[i];",
        "i + 1 < stage.matrix.cols; ++i) row[i] += bias[i];",
    ),
    "scale forgotten behind a norm": (
        "csrc/project_normalize/project_rows.h",
        "factor = measured.inverse * scale;",
        "factor = measured.inverse;",
    ),
    "last panel of the norm skipped": (
        "csrc/core/row_norm.h",
        "p < panels; ++p) {",
        "p < panels - (panels > 1); ++p) {",
    ),
    "last panel of columns skipped": (
        "csrc/project_normalize/project_rows.h",
        "for (int64_t p = 0; p < panels_of(m.cols); ++p) {",
        "for (int64_t p = 0; p < m.cols / kPanel; ++p) {",
    ),
    "one column too many written": (
        "csrc/project_normalize/project_rows.h",
        "narrow(y + r * ld, T(1), out.cols,",
        "narrow(y + r * ld, T(1), out.cols + 1,",
    ),
    "output rows without their stride": (
        "csrc/project_normalize/project_rows.h",
        "(row0 + r) * out.row_stride * bytes);",
        "(row0 + r) * out.cols * bytes);",
    ),
    "products miss their last term": (
        "csrc/core/tile.h",
        "    const T* b = panel + col;\n    for (int64_t k = 0; k < k_size; ++k) {",
        "    const T* b = panel + col;\n    for (int64_t k = 0; k < k_size - (k_size > 1); ++k) {",
    ),
    "one row alone misses its last term": (
        "csrc/core/tile.h",
        "for (int64_t k = 0; k < k_size; ++k) {\n        const T left = a[k];",
        "for (int64_t k = 0; k + 1 < k_size; ++k) {\n        const T left = a[k];",
    ),
    "one row alone sums in another order": (
        "csrc/core/tile.h",
        "for (int64_t k = 0; k < k_size; ++k) {\n        const T left = a[k];",
        "for (int64_t k = k_size - 1; k >= 0; --k) {\n        const T left = a[k];",
    ),
    "input rows without their stride": (
        "csrc/core/tile.h",
        "row * x.row_stride * bytes;",
        "row * x.cols * bytes;",
    ),
    "padding columns hold NaN": (
        "csrc/core/pack_kernel.cpp",
        "++i) dst[i] = T(0);",
        '++i) dst[i] = T(__builtin_nan(""));',
    ),
    "first norm of two skipped": (
        "csrc/project_normalize/cpu_kernel.cpp",
        "finish_stage(a.first, 0, n, mid, mid_ld, nullptr);",
        ";",
    ),
    "second thread skips a panel": (
        "csrc/project_normalize/cpu_kernel.cpp",
        "stage_columns(a.second, mid_view, plan.out_panels * me / all,",
        "stage_columns(a.second, mid_view, plan.out_panels * me / all + (me == 1),",
    ),
    "bfloat16 truncated": ("csrc/core/simd.h", "(u + 0x7fffu + ((u >> 16) & 1u)) >> 16", "u >> 16"),
    "bfloat16 ties go up": (
        "csrc/core/simd.h",
        "(u + 0x7fffu + ((u >> 16) & 1u)) >> 16",
        "(u + 0x8000u) >> 16",
    ),
    "bfloat16 NaN rounds to infinity": (
        "csrc/core/simd.h",
        "const bool nan = (u & 0x7fffffffu) > 0x7f800000u;",
        "const bool nan = false;",
    ),
    "float16 subnormals flushed": (
        "csrc/core/simd.h",
        "float_to_bits(bits_to_float(a) + 0.5f) - 0x3f000000u",
        "0u",
    ),
    "float16 overflow boundary one step off": ("csrc/core/simd.h", "a >= 0x477ff000u", "a >= 0x48800000u"),
    "a row's error halved": (
        "csrc/core/quantize.h",
        "row.error = (row.error + gamma * (row.norm + row.error)) * kRounds + kFlushed;",
        "row.error = (0.5f * row.error + gamma * (row.norm + row.error)) * kRounds + kFlushed;",
    ),
    "a row's norm halved": (
        "csrc/core/quantize.h",
        "bounds[kPanel + r] = row.norm;",
        "bounds[kPanel + r] = 0.5f * row.norm;",
    ),
    "the rounding of a score left out of its bound": (
        "csrc/core/quantize.h",
        "const float gamma = score_rounding(d);",
        "const float gamma = 0.0f;",
    ),
    "a row that cannot be coded has a bound": (
        "csrc/core/quantize.h",
        "return {0.0f, 0.0f, __builtin_inff(), __builtin_inff(), 0, false};",
        "return {0.0f, 0.0f, 0.0f, __builtin_inff(), 0, false};",
    ),
    "a query's rest halved": (
        "csrc/core/code_stream.h",
        "{coded.error, rest}, coded.length};",
        "{0.5f * coded.error, rest}, coded.length};",
    ),
    "a query's second rest halved": (
        "csrc/core/code_stream.h",
        "{coded.error, rest}, coded.length};",
        "{coded.error, 0.5f * rest}, coded.length};",
    ),
    "a query's length halved": (
        "csrc/core/code_stream.h",
        "{coded.error, rest}, coded.length};",
        "{coded.error, rest}, 0.5f * coded.length};",
    ),
    "queries start at the sum of others": (
        "csrc/core/code_stream.h",
        "first_sum<D>(coded.sum);",
        "first_sum<D>(coded.sum + 1);",
    ),
    "second plane twice as heavy": (
        "csrc/topk/filter_kernel.cpp",
        "constexpr float kShare = 1.0f / kPlane;",
        "constexpr float kShare = 2.0f / kPlane;",
    ),
    "ties by the upper end dropped": (
        "csrc/core/select.cpp",
        "return i.upper < least; });",
        "return i.upper <= least; });",
    ),
    "a known score dropped for a later row": (
        "csrc/core/select.cpp",
        "(a.lower == b.lower && a.row < b.row);\n                   });",
        "(a.lower == b.lower && a.row > b.row);\n                   });",
    ),
    "excluded rows by position in the block": (
        "csrc/topk/filter_kernel.cpp",
        "args.exclude[queries.index[query0 + query]]",
        "args.exclude[query]",
    ),
    "rows before the range take part": (
        "csrc/topk/filter_kernel.cpp",
        "if (row < args.begin) mask &= ~first_columns(args.begin - row);",
        "",
    ),
    "scores not counted for their keys": (
        "csrc/rank_counts/symmetric_kernel.cpp",
        "if (before > 0 && own < counting.queries) {",
        "if (before > 1 << 20 && own < counting.queries) {",
    ),
    "the diagonal counted for its keys as well": (
        "csrc/rank_counts/symmetric_kernel.cpp",
        "const int64_t before = own - row < rows ? own - row : rows;",
        "const int64_t before = own + 1 - row < rows ? own + 1 - row : rows;",
    ),
    "scores before the diagonal counted for their queries": (
        "csrc/rank_counts/symmetric_kernel.cpp",
        "const int64_t begin = first + r > key ? first + r - key : 0;",
        "const int64_t begin = skip * kPanel;",
    ),
    "a panel behind the diagonal too many skipped": (
        "csrc/rank_counts/symmetric_kernel.cpp",
        "const int64_t skip = first > key ? (first - key) / kPanel : 0;",
        "const int64_t skip = first > key ? (first - key) / kPanel + 1 : 0;",
    ),
    "rows that ask nothing are no keys": (
        "csrc/rank_counts/symmetric_kernel.cpp",
        "const int64_t groups = (g - base + group - 1) / group;",
        "const int64_t groups = (n - base + group - 1) / group;",
    ),
    "a tie counted as a gap": (
        "csrc/rank_counts/rank_row.h",
        "return gap + (tie ? row.size + 1 : 0);",
        "return gap + (tie && false ? row.size + 1 : 0);",
    ),
    "width of x not checked": (
        "csrc/project_normalize/cpu_kernel.cpp",
        "require(stage.matrix.rows == k,",
        "require(k > 0,",
    ),
    "changing operand without its last panel": (
        "csrc/core/product_kernel.cpp",
        "item < panels * groups; ++item) {",
        "item < (panels - (panels > 1)) * groups; ++item) {",
    ),
    "sums over K begin anew in each block": (
        "csrc/core/product_kernel.cpp",
        "k0 > 0 || p.accumulate, row0",
        "p.accumulate, row0",
    ),
    "rows of a tile lie closer where columns end": (
        "csrc/core/product_kernel.cpp",
        "const T* from = tile + r * kPanel;",
        "const T* from = tile + r * count;",
    ),
    "transposed rows of the first block": (
        "csrc/core/product_kernel.cpp",
        "element<T>(p.a, k0 + k, row0));",
        "element<T>(p.a, k, row0));",
    ),
}


# The kernel that is compiled anew for a broken header: the one that includes it.
KERNELS = {
    "csrc/core/quantize.h": "csrc/quantize_rows/cpu_kernel.cpp",
    "csrc/core/code_stream.h": "csrc/topk/filter_kernel.cpp",
    "csrc/rank_counts/rank_row.h": "csrc/rank_counts/symmetric_kernel.cpp",
}
KERNEL = "csrc/project_normalize/cpu_kernel.cpp"  # of all others


@pytest.fixture(scope="module")
def green() -> tuple[Path, dict[str, str]]:
    """The core built for the portable set, green before anything is broken; and each file's command."""
    built = core_test(
        *PORTABLE_ONLY, "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", fast=True
    )
    assert run(built / "build" / "test_core").returncode == 0
    listed = json.loads((built / "build" / "compile_commands.json").read_text())
    return built, {entry["file"].rpartition("/source/")[2]: entry["command"] for entry in listed}


def compile_broken(name: str, green: tuple[Path, dict[str, str]], folder: Path) -> Path:
    """The program with one file compiled anew: the broken one, or the kernel that includes it.

    The broken object stands first, so that the linker takes inline functions from there.
    """
    built, commands = green
    file, text, replacement = MUTATIONS[name]
    original = (built / "source" / file).read_text()
    assert original.count(text) == 1, f"{file} holds {original.count(text)} times: {text!r}"
    unit = file if file in commands else KERNELS.get(file, KERNEL)
    for copied in (unit, file):
        (folder / copied).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(built / "source" / copied, folder / copied)
    (folder / file).write_text(original.replace(text, replacement))
    compiler, *words = shlex.split(commands[unit])
    target = words[words.index("-o") + 1]
    words[words.index("-o") + 1], words[words.index("-c") + 1] = str(folder / "broken.o"), str(folder / unit)
    done = run(compiler, f"-I{folder / 'csrc'}", *words, cwd=built / "build")
    assert done.returncode == 0, f"the mutation does not compile:\n{done.stdout}{done.stderr}"
    objects = [o for o in (built / "build").rglob("*.o") if o != built / "build" / target]
    program = folder / "test_core"
    done = run(compiler, folder / "broken.o", *objects, "-fopenmp", "-o", program)
    assert done.returncode == 0, done.stdout + done.stderr
    return program


@pytest.mark.parametrize(  # one in four in continuous integration, all in test-all
    "name", [pytest.param(n, marks=[pytest.mark.campaign] if i % 4 else []) for i, n in enumerate(MUTATIONS)]
)
def test_mutation_is_caught(name: str, green: tuple[Path, dict[str, str]], tmp_path: Path):
    program = compile_broken(name, green, tmp_path)
    result = run(program, "--stop-at-first", timeout=120)
    assert result.returncode != 0, "the kernel is broken and the test is green"
