#include "instruction_sets.hpp"

#include "dot/kernels.hpp"

#if defined(BITBRANCH_X86)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(BITBRANCH_X86)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bitbranch {

extern const InstructionSet kScalar;
#if defined(BITBRANCH_X86)
extern const InstructionSet kAvx2, kAvx512;
#if defined(BITBRANCH_DOT)
extern const DotSet kDotAvxVnni, kDotAvx512Vnni, kDotAmx;
#endif

namespace {
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

// A set with the kernels of another, under its own name.
InstructionSet with_dot(const InstructionSet& base, const DotSet& dot) {
  InstructionSet set = base;
  set.name = dot.name;
  set.dot = &dot;
  return set;
}
}  // namespace
#endif

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> sets = [] {
    std::vector<const InstructionSet*> usable;
#if defined(BITBRANCH_X86)
    // The compiler's test asks the operating system too, whether it saves the wide registers.
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(BITBRANCH_DOT)
    static const InstructionSet amx = with_dot(kAvx512, kDotAmx), avx512_vnni = with_dot(kAvx512, kDotAvx512Vnni),
                                avx_vnni = with_dot(kAvx2, kDotAvxVnni);
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const Features features = processor_features();
    if (vnni && features.amx_int8 && tiles_allowed()) usable.push_back(&amx);
    if (vnni) usable.push_back(&avx512_vnni);
#endif
    if (avx512) usable.push_back(&kAvx512);
#if defined(BITBRANCH_DOT)
    if (__builtin_cpu_supports("avx2") && features.avx_vnni) usable.push_back(&avx_vnni);
#endif
    if (__builtin_cpu_supports("avx2")) usable.push_back(&kAvx2);
#endif
    usable.push_back(&kScalar);
    return usable;
  }();
  return sets;
}

}  // namespace bitbranch
