"""How to break the search for the k best: file, text, what stands there instead, cases, order."""

from __future__ import annotations

TOPK_MUTATIONS = {
    "topk: last group of scores skipped": (
        "topk/cuda.cu",
        "const int64_t groups = (cols + kGroup - 1) / kGroup;",
        "const int64_t groups = cols / kGroup;",
        "topk",
        "ascending",
    ),
    "topk: vectors of a group overlap": (
        "topk/cuda.cu",
        "[static_cast<int64_t>(i) * kWarp];",
        "[static_cast<int64_t>(i / 2) * kWarp];",
        "topk",
        "ascending",
    ),
    "topk: a short group is read from its middle": (
        "topk/cuda.cu",
        "value[i] = col < cols ? from[col]",
        "value[i] = col < cols ? from[col - col % 4]",
        "topk",
        "ascending",
    ),
    "topk: a group is skipped for its last score": (
        "topk/cuda.cu",
        "for (float v : value) largest",
        "for (float v : value) largest = v, largest",
        "topk",
        "ascending",
    ),
    "topk: a level group is skipped while places are free": (
        "topk/cuda.cu",
        "beats(largest, lowest, list.worst, list.worst_row)",
        "largest > list.worst",
        "topk",
        "ascending",
    ),
    "topk: values do not move up": (
        "topk/cuda.cu",
        "value[i - 1] = value[i];",
        "value[i] = value[i];",
        "topk",
        "ascending",
    ),
    "topk: lists are read before they are written": (
        "topk/cuda.cu",
        "    __syncthreads();\n    if (warp < half)",
        "    if (warp < half)",
        "topk",
        "ascending",
    ),
    "topk: one list of a pair is lost": (
        "topk/cuda.cu",
        "if (warp >= half && warp < 2 * half)",
        "if (warp > half && warp < 2 * half)",
        "topk",
        "ascending",
    ),
    "topk: the warps of a merge share a group": (
        "topk/cuda.cu",
        "static_cast<int64_t>(warp) * kWarp, static_cast",
        "static_cast<int64_t>(warp / 2) * kWarp, static_cast",
        "topk",
        "ascending",
    ),
    "topk: carry between registers dropped": (
        "topk/cuda.cu",
        "if (lane == 0) {",
        "if (lane == 1) {",
        "topk",
        "ascending",
    ),
    "topk: the higher row wins a tie": (
        "topk/cuda.cu",
        "(left == right && row < other)",
        "(left == right && row > other)",
        "topk",
        "ascending",
    ),
    "topk: NaN beats everything": (
        "topk/cuda.cu",
        "return score == score ? score : -INFINITY;",
        "return score == score ? score : INFINITY;",
        "topk",
        "ascending",
    ),
    "topk: excluded row let in": (
        "topk/cuda.cu",
        "exclude[row] - first;",
        "exclude[row];",
        "topk",
        "ascending",
    ),
    "topk: shuffle in a divergent branch": (
        "topk/cuda.cu",
        "const bool stays = beats(score[i], row[i], s, r);",
        "const bool stays = beats(score[i], row[i], s, r);\n      if (stays) return;",
        "topk",
        "ascending",
    ),
}
