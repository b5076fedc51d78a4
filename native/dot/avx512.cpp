// AVX-512 BW without VNNI: products of small numbers are added up in 16 bits; where they do not fit, bytes
// are widened to 16 bits, exactly, for the multiply-add of pairs.
#include "kernels.hpp"

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

#include <cstring>

namespace bitbranch::dot_avx512 {
#include "avx512.hpp"

constexpr int kDown = 8;
static inline Vector dot(Vector sum, Vector x, Vector w) {
  const Vector low_x = _mm512_and_si512(x, _mm512_set1_epi16(255)), high_x = _mm512_srli_epi16(x, 8);
  const Vector low_w = _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8), high_w = _mm512_srai_epi16(w, 8);
  sum = _mm512_add_epi32(sum, _mm512_madd_epi16(low_x, low_w));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(high_x, high_w));
}
static inline Vector multiply_add(Vector sum, Vector x, Vector w) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w));
}

constexpr int kNarrowDown = 8;
static inline Vector narrow_dot(Vector sum, Vector x, Vector w) {
  return _mm512_add_epi16(sum, _mm512_maddubs_epi16(x, w));
}
static inline Vector widen_pairs(Vector sum, Vector narrow) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(narrow, _mm512_set1_epi16(1)));
}

constexpr int kHalfDown = 8;
static inline Vector half_dot(Vector sum, Vector x, Vector w) { return narrow_dot(sum, x, w); }
static inline Vector beside(Vector a, Vector b) { return halves(add16(a, down16(a)), add16(b, up16(b))); }

#include "generic.hpp"
#include "narrow_run.hpp"
#include "halves.hpp"
}  // namespace bitbranch::dot_avx512

namespace bitbranch {
extern const DotSet kDotAvx512 =
    DOT_SET(dot_avx512, "avx512", true, false, true, dot_avx512::nothing, dot_avx512::nothing, dot_avx512::run);
}
#endif
