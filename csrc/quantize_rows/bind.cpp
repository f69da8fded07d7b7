#include "bindings.h"
#include "quantize_rows/quantize_rows.h"

SB_BIND_CPU(m) {
  m.attr("CODE_BOUNDS") = sb::kBounds;
  m.attr("MAX_CODE_WIDTH") = sb::kMaxCodeWidth;
  m.def("code_panel_bytes", &sb::code_panel_bytes, py::arg("cols"));
  m.def(
      "quantize_rows",
      [](const sb::ConstMatrix& rows, uintptr_t codes, uintptr_t bounds, int threads) {
        const sb::QuantizeRowsArgs args{rows, at<uint8_t>(codes), at<float>(bounds),
                                        at_least_one(threads)};
        py::gil_scoped_release release;
        sb::quantize_rows(args);
      },
      py::arg("rows"), py::arg("codes"), py::arg("bounds"), py::arg("threads"));
}
