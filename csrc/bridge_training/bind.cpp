#include "bindings.h"
#include "bridge_training/bridge_training.h"

namespace {

void* address(uintptr_t p) { return reinterpret_cast<void*>(p); }

// The batch of one training run: what every call shares crosses once.
class ClassBatch {
 public:
  ClassBatch(int dtype, uintptr_t offsets, int64_t width)
      : offsets_(reinterpret_cast<const int64_t*>(offsets)), width_(width) {
    rows_.dtype = dtype_of(dtype);
    rows_.offsets = offsets_;
  }

  void shot_norms(int64_t first, int64_t last, uintptr_t e, uintptr_t tau, uintptr_t r,
                  uintptr_t mean, int threads) const {
    const sb::ShotNormsArgs args{
        rows(first, last, threads), width_, address(e), address(tau), address(r), address(mean)};
    py::gil_scoped_release release;
    sb::shot_norms(args);
  }

  void shot_dots(int64_t first, int64_t last, uintptr_t e, uintptr_t h, uintptr_t q,
                 int threads) const {
    const sb::ShotDotsArgs args{rows(first, last, threads), width_, address(e), address(h),
                                address(q)};
    py::gil_scoped_release release;
    sb::shot_dots(args);
  }

  void row_loss(int64_t first, int64_t last, int64_t classes, int64_t stride, double coefficient,
                uintptr_t x, uintptr_t scale, uintptr_t add, uintptr_t loss, uintptr_t dot,
                uintptr_t sums, int threads) const {
    const sb::RowLossArgs args{rows(first, last, threads),
                               classes,
                               stride,
                               offsets_[first],
                               coefficient,
                               address(x),
                               address(scale),
                               address(add),
                               address(loss),
                               address(dot),
                               address(sums)};
    py::gil_scoped_release release;
    sb::row_loss(args);
  }

  void shot_grads(int64_t first, int64_t last, uintptr_t e, uintptr_t h, uintptr_t r, uintptr_t q,
                  uintptr_t dot, uintptr_t grad_mean, uintptr_t grad_tau, int threads) const {
    const sb::ShotGradsArgs args{rows(first, last, threads),
                                 width_,
                                 address(e),
                                 address(h),
                                 address(r),
                                 address(q),
                                 address(dot),
                                 address(grad_mean),
                                 address(grad_tau)};
    py::gil_scoped_release release;
    sb::shot_grads(args);
  }

 private:
  sb::ClassRows rows(int64_t first, int64_t last, int threads) const {
    sb::ClassRows rows = rows_;
    rows.first = first, rows.last = last, rows.threads = threads < 1 ? 1 : threads;
    return rows;
  }
  sb::ClassRows rows_;
  const int64_t* offsets_;
  int64_t width_;
};

}  // namespace

void bind_train(py::module_& m) {
  py::class_<ClassBatch>(m, "ClassBatch")
      .def(py::init<int, uintptr_t, int64_t>(), py::arg("dtype"), py::arg("offsets"),
           py::arg("width"))
      .def("shot_norms", &ClassBatch::shot_norms, py::arg("first"), py::arg("last"), py::arg("e"),
           py::arg("tau"), py::arg("r"), py::arg("mean"), py::arg("threads"))
      .def("shot_dots", &ClassBatch::shot_dots, py::arg("first"), py::arg("last"), py::arg("e"),
           py::arg("h"), py::arg("q"), py::arg("threads"))
      .def("row_loss", &ClassBatch::row_loss, py::arg("first"), py::arg("last"), py::arg("classes"),
           py::arg("stride"), py::arg("coefficient"), py::arg("x"), py::arg("scale"),
           py::arg("add"), py::arg("loss"), py::arg("dot"), py::arg("sums"), py::arg("threads"))
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
                                 address(parameter),
                                 address(gradient),
                                 address(first),
                                 address(second),
                                 rate,
                                 decay,
                                 beta1,
                                 beta2,
                                 epsilon,
                                 step,
                                 threads < 1 ? 1 : threads};
        py::gil_scoped_release release;
        sb::adamw(args);
      },
      py::arg("dtype"), py::arg("size"), py::arg("parameter"), py::arg("gradient"),
      py::arg("first"), py::arg("second"), py::arg("rate"), py::arg("decay"), py::arg("beta1"),
      py::arg("beta2"), py::arg("epsilon"), py::arg("step"), py::arg("threads"));
}
