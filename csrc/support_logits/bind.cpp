#include "bindings.h"
#include "support_logits/support_logits.h"

SB_BIND_CPU(m) {
  m.def("support_logits_workspace", &sb::support_logits_workspace, py::arg("n"), py::arg("s"));
  m.def(
      "sort_labels",
      [](uintptr_t labels, int64_t s, int64_t num_classes, uintptr_t order, uintptr_t offsets) {
        py::gil_scoped_release release;
        return sb::sort_labels(at<const int64_t>(labels), s, num_classes, at<int64_t>(order),
                               at<int64_t>(offsets));
      },
      py::arg("labels"), py::arg("s"), py::arg("num_classes"), py::arg("order"),
      py::arg("offsets"));
  m.def(
      "support_logits",
      [](const sb::ConstMatrix& queries, const sb::ConstMatrix& keys, uintptr_t order,
         uintptr_t offsets, int64_t num_classes, uintptr_t weights, double beta, uintptr_t out,
         uintptr_t workspace, int threads) {
        sb::SupportLogitsArgs args;
        args.queries = queries;
        args.keys = keys;
        args.order = at<const int64_t>(order);
        args.offsets = at<const int64_t>(offsets);
        args.num_classes = num_classes;
        args.weights = at<const void>(weights);
        args.beta = beta;
        args.out = at<void>(out);
        args.workspace = at<void>(workspace);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::support_logits(args);
      },
      py::arg("queries"), py::arg("keys"), py::arg("order"), py::arg("offsets"),
      py::arg("num_classes"), py::arg("weights"), py::arg("beta"), py::arg("out"),
      py::arg("workspace"), py::arg("threads"));
}
