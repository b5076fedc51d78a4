#include "instruction_sets.hpp"

namespace bitbranch {

extern const InstructionSet kScalar;
#if defined(BITBRANCH_X86)
extern const InstructionSet kAvx2, kAvx512, kAvx512Vbmi;
#endif

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> sets = [] {
    std::vector<const InstructionSet*> usable;
#if defined(BITBRANCH_X86)
    // The compiler's test asks the operating system too, whether it saves the wide registers.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512vbmi")) usable.push_back(&kAvx512Vbmi);
      usable.push_back(&kAvx512);
    }
    if (__builtin_cpu_supports("avx2")) usable.push_back(&kAvx2);
#endif
    usable.push_back(&kScalar);
    return usable;
  }();
  return sets;
}

}  // namespace bitbranch
