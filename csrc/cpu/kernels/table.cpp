#include "entries.h"

namespace semobridge {
namespace SB_ISA {

const KernelTable kTable = {
    .project = project_entry,
    .pack_matrix = pack_matrix_entry,
    .invert = invert_entry,
    .pack_stored = pack_stored_entry,
};

}  // namespace SB_ISA
}  // namespace semobridge
