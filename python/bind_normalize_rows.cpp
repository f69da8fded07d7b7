#include "bindings.h"
#ifdef SB_WITH_CUDA
#include <semobridge/normalize_rows.h>
#endif

void bind_normalize_rows([[maybe_unused]] py::module_& m) {
#ifdef SB_WITH_CUDA
  m.def(
      "normalize_rows_cuda",
      [](uintptr_t x, int dtype, int64_t rows, int64_t cols, int64_t x_stride, uintptr_t bias,
         int64_t bias_stride, bool normalize, double scale, uintptr_t out, int out_dtype,
         int64_t out_stride, uintptr_t norms, int device, uintptr_t stream) {
        sb::NormalizeRowsArgs args;
        args.x = {reinterpret_cast<const void*>(x), dtype_of(dtype), rows, cols, x_stride};
        args.bias = {reinterpret_cast<const void*>(bias), dtype_of(dtype),
                     bias_stride == 0 ? 1 : rows, cols, bias_stride};
        args.normalize = normalize;
        args.scale = scale;
        args.out = {reinterpret_cast<void*>(out), dtype_of(out_dtype), rows, cols, out_stride};
        args.norms = reinterpret_cast<void*>(norms);
        py::gil_scoped_release release;
        sb::normalize_rows_cuda(args, device, reinterpret_cast<void*>(stream));
      },
      py::arg("x"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("x_stride"),
      py::arg("bias"), py::arg("bias_stride"), py::arg("normalize"), py::arg("scale"),
      py::arg("out"), py::arg("out_dtype"), py::arg("out_stride"), py::arg("norms"),
      py::arg("device"), py::arg("stream"));
#endif
}
