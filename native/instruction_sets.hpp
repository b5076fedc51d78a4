// Which instruction sets this build holds and this processor runs.
#pragma once
#include <vector>

#include "kernels.hpp"

namespace bitbranch {

// Usable instruction sets, the widest first; "scalar" is always among them. Found and checked at the first call.
const std::vector<const InstructionSet*>& instruction_sets();

// Appends a set to those on offer if it computes right here (see first_fault), and else says on stderr that it does not.
void offer(std::vector<InstructionSet>& sets, const InstructionSet& set);

}  // namespace bitbranch
