#include "bindings.h"
#include "count_correct/count_correct.h"

namespace {

const void* address(uintptr_t p) { return reinterpret_cast<const void*>(p); }

}  // namespace

void bind_search(py::module_& m) {
  m.attr("SEARCH_PAD") = sb::kSearchPad;
  m.def(
      "prune_candidates",
      [](int dtype, uintptr_t z1, uintptr_t z2, uintptr_t z3, int64_t rows, int64_t classes,
         uintptr_t labels, uintptr_t exponents, double margin, uintptr_t candidates,
         uintptr_t counts, int threads) {
        sb::PruneArgs args;
        args.dtype = dtype_of(dtype);
        args.z[0] = address(z1), args.z[1] = address(z2), args.z[2] = address(z3);
        args.rows = rows, args.classes = classes, args.margin = margin;
        args.labels = static_cast<const int64_t*>(address(labels));
        args.exponents = static_cast<const double*>(address(exponents));
        args.candidates = reinterpret_cast<int32_t*>(candidates);
        args.counts = reinterpret_cast<int32_t*>(counts);
        args.threads = threads < 1 ? 1 : threads;
        py::gil_scoped_release release;
        sb::prune_candidates(args);
      },
      py::arg("dtype"), py::arg("z1"), py::arg("z2"), py::arg("z3"), py::arg("rows"),
      py::arg("classes"), py::arg("labels"), py::arg("exponents"), py::arg("margin"),
      py::arg("candidates"), py::arg("counts"), py::arg("threads"));
  m.def(
      "count_correct",
      [](int dtype, int64_t rows, uintptr_t labels, uintptr_t label_z1, uintptr_t label_z2,
         uintptr_t label_z3, uintptr_t label_d, uintptr_t offsets, uintptr_t candidates,
         uintptr_t z1, uintptr_t z2, uintptr_t z3, uintptr_t d, uintptr_t exponents,
         double largest_exponent, int64_t trials, uintptr_t params, uintptr_t correct,
         int threads) {
        sb::CountArgs args;
        args.dtype = dtype_of(dtype);
        args.rows = rows;
        args.labels = static_cast<const int64_t*>(address(labels));
        args.label_z[0] = address(label_z1), args.label_z[1] = address(label_z2);
        args.label_z[2] = address(label_z3), args.label_d = address(label_d);
        args.offsets = static_cast<const int64_t*>(address(offsets));
        args.candidates = static_cast<const int32_t*>(address(candidates));
        args.candidate_z[0] = address(z1), args.candidate_z[1] = address(z2);
        args.candidate_z[2] = address(z3), args.candidate_d = address(d);
        args.exponents = static_cast<const double*>(address(exponents));
        args.largest_exponent = largest_exponent;
        args.trials = trials;
        args.params = static_cast<const double*>(address(params));
        args.correct = reinterpret_cast<int64_t*>(correct);
        args.threads = threads < 1 ? 1 : threads;
        py::gil_scoped_release release;
        sb::count_correct(args);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("labels"), py::arg("label_z1"),
      py::arg("label_z2"), py::arg("label_z3"), py::arg("label_d"), py::arg("offsets"),
      py::arg("candidates"), py::arg("z1"), py::arg("z2"), py::arg("z3"), py::arg("d"),
      py::arg("exponents"), py::arg("largest_exponent"), py::arg("trials"), py::arg("params"),
      py::arg("correct"), py::arg("threads"));
}
