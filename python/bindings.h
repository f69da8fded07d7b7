// Addresses and sizes in, nothing else: the op files of semobridge_ext/_ops have checked kind,
// dtype, device, shape and strides before a call arrives here.
#pragma once
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "core/view.h"

namespace py = pybind11;
namespace sb = semobridge;

inline sb::DType dtype_of(int code) {
  if (code < 0 || code > 3) throw std::invalid_argument("_C: dtype code must be 0..3");
  return static_cast<sb::DType>(code);
}

inline sb::ConstMatrix matrix_of(uintptr_t data, int dtype, int64_t rows, int64_t cols,
                                 int64_t row_stride) {
  return {reinterpret_cast<const void*>(data), dtype_of(dtype), rows, cols, row_stride};
}

inline const int64_t* indices_of(uintptr_t data) { return reinterpret_cast<const int64_t*>(data); }

// One per op, in bind_<op>.cpp.
void bind_project(py::module_& m);
void bind_rank_counts(py::module_& m);
void bind_support_logits(py::module_& m);
void bind_topk(py::module_& m);
void bind_invert(py::module_& m);
void bind_blend(py::module_& m);
void bind_cuda(py::module_& m);
void bind_cuda_train(py::module_& m);
void bind_search(py::module_& m);
void bind_train(py::module_& m);
