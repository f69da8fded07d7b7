#include "bindings.h"
#include "support_logits/support_logits.h"

void bind_support_logits(py::module_& m) {
  m.def("support_logits_workspace", &sb::support_logits_workspace, py::arg("n"), py::arg("s"));
  m.def(
      "sort_labels",
      [](uintptr_t labels, int64_t s, int64_t num_classes, uintptr_t order, uintptr_t offsets) {
        py::gil_scoped_release release;
        return sb::sort_labels(indices_of(labels), s, num_classes,
                               reinterpret_cast<int64_t*>(order),
                               reinterpret_cast<int64_t*>(offsets));
      },
      py::arg("labels"), py::arg("s"), py::arg("num_classes"), py::arg("order"),
      py::arg("offsets"));
  m.def(
      "support_logits",
      [](uintptr_t queries, int queries_dtype, int64_t n, int64_t queries_stride, uintptr_t keys,
         int keys_dtype, int64_t s, int64_t keys_stride, int64_t d, uintptr_t order,
         uintptr_t offsets, int64_t num_classes, uintptr_t weights, double beta, uintptr_t out,
         uintptr_t workspace, int threads) {
        sb::SupportLogitsArgs args;
        args.queries = matrix_of(queries, queries_dtype, n, d, queries_stride);
        args.keys = matrix_of(keys, keys_dtype, s, d, keys_stride);
        args.order = indices_of(order);
        args.offsets = indices_of(offsets);
        args.num_classes = num_classes;
        args.weights = reinterpret_cast<const void*>(weights);
        args.beta = beta;
        args.out = reinterpret_cast<void*>(out);
        args.workspace = reinterpret_cast<void*>(workspace);
        args.threads = threads < 1 ? 1 : threads;
        py::gil_scoped_release release;
        sb::support_logits(args);
      },
      py::arg("queries"), py::arg("queries_dtype"), py::arg("n"), py::arg("queries_stride"),
      py::arg("keys"), py::arg("keys_dtype"), py::arg("s"), py::arg("keys_stride"), py::arg("d"),
      py::arg("order"), py::arg("offsets"), py::arg("num_classes"), py::arg("weights"),
      py::arg("beta"), py::arg("out"), py::arg("workspace"), py::arg("threads"));
}
