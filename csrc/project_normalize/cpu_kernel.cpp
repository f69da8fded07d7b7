// project_normalize for one instruction set; see project_normalize/project_normalize.h for what it
// computes.
//
// Many rows: a block of a few micro-tiles of rows runs both products and both normalisations while
// its rows sit in the second-level cache, and only the finished rows reach memory. Few rows: the
// threads share out the panels of columns instead, with a barrier where a norm needs the whole row.
#include <omp.h>

#include "core/huge_pages.h"
#include "core/interrupt.h"
#include "core/scratch.h"
#include "core/table.h"
#include "core/team.h"
#include "project_normalize/project_rows.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kTilesPerBlock = 4;    // 56 rows x 512 columns: 112 KiB, inside L2
constexpr int64_t kFewRows = 2 * kRows;  // below: share out columns, not rows
// One image at D = 512 is 8 µs of work: a second thread would save 3 of them on an idle machine and
// cost hundreds where the other core is busy.
constexpr int64_t kProductsPerThread = 768 * 1024;
constexpr int64_t kHugeBytes = 8 << 20;  // outputs from here on: ask for 2 MiB pages

template <class T>
struct Plan {
  const ProjectNormalizeArgs& args;
  int64_t k, mid_panels, out_panels;  // of the first input, the first output, the last output
  bool two;
  // Of multiply-adds, padding included.
  int team() const {
    const double first = static_cast<double>(k) * mid_panels * kPanel;
    const double second =
        two ? static_cast<double>(args.second.matrix.rows) * out_panels * kPanel : 0;
    return worth_threads(args.x.rows * (first + second), kProductsPerThread, args.threads);
  }
  explicit Plan(const ProjectNormalizeArgs& a)
      : args(a),
        k(a.x.cols),
        mid_panels(panels_of(a.first.matrix.cols)),
        out_panels(a.second.matrix.data != nullptr ? panels_of(a.second.matrix.cols) : 0),
        two(a.second.matrix.data != nullptr) {}
};

// Rows [row0, row0 + rows) from input to output on one thread.
template <class T>
void project_block(const Plan<T>& plan, int64_t row0, int64_t rows, Scratch<T>& scratch) {
  const ProjectNormalizeArgs& a = plan.args;
  const int64_t tiles = (rows + kRows - 1) / kRows;
  const int64_t k_max = plan.two && a.second.matrix.rows > plan.k ? a.second.matrix.rows : plan.k;
  const int64_t mid_ld = plan.mid_panels * kPanel, out_ld = plan.out_panels * kPanel;
  T* packed = scratch.reserve(rows * (k_max + mid_ld + out_ld));
  T* mid = packed + rows * k_max;
  T* out = mid + rows * mid_ld;

  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = share_begin(rows, tiles, i);
    const int count = static_cast<int>(share_begin(rows, tiles, i + 1) - begin);
    pack_rows(a.x, row0 + begin, count, packed + begin * plan.k);
  }
  multiply_block(packed, rows, tiles, a.first.matrix, mid, mid_ld);
  finish_stage(a.first, row0, rows, mid, mid_ld, plan.two ? nullptr : a.norms);
  if (!plan.two) {
    write_rows(a.out, row0, rows, mid, mid_ld);
    return;
  }
  const ConstMatrix mid_view{mid, dtype_of<T>(), rows, a.first.matrix.cols, mid_ld};
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = share_begin(rows, tiles, i);
    const int count = static_cast<int>(share_begin(rows, tiles, i + 1) - begin);
    pack_rows(mid_view, begin, count, packed + begin * mid_view.cols);
  }
  multiply_block(packed, rows, tiles, a.second.matrix, out, out_ld);
  if (a.residual) subtract_from_input(a.x, row0, rows, out, out_ld, packed);
  finish_stage(a.second, row0, rows, out, out_ld, a.norms);
  write_rows(a.out, row0, rows, out, out_ld);
}

template <class T>
void project_many(const ProjectNormalizeArgs& a) {
  const Plan<T> plan(a);
  const int64_t block = kTilesPerBlock * kRows;
  const int team = plan.team();
  int64_t blocks = (a.x.rows + block - 1) / block;
  blocks = (blocks + team - 1) / team * team;  // as many for each thread
  Watch watch;
#pragma omp parallel num_threads(team) if (team > 1)
  {
    Scratch<T>& scratch = thread_scratch<T>();
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t begin = share_begin(a.x.rows, blocks, i);
      const int64_t end = share_begin(a.x.rows, blocks, i + 1);
      if (end > begin && !watch.stop()) project_block(plan, begin, end - begin, scratch);
    }
  }
  watch.finish();
}

