// Which instruction sets this build holds and this processor runs.
#pragma once
#include <vector>

#include "kernels.hpp"

namespace bitbranch {

// Usable instruction sets, the widest first; "scalar" is always among them.
const std::vector<const InstructionSet*>& instruction_sets();

}  // namespace bitbranch
