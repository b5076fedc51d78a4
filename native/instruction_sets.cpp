#include "instruction_sets.hpp"

#include "dot/kernels.hpp"

#if defined(BITBRANCH_DOT)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(BITBRANCH_DOT)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bitbranch {

extern const InstructionSet kScalar;
extern const DotSet kDotScalar;
#if defined(BITBRANCH_X86)
extern const InstructionSet kAvx2, kAvx512, kAvx512Vbmi;
extern const DotSet kDotAvx2, kDotAvx512;
#endif
#if defined(BITBRANCH_DOT)
extern const DotSet kDotAvxVnni, kDotAvx512Vnni, kDotAmx;
#endif

namespace {
#if defined(BITBRANCH_DOT)
// What the compiler's own test does not know by name everywhere.
struct Features {
  bool avx_vnni, amx_int8;
};
Features processor_features() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Features f{false, false};
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const unsigned tile = 1u << 24, int8 = 1u << 25;
  f.amx_int8 = (d & tile) && (d & int8);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx_vnni = a & (1u << 4);
  return f;
}

// The operating system gives a process the tile registers when it asks for them.
bool tiles_allowed() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

// The sets of this processor, the widest first: planar kernels, and those of the dot-product path under their name.
std::vector<InstructionSet> usable_sets() {
  std::vector<InstructionSet> usable;
  const auto add = [&](const char* name, bool runs, const InstructionSet& planar, const DotSet& dot) {
    if (!runs) return;
    usable.push_back(planar);
    usable.back().name = name;
    usable.back().dot = &dot;
  };
#if defined(BITBRANCH_X86)
  // The compiler's test asks the operating system too, whether it saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vbmi = avx512 && __builtin_cpu_supports("avx512vbmi");
#if defined(BITBRANCH_DOT)
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const Features features = processor_features();
  const InstructionSet& planar512 = vbmi ? kAvx512Vbmi : kAvx512;
  add("amx", vnni && features.amx_int8 && tiles_allowed(), planar512, kDotAmx);
  add("avx512_vnni", vnni, planar512, kDotAvx512Vnni);
#endif
  add("avx512_vbmi", vbmi, kAvx512Vbmi, kDotAvx512);
  add("avx512", avx512, kAvx512, kDotAvx512);
#if defined(BITBRANCH_DOT)
  add("avx_vnni", avx2 && features.avx_vnni, kAvx2, kDotAvxVnni);
#endif
  add("avx2", avx2, kAvx2, kDotAvx2);
#endif
  add("scalar", true, kScalar, kDotScalar);
  return usable;
}
}  // namespace

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<InstructionSet> sets = usable_sets();
  static const std::vector<const InstructionSet*> pointers = [] {
    std::vector<const InstructionSet*> p;
    for (const InstructionSet& set : sets) p.push_back(&set);
    return p;
  }();
  return pointers;
}

}  // namespace bitbranch
