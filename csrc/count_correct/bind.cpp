#include "bindings.h"
#include "count_correct/cache_grid.h"
#include "count_correct/count_correct.h"

SB_BIND_CPU(m) {
  m.attr("CANDIDATE_PAD") = sb::kCandidatePad;
  m.def(
      "prune_candidates",
      [](const sb::ConstMatrix& z1, const sb::ConstMatrix& z2, const sb::ConstMatrix& z3,
         uintptr_t labels, uintptr_t exponents, double margin, uintptr_t candidates,
         uintptr_t counts, int threads) {
        sb::PruneArgs args;
        args.z[0] = z1, args.z[1] = z2, args.z[2] = z3;
        args.margin = margin;
        args.labels = at<const int64_t>(labels);
        args.exponents = at<const double>(exponents);
        args.candidates = at<int32_t>(candidates);
        args.counts = at<int32_t>(counts);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::prune_candidates(args);
      },
      py::arg("z1"), py::arg("z2"), py::arg("z3"), py::arg("labels"), py::arg("exponents"),
      py::arg("margin"), py::arg("candidates"), py::arg("counts"), py::arg("threads"));
  m.def(
      "count_correct",
      [](int dtype, int64_t rows, uintptr_t labels, uintptr_t label_z1, uintptr_t label_z2,
         uintptr_t label_z3, uintptr_t label_d, uintptr_t offsets, uintptr_t candidates,
         uintptr_t z1, uintptr_t z2, uintptr_t z3, uintptr_t d, uintptr_t exponents,
         double largest_exponent, int64_t trials, uintptr_t params, uintptr_t correct,
         int threads) {
        sb::CountCorrectArgs args;
        args.dtype = dtype_of(dtype);
        args.rows = rows;
        args.labels = at<const int64_t>(labels);
        args.label_z[0] = at<const void>(label_z1), args.label_z[1] = at<const void>(label_z2);
        args.label_z[2] = at<const void>(label_z3), args.label_d = at<const void>(label_d);
        args.offsets = at<const int64_t>(offsets);
        args.candidates = at<const int32_t>(candidates);
        args.candidate_z[0] = at<const void>(z1), args.candidate_z[1] = at<const void>(z2);
        args.candidate_z[2] = at<const void>(z3), args.candidate_d = at<const void>(d);
        args.exponents = at<const double>(exponents);
        args.largest_exponent = largest_exponent;
        args.trials = trials;
        args.params = at<const double>(params);
        args.correct = at<int64_t>(correct);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::count_correct(args);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("labels"), py::arg("label_z1"),
      py::arg("label_z2"), py::arg("label_z3"), py::arg("label_d"), py::arg("offsets"),
      py::arg("candidates"), py::arg("z1"), py::arg("z2"), py::arg("z3"), py::arg("d"),
      py::arg("exponents"), py::arg("largest_exponent"), py::arg("trials"), py::arg("params"),
      py::arg("correct"), py::arg("threads"));
  m.attr("CACHE_GRID_PAD") = sb::kCacheGridPad;
  m.def(
      "count_cache_grid",
      [](const sb::ConstMatrix& cosines, const sb::ConstMatrix& text, uintptr_t labels,
         uintptr_t lower, uintptr_t layers, int64_t layer_count, const sb::ConstMatrix& weights,
         uintptr_t betas, int64_t beta_count, uintptr_t alphas, int64_t alpha_count,
         uintptr_t correct, int threads) {
        sb::CacheGridArgs args;
        args.cosines = cosines, args.text = text, args.weights = weights;
        args.labels = at<const int64_t>(labels), args.lower = at<const int64_t>(lower);
        args.layers = at<const int64_t>(layers), args.layer_count = layer_count;
        args.betas = at<const double>(betas), args.beta_count = beta_count;
        args.alphas = at<const double>(alphas), args.alpha_count = alpha_count;
        args.correct = at<int64_t>(correct);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::count_cache_grid(args);
      },
      py::arg("cosines"), py::arg("text"), py::arg("labels"), py::arg("lower"), py::arg("layers"),
      py::arg("layer_count"), py::arg("weights"), py::arg("betas"), py::arg("beta_count"),
      py::arg("alphas"), py::arg("alpha_count"), py::arg("correct"), py::arg("threads"));
}
