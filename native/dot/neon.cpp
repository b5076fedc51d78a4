// NEON without dot products: products of bytes to 16 bits, added up in pairs.
#include "kernels.hpp"

#if defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>

namespace bitbranch::dot_neon {
#include "neon.hpp"

constexpr int kDown = 5;
static inline Vector dot(Vector sum, Vector x, Vector w) {
  const int8x16_t a = vreinterpretq_s8_s32(x), b = vreinterpretq_s8_s32(w);
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}

#include "generic.hpp"
constexpr void (*run_half)(const DotTile&) = nullptr;
constexpr void (*products_half)(const DotProducts&) = nullptr;
constexpr void (*max_half)(const DotMembers&, int32_t*) = nullptr;
#include "neon_run.hpp"
}  // namespace bitbranch::dot_neon

namespace bitbranch {
extern const DotSet kDotNeon = DOT_SET(dot_neon, "neon", false, false, false, dot_neon::nothing, dot_neon::nothing, dot_neon::run);
}
#endif
