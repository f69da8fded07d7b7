// semobridge_ext._C
#include <string>

#include "bindings.h"
#include "core/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of semobridge_ext. Import semobridge_ext, not this module.";
  m.attr("PANEL") = sb::kPanel;
  m.def("active_isa", [] { return std::string(sb::isa_name(sb::active_isa())); });
  m.def("set_isa", [](const std::string& name) { sb::set_isa(name.c_str()); }, py::arg("name"));
  m.def("isa_table", [] {
    py::dict table;
    for (sb::Isa isa : {sb::Isa::kPortable, sb::Isa::kAvx2, sb::Isa::kAvx512}) {
      table[sb::isa_name(isa)] = py::make_tuple(sb::isa_compiled(isa), sb::isa_runnable(isa));
    }
    return table;
  });
  m.def("build_config", [] {
    py::dict config;
    config["compiler"] = SB_COMPILER;
    config["build_type"] = SB_BUILD_TYPE;
    config["cuda"] = SB_CUDA_VERSION;
    config["cuda_request"] = SB_CUDA_REQUEST;
    config["cuda_architectures"] = SB_CUDA_ARCHITECTURES;
    return config;
  });
  bind_project(m);
  bind_rank_counts(m);
  bind_support_logits(m);
  bind_topk(m);
  bind_invert(m);
  bind_blend(m);
  bind_search(m);
  bind_train(m);
  bind_cuda(m);
}
