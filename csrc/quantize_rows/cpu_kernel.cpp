// quantize_rows for one instruction set; see quantize_rows/quantize_rows.h for what it computes.
#include "core/interrupt.h"
#include "core/quantize.h"
#include "core/scratch.h"
#include "core/table.h"
#include "quantize_rows/quantize_rows.h"

namespace semobridge {
namespace SB_ISA {

void quantize_rows_entry(const QuantizeRowsArgs& a) {
  const ConstMatrix& x = a.rows;
  if (x.rows == 0) return;
  require(x.dtype != DType::kFloat64, "quantize_rows: rows must not be float64");
  require(x.cols > 0 && x.cols <= kMaxCodeWidth, "quantize_rows: rows are empty or too wide");
  const int64_t panels = panels_of(x.rows), bytes = code_panel_bytes(x.cols);
  constexpr int64_t kAtOnce = 16;  // panels that a thread takes
  const int64_t pieces = (panels + kAtOnce - 1) / kAtOnce;
  const int team = pieces < a.threads ? static_cast<int>(pieces) : a.threads;
  Watch watch;
#pragma omp parallel num_threads(team) if (team > 1)
  {
    char* scratch = thread_scratch<char>().reserve(quantize_scratch(x.cols));
#pragma omp for schedule(dynamic, kAtOnce)
    for (int64_t p = 0; p < panels; ++p) {
      if (watch.stop()) continue;
      const int64_t row = p * kPanel, count = x.rows - row < kPanel ? x.rows - row : kPanel;
      quantize_panel(x, row, count, a.codes + p * bytes, a.bounds + p * kBounds * kPanel, scratch);
    }
  }
  watch.finish();
}

}  // namespace SB_ISA
}  // namespace semobridge
