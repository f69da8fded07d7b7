#include "bindings.h"
#include "blend_logits/blend_logits.h"

void bind_blend(py::module_& m) {
  m.def(
      "blend",
      [](uintptr_t x, int dtype, int64_t n, int64_t k, int64_t x_stride, uintptr_t right,
         int64_t right_cols, int64_t classes, bool bridged, uintptr_t weights, double alpha,
         double beta, double gamma, double lambda1, double lambda2, double lambda3,
         uintptr_t labels, uintptr_t logits, uintptr_t z1, uintptr_t z2, uintptr_t z3,
         int threads) {
        sb::BlendArgs args;
        const sb::DType type = dtype_of(dtype);
        const sb::DType compute =
            type == sb::DType::kFloat64 ? sb::DType::kFloat64 : sb::DType::kFloat32;
        args.x = {reinterpret_cast<const void*>(x), type, n, k, x_stride};
        args.right = {reinterpret_cast<const void*>(right), compute, k, right_cols};
        args.classes = classes;
        args.bridged = bridged;
        args.weights = reinterpret_cast<const void*>(weights);
        args.alpha = alpha, args.beta = beta, args.gamma = gamma;
        args.lambda[0] = lambda1, args.lambda[1] = lambda2, args.lambda[2] = lambda3;
        args.labels = reinterpret_cast<int64_t*>(labels);
        args.logits = reinterpret_cast<void*>(logits);
        args.blocks[0] = reinterpret_cast<void*>(z1);
        args.blocks[1] = reinterpret_cast<void*>(z2);
        args.blocks[2] = reinterpret_cast<void*>(z3);
        args.threads = threads < 1 ? 1 : threads;
        py::gil_scoped_release release;
        sb::blend(args);
      },
      py::arg("x"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("x_stride"),
      py::arg("right"), py::arg("right_cols"), py::arg("classes"), py::arg("bridged"),
      py::arg("weights"), py::arg("alpha"), py::arg("beta"), py::arg("gamma"), py::arg("lambda1"),
      py::arg("lambda2"), py::arg("lambda3"), py::arg("labels"), py::arg("logits"), py::arg("z1"),
      py::arg("z2"), py::arg("z3"), py::arg("threads"));
}
