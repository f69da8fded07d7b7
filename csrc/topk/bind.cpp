#include <pybind11/typing.h>

#include "bindings.h"
#include "topk/cuda.h"
#include "topk/topk.h"

SB_BIND_CPU(m) {
  m.def(
      "topk_workspace",
      [](int64_t n, int64_t g, int64_t k, int compute, int threads) {
        return sb::topk_workspace(n, g, k, dtype_of(compute), threads);
      },
      py::arg("n"), py::arg("g"), py::arg("k"), py::arg("compute"), py::arg("threads"));
  m.def(
      "topk",
      [](const sb::ConstMatrix& queries, const sb::ConstMatrix& gallery, int64_t k,
         uintptr_t exclude, uintptr_t allow, int64_t begin, int64_t end, uintptr_t scores,
         uintptr_t indices, uintptr_t workspace, int threads) {
        sb::TopkArgs args;
        args.queries = queries;
        args.gallery = gallery;
        args.k = k;
        args.exclude = at<const int64_t>(exclude);
        args.allow = at<const bool>(allow);
        args.begin = begin;
        args.end = end;
        args.scores = at<void>(scores);
        args.indices = at<int64_t>(indices);
        args.workspace = at<void>(workspace);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::topk(args);
      },
      py::arg("queries"), py::arg("gallery"), py::arg("k"), py::arg("exclude"), py::arg("allow"),
      py::arg("begin"), py::arg("end"), py::arg("scores"), py::arg("indices"), py::arg("workspace"),
      py::arg("threads"));
  m.def("topk_filtered_workspace", &sb::topk_filtered_workspace, py::arg("n"), py::arg("g"),
        py::arg("k"), py::arg("threads"));
  m.def(
      "topk_filtered",
      [](const sb::ConstMatrix& queries, const sb::ConstMatrix& gallery, uintptr_t codes,
         uintptr_t bounds, int64_t k, uintptr_t exclude, uintptr_t allow, int64_t begin,
         int64_t end, uintptr_t scores, uintptr_t indices, uintptr_t workspace, int threads) {
        sb::TopkFilteredArgs args;
        args.plain.queries = queries;
        args.plain.gallery = gallery;
        args.plain.k = k;
        args.plain.exclude = at<const int64_t>(exclude);
        args.plain.allow = at<const bool>(allow);
        args.plain.begin = begin;
        args.plain.end = end;
        args.plain.scores = at<void>(scores);
        args.plain.indices = at<int64_t>(indices);
        args.plain.workspace = at<void>(workspace);
        args.plain.threads = at_least_one(threads);
        args.coded = {at<const uint8_t>(codes), at<const float>(bounds)};
        sb::TopkFilterCounts counts;
        args.counts = &counts;
        {
          py::gil_scoped_release release;
          sb::topk_filtered(args);
        }
        py::typing::Dict<py::str, py::int_> found;
        found["scored"] = counts.scored;
        found["scored_early"] = counts.scored_early;
        found["one_plane"] = counts.chunks[0];
        found["two_planes"] = counts.chunks[1];
        found["float32"] = counts.chunks[2];
        found["uncoded_queries"] = counts.unfiltered;
        return found;
      },
      py::arg("queries"), py::arg("gallery"), py::arg("codes"), py::arg("bounds"), py::arg("k"),
      py::arg("exclude"), py::arg("allow"), py::arg("begin"), py::arg("end"), py::arg("scores"),
      py::arg("indices"), py::arg("workspace"), py::arg("threads"));
}

SB_BIND_CUDA(m) {
  m.attr("TOPK_CUDA_MAX") = sb::kTopkCudaMax;
  m.def(
      "topk_filter_cuda",
      [](const sb::ConstMatrix& scores, int64_t first, bool fresh, int64_t k, int64_t splits,
         uintptr_t exclude, uintptr_t best, uintptr_t rows, int device, uintptr_t stream) {
        const sb::TopkFilterCudaArgs a{scores,          first,
                                       fresh,           k,
                                       splits,          at<int64_t>(exclude),
                                       at<float>(best), at<uint32_t>(rows)};
        py::gil_scoped_release release;
        sb::topk_filter_cuda(a, device, at<void>(stream));
      },
      py::arg("scores"), py::arg("first"), py::arg("fresh"), py::arg("k"), py::arg("splits"),
      py::arg("exclude"), py::arg("best"), py::arg("rows"), py::arg("device"), py::arg("stream"));
  m.def(
      "topk_merge_cuda",
      [](int64_t n, int64_t k, int64_t splits, uintptr_t best, uintptr_t rows, uintptr_t scores,
         uintptr_t indices, int device, uintptr_t stream) {
        const sb::TopkMergeCudaArgs a{n,
                                      k,
                                      splits,
                                      at<float>(best),
                                      at<uint32_t>(rows),
                                      at<float>(scores),
                                      at<int64_t>(indices)};
        py::gil_scoped_release release;
        sb::topk_merge_cuda(a, device, at<void>(stream));
      },
      py::arg("n"), py::arg("k"), py::arg("splits"), py::arg("best"), py::arg("rows"),
      py::arg("scores"), py::arg("indices"), py::arg("device"), py::arg("stream"));
}