// This thread's part of the columns of one stage, for all (few) rows.
template <class T>
SB_INLINE void stage_columns(const ProjectStage& stage, const ConstMatrix& input, int64_t p0,
                             int64_t p1, T* packed, T* shared, int64_t ld) {
  const int64_t k = stage.matrix.rows;
  const T* panels = static_cast<const T*>(stage.matrix.data) + p0 * k * kPanel;
  for (int64_t r = 0; r < input.rows; r += kRows) {
    const int count = static_cast<int>(input.rows - r < kRows ? input.rows - r : kRows);
    pack_rows(input, r, count, packed);
    tile_product(packed, count, panels, p1 - p0, k, shared + r * ld + p0 * kPanel, ld);
  }
}

template <class T>
void project_few(const ProjectNormalizeArgs& a) {
  const Plan<T> plan(a);
  const int64_t n = a.x.rows;
  const int64_t mid_ld = plan.mid_panels * kPanel, out_ld = plan.out_panels * kPanel;
  const int64_t k_max = plan.two && a.second.matrix.rows > plan.k ? a.second.matrix.rows : plan.k;
  const int64_t last_panels = plan.two ? plan.out_panels : plan.mid_panels;
  T* shared = thread_scratch<T>().reserve(n * (mid_ld + out_ld));
  T* mid = shared;
  T* out = plan.two ? shared + n * mid_ld : mid;
  int team = plan.team();
  if (team > last_panels) team = static_cast<int>(last_panels);

#pragma omp parallel num_threads(team) if (team > 1)
  {
    // libgomp may give fewer threads than asked for, so shares follow the team that came.
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    T* packed = thread_row_scratch<T>().reserve(kRows * k_max);
    stage_columns(a.first, a.x, plan.mid_panels * me / all, plan.mid_panels * (me + 1) / all,
                  packed, mid, mid_ld);
#pragma omp barrier
    if (plan.two) {
#pragma omp single
      finish_stage(a.first, 0, n, mid, mid_ld, nullptr);
      const ConstMatrix mid_view{mid, dtype_of<T>(), n, a.first.matrix.cols, mid_ld};
      stage_columns(a.second, mid_view, plan.out_panels * me / all,
                    plan.out_panels * (me + 1) / all, packed, out, out_ld);
    }
  }
  T* input = thread_row_scratch<T>().reserve(kRows * k_max);
  if (a.residual) subtract_from_input(a.x, 0, n, out, out_ld, input);
  finish_stage(plan.two ? a.second : a.first, 0, n, out, plan.two ? out_ld : mid_ld, a.norms);
  write_rows(a.out, 0, n, out, plan.two ? out_ld : mid_ld);
}

template <class T>
void project_normalize_typed(const ProjectNormalizeArgs& a) {
  const int64_t bytes = a.out.rows * a.out.row_stride * dtype_size(a.out.dtype);
  // A fresh 128 MiB output faults in 32768 small pages, which costs a tenth of the whole product.
  if (bytes >= kHugeBytes) prefer_huge_pages(a.out.data, bytes);
  if (a.x.rows <= kFewRows) {
    project_few<T>(a);
  } else {
    project_many<T>(a);
  }
}

void check_stage(const ProjectStage& stage, int64_t n, int64_t k, DType compute) {
  require(stage.matrix.rows == k,
          "project_normalize: matrix must have as many rows as its input has columns");
  require(stage.matrix.dtype == compute,
          "project_normalize: packed matrix must have the compute dtype");
  require(reinterpret_cast<uintptr_t>(stage.matrix.data) % 64 == 0,
          "project_normalize: packed matrix must be 64-byte aligned");
  if (stage.bias.data != nullptr) {
    require(stage.bias.cols == stage.matrix.cols,
            "project_normalize: bias must have as many columns as matrix");
    require(stage.bias.dtype == compute, "project_normalize: bias must have the compute dtype");
    require(stage.bias.rows == n || stage.bias.row_stride == 0,
            "project_normalize: bias must have one row or N");
  }
}

void check(const ProjectNormalizeArgs& a) {
  const DType compute = compute_dtype(a.x.dtype);
  check_stage(a.first, a.x.rows, a.x.cols, compute);
  int64_t out_cols = a.first.matrix.cols;
  if (a.second.matrix.data != nullptr) {
    check_stage(a.second, a.x.rows, a.first.matrix.cols, compute);
    out_cols = a.second.matrix.cols;
  }
  require(a.out.rows == a.x.rows && a.out.cols == out_cols,
          "project_normalize: out must be [N, O]");
  require(!a.residual || (a.second.matrix.data != nullptr && out_cols == a.x.cols),
          "project_normalize: residual needs two stages that end at the input's width");
}

}  // namespace

void project_normalize_entry(const ProjectNormalizeArgs& a) {
  if (a.x.rows == 0) return;
  check(a);
  if (a.x.dtype == DType::kFloat64) {
    project_normalize_typed<double>(a);
  } else {
    project_normalize_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge
