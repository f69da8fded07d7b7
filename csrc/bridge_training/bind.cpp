#include "bindings.h"
#include "bridge_training/bridge_training.h"
#include "bridge_training/cuda.h"

namespace {

// The batch of one training run: what every call shares crosses once.
class ClassBatch {
 public:
  ClassBatch(int dtype, uintptr_t offsets, int64_t width)
      : offsets_(at<const int64_t>(offsets)), width_(width) {
    rows_.dtype = dtype_of(dtype);
    rows_.offsets = offsets_;
  }

  void shot_norms(int64_t first, int64_t last, uintptr_t e, uintptr_t tau, uintptr_t r,
                  uintptr_t mean, int threads) const {
    const sb::ShotNormsArgs args{rows(first, last, threads),
                                 width_,
                                 at<void>(e),
                                 at<void>(tau),
                                 at<void>(r),
                                 at<void>(mean)};
    py::gil_scoped_release release;
    sb::shot_norms(args);
  }

  void shot_dots(int64_t first, int64_t last, uintptr_t e, uintptr_t h, uintptr_t q,
                 int threads) const {
    const sb::ShotDotsArgs args{rows(first, last, threads), width_, at<void>(e), at<void>(h),
                                at<void>(q)};
    py::gil_scoped_release release;
    sb::shot_dots(args);
  }

  void row_loss(int64_t first, int64_t last, const sb::Matrix& x, double coefficient,
                uintptr_t scale, uintptr_t add, uintptr_t loss, uintptr_t dot, uintptr_t sums,
                int threads) const {
    const sb::RowLossArgs args{rows(first, last, threads),
                               offsets_[first],
                               x,
                               coefficient,
                               at<void>(scale),
                               at<void>(add),
                               at<void>(loss),
                               at<void>(dot),
                               at<void>(sums)};
    py::gil_scoped_release release;
    sb::row_loss(args);
  }

  void shot_grads(int64_t first, int64_t last, uintptr_t e, uintptr_t h, uintptr_t r, uintptr_t q,
                  uintptr_t dot, uintptr_t grad_mean, uintptr_t grad_tau, int threads) const {
    const sb::ShotGradsArgs args{rows(first, last, threads),
                                 width_,
                                 at<void>(e),
                                 at<void>(h),
                                 at<void>(r),
                                 at<void>(q),
                                 at<void>(dot),
                                 at<void>(grad_mean),
                                 at<void>(grad_tau)};
    py::gil_scoped_release release;
    sb::shot_grads(args);
  }

 private:
  sb::ClassRows rows(int64_t first, int64_t last, int threads) const {
    sb::ClassRows rows = rows_;
    rows.first = first, rows.last = last, rows.threads = at_least_one(threads);
    return rows;
  }
  sb::ClassRows rows_;
  const int64_t* offsets_;
  int64_t width_;
};

}  // namespace

SB_BIND_CPU(m) {
  py::class_<ClassBatch>(m, "ClassBatch")
      .def(py::init<int, uintptr_t, int64_t>(), py::arg("dtype"), py::arg("offsets"),
           py::arg("width"))
      .def("shot_norms", &ClassBatch::shot_norms, py::arg("first"), py::arg("last"), py::arg("e"),
           py::arg("tau"), py::arg("r"), py::arg("mean"), py::arg("threads"))
      .def("shot_dots", &ClassBatch::shot_dots, py::arg("first"), py::arg("last"), py::arg("e"),
           py::arg("h"), py::arg("q"), py::arg("threads"))
      .def("row_loss", &ClassBatch::row_loss, py::arg("first"), py::arg("last"), py::arg("x"),
           py::arg("coefficient"), py::arg("scale"), py::arg("add"), py::arg("loss"),
           py::arg("dot"), py::arg("sums"), py::arg("threads"))
      .def("shot_grads", &ClassBatch::shot_grads, py::arg("first"), py::arg("last"), py::arg("e"),
           py::arg("h"), py::arg("r"), py::arg("q"), py::arg("dot"), py::arg("grad_mean"),
           py::arg("grad_tau"), py::arg("threads"));
  m.def(
      "adamw",
      [](int dtype, int64_t size, uintptr_t parameter, uintptr_t gradient, uintptr_t first,
         uintptr_t second, double rate, double decay, double beta1, double beta2, double epsilon,
         int64_t step, int threads) {
        const sb::AdamwArgs args{dtype_of(dtype),
                                 size,
                                 at<void>(parameter),
                                 at<void>(gradient),
                                 at<void>(first),
                                 at<void>(second),
                                 rate,
                                 decay,
                                 beta1,
                                 beta2,
                                 epsilon,
                                 step,
                                 at_least_one(threads)};
        py::gil_scoped_release release;
        sb::adamw(args);
      },
      py::arg("dtype"), py::arg("size"), py::arg("parameter"), py::arg("gradient"),
      py::arg("first"), py::arg("second"), py::arg("rate"), py::arg("decay"), py::arg("beta1"),
      py::arg("beta2"), py::arg("epsilon"), py::arg("step"), py::arg("threads"));
}

SB_BIND_CUDA(m) {
  m.def(
      "shot_norms_cuda",
      [](int64_t rows, int64_t width, uintptr_t labels, uintptr_t e, uintptr_t tau, uintptr_t r,
         int device, uintptr_t stream) {
        const sb::ShotNormsCudaArgs a{rows,         width,          at<int64_t>(labels),
                                      at<float>(e), at<float>(tau), at<float>(r)};
        py::gil_scoped_release release;
        sb::shot_norms_cuda(a, device, at<void>(stream));
      },
      py::arg("rows"), py::arg("width"), py::arg("labels"), py::arg("e"), py::arg("tau"),
      py::arg("r"), py::arg("device"), py::arg("stream"));
  m.def(
      "class_sums_cuda",
      [](int64_t classes, uintptr_t offsets, int64_t row_begin, const sb::ConstMatrix& x,
         uintptr_t norms, uintptr_t extra, uintptr_t out, int device, uintptr_t stream) {
        const sb::ClassSumsCudaArgs a{classes,          at<int64_t>(offsets), row_begin,     x,
                                      at<float>(norms), at<float>(extra),     at<float>(out)};
        py::gil_scoped_release release;
        sb::class_sums_cuda(a, device, at<void>(stream));
      },
      py::arg("classes"), py::arg("offsets"), py::arg("row_begin"), py::arg("x"), py::arg("norms"),
      py::arg("extra"), py::arg("out"), py::arg("device"), py::arg("stream"));
  m.def(
      "row_dots_cuda",
      [](int64_t rows, int64_t width, uintptr_t a_, uintptr_t b, uintptr_t q, uintptr_t inverse,
         int device, uintptr_t stream) {
        const sb::RowDotsCudaArgs a{rows,         width,        at<float>(a_),
                                    at<float>(b), at<float>(q), at<float>(inverse)};
        py::gil_scoped_release release;
        sb::row_dots_cuda(a, device, at<void>(stream));
      },
      py::arg("rows"), py::arg("width"), py::arg("a"), py::arg("b"), py::arg("q"),
      py::arg("inverse"), py::arg("device"), py::arg("stream"));
  m.def(
      "shot_grads_cuda",
      [](int64_t rows, int64_t width, uintptr_t labels, uintptr_t offsets, uintptr_t e, uintptr_t h,
         uintptr_t r, uintptr_t inverse_q, uintptr_t dot, uintptr_t grad_mean, int device,
         uintptr_t stream) {
        const sb::ShotGradsCudaArgs a{rows,
                                      width,
                                      at<int64_t>(labels),
                                      at<int64_t>(offsets),
                                      at<float>(e),
                                      at<float>(h),
                                      at<float>(r),
                                      at<float>(inverse_q),
                                      at<float>(dot),
                                      at<float>(grad_mean)};
        py::gil_scoped_release release;
        sb::shot_grads_cuda(a, device, at<void>(stream));
      },
      py::arg("rows"), py::arg("width"), py::arg("labels"), py::arg("offsets"), py::arg("e"),
      py::arg("h"), py::arg("r"), py::arg("inverse_q"), py::arg("dot"), py::arg("grad_mean"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "unit_grad_cuda",
      [](int64_t rows, int64_t width, uintptr_t grad, uintptr_t unit, uintptr_t norms,
         bool accumulate, uintptr_t out, int device, uintptr_t stream) {
        const sb::UnitGradCudaArgs a{
            rows,       width,         at<float>(grad), at<float>(unit), at<float>(norms),
            accumulate, at<float>(out)};
        py::gil_scoped_release release;
        sb::unit_grad_cuda(a, device, at<void>(stream));
      },
      py::arg("rows"), py::arg("width"), py::arg("grad"), py::arg("unit"), py::arg("norms"),
      py::arg("accumulate"), py::arg("out"), py::arg("device"), py::arg("stream"));
  m.def(
      "row_loss_cuda",
      [](const sb::Matrix& x, uintptr_t labels, double coefficient, uintptr_t scale, uintptr_t add,
         uintptr_t loss, uintptr_t dot, int device, uintptr_t stream) {
        const sb::RowLossCudaArgs a{x,
                                    at<int64_t>(labels),
                                    coefficient,
                                    at<float>(scale),
                                    at<float>(add),
                                    at<float>(loss),
                                    at<float>(dot)};
        py::gil_scoped_release release;
        sb::row_loss_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("labels"), py::arg("coefficient"), py::arg("scale"), py::arg("add"),
      py::arg("loss"), py::arg("dot"), py::arg("device"), py::arg("stream"));
  m.def(
      "row_loss_halves_cuda",
      [](const sb::Matrix& x, uintptr_t labels, double coefficient, uintptr_t scale, uintptr_t add,
         uintptr_t loss, uintptr_t dot, uintptr_t left, uintptr_t right, uintptr_t bound,
         int device, uintptr_t stream) {
        const sb::RowLossCudaArgs a{x,
                                    at<int64_t>(labels),
                                    coefficient,
                                    at<float>(scale),
                                    at<float>(add),
                                    at<float>(loss),
                                    at<float>(dot),
                                    at<float>(left),
                                    at<float>(right),
                                    at<float>(bound)};
        py::gil_scoped_release release;
        sb::row_loss_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("labels"), py::arg("coefficient"), py::arg("scale"), py::arg("add"),
      py::arg("loss"), py::arg("dot"), py::arg("left"), py::arg("right"), py::arg("bound"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "class_sums_halves_cuda",
      [](int64_t classes, uintptr_t offsets, int64_t row_begin, const sb::ConstMatrix& x,
         uintptr_t left, uintptr_t bound, uintptr_t out, int device, uintptr_t stream) {
        const sb::ClassSumsCudaArgs a{
            classes,        at<int64_t>(offsets), row_begin,       x, nullptr, nullptr,
            at<float>(out), at<float>(left),      at<float>(bound)};
        py::gil_scoped_release release;
        sb::class_sums_cuda(a, device, at<void>(stream));
      },
      py::arg("classes"), py::arg("offsets"), py::arg("row_begin"), py::arg("x"), py::arg("left"),
      py::arg("bound"), py::arg("out"), py::arg("device"), py::arg("stream"));
  m.def(
      "cut_rows_cuda",
      [](const sb::ConstMatrix& x, int copies, uintptr_t out, uintptr_t scale, int device,
         uintptr_t stream) {
        const sb::CutRowsCudaArgs a{x, copies, at<void>(out), at<float>(scale)};
        py::gil_scoped_release release;
        sb::cut_rows_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("copies"), py::arg("out"), py::arg("scale"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "add_halves_cuda",
      [](const sb::ConstMatrix& raw, int64_t parts, uintptr_t bounds, int64_t split,
         const sb::Matrix& out, bool accumulate, int device, uintptr_t stream) {
        const sb::AddHalvesCudaArgs a{raw, parts, at<float>(bounds), split, out, accumulate};
        py::gil_scoped_release release;
        sb::add_halves_cuda(a, device, at<void>(stream));
      },
      py::arg("raw"), py::arg("parts"), py::arg("bounds"), py::arg("split"), py::arg("out"),
      py::arg("accumulate"), py::arg("device"), py::arg("stream"));
  m.def(
      "bias_loss_cuda",
      [](int64_t classes, int64_t width, double weight, uintptr_t tau, uintptr_t norms,
         uintptr_t inverse, uintptr_t grad_tau, uintptr_t loss, int device, uintptr_t stream) {
        const sb::BiasLossCudaArgs a{classes,
                                     width,
                                     weight,
                                     at<float>(tau),
                                     at<float>(norms),
                                     at<float>(inverse),
                                     at<float>(grad_tau),
                                     at<float>(loss)};
        py::gil_scoped_release release;
        sb::bias_loss_cuda(a, device, at<void>(stream));
      },
      py::arg("classes"), py::arg("width"), py::arg("weight"), py::arg("tau"), py::arg("norms"),
      py::arg("inverse"), py::arg("grad_tau"), py::arg("loss"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "total_loss_cuda",
      [](int64_t size, uintptr_t parts, uintptr_t step, uintptr_t step_now, uintptr_t loss,
         uintptr_t losses, int device, uintptr_t stream) {
        const sb::TotalLossCudaArgs a{size,
                                      at<float>(parts),
                                      at<int64_t>(step),
                                      at<int64_t>(step_now),
                                      at<float>(loss),
                                      at<float>(losses)};
        py::gil_scoped_release release;
        sb::total_loss_cuda(a, device, at<void>(stream));
      },
      py::arg("size"), py::arg("parts"), py::arg("step"), py::arg("step_now"), py::arg("loss"),
      py::arg("losses"), py::arg("device"), py::arg("stream"));
  m.def(
      "adamw_flat_cuda",
      [](int64_t size, uintptr_t parameter, uintptr_t gradient, uintptr_t first, uintptr_t second,
         uintptr_t table, uintptr_t step_now, uintptr_t step, double beta1, double beta2,
         double eps, int device, uintptr_t stream) {
        const sb::AdamwFlatCudaArgs a{size,
                                      at<float>(parameter),
                                      at<float>(gradient),
                                      at<float>(first),
                                      at<float>(second),
                                      at<float>(table),
                                      at<int64_t>(step_now),
                                      at<int64_t>(step),
                                      beta1,
                                      beta2,
                                      eps};
        py::gil_scoped_release release;
        sb::adamw_flat_cuda(a, device, at<void>(stream));
      },
      py::arg("size"), py::arg("parameter"), py::arg("gradient"), py::arg("first"),
      py::arg("second"), py::arg("table"), py::arg("step_now"), py::arg("step"), py::arg("beta1"),
      py::arg("beta2"), py::arg("eps"), py::arg("device"), py::arg("stream"));
}
