"""How to break the products of few rows: file, text, what stands there instead, case, order."""

from __future__ import annotations

_FEW, _FEW_PARTS = "tower_descent/cuda_few_rows_tile.cuh", "tower_descent/cuda_few_rows.cuh"
FEW_ROWS_MUTATIONS = {
    f"few_rows: {name}": (file, text, instead, "few_rows", order)
    for name, file, text, instead, order in (
        (
            "tile overwritten while others multiply",
            _FEW,
            "__syncthreads();  // statistics are merged, the last tile has been multiplied",
            ";",
            "shuffled",
        ),
        ("tile multiplied before it is complete", _FEW, "__syncthreads();  // the tile is complete", ";",
         "shuffled"),
        ("sums not fenced before the ticket", _FEW,
         "__threadfence();  // this thread's sums are visible to every block that sees its ticket", "",
         "ascending"),
        ("ticket taken before the sums are written", _FEW,
         "sees its ticket\n  __syncthreads();", "sees its ticket", "shuffled"),
        ("sums of others read without a fence", _FEW,
         "if (stage->is_last != 1) return false;\n  __threadfence();",
         "if (stage->is_last != 1) return false;", "ascending"),
        ("flag read without a barrier", _FEW,
         "== splits - 1;\n  __syncthreads();", "== splits - 1;", "descending"),
        ("tickets not given back", _FEW, "*ticket = 0;", ";", "ascending"),
        ("a part of K left out", _FEW, "part < splits; ++part", "part < splits - (splits > 2); ++part",
         "ascending"),
        ("a step of a part left out", _FEW, "(at.part + 1) * steps / splits;",
         "(at.part + 1) * steps / splits - (steps > splits);", "ascending"),
        ("last row of a tile left out", _FEW, "r < rows; r += kFewThreads / kWarp",
         "r < rows - 1; r += kFewThreads / kWarp", "ascending"),
        ("columns of the matrix for rows", _FEW,
         "std::conditional_t<kTransposed, wmma::col_major, wmma::row_major>",
         "std::conditional_t<!kTransposed, wmma::col_major, wmma::row_major>", "ascending"),
        ("small parts of float32 forgotten", _FEW,
         "parts[1] = wmma::__float_to_tf32(value - parts[0]);", "parts[1] = 0;", "ascending"),
        ("one column too many", _FEW_PARTS, "const bool live = lane < left;",
         "const bool live = lane <= left;", "ascending"),
        ("deviations about the tile's own mean", _FEW_PARTS, "second += count * apart * apart;",
         "second += 0 * apart;", "ascending"),
        ("last tile's statistics left out", _FEW_PARTS,
         "const int tiles = (p.k + kFewCols - 1) / kFewCols;", "const int tiles = p.k / kFewCols;",
         "ascending"),
        ("gradient without the mean of u·x̂", _FEW_PARTS, "- mean_u - hat * mean_ux", "- mean_u",
         "ascending"),
        ("gradient written by nobody", _FEW_PARTS, "if (writes) store(value,", "if (p.k < 0) store(value,",
         "ascending"),
        ("residual left out", _FEW_PARTS, "if (p.behind == Behind::kSum) sum += other;", "", "ascending"),
        ("slope left out", _FEW_PARTS, "if (p.behind == Behind::kActivateGrad) sum *=",
         "if (p.behind == Behind::kActivateGrad) sum += 0 *", "ascending"),
        ("statistics over half a warp's columns", _FEW_PARTS,
         "second = warp_sum(live ? (y - first) * (y - first) : 0.0f);",
         "second = warp_sum(live && lane < 16 ? (y - first) * (y - first) : 0.0f);", "ascending"),
    )
}  # fmt: skip
