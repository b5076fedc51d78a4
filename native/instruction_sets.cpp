#include "instruction_sets.hpp"

#include <cstdio>

#include "dot/kernels.hpp"
#include "self_check.hpp"

#if defined(BITBRANCH_DOT)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(BITBRANCH_DOT)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(BITBRANCH_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(BITBRANCH_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
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
#if defined(BITBRANCH_ARM)
extern const InstructionSet kNeon;
extern const DotSet kDotNeon, kDotNeonDotprod;
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

#if defined(BITBRANCH_ARM)
bool has_dot_products() {
#if defined(__linux__)
  constexpr unsigned long asimd_dp = 1ul << 20;  // HWCAP_ASIMDDP, which older headers lack
  return getauxval(AT_HWCAP) & asimd_dp;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has;
#else
  return false;
#endif
}
#endif

// The sets of this processor, the widest first: planar kernels, and those of the dot-product path under their name.
std::vector<InstructionSet> usable_sets() {
  std::vector<InstructionSet> usable;
  [[maybe_unused]] const auto add = [&](const char* name, bool runs, const InstructionSet& planar, const DotSet& dot) {
    if (!runs) return;
    InstructionSet set = planar;
    set.name = name;
    set.dot = &dot;
    offer(usable, set);
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
#if defined(BITBRANCH_ARM)
  add("neon_dotprod", has_dot_products(), kNeon, kDotNeonDotprod);
  add("neon", true, kNeon, kDotNeon);
#endif
  usable.push_back(kScalar);  // what the others are checked by is not itself in doubt
  usable.back().dot = &kDotScalar;
  return usable;
}
}  // namespace

void offer(std::vector<InstructionSet>& sets, const InstructionSet& set) {
  const std::string fault = first_fault(set);
  if (fault.empty()) sets.push_back(set);
  else std::fprintf(stderr, "bitbranch: instruction set %s is left out: wrong on this processor: %s\n", set.name, fault.c_str());
}

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
