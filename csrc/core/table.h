// The kernels of one instruction set. The files *_kernel.cpp are compiled once per set with SB_ISA
// naming the namespace; core/table_kernel.cpp collects their entry points.
#pragma once

namespace semobridge {

#define SB_KERNEL(name, Args) struct Args;
#include "core/kernels.def"

struct KernelTable {
#define SB_KERNEL(name, Args) void (*name)(const Args&);
#include "core/kernels.def"
};

// What a caller of the core got wrong; the op files of semobridge_ext/_ops have better words for
// it.
void require(bool ok, const char* what);

#ifdef SB_ISA
namespace SB_ISA {

extern const KernelTable kTable;

// An entry checks what its kernel takes for granted.
#define SB_KERNEL(name, Args) void name##_entry(const Args& args);
#include "core/kernels.def"

}  // namespace SB_ISA
#endif

}  // namespace semobridge
