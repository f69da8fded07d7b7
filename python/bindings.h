// Addresses and sizes in, nothing else: the op files of semobridge_ext/ops have checked kind,
// dtype, device, shape and strides before a call arrives here.
#pragma once
#include <pybind11/pybind11.h>
#include <semobridge/view.h>

#include <stdexcept>

namespace py = pybind11;
namespace sb = semobridge;

inline sb::DType dtype_of(int code) {
  if (code < 0 || code > 3) throw std::invalid_argument("_C: dtype code must be 0..3");
  return static_cast<sb::DType>(code);
}

// One per op, in bind_<op>.cpp.
void bind_normalize_rows(py::module_& m);
void bind_project(py::module_& m);
void bind_invert(py::module_& m);
