// The module of the emulation: the package's own CUDA bindings over kernels compiled for the host,
// and the emulation's controls.
#include <cuda_runtime.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "watch.h"

void bind_selftest(py::module_& m);
void bind_selftest_order(py::module_& m);

PYBIND11_MODULE(cuda_emulated, m) {
  bindings::bind_registered(m);
  bind_selftest(m);
  bind_selftest_order(m);
  m.def("set_order", [](int order, uint64_t seed) {
    cuda_emulation::set_order(static_cast<cuda_emulation::Order>(order), seed);
  });
  m.def("watch", [](const std::string& what) {
    cuda_emulation::watcher = what == "races"     ? cuda_emulation::races()
                              : what == "traffic" ? cuda_emulation::traffic()
                                                  : nullptr;
  });
  m.def("traffic", &cuda_emulation::traffic_rows);
  m.def("counts", [] {
    return py::make_tuple(cuda_emulation::launches, cuda_emulation::barriers,
                          cuda_emulation::exchanges);
  });
}
