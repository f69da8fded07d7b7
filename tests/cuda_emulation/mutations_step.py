"""How to break a step of one launch: file, text, what stands there instead, case, order."""

from __future__ import annotations

_STEP, _PHASES, _BARRIER = (
    "tower_descent/cuda_step.cu",
    "tower_descent/cuda_step.cuh",
    "core/grid_barrier.cuh",
)
STEP_MUTATIONS = {
    f"step: {name}": (file, text, instead, "step", order)
    for name, file, text, instead, order in (
        ("barrier between phases left out", _STEP, "grid_barrier(arrived, &target);", ";", "ascending"),
        ("phases in another order", _STEP, "run_phase(phases[i], ends, room,",
         "run_phase(phases[i ^ (i == 4 || i == 5)], ends, room,", "ascending"),
        ("tiles by the wrong stride", _PHASES, "tile += static_cast<int>(gridDim.x)",
         "tile += static_cast<int>(gridDim.x) + 1", "ascending"),
        ("the second tile of rows forgotten", _PHASES, "at.row_tile = tile / at.tiles % at.row_tiles;",
         "at.row_tile = 0;", "ascending"),
        ("parts of K mistaken for rows", _PHASES, "at.part = tile / at.tiles / at.row_tiles;",
         "at.part = 0;", "ascending"),
        ("matrices the wrong way round", _PHASES, "if (phase->transposed != 0)",
         "if (phase->transposed == 0)", "ascending"),
        ("wide heads cut", _PHASES, "phase.params.width <= 8 * few_attention::kLanes",
         "phase.params.width <= 16 * few_attention::kLanes", "ascending"),
        ("the last values not updated", _PHASES, "(size + kStepThreads - 1) / kStepThreads",
         "size / kStepThreads", "ascending"),
        ("a head taken a tile early", _PHASES, "before + 1 != heads.tiles_of", "before + 2 != heads.tiles_of",
         "ascending"),
        ("a head's count kept", _PHASES, "heads.done[head] = 0;", ";", "ascending"),
        ("a cut between product and attention forgotten", _STEP, "i != first && phases[i].by_head != 0",
         "phases[i].by_head != 0", "ascending"),
        ("heads of a tile's first column alone", _PHASES, "run <= last / heads.cols",
         "run <= first / heads.cols", "ascending"),
        ("one block is not waited for", _BARRIER, "< *target) __nanosleep(kNap);",
         "< *target - 1) __nanosleep(kNap);", "shuffled"),
        ("the count of the first meeting kept", _BARRIER, ": *target + blocks;", ": *target;", "shuffled"),
        ("counted before the writes", _BARRIER, "__threadfence();               // what this thread wrote",
         "//", "ascending"),
        ("counted before the block is there", _BARRIER,
         "who sees its block counted\n  __syncthreads();", "who sees its block counted", "shuffled"),
        ("the block goes on before its first thread", _BARRIER,
         "__nanosleep(kNap);\n  }\n  __syncthreads();", "__nanosleep(kNap);\n  }", "descending"),
    )
}  # fmt: skip
