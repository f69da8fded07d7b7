// The module of the emulation: the package's own CUDA bindings over kernels compiled for the host,
// and the emulation's controls.
#include <cuda_runtime.h>
#include <pybind11/stl.h>

#include <vector>

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
  m.def("set_device", [](int device) { cuda_emulation::device = device; });  // no context yet
  m.def("device", [] { return cuda_emulation::device; });
  m.def("set_contexts", [](const std::vector<int>& devices) {
    cuda_emulation::contexts = {devices.begin(), devices.end()};
  });
  m.def("contexts", [] {
    return std::vector<int>(cuda_emulation::contexts.begin(), cuda_emulation::contexts.end());
  });
  m.def("set_processors", [](int processors, int blocks_each) {  // 0: no cooperative launches
    cuda_emulation::processors = processors;
    cuda_emulation::blocks_each = blocks_each;
  });
  m.def("leave_out", [](int number) { cuda_emulation::left_out = number; });
  m.def("set_capturing", [](bool capturing) { cuda_emulation::capturing = capturing; });
  m.def("capture_mode", [] { return static_cast<int>(cuda_emulation::capture_mode); });
  m.def("last_error", [] { return static_cast<int>(cudaGetLastError()); });
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
