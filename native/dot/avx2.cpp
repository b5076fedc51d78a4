// AVX2 without VNNI: products of small numbers are added up in 16 bits; where they do not fit, bytes
// are widened to 16 bits, exactly, for the multiply-add of pairs.
#include "kernels.hpp"

#if defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

namespace bitbranch::dot_avx2 {
#include "avx2.hpp"

constexpr int kDown = 3;
static inline Vector dot(Vector sum, Vector x, Vector w) {
  const Vector low_x = _mm256_and_si256(x, _mm256_set1_epi16(255)), high_x = _mm256_srli_epi16(x, 8);
  const Vector low_w = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), high_w = _mm256_srai_epi16(w, 8);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(low_x, low_w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(high_x, high_w));
}
static inline Vector multiply_add(Vector sum, Vector x, Vector w) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}

constexpr int kNarrowDown = 4;
static inline Vector narrow_dot(Vector sum, Vector x, Vector w) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(x, w));
}
static inline Vector widen_pairs(Vector sum, Vector narrow) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
}

constexpr int kHalfDown = 4;
static inline Vector half_dot(Vector sum, Vector x, Vector w) { return narrow_dot(sum, x, w); }
static inline Vector beside(Vector a, Vector b) { return halves(add16(a, down16(a)), add16(b, up16(b))); }

#include "generic.hpp"
#include "narrow_run.hpp"
#include "halves.hpp"
}  // namespace bitbranch::dot_avx2

namespace bitbranch {
extern const DotSet kDotAvx2 = DOT_SET(dot_avx2, "avx2", true, false, true, dot_avx2::nothing, dot_avx2::nothing, dot_avx2::run);
}
#endif
