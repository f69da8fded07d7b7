#include "bindings.h"
#include "project_normalize/project_normalize.h"

namespace {

// One or two stages with their packed matrices, built once and applied many times: a call then
// crosses with eight integers instead of twenty.
class Projection {
 public:
  Projection(int compute, uintptr_t first, int64_t k, int64_t mid, bool normalize_first,
             double scale_first, uintptr_t second, int64_t out, bool normalize_second,
             double scale_second, bool residual)
      : compute_(dtype_of(compute)) {
    args_.first.matrix = {reinterpret_cast<const void*>(first), compute_, k, mid};
    args_.first.normalize = normalize_first;
    args_.first.scale = scale_first;
    args_.x.cols = k;
    args_.out.cols = mid;
    if (second != 0) {
      args_.second.matrix = {reinterpret_cast<const void*>(second), compute_, mid, out};
      args_.second.normalize = normalize_second;
      args_.second.scale = scale_second;
      args_.out.cols = out;
    }
    args_.residual = residual;
  }

  void run(uintptr_t x, int x_dtype, int64_t n, int64_t x_stride, uintptr_t out, int64_t out_stride,
           uintptr_t bias, int64_t bias_stride, uintptr_t norms, int threads) const {
    sb::ProjectArgs args = args_;
    args.x = {reinterpret_cast<const void*>(x), dtype_of(x_dtype), n, args_.x.cols, x_stride};
    args.out = {reinterpret_cast<void*>(out), args.x.dtype, n, args_.out.cols, out_stride};
    if (bias != 0) {
      args.first.bias = {reinterpret_cast<const void*>(bias), compute_, bias_stride == 0 ? 1 : n,
                         args_.first.matrix.cols, bias_stride};
    }
    args.norms = reinterpret_cast<void*>(norms);
    args.threads = threads < 1 ? 1 : threads;
    py::gil_scoped_release release;
    sb::project(args);
  }

 private:
  sb::DType compute_;
  sb::ProjectArgs args_;
};

}  // namespace

void bind_project(py::module_& m) {
  m.def("packed_elements", &sb::packed_elements, py::arg("rows"), py::arg("cols"));
  m.def(
      "pack_matrix",
      [](uintptr_t data, int dtype, int64_t rows, int64_t cols, int64_t row_stride, int compute,
         uintptr_t out) {
        const sb::ConstMatrix matrix{reinterpret_cast<const void*>(data), dtype_of(dtype), rows,
                                     cols, row_stride};
        py::gil_scoped_release release;
        sb::pack_matrix(matrix, dtype_of(compute), reinterpret_cast<void*>(out));
      },
      py::arg("data"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("row_stride"),
      py::arg("compute"), py::arg("out"));
  py::class_<Projection>(m, "Projection")
      .def(py::init<int, uintptr_t, int64_t, int64_t, bool, double, uintptr_t, int64_t, bool,
                    double, bool>(),
           py::arg("compute"), py::arg("first"), py::arg("k"), py::arg("mid"),
           py::arg("normalize_first"), py::arg("scale_first"), py::arg("second") = 0,
           py::arg("out") = 0, py::arg("normalize_second") = false, py::arg("scale_second") = 1.0,
           py::arg("residual") = false)
      .def("run", &Projection::run, py::arg("x"), py::arg("x_dtype"), py::arg("n"),
           py::arg("x_stride"), py::arg("out"), py::arg("out_stride"), py::arg("bias") = 0,
           py::arg("bias_stride") = 0, py::arg("norms") = 0, py::arg("threads") = 1);
}
