#include "bindings.h"
#include "rank_counts/rank_counts.h"

SB_BIND_CPU(m) {
  m.attr("RANK_BLOCK") = sb::kRankBlock;
  m.def(
      "rank_counts_workspace",
      [](uintptr_t offsets, int64_t n, int threads) {
        return sb::rank_counts_workspace(at<const int64_t>(offsets), n, threads);
      },
      py::arg("offsets"), py::arg("n"), py::arg("threads"));
  m.def(
      "rank_counts",
      [](const sb::ConstMatrix& queries, const sb::ConstMatrix& gallery, int64_t num_queries,
         uintptr_t query_rows, uintptr_t marked, uintptr_t marked_begin, uintptr_t marked_end,
         uintptr_t exclude, uintptr_t offsets, uintptr_t scores, uintptr_t greater, uintptr_t equal,
         uintptr_t in_order, bool symmetric, uintptr_t workspace, int threads) {
        sb::RankCountsArgs args;
        args.queries = queries;
        args.gallery = gallery;
        args.num_queries = num_queries;
        args.query_rows = at<const int64_t>(query_rows);
        args.marked = at<const int64_t>(marked);
        args.marked_begin = at<const int64_t>(marked_begin);
        args.marked_end = at<const int64_t>(marked_end);
        args.exclude = at<const int64_t>(exclude);
        args.offsets = at<const int64_t>(offsets);
        args.scores = at<void>(scores);
        args.greater = at<int64_t>(greater);
        args.equal = at<int64_t>(equal);
        args.in_order = at<void>(in_order);
        args.workspace = at<void>(workspace);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        if (symmetric) {
          sb::rank_counts_symmetric(args);
        } else {
          sb::rank_counts(args);
        }
      },
      py::arg("queries"), py::arg("gallery"), py::arg("num_queries"), py::arg("query_rows"),
      py::arg("marked"), py::arg("marked_begin"), py::arg("marked_end"), py::arg("exclude"),
      py::arg("offsets"), py::arg("scores"), py::arg("greater"), py::arg("equal"),
      py::arg("in_order"), py::arg("symmetric"), py::arg("workspace"), py::arg("threads"));
  m.def(
      "rank_metrics",
      [](int64_t n, uintptr_t offsets, uintptr_t greater, uintptr_t equal, uintptr_t recall_at,
         int64_t num_k, uintptr_t out) {
        py::gil_scoped_release release;
        sb::rank_metrics(n, at<const int64_t>(offsets), at<const int64_t>(greater),
                         at<const int64_t>(equal), at<const int64_t>(recall_at), num_k,
                         at<double>(out));
      },
      py::arg("n"), py::arg("offsets"), py::arg("greater"), py::arg("equal"), py::arg("recall_at"),
      py::arg("num_k"), py::arg("out"));
}
