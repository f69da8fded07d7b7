// Instruction sets: every kernel is compiled once per set and chosen at run time.
#pragma once

namespace semobridge {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);  // this build holds the kernels
bool isa_runnable(Isa isa);  // ... and this processor can run them
Isa active_isa();            // the best runnable one, or what SEMOBRIDGE_ISA / set_isa asked for
// Throws std::invalid_argument when the set is unknown, not compiled or not runnable here.
void set_isa(const char* name);

}  // namespace semobridge
