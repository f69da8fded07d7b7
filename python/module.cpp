// semobridge_ext._C: what belongs to no op, and the ops that have registered themselves.
#include <pybind11/typing.h>

#include <string>

#include "bindings.h"
#include "core/huge_pages.h"
#include "core/interrupt.h"
#include "core/isa.h"
#include "core/pack.h"
#include "core/product.h"

namespace {

// Runs the handlers of the signals that came in; true where one of them raised.
bool signal_raised() {
  py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of semobridge_ext. Import semobridge_ext, not this module.";
  m.attr("PANEL") = sb::kPanel;
  sb::set_interrupt_poll(&signal_raised);
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const sb::Interrupted&) {  // what the handler raised is Python's current error
    }
  });
  m.def("active_isa", [] { return std::string(sb::isa_name(sb::active_isa())); });
  m.def("active_dot", &sb::active_dot);
  m.def("active_bf16", &sb::active_bf16);
  m.def("set_isa", [](const std::string& name) { sb::set_isa(name.c_str()); }, py::arg("name"));
  m.def("isa_table", [] {
    py::typing::Dict<py::str, py::typing::Tuple<py::bool_, py::bool_>> table;
    for (sb::Isa isa : sb::kIsas) {
      table[sb::isa_name(isa)] = py::make_tuple(sb::isa_compiled(isa), sb::isa_runnable(isa));
    }
    return table;
  });
  m.def("build_config", [] {
    py::typing::Dict<py::str, py::str> config;
    config["compiler"] = SB_COMPILER;
    config["build_type"] = SB_BUILD_TYPE;
    config["cuda"] = SB_CUDA_VERSION;
    config["cuda_request"] = SB_CUDA_REQUEST;
    config["cuda_architectures"] = SB_CUDA_ARCHITECTURES;
    return config;
  });
  m.def("packed_elements", &sb::packed_elements, py::arg("rows"), py::arg("cols"));
  m.def(
      "pack_matrix",
      [](const sb::ConstMatrix& matrix, int dtype, uintptr_t out) {
        const sb::PackMatrixArgs args{matrix, dtype_of(dtype), at<void>(out)};
        py::gil_scoped_release release;
        sb::pack_matrix(args);
      },
      py::arg("matrix"), py::arg("dtype"), py::arg("out"));
  m.def(
      "matrix_product",
      [](const sb::ConstMatrix& a, bool transposed_a, const sb::ConstMatrix& b, bool transposed_b,
         const sb::Matrix& out, bool accumulate, int threads) {
        const sb::MatrixProductArgs args{a,          b,   transposed_a,         transposed_b,
                                         accumulate, out, at_least_one(threads)};
        py::gil_scoped_release release;
        sb::matrix_product(args);
      },
      py::arg("a"), py::arg("transposed_a"), py::arg("b"), py::arg("transposed_b"), py::arg("out"),
      py::arg("accumulate"), py::arg("threads"));
  m.def(
      "prefer_huge_pages",
      [](uintptr_t data, int64_t bytes) { sb::prefer_huge_pages(at<void>(data), bytes); },
      py::arg("data"), py::arg("bytes"));
  bindings::bind_registered(m);
}
