#include "bindings.h"

#ifdef SB_WITH_CUDA
#include "bridge_training/cuda.h"

namespace {

float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }
int64_t* counts(uintptr_t address) { return reinterpret_cast<int64_t*>(address); }
void* handle(uintptr_t stream) { return reinterpret_cast<void*>(stream); }

void bind_shots(py::module_& m) {
  m.def(
      "shot_norms_cuda",
      [](int64_t rows, int64_t width, uintptr_t labels, uintptr_t e, uintptr_t tau, uintptr_t r,
         int device, uintptr_t stream) {
        const sb::ShotNormsCudaArgs a{rows,      width,       counts(labels),
                                      floats(e), floats(tau), floats(r)};
        py::gil_scoped_release release;
        sb::shot_norms_cuda(a, device, handle(stream));
      },
      py::arg("rows"), py::arg("width"), py::arg("labels"), py::arg("e"), py::arg("tau"),
      py::arg("r"), py::arg("device"), py::arg("stream"));
  m.def(
      "class_sums_cuda",
      [](int64_t classes, uintptr_t offsets, int64_t row_begin, uintptr_t x, int64_t cols,
         int64_t stride, uintptr_t norms, uintptr_t extra, uintptr_t out, int device,
         uintptr_t stream) {
        const sb::ClassSumsCudaArgs a{
            classes,       counts(offsets),
            row_begin,     {floats(x), sb::DType::kFloat32, 0, cols, stride},
            floats(norms), floats(extra),
            floats(out)};
        py::gil_scoped_release release;
        sb::class_sums_cuda(a, device, handle(stream));
      },
      py::arg("classes"), py::arg("offsets"), py::arg("row_begin"), py::arg("x"), py::arg("cols"),
      py::arg("stride"), py::arg("norms"), py::arg("extra"), py::arg("out"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "row_dots_cuda",
      [](int64_t rows, int64_t width, uintptr_t a_, uintptr_t b, uintptr_t q, uintptr_t inverse,
         int device, uintptr_t stream) {
        const sb::RowDotsCudaArgs a{rows, width, floats(a_), floats(b), floats(q), floats(inverse)};
        py::gil_scoped_release release;
        sb::row_dots_cuda(a, device, handle(stream));
      },
      py::arg("rows"), py::arg("width"), py::arg("a"), py::arg("b"), py::arg("q"),
      py::arg("inverse"), py::arg("device"), py::arg("stream"));
  m.def(
      "shot_grads_cuda",
      [](int64_t rows, int64_t width, uintptr_t labels, uintptr_t offsets, uintptr_t e, uintptr_t h,
         uintptr_t r, uintptr_t inverse_q, uintptr_t dot, uintptr_t grad_mean, int device,
         uintptr_t stream) {
        const sb::ShotGradsCudaArgs a{
            rows,      width,     counts(labels),    counts(offsets), floats(e),
            floats(h), floats(r), floats(inverse_q), floats(dot),     floats(grad_mean)};
        py::gil_scoped_release release;
        sb::shot_grads_cuda(a, device, handle(stream));
      },
      py::arg("rows"), py::arg("width"), py::arg("labels"), py::arg("offsets"), py::arg("e"),
      py::arg("h"), py::arg("r"), py::arg("inverse_q"), py::arg("dot"), py::arg("grad_mean"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "unit_grad_cuda",
      [](int64_t rows, int64_t width, uintptr_t grad, uintptr_t unit, uintptr_t norms,
         bool accumulate, uintptr_t out, int device, uintptr_t stream) {
        const sb::UnitGradCudaArgs a{rows,          width,      floats(grad), floats(unit),
                                     floats(norms), accumulate, floats(out)};
        py::gil_scoped_release release;
        sb::unit_grad_cuda(a, device, handle(stream));
      },
      py::arg("rows"), py::arg("width"), py::arg("grad"), py::arg("unit"), py::arg("norms"),
      py::arg("accumulate"), py::arg("out"), py::arg("device"), py::arg("stream"));
}

void bind_losses(py::module_& m) {
  m.def(
      "row_loss_cuda",
      [](int64_t rows, int64_t classes, uintptr_t x, int64_t stride, uintptr_t labels,
         double coefficient, uintptr_t scale, uintptr_t add, uintptr_t loss, uintptr_t dot,
         int device, uintptr_t stream) {
        const sb::RowLossCudaArgs a{{floats(x), sb::DType::kFloat32, rows, classes, stride},
                                    counts(labels),
                                    coefficient,
                                    floats(scale),
                                    floats(add),
                                    floats(loss),
                                    floats(dot)};
        py::gil_scoped_release release;
        sb::row_loss_cuda(a, device, handle(stream));
      },
      py::arg("rows"), py::arg("classes"), py::arg("x"), py::arg("stride"), py::arg("labels"),
      py::arg("coefficient"), py::arg("scale"), py::arg("add"), py::arg("loss"), py::arg("dot"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "bias_loss_cuda",
      [](int64_t classes, int64_t width, double weight, uintptr_t tau, uintptr_t norms,
         uintptr_t inverse, uintptr_t grad_tau, uintptr_t loss, int device, uintptr_t stream) {
        const sb::BiasLossCudaArgs a{classes,          width,         weight,
                                     floats(tau),      floats(norms), floats(inverse),
                                     floats(grad_tau), floats(loss)};
        py::gil_scoped_release release;
        sb::bias_loss_cuda(a, device, handle(stream));
      },
      py::arg("classes"), py::arg("width"), py::arg("weight"), py::arg("tau"), py::arg("norms"),
      py::arg("inverse"), py::arg("grad_tau"), py::arg("loss"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "total_loss_cuda",
      [](int64_t size, uintptr_t parts, uintptr_t step, uintptr_t step_now, uintptr_t loss,
         uintptr_t losses, int device, uintptr_t stream) {
        const sb::TotalLossCudaArgs a{size,         floats(parts), counts(step), counts(step_now),
                                      floats(loss), floats(losses)};
        py::gil_scoped_release release;
        sb::total_loss_cuda(a, device, handle(stream));
      },
      py::arg("size"), py::arg("parts"), py::arg("step"), py::arg("step_now"), py::arg("loss"),
      py::arg("losses"), py::arg("device"), py::arg("stream"));
}

}  // namespace

void bind_cuda_train(py::module_& m) {
  bind_shots(m);
  bind_losses(m);
  m.def(
      "adamw_flat_cuda",
      [](int64_t size, uintptr_t parameter, uintptr_t gradient, uintptr_t first, uintptr_t second,
         uintptr_t table, uintptr_t step_now, uintptr_t step, double beta1, double beta2,
         double eps, int device, uintptr_t stream) {
        const sb::AdamwFlatCudaArgs a{size,
                                      floats(parameter),
                                      floats(gradient),
                                      floats(first),
                                      floats(second),
                                      floats(table),
                                      counts(step_now),
                                      counts(step),
                                      beta1,
                                      beta2,
                                      eps};
        py::gil_scoped_release release;
        sb::adamw_flat_cuda(a, device, handle(stream));
      },
      py::arg("size"), py::arg("parameter"), py::arg("gradient"), py::arg("first"),
      py::arg("second"), py::arg("table"), py::arg("step_now"), py::arg("step"), py::arg("beta1"),
      py::arg("beta2"), py::arg("eps"), py::arg("device"), py::arg("stream"));
}
#else
void bind_cuda_train(py::module_&) {}
#endif
