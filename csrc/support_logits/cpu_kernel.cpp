// support_logits for one instruction set; see support_logits/support_logits.h for what it computes.
//
// The epilogue turns a tile of scores into terms, transposes it in registers so that the lanes are
// queries, and then adding a key to its class is one vector addition. A class that lies in one
// chunk goes straight to `out`; the at most two that reach over a chunk's ends leave a partial sum
// each.
#include <omp.h>

#include "core/interrupt.h"
#include "core/stream.h"
#include "core/table.h"
#include "core/vexp.h"
#include "support_logits/support_logits.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kChunk = kSupportChunk;
static_assert(kChunk >= kMaxGroup, "a group does not cross chunks");

// Where a run of keys of one class ends inside a group, and where its sum goes then.
struct Segment {
  int32_t end;   // column of the group
  int32_t slot;  // 0, 1: partial sum of the chunk; -1: out; -2: the class goes on in the next group
  int64_t label;
};

// The class that holds position `key` of the class order.
SB_INLINE int64_t class_at(const int64_t* offsets, int64_t num_classes, int64_t key) {
  int64_t low = 0, high = num_classes;  // offsets[low] <= key < offsets[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] <= key) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T>
struct SupportEpilogue {
  using V = typename Simd<T>::Vec;
  static constexpr int kLanes = Simd<T>::kLanes;
  static constexpr int kRowVecs = (kRows + kLanes - 1) / kLanes;

  const SupportLogitsArgs& args;
  T* out;        // of the block's first query
  T* sums;       // [tiles][kRowVecs * kLanes] of the class in progress
  T* partials;   // [2][rows] of this chunk
  int64_t rows;  // of the block
  int64_t chunk_begin, chunk_end;
  int64_t label;  // class in progress
  int64_t segments_count = 0;
  Segment segments[kMaxGroup];
  T weights[kMaxGroup];

  SupportEpilogue(const SupportLogitsArgs& a, T* block_out, T* tile_sums, T* chunk_partials,
                  int64_t block_rows, int64_t begin, int64_t end)
      : args(a),
        out(block_out),
        sums(tile_sums),
        partials(chunk_partials),
        rows(block_rows),
        chunk_begin(begin),
        chunk_end(end),
        label(class_at(a.offsets, a.num_classes, begin)) {}

  void begin_group(int64_t key, int64_t count) {
    segments_count = 0;
    for (int64_t at = key; at < key + count;) {
      while (args.offsets[label + 1] <= at) ++label;
      const int64_t begin = args.offsets[label], end = args.offsets[label + 1];
      Segment s{static_cast<int32_t>((end < key + count ? end : key + count) - key), -1, label};
      if (end > key + count && key + count < chunk_end) {
        s.slot = -2;
      } else if (begin < chunk_begin) {
        s.slot = 0;
      } else if (end > chunk_end) {
        s.slot = 1;
      }
      segments[segments_count++] = s;
      at = key + s.end;
    }
    if (args.weights == nullptr) return;
    const char* w = static_cast<const char*>(args.weights);  // of a mapped file: at any byte
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = args.order != nullptr ? args.order[key + i] : key + i;
      __builtin_memcpy(weights + i, w + row * static_cast<int64_t>(sizeof(T)), sizeof(T));
    }
    for (int64_t i = count; i % kPanel != 0; ++i) weights[i] = T(0);
  }

  void terms(T* scores, int count, int64_t columns, int64_t ld) const {
    const T beta = static_cast<T>(args.beta);
    for (int r = 0; r < count; ++r) {
      T* row = scores + r * ld;
      for (int64_t i = 0; i < columns; i += kLanes) {
        V e = vexp<T>(load(row + i) * beta - beta);
        if (args.weights != nullptr) e *= load(weights + i);
        store(row + i, e);
      }
    }
  }

  void finish(const Segment& s, V sum, int64_t row, int64_t count) {
    T lane[kLanes];
    store(lane, sum);
    if (s.slot < 0) {
      T* dst = out + row * args.num_classes + s.label;
      for (int64_t i = 0; i < count; ++i) dst[i * args.num_classes] = lane[i];
    } else {
      T* dst = partials + s.slot * rows + row;
      for (int64_t i = 0; i < count; ++i) dst[i] = lane[i];
    }
  }

  void tile(int64_t index, int64_t row, int count, int64_t, int64_t columns, T* scores,
            int64_t ld) {
    terms(scores, count, columns, ld);
    for (int rv = 0; rv < kRowVecs && rv * kLanes < count; ++rv) {
      const int left = count - rv * kLanes < kLanes ? count - rv * kLanes : kLanes;
      T* running = sums + (index * kRowVecs + rv) * kLanes;
      V sum = load(running);
      const Segment* segment = segments;
      for (int64_t col = 0; col < columns; col += kLanes) {
        V v[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          v[r] = r < left ? load(scores + (rv * kLanes + r) * ld + col) : V{};
        }
        transpose<T>(v);
        const int64_t last = columns - col < kLanes ? columns - col : kLanes;
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) {
          if (j >= last) break;
          sum += v[j];
          if (col + j + 1 == segment->end && segment->slot != -2) {
            finish(*segment++, sum, row + rv * kLanes, left);
            sum = V{};
          }
        }
      }
      store(running, sum);
    }
  }
};

