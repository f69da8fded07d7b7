#include "bindings.h"
#include "tree_attention/tree_attention.h"

SB_BIND_CPU(m) {
  m.def(
      "tree_attention",
      [](const sb::ConstMatrix& queries, const sb::ConstMatrix& keys, const sb::ConstMatrix& values,
         int64_t heads, uintptr_t paths, int64_t num_paths, int64_t length, uintptr_t path_of,
         uintptr_t counts, const sb::Matrix& out, int threads) {
        sb::TreeAttentionArgs args;
        args.queries = queries;
        args.keys = keys;
        args.values = values;
        args.heads = heads;
        args.paths = at<const int32_t>(paths);
        args.num_paths = num_paths;
        args.length = length;
        args.path_of = at<const int32_t>(path_of);
        args.counts = at<const int32_t>(counts);
        args.out = out;
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::tree_attention(args);
      },
      py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("heads"), py::arg("paths"),
      py::arg("num_paths"), py::arg("length"), py::arg("path_of"), py::arg("counts"),
      py::arg("out"), py::arg("threads"));
  m.def(
      "tree_attention_bwd",
      [](const sb::ConstMatrix& queries, const sb::ConstMatrix& keys, const sb::ConstMatrix& values,
         int64_t heads, uintptr_t paths, int64_t num_paths, int64_t length, uintptr_t path_of,
         uintptr_t counts, const sb::ConstMatrix& grad_out, const sb::Matrix& grad_queries,
         const sb::Matrix& grad_keys, const sb::Matrix& grad_values, int threads) {
        sb::TreeAttentionBwdArgs args;
        args.queries = queries;
        args.keys = keys;
        args.values = values;
        args.heads = heads;
        args.paths = at<const int32_t>(paths);
        args.num_paths = num_paths;
        args.length = length;
        args.path_of = at<const int32_t>(path_of);
        args.counts = at<const int32_t>(counts);
        args.grad_out = grad_out;
        args.grad_queries = grad_queries;
        args.grad_keys = grad_keys;
        args.grad_values = grad_values;
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::tree_attention_bwd(args);
      },
      py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("heads"), py::arg("paths"),
      py::arg("num_paths"), py::arg("length"), py::arg("path_of"), py::arg("counts"),
      py::arg("grad_out"), py::arg("grad_queries"), py::arg("grad_keys"), py::arg("grad_values"),
      py::arg("threads"));
}
