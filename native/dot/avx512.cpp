// AVX-512 BW without VNNI: bytes are widened to 16 bits, exactly, for the multiply-add of pairs.
#include "kernels.hpp"

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

#include <cstring>

namespace bitbranch::dot_avx512 {
#include "avx512.hpp"

constexpr int kDown = 6;
static inline Vector dot(Vector sum, Vector x, Vector w) {
  const Vector low_x = _mm512_and_si512(x, _mm512_set1_epi16(255)), high_x = _mm512_srli_epi16(x, 8);
  const Vector low_w = _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8), high_w = _mm512_srai_epi16(w, 8);
  sum = _mm512_add_epi32(sum, _mm512_madd_epi16(low_x, low_w));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(high_x, high_w));
}
static inline Vector multiply_add(Vector sum, Vector x, Vector w) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w));
}

#include "generic.hpp"
}  // namespace bitbranch::dot_avx512

namespace bitbranch {
extern const DotSet kDotAvx512 =
    DOT_SET(dot_avx512, "avx512", false, false, dot_avx512::nothing, dot_avx512::nothing, dot_avx512::dot_run);
}
#endif
