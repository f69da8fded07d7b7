// tower_step (CUDA): an inversion step of few rows, or a part of it, in one cooperative launch.
//
// A step is a list of phases, each one of the launches of this folder with the arguments that it
// has by itself. All blocks take a phase's tiles in turn, meet (core/grid_barrier.cuh), and go on
// to the next. Tiles, their parts of K and the order of their sums are those of the launches,
// however many blocks there are: the same bits.
//
// An attention of few samples need not wait for all blocks: a block that finishes a tile of the
// product before counts it for the heads whose columns it holds, and whoever counts a head's last
// tile has that head's attention next, while others still multiply.
//
// The list lies in the device's memory, written once for a plan whose buffers stay where they are.
// What a call sets, the loss's and the update's numbers, comes with the launch.
#pragma once
#include <variant>

#include "core/view.h"
#include "tower_descent/cuda_attention.h"
#include "tower_descent/cuda_descend.h"
#include "tower_descent/cuda_few_rows.h"
#include "tower_descent/cuda_layer_norm.h"

namespace semobridge {

struct StepLoss {};    // cosine_loss, with the launch's arguments
struct StepUpdate {};  // adamw, likewise
using StepPhase = std::variant<LayerNormCudaArgs, LayerNormGradCudaArgs, FewRowsCudaArgs,
                               AttentionCudaArgs, AttentionGradCudaArgs, StepLoss, StepUpdate>;

int64_t step_phase_bytes();
// As the kernel reads it, into step_phase_bytes() of the host's memory. Throws
// std::invalid_argument where rows are not aligned to 16 bytes, and where they are float32.
void write_step_phase(const StepPhase& phase, void* to);
// The largest number of tiles of these phases: more blocks would only wait.
int64_t step_tiles(const void* phases, int64_t bytes);

constexpr int kMostStepHeads = 64;
// Joins each attention of a list to the product before it, where a block has a head's samples at
// once; `done` [kMostStepHeads] zeros of the device's memory, and zeros again. Returns how many.
int64_t join_step_heads(void* phases, int64_t bytes, int* done);

struct TowerStepCudaArgs {
  DType dtype = DType::kFloat32;
  const void* phases = nullptr;  // the list, on the device
  int64_t first = 0, last = 0;   // phases [first, last) of it
  CosineLossCudaArgs loss;       // of a StepLoss
  AdamwCudaArgs update;          // of a StepUpdate
  int64_t blocks = 0;            // at most tower_step_blocks; the same in every launch of `arrived`
  uint64_t* arrived = nullptr;   // [1] a zero before the first launch
};
void tower_step_cuda(const TowerStepCudaArgs& args, int device, void* stream);
// Blocks that the device holds at once; 0: it takes no cooperative launches, or not in this type.
int64_t tower_step_blocks(DType dtype, int device);

}  // namespace semobridge
