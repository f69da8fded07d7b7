#include "bindings.h"
#include "symmetric_kl/symmetric_kl.h"

namespace {

sb::SymmetricKlArgs forward(const sb::ConstMatrix& a, const sb::ConstMatrix& b, double temperature,
                            uintptr_t rows, uintptr_t stats) {
  sb::SymmetricKlArgs args;
  args.a = a;
  args.b = b;
  args.temperature = temperature;
  args.rows = at<void>(rows);
  args.stats = at<void>(stats);
  return args;
}

sb::SymmetricKlBwdArgs backward(const sb::ConstMatrix& a, const sb::ConstMatrix& b,
                                double temperature, uintptr_t grad, uintptr_t stats,
                                const sb::Matrix& grad_a, const sb::Matrix& grad_b) {
  sb::SymmetricKlBwdArgs args;
  args.a = a;
  args.b = b;
  args.temperature = temperature;
  args.grad = at<const void>(grad);
  args.stats = at<const void>(stats);
  args.grad_a = grad_a;
  args.grad_b = grad_b;
  return args;
}

}  // namespace

SB_BIND_CPU(m) {
  m.def(
      "symmetric_kl",
      [](const sb::ConstMatrix& a, const sb::ConstMatrix& b, double temperature, uintptr_t rows,
         uintptr_t stats, int threads) {
        sb::SymmetricKlArgs args = forward(a, b, temperature, rows, stats);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::symmetric_kl(args);
      },
      py::arg("a"), py::arg("b"), py::arg("temperature"), py::arg("rows"), py::arg("stats"),
      py::arg("threads"));
  m.def(
      "symmetric_kl_bwd",
      [](const sb::ConstMatrix& a, const sb::ConstMatrix& b, double temperature, uintptr_t grad,
         uintptr_t stats, const sb::Matrix& grad_a, const sb::Matrix& grad_b, int threads) {
        sb::SymmetricKlBwdArgs args = backward(a, b, temperature, grad, stats, grad_a, grad_b);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::symmetric_kl_bwd(args);
      },
      py::arg("a"), py::arg("b"), py::arg("temperature"), py::arg("grad"), py::arg("stats"),
      py::arg("grad_a"), py::arg("grad_b"), py::arg("threads"));
}

SB_BIND_CUDA(m) {
  m.def(
      "symmetric_kl_cuda",
      [](const sb::ConstMatrix& a, const sb::ConstMatrix& b, double temperature, uintptr_t rows,
         uintptr_t stats, int device, uintptr_t stream) {
        const sb::SymmetricKlArgs args = forward(a, b, temperature, rows, stats);
        py::gil_scoped_release release;
        sb::symmetric_kl_cuda(args, device, at<void>(stream));
      },
      py::arg("a"), py::arg("b"), py::arg("temperature"), py::arg("rows"), py::arg("stats"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "symmetric_kl_bwd_cuda",
      [](const sb::ConstMatrix& a, const sb::ConstMatrix& b, double temperature, uintptr_t grad,
         uintptr_t stats, const sb::Matrix& grad_a, const sb::Matrix& grad_b, int device,
         uintptr_t stream) {
        const sb::SymmetricKlBwdArgs args =
            backward(a, b, temperature, grad, stats, grad_a, grad_b);
        py::gil_scoped_release release;
        sb::symmetric_kl_bwd_cuda(args, device, at<void>(stream));
      },
      py::arg("a"), py::arg("b"), py::arg("temperature"), py::arg("grad"), py::arg("stats"),
      py::arg("grad_a"), py::arg("grad_b"), py::arg("device"), py::arg("stream"));
}
