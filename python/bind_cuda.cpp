#include "bindings.h"

#ifdef SB_WITH_CUDA
#include <tuple>

#include "blend_logits/cuda.h"
#include "project_normalize/cuda.h"
#include "project_normalize/cuda_normalize_rows.h"
#include "project_normalize/cuda_project_tile.h"
#include "topk/cuda.h"
#include "tower_descent/cuda_activation.h"
#include "tower_descent/cuda_attention.h"
#include "tower_descent/cuda_descend.h"
#include "tower_descent/cuda_layer_norm.h"

namespace {

// A matrix as it crosses: address (0: none), dtype, rows, columns, row stride.
using View = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>;

sb::ConstMatrix input(const View& v) {
  return matrix_of(std::get<0>(v), std::get<1>(v), std::get<2>(v), std::get<3>(v), std::get<4>(v));
}

sb::Matrix output(const View& v) {
  return {reinterpret_cast<void*>(std::get<0>(v)), dtype_of(std::get<1>(v)), std::get<2>(v),
          std::get<3>(v), std::get<4>(v)};
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

sb::AttentionCudaArgs attention_args(int dtype, int64_t samples, int64_t heads, int64_t width,
                                     int64_t slots, int64_t queries, int64_t prefix, uintptr_t qkv,
                                     int64_t qkv_stride, uintptr_t prefix_kv, uintptr_t visible,
                                     uintptr_t visible_begin, int64_t keys, uintptr_t p,
                                     int64_t o_stride) {
  sb::AttentionCudaArgs a;
  a.dtype = dtype_of(dtype);
  a.samples = samples;
  a.heads = heads;
  a.width = width;
  a.slots = slots;
  a.queries = queries;
  a.prefix = prefix;
  a.qkv = at<void>(qkv);
  a.qkv_stride = qkv_stride;
  a.prefix_kv = at<void>(prefix_kv);
  a.visible = at<int32_t>(visible);
  a.visible_begin = at<int32_t>(visible_begin);
  a.keys = keys;
  a.p = at<float>(p);
  a.o_stride = o_stride;
  return a;
}

void bind_rows(py::module_& m) {
  m.def(
      "normalize_rows_cuda",
      [](const View& x, const View& bias, bool normalize, double scale, const View& out,
         uintptr_t norms, int device, uintptr_t stream) {
        const sb::NormalizeRowsArgs a{input(x), input(bias), normalize,
                                      scale,    output(out), at<void>(norms)};
        py::gil_scoped_release release;
        sb::normalize_rows_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("bias"), py::arg("normalize"), py::arg("scale"), py::arg("out"),
      py::arg("norms"), py::arg("device"), py::arg("stream"));
  m.def("project_tickets", &sb::project_tickets, py::arg("n"));
  m.def(
      "project_cuda",
      [](const View& x, const View& matrix, const View& bias, bool normalize, double scale,
         const View& out, uintptr_t norms, uintptr_t raw, uintptr_t tickets, int device,
         uintptr_t stream) {
        const sb::ProjectCudaArgs a{input(x),         input(matrix),  input(bias),
                                    normalize,        scale,          output(out),
                                    at<float>(norms), at<float>(raw), at<int>(tickets)};
        py::gil_scoped_release release;
        sb::project_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("matrix"), py::arg("bias"), py::arg("normalize"), py::arg("scale"),
      py::arg("out"), py::arg("norms"), py::arg("raw"), py::arg("tickets"), py::arg("device"),
      py::arg("stream"));
}

void bind_project_tile(py::module_& m) {
  m.def("project_tile_tickets", &sb::project_tile_tickets, py::arg("n"));
  m.def(
      "project_tile_cuda",
      [](const View& x, const View& matrix, double matrix_scale, const View& bias, bool normalize,
         double scale, const View& out, uintptr_t norms, uintptr_t raw, uintptr_t tickets,
         int device, uintptr_t stream) {
        const sb::ProjectTileCudaArgs a{
            input(x), input(matrix), matrix_scale,     input(bias),    normalize,
            scale,    output(out),   at<float>(norms), at<float>(raw), at<int>(tickets)};
        py::gil_scoped_release release;
        sb::project_tile_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("matrix"), py::arg("matrix_scale"), py::arg("bias"),
      py::arg("normalize"), py::arg("scale"), py::arg("out"), py::arg("norms"), py::arg("raw"),
      py::arg("tickets"), py::arg("device"), py::arg("stream"));
}

void bind_tower(py::module_& m) {
  m.def(
      "layer_norm_cuda",
      [](const View& x, const View& delta, const View& total, uintptr_t weight, uintptr_t bias,
         double eps, const View& y, uintptr_t mean, uintptr_t rstd, int device, uintptr_t stream) {
        const sb::LayerNormCudaArgs a{input(x),          input(delta),    output(total),
                                      at<float>(weight), at<float>(bias), eps,
                                      output(y),         at<float>(mean), at<float>(rstd)};
        py::gil_scoped_release release;
        sb::layer_norm_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("delta"), py::arg("total"), py::arg("weight"), py::arg("bias"),
      py::arg("eps"), py::arg("y"), py::arg("mean"), py::arg("rstd"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "layer_norm_grad_cuda",
      [](const View& x, const View& grad_y, uintptr_t weight, uintptr_t mean, uintptr_t rstd,
         const View& residual, const View& grad_x, int device, uintptr_t stream) {
        const sb::LayerNormGradCudaArgs a{input(x),        input(grad_y),   at<float>(weight),
                                          at<float>(mean), at<float>(rstd), input(residual),
                                          output(grad_x)};
        py::gil_scoped_release release;
        sb::layer_norm_grad_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("grad_y"), py::arg("weight"), py::arg("mean"), py::arg("rstd"),
      py::arg("residual"), py::arg("grad_x"), py::arg("device"), py::arg("stream"));
  m.def(
      "activate_cuda",
      [](int kind, const View& x, uintptr_t bias, const View& y, const View& slope, int device,
         uintptr_t stream) {
        if (kind < 0 || kind > 2) throw std::invalid_argument("_C: activation must be 0..2");
        const sb::ActivateCudaArgs a{static_cast<sb::Activation>(kind), input(x), at<float>(bias),
                                     output(y), output(slope)};
        py::gil_scoped_release release;
        sb::activate_cuda(a, device, at<void>(stream));
      },
      py::arg("kind"), py::arg("x"), py::arg("bias"), py::arg("y"), py::arg("slope"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "attention_cuda",
      [](int dtype, int64_t samples, int64_t heads, int64_t width, int64_t slots, int64_t queries,
         int64_t prefix, uintptr_t qkv, int64_t qkv_stride, uintptr_t prefix_kv, uintptr_t visible,
         uintptr_t visible_begin, int64_t keys, uintptr_t p, uintptr_t o, int64_t o_stride,
         int device, uintptr_t stream) {
        sb::AttentionCudaArgs a =
            attention_args(dtype, samples, heads, width, slots, queries, prefix, qkv, qkv_stride,
                           prefix_kv, visible, visible_begin, keys, p, o_stride);
        a.o = at<void>(o);
        py::gil_scoped_release release;
        sb::attention_cuda(a, device, at<void>(stream));
      },
      py::arg("dtype"), py::arg("samples"), py::arg("heads"), py::arg("width"), py::arg("slots"),
      py::arg("queries"), py::arg("prefix"), py::arg("qkv"), py::arg("qkv_stride"),
      py::arg("prefix_kv"), py::arg("visible"), py::arg("visible_begin"), py::arg("keys"),
      py::arg("p"), py::arg("o"), py::arg("o_stride"), py::arg("device"), py::arg("stream"));
  m.def(
      "attention_grad_cuda",
      [](int dtype, int64_t samples, int64_t heads, int64_t width, int64_t slots, int64_t queries,
         int64_t prefix, uintptr_t qkv, int64_t qkv_stride, uintptr_t prefix_kv, uintptr_t visible,
         uintptr_t visible_begin, int64_t keys, uintptr_t p, uintptr_t grad_o, int64_t o_stride,
         uintptr_t ds, uintptr_t grad_qkv, int device, uintptr_t stream) {
        const sb::AttentionGradCudaArgs a{
            attention_args(dtype, samples, heads, width, slots, queries, prefix, qkv, qkv_stride,
                           prefix_kv, visible, visible_begin, keys, p, o_stride),
            at<void>(grad_o), at<float>(ds), at<void>(grad_qkv)};
        py::gil_scoped_release release;
        sb::attention_grad_cuda(a, device, at<void>(stream));
      },
      py::arg("dtype"), py::arg("samples"), py::arg("heads"), py::arg("width"), py::arg("slots"),
      py::arg("queries"), py::arg("prefix"), py::arg("qkv"), py::arg("qkv_stride"),
      py::arg("prefix_kv"), py::arg("visible"), py::arg("visible_begin"), py::arg("keys"),
      py::arg("p"), py::arg("grad_o"), py::arg("o_stride"), py::arg("ds"), py::arg("grad_qkv"),
      py::arg("device"), py::arg("stream"));
}

void bind_descent(py::module_& m) {
  m.def(
      "cosine_loss_cuda",
      [](const View& features, const View& targets, double grad_scale, uintptr_t step,
         uintptr_t step_now, uintptr_t losses, const View& grad, uintptr_t unit, int device,
         uintptr_t stream) {
        const sb::CosineLossCudaArgs a{input(features),   input(targets),        grad_scale,
                                       at<int64_t>(step), at<int64_t>(step_now), at<float>(losses),
                                       output(grad),      at<float>(unit)};
        py::gil_scoped_release release;
        sb::cosine_loss_cuda(a, device, at<void>(stream));
      },
      py::arg("features"), py::arg("targets"), py::arg("grad_scale"), py::arg("step"),
      py::arg("step_now"), py::arg("losses"), py::arg("grad"), py::arg("unit"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "adamw_cuda",
      [](int64_t samples, int64_t vectors, int64_t width, int64_t slots, uintptr_t source,
         const View& grad_x, uintptr_t tokens, uintptr_t exp_avg, uintptr_t exp_avg_sq,
         uintptr_t rates, uintptr_t corrections, uintptr_t step_now, uintptr_t step, double lr,
         double beta1, double beta2, double eps, double weight_decay, double grad_factor,
         uintptr_t base, int64_t base_samples, const View& x, int device, uintptr_t stream) {
        sb::AdamwCudaArgs a;
        a.samples = samples;
        a.vectors = vectors;
        a.width = width;
        a.slots = slots;
        a.source = at<int32_t>(source);
        a.grad_x = input(grad_x);
        a.tokens = at<float>(tokens);
        a.exp_avg = at<float>(exp_avg);
        a.exp_avg_sq = at<float>(exp_avg_sq);
        a.rates = at<float>(rates);
        a.corrections = at<float>(corrections);
        a.step_now = at<int64_t>(step_now);
        a.step = at<int64_t>(step);
        a.lr = lr;
        a.beta1 = beta1;
        a.beta2 = beta2;
        a.eps = eps;
        a.weight_decay = weight_decay;
        a.grad_factor = grad_factor;
        a.base = at<float>(base);
        a.base_samples = base_samples;
        a.x = output(x);
        py::gil_scoped_release release;
        sb::adamw_cuda(a, device, at<void>(stream));
      },
      py::arg("samples"), py::arg("vectors"), py::arg("width"), py::arg("slots"), py::arg("source"),
      py::arg("grad_x"), py::arg("tokens"), py::arg("exp_avg"), py::arg("exp_avg_sq"),
      py::arg("rates"), py::arg("corrections"), py::arg("step_now"), py::arg("step"), py::arg("lr"),
      py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
      py::arg("grad_factor"), py::arg("base"), py::arg("base_samples"), py::arg("x"),
      py::arg("device"), py::arg("stream"));
}

void bind_scores(py::module_& m) {
  m.def(
      "blend_cuda",
      [](const View& x, const View& z, int64_t classes, int64_t rank, uintptr_t weights,
         double alpha, double beta, double gamma, double lambda1, double lambda2, double lambda3,
         uintptr_t labels, uintptr_t logits, int device, uintptr_t stream) {
        const sb::BlendCudaArgs a{input(x),
                                  input(z),
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
        sb::blend_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("z"), py::arg("classes"), py::arg("rank"), py::arg("weights"),
      py::arg("alpha"), py::arg("beta"), py::arg("gamma"), py::arg("lambda1"), py::arg("lambda2"),
      py::arg("lambda3"), py::arg("labels"), py::arg("logits"), py::arg("device"),
      py::arg("stream"));
  m.attr("TOPK_CUDA_MAX") = sb::kTopkCudaMax;
  m.def(
      "topk_filter_cuda",
      [](const View& scores, int64_t first, bool fresh, int64_t k, int64_t splits,
         uintptr_t exclude, uintptr_t best, uintptr_t rows, int device, uintptr_t stream) {
        const sb::TopkFilterCudaArgs a{
            input(scores),     first, fresh, k, splits, at<int64_t>(exclude), at<float>(best),
            at<uint32_t>(rows)};
        py::gil_scoped_release release;
        sb::topk_filter_cuda(a, device, at<void>(stream));
      },
      py::arg("scores"), py::arg("first"), py::arg("fresh"), py::arg("k"), py::arg("splits"),
      py::arg("exclude"), py::arg("best"), py::arg("rows"), py::arg("device"), py::arg("stream"));
  m.def(
      "topk_merge_cuda",
      [](int64_t n, int64_t k, int64_t splits, uintptr_t best, uintptr_t rows, uintptr_t scores,
         uintptr_t indices, int device, uintptr_t stream) {
        const sb::TopkMergeCudaArgs a{n,
                                      k,
                                      splits,
                                      at<float>(best),
                                      at<uint32_t>(rows),
                                      at<float>(scores),
                                      at<int64_t>(indices)};
        py::gil_scoped_release release;
        sb::topk_merge_cuda(a, device, at<void>(stream));
      },
      py::arg("n"), py::arg("k"), py::arg("splits"), py::arg("best"), py::arg("rows"),
      py::arg("scores"), py::arg("indices"), py::arg("device"), py::arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& m) {
  bind_rows(m);
  bind_project_tile(m);
  bind_tower(m);
  bind_descent(m);
  bind_scores(m);
  bind_cuda_train(m);
}
#else
void bind_cuda(py::module_&) {}
#endif
