#include "core/table.h"

namespace semobridge {
namespace SB_ISA {

const KernelTable kTable = {
#define SB_KERNEL(name, Args) .name = name##_entry,
#include "core/kernels.def"
};

}  // namespace SB_ISA
}  // namespace semobridge
