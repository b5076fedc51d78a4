// NEON with the dot products of ARMv8.2: sdot.
#include "kernels.hpp"

#if defined(__ARM_FEATURE_DOTPROD) && defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>

namespace bitbranch::dot_neon_dotprod {
#include "neon.hpp"

constexpr int kDown = 5;
static inline Vector dot(Vector sum, Vector x, Vector w) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(w));
}

#include "generic.hpp"
constexpr void (*run_half)(const DotTile&) = nullptr;
constexpr void (*products_half)(const DotProducts&) = nullptr;
constexpr void (*max_half)(const DotMembers&, int32_t*) = nullptr;
#include "neon_run.hpp"
}  // namespace bitbranch::dot_neon_dotprod

namespace bitbranch {
extern const DotSet kDotNeonDotprod = DOT_SET(dot_neon_dotprod, "neon_dotprod", true, false, false, dot_neon_dotprod::nothing,
                                              dot_neon_dotprod::nothing, dot_neon_dotprod::run);
}
#endif
