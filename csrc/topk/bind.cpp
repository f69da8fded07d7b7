#include "bindings.h"
#include "topk/topk.h"

void bind_topk(py::module_& m) {
  m.def(
      "topk_workspace",
      [](int64_t n, int64_t g, int64_t k, int compute, int threads) {
        return sb::topk_workspace(n, g, k, dtype_of(compute), threads);
      },
      py::arg("n"), py::arg("g"), py::arg("k"), py::arg("compute"), py::arg("threads"));
  m.def(
      "topk",
      [](uintptr_t queries, int queries_dtype, int64_t n, int64_t queries_stride, uintptr_t gallery,
         int gallery_dtype, int64_t g, int64_t gallery_stride, int64_t d, int64_t k,
         uintptr_t exclude, uintptr_t scores, uintptr_t indices, uintptr_t workspace, int threads) {
        sb::TopkArgs args;
        args.queries = matrix_of(queries, queries_dtype, n, d, queries_stride);
        args.gallery = matrix_of(gallery, gallery_dtype, g, d, gallery_stride);
        args.k = k;
        args.exclude = indices_of(exclude);
        args.scores = reinterpret_cast<void*>(scores);
        args.indices = reinterpret_cast<int64_t*>(indices);
        args.workspace = reinterpret_cast<void*>(workspace);
        args.threads = threads < 1 ? 1 : threads;
        py::gil_scoped_release release;
        sb::topk(args);
      },
      py::arg("queries"), py::arg("queries_dtype"), py::arg("n"), py::arg("queries_stride"),
      py::arg("gallery"), py::arg("gallery_dtype"), py::arg("g"), py::arg("gallery_stride"),
      py::arg("d"), py::arg("k"), py::arg("exclude"), py::arg("scores"), py::arg("indices"),
      py::arg("workspace"), py::arg("threads"));
}
