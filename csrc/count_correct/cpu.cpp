// prune_candidates, which needs no instruction set of its own.
#include <algorithm>
#include <vector>

#include "core/table.h"
#include "core/team.h"
#include "count_correct/count_correct.h"

namespace semobridge {
namespace {

template <class T>
struct Point {
  T z[3];
  double d;
  int32_t index;
};

template <class T>
bool dominates(const Point<T>& a, const Point<T>& b, double margin) {
  bool above = true;
  for (int i = 0; i < 3; ++i) {
    if (!(a.z[i] >= b.z[i])) return false;  // written so that NaN is never dominated
    above &= static_cast<double>(a.z[i]) - static_cast<double>(b.z[i]) > margin;
  }
  return a.d >= b.d && (above || a.index < b.index);
}

template <class T>
void prune_typed(const PruneArgs& a) {
  const int64_t classes = a.z[0].cols;
  constexpr int64_t kPointsPerThread = 1 << 13;  // what a sort and its comparisons take in 50 µs
  const int team =
      worth_threads(static_cast<double>(a.z[0].rows) * classes, kPointsPerThread, a.threads);
#pragma omp parallel num_threads(team) if (team > 1)
  {
    std::vector<Point<T>> points, front;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.z[0].rows; ++row) {
      const T* z[3];
      for (int i = 0; i < 3; ++i) {
        z[i] = static_cast<const T*>(a.z[i].data) + row * a.z[i].row_stride;
      }
      const auto point = [&](int64_t c) {
        return Point<T>{{z[0][c], z[1][c], z[2][c]}, a.exponents[c], static_cast<int32_t>(c)};
      };
      const int64_t own = a.labels[row];  // read once: another thread may write it
      if (own < 0 || own >= classes) {    // no class of these: nothing can beat it
        a.counts[row] = 0;
        continue;
      }
      const Point<T> label = point(own);
      points.clear();
      front.clear();
      for (int64_t c = 0; c < classes; ++c) {
        const Point<T> p = point(c);
        if (c != own && !dominates(label, p, a.margin)) points.push_back(p);
      }
      // A dominating point has the larger sum, so it stands in the front before what it dominates.
      const auto sum = [](const Point<T>& p) { return p.z[0] + p.z[1] + p.z[2]; };
      std::sort(points.begin(), points.end(), [&](const Point<T>& p, const Point<T>& q) {
        const T sp = sum(p), sq = sum(q);
        return sp > sq || (sp == sq && p.index < q.index);
      });
      int32_t* out = a.candidates + row * classes;
      for (const Point<T>& p : points) {
        const auto beaten = [&](const Point<T>& q) { return dominates(q, p, a.margin); };
        if (std::any_of(front.begin(), front.end(), beaten)) continue;
        *out++ = p.index;
        front.push_back(p);
      }
      a.counts[row] = static_cast<int32_t>(front.size());
    }
  }
}

}  // namespace

void prune_candidates(const PruneArgs& a) {
  for (const ConstMatrix& z : a.z) {
    require(is_compute_dtype(z.dtype) && z.dtype == a.z[0].dtype,
            "prune_candidates: z must be float32 or float64");
    require(z.rows == a.z[0].rows && z.cols == a.z[0].cols,
            "prune_candidates: the blocks of z must have one shape");
  }
  require(a.z[0].cols < INT32_MAX, "prune_candidates: too many classes");
  if (a.z[0].dtype == DType::kFloat64) {
    prune_typed<double>(a);
  } else {
    prune_typed<float>(a);
  }
}

}  // namespace semobridge
