// AVX-VNNI: the same at 256 bits, for processors without AVX-512.
#include "kernels.hpp"

#if defined(__AVXVNNI__) && defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

namespace bitbranch::dot_avx_vnni {

constexpr int kLanes = 8, kAcross = 2, kDown = 6;
using Vector = __m256i;

static inline Vector load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline void store(void* p, Vector v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
static inline Vector broadcast(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
static inline Vector dot(Vector sum, Vector x, Vector w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
static inline Vector widen(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector multiply_add(Vector sum, Vector x, Vector w) { return _mm256_dpwssd_avx_epi32(sum, x, w); }
static inline Vector load_table(const int8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector low_nibbles(Vector a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
static inline Vector high_nibbles(Vector a) { return low_nibbles(_mm256_srli_epi16(a, 4)); }
static inline Vector lookup(Vector table, Vector index) { return _mm256_shuffle_epi8(table, index); }
static inline void nothing() {}

#include "generic.hpp"
}  // namespace bitbranch::dot_avx_vnni

namespace bitbranch {
extern const DotSet kDotAvxVnni =
    DOT_SET(dot_avx_vnni, "avx_vnni", dot_avx_vnni::nothing, dot_avx_vnni::nothing, dot_avx_vnni::dot_run);
}
#endif