// Adds up the parts of a class that spans chunks; `first` is the chunk it begins in.
template <class T>
void join_parts(const SupportLogitsArgs& a, const T* partials, int64_t rows, int64_t label,
                int64_t first, int64_t last, T* out) {
  for (int64_t r = 0; r < rows; ++r) {
    double sum = partials[(2 * first + 1) * rows + r];
    for (int64_t chunk = first + 1; chunk <= last; ++chunk) sum += partials[2 * chunk * rows + r];
    out[r * a.num_classes + label] = static_cast<T>(sum);
  }
}

template <class T>
void support_logits_typed(const SupportLogitsArgs& a) {
  using Epilogue = SupportEpilogue<T>;
  const int64_t n = a.queries.rows, s = a.keys.rows, k = a.keys.cols;
  const int64_t chunks = (s + kChunk - 1) / kChunk;
  const int64_t blocks = (n + kSupportBlock - 1) / kSupportBlock;
  const int64_t block_rows = (n + blocks - 1) / blocks;
  const Rows queries{a.queries}, keys{a.keys, a.order};
  T* packed = thread_scratch<T>().reserve(block_rows * k);
  T* partials = static_cast<T*>(a.workspace);
  const int team = team_size(n, s, k, a.threads);
  Watch watch;

#pragma omp parallel num_threads(team) if (team > 1)
  {
    const int64_t sums_size = (block_rows / kRows + 1) * Epilogue::kRowVecs * Epilogue::kLanes;
    T* scratch = thread_row_scratch<T>().reserve(stream_scratch<T>(k) + sums_size);
    T* sums = scratch + stream_scratch<T>(k);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t row0 = share_begin(n, blocks, b), rows = share_begin(n, blocks, b + 1) - row0;
      QueryBlock<T> block(packed, rows, k);
      T* out = static_cast<T*>(a.out) + row0 * a.num_classes;
#pragma omp for schedule(static)
      for (int64_t t = 0; t < block.tiles; ++t) block.pack(queries, row0, t);
#pragma omp for schedule(dynamic, 1)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        if (watch.stop()) continue;
        const int64_t begin = chunk * kChunk, end = begin + kChunk < s ? begin + kChunk : s;
        Epilogue epilogue(a, out, sums, partials + 2 * chunk * rows, rows, begin, end);
        for (int64_t i = 0; i < sums_size; ++i) sums[i] = T(0);
        stream_keys(block, 0, block.tiles, keys, begin, end, scratch, epilogue);
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        // Each spanning class is joined once: by the second chunk it lies in.
        const int64_t label = class_at(a.offsets, a.num_classes, chunk * kChunk);
        const int64_t first = a.offsets[label] / kChunk;
        if (first + 1 != chunk) continue;
        const int64_t last = (a.offsets[label + 1] - 1) / kChunk;
        join_parts(a, partials, rows, label, first, last, out);
      }
    }
  }
  watch.finish();
}

// Both are read as indices while the keys stream: a wrong one must not reach the memory.
void check_order(const SupportLogitsArgs& a) {
  const int64_t s = a.keys.rows;
  require(a.offsets != nullptr && a.offsets[0] == 0 && a.offsets[a.num_classes] == s,
          "support_logits: offsets must cover the keys");
  bool inside = true;
  for (int64_t c = 0; c < a.num_classes; ++c) inside &= a.offsets[c] <= a.offsets[c + 1];
  require(inside, "support_logits: offsets must not fall");
  for (int64_t i = 0; a.order != nullptr && i < s; ++i) {
    inside &= a.order[i] >= 0 && a.order[i] < s;
  }
  require(inside, "support_logits: order must hold rows of the keys");
}

}  // namespace

void support_logits_entry(const SupportLogitsArgs& a) {
  if (a.queries.rows == 0 || a.keys.rows == 0 || a.num_classes == 0) return;
  require(a.queries.cols == a.keys.cols && a.keys.cols > 0,
          "support_logits: queries and keys must have the same width");
  check_order(a);
  require(a.out != nullptr && a.workspace != nullptr, "support_logits: out and workspace needed");
  if (compute_dtype(a.queries.dtype, a.keys.dtype) == DType::kFloat64) {
    support_logits_typed<double>(a);
  } else {
    support_logits_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge
