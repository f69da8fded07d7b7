#include "bindings.h"
#include "project_normalize/cuda.h"
#include "project_normalize/cuda_normalize_rows.h"
#include "project_normalize/cuda_scale_rows.h"
#include "project_normalize/project_normalize.h"

namespace {

// One or two stages with their packed matrices, built once and applied many times: a call then
// crosses with eight integers instead of twenty.
class Projection {
 public:
  Projection(const sb::PackedMatrix& first, bool normalize_first, double scale_first,
             const sb::PackedMatrix& second, bool normalize_second, double scale_second,
             bool residual) {
    args_.first.matrix = first;
    args_.first.normalize = normalize_first;
    args_.first.scale = scale_first;
    args_.x.cols = first.rows;
    args_.out.cols = first.cols;
    if (second.data != nullptr) {
      args_.second.matrix = second;
      args_.second.normalize = normalize_second;
      args_.second.scale = scale_second;
      args_.out.cols = second.cols;
    }
    args_.residual = residual;
  }

  // Positional, not views: one image's call takes about 10 µs, and a tuple more would be felt.
  void run(uintptr_t x, int x_dtype, int64_t n, int64_t x_stride, uintptr_t out, int64_t out_stride,
           uintptr_t bias, int64_t bias_stride, uintptr_t norms, int threads) const {
    if (n > 0 && (x == 0 || out == 0)) {
      throw std::invalid_argument("_C: x and out must hold their values in memory");
    }
    sb::ProjectNormalizeArgs args = args_;
    args.x = {at<const void>(x), dtype_of(x_dtype), n, args_.x.cols, x_stride};
    args.out = {at<void>(out), args.x.dtype, n, args_.out.cols, out_stride};
    if (bias != 0) {
      args.first.bias = {at<const void>(bias), args_.first.matrix.dtype, bias_stride == 0 ? 1 : n,
                         args_.first.matrix.cols, bias_stride};
    }
    args.norms = at<void>(norms);
    args.threads = at_least_one(threads);
    py::gil_scoped_release release;
    sb::project_normalize(args);
  }

 private:
  sb::ProjectNormalizeArgs args_;
};

}  // namespace

SB_BIND_CPU(m) {
  py::class_<Projection>(m, "Projection")
      .def(py::init<const sb::PackedMatrix&, bool, double, const sb::PackedMatrix&, bool, double,
                    bool>(),
           py::arg("first"), py::arg("normalize_first"), py::arg("scale_first"),
           py::arg("second") = py::make_tuple(0, 0, 0, 0), py::arg("normalize_second") = false,
           py::arg("scale_second") = 1.0, py::arg("residual") = false)
      .def("run", &Projection::run, py::arg("x"), py::arg("x_dtype"), py::arg("n"),
           py::arg("x_stride"), py::arg("out"), py::arg("out_stride"), py::arg("bias") = 0,
           py::arg("bias_stride") = 0, py::arg("norms") = 0, py::arg("threads") = 1);
}

SB_BIND_CUDA(m) {
  m.def(
      "normalize_rows_cuda",
      [](const sb::ConstMatrix& x, const sb::ConstMatrix& bias, bool normalize, double scale,
         const sb::Matrix& out, uintptr_t norms, int device, uintptr_t stream) {
        const sb::NormalizeRowsArgs a{x, bias, normalize, scale, out, at<void>(norms)};
        py::gil_scoped_release release;
        sb::normalize_rows_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("bias"), py::arg("normalize"), py::arg("scale"), py::arg("out"),
      py::arg("norms"), py::arg("device"), py::arg("stream"));
  m.def("project_normalize_cuda_tickets", &sb::project_normalize_cuda_tickets, py::arg("n"));
  m.def(
      "project_normalize_cuda",
      [](const sb::ConstMatrix& x, const sb::ConstMatrix& matrix, const sb::ConstMatrix& bias,
         bool normalize, double scale, const sb::Matrix& out, uintptr_t norms, uintptr_t raw,
         uintptr_t tickets, int device, uintptr_t stream) {
        const sb::ProjectNormalizeCudaArgs a{
            x,   matrix,           bias,           normalize,       scale,
            out, at<float>(norms), at<float>(raw), at<int>(tickets)};
        py::gil_scoped_release release;
        sb::project_normalize_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("matrix"), py::arg("bias"), py::arg("normalize"), py::arg("scale"),
      py::arg("out"), py::arg("norms"), py::arg("raw"), py::arg("tickets"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "scale_rows_cuda",
      [](const sb::ConstMatrix& x, const sb::Matrix& out, int device, uintptr_t stream) {
        py::gil_scoped_release release;
        sb::scale_rows_cuda({x, out}, device, at<void>(stream));
      },
      py::arg("x"), py::arg("out"), py::arg("device"), py::arg("stream"));
}
