#include "bindings.h"
#include "blend_logits/blend_logits.h"
#include "blend_logits/cuda.h"

SB_BIND_CPU(m) {
  m.def(
      "blend_logits",
      [](const sb::ConstMatrix& x, const sb::PackedMatrix& right, int64_t classes, bool bridged,
         uintptr_t weights, double alpha, double beta, double gamma, double lambda1, double lambda2,
         double lambda3, uintptr_t labels, uintptr_t logits, uintptr_t z1, uintptr_t z2,
         uintptr_t z3, int threads) {
        sb::BlendLogitsArgs args;
        args.x = x;
        args.right = right;
        args.classes = classes;
        args.bridged = bridged;
        args.weights = at<const void>(weights);
        args.alpha = alpha, args.beta = beta, args.gamma = gamma;
        args.lambda[0] = lambda1, args.lambda[1] = lambda2, args.lambda[2] = lambda3;
        args.labels = at<int64_t>(labels);
        args.logits = at<void>(logits);
        args.blocks[0] = at<void>(z1);
        args.blocks[1] = at<void>(z2);
        args.blocks[2] = at<void>(z3);
        args.threads = at_least_one(threads);
        py::gil_scoped_release release;
        sb::blend_logits(args);
      },
      py::arg("x"), py::arg("right"), py::arg("classes"), py::arg("bridged"), py::arg("weights"),
      py::arg("alpha"), py::arg("beta"), py::arg("gamma"), py::arg("lambda1"), py::arg("lambda2"),
      py::arg("lambda3"), py::arg("labels"), py::arg("logits"), py::arg("z1"), py::arg("z2"),
      py::arg("z3"), py::arg("threads"));
}

SB_BIND_CUDA(m) {
  m.def(
      "blend_logits_cuda",
      [](const sb::ConstMatrix& x, const sb::ConstMatrix& z, int64_t classes, int64_t rank,
         uintptr_t weights, double alpha, double beta, double gamma, double lambda1, double lambda2,
         double lambda3, uintptr_t labels, uintptr_t logits, int device, uintptr_t stream) {
        const sb::BlendLogitsCudaArgs a{x,
                                        z,
                                        classes,
                                        rank,
                                        at<float>(weights),
                                        alpha,
                                        beta,
                                        gamma,
                                        {lambda1, lambda2, lambda3},
                                        at<int64_t>(labels),
                                        at<float>(logits)};
        py::gil_scoped_release release;
        sb::blend_logits_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("z"), py::arg("classes"), py::arg("rank"), py::arg("weights"),
      py::arg("alpha"), py::arg("beta"), py::arg("gamma"), py::arg("lambda1"), py::arg("lambda2"),
      py::arg("lambda3"), py::arg("labels"), py::arg("logits"), py::arg("device"),
      py::arg("stream"));
}
