// Views, addresses and sizes in, nothing else: the op files of semobridge_ext/_ops have checked
// kind, dtype, device, shape and strides before a call arrives here.
//
// A matrix whose rows have a stride crosses as a View, one in panels as a Packed, both tuples of
// numbers (python/write_stub.py spells them out); a vector, and an array that lies as its op's
// header says, by address; 0 is none.
//
// An op's bind.cpp registers itself:
//
//   SB_BIND_CPU(m) { m.def("topk", ...); }
//   SB_BIND_CUDA(m) { m.def("topk_filter_cuda", ...); }  // the name holds "cuda"
//
// A build without CUDA compiles the second and drops it; one with SB_CUDA_ONLY, the emulation of
// tests/cuda_emulation, does so with the first.
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

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline int at_least_one(int threads) { return threads < 1 ? 1 : threads; }

namespace pybind11::detail {

// The fields that a view begins with; false where they are not numbers.
template <class Matrix>
bool load_matrix(PyObject* view, Matrix& matrix) {
  matrix.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(view, 0));
  const long dtype = PyLong_AsLong(PyTuple_GET_ITEM(view, 1));
  matrix.rows = PyLong_AsLongLong(PyTuple_GET_ITEM(view, 2));
  matrix.cols = PyLong_AsLongLong(PyTuple_GET_ITEM(view, 3));
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  matrix.dtype = dtype_of(static_cast<int>(dtype));
  return true;
}

template <class Matrix>
struct view_caster {
  PYBIND11_TYPE_CASTER(Matrix, const_name("View"));

  bool load(handle source, bool) {
    PyObject* const view = source.ptr();
    if (!PyTuple_Check(view) || PyTuple_GET_SIZE(view) != 5) return false;
    value.row_stride = PyLong_AsLongLong(PyTuple_GET_ITEM(view, 4));
    return load_matrix(view, value);
  }
};

template <>
struct type_caster<sb::PackedMatrix> {
  PYBIND11_TYPE_CASTER(sb::PackedMatrix, const_name("Packed"));

  bool load(handle source, bool) {
    PyObject* const packed = source.ptr();
    return PyTuple_Check(packed) && PyTuple_GET_SIZE(packed) == 4 && load_matrix(packed, value);
  }
};

template <>
struct type_caster<sb::ConstMatrix> : view_caster<sb::ConstMatrix> {};
template <>
struct type_caster<sb::Matrix> : view_caster<sb::Matrix> {};

}  // namespace pybind11::detail

// Hidden, so that a second module in the process keeps a list of its own.
namespace bindings __attribute__((visibility("hidden"))) {

  struct Registered {
    explicit Registered(void (*function)(py::module_&)) : bind(function), next(first) {
      first = this;
    }
    void (*const bind)(py::module_&);
    const Registered* const next;
    static inline const Registered* first = nullptr;
  };

  inline void bind_registered(py::module_ & m) {
    for (const Registered* r = Registered::first; r != nullptr; r = r->next) r->bind(m);
  }

}  // namespace bindings

#define SB_BIND(function) static const bindings::Registered function##_registered(function);

#ifdef SB_CUDA_ONLY
#define SB_BIND_ON_CPU(function)
#else
#define SB_BIND_ON_CPU(function) SB_BIND(function)
#endif
#define SB_BIND_CPU(m)                                   \
  [[maybe_unused]] static void bind_cpu(py::module_& m); \
  SB_BIND_ON_CPU(bind_cpu)                               \
  static void bind_cpu(py::module_& m)

#ifdef SB_WITH_CUDA
#define SB_BIND_ON_CUDA(function) SB_BIND(function)
#else
#define SB_BIND_ON_CUDA(function)
#endif
#define SB_BIND_CUDA(m)                                   \
  [[maybe_unused]] static void bind_cuda(py::module_& m); \
  SB_BIND_ON_CUDA(bind_cuda)                              \
  static void bind_cuda(py::module_& m)
