// AVX-512 F, BW, DQ, VL: 64 bytes, 32 registers.
#include "../kernels.hpp"

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace bitbranch::avx512 {

using Vector = __m512i;
constexpr int kBytes = 64;

static inline Vector zero() { return _mm512_setzero_si512(); }
static inline Vector load(const void* p) { return _mm512_loadu_si512(p); }
static inline void store(void* p, Vector v) { _mm512_storeu_si512(p, v); }
static inline Vector broadcast32(int32_t x) { return _mm512_set1_epi32(x); }
static inline Vector and_(Vector a, Vector b) { return _mm512_and_si512(a, b); }
static inline Vector or_(Vector a, Vector b) { return _mm512_or_si512(a, b); }
static inline Vector add8(Vector a, Vector b) { return _mm512_add_epi8(a, b); }
static inline Vector add16(Vector a, Vector b) { return _mm512_add_epi16(a, b); }
static inline Vector add32(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
template <int N> static inline Vector shift_left16(Vector a) { return _mm512_slli_epi16(a, N); }
template <int N> static inline Vector shift_right16(Vector a) { return _mm512_srli_epi16(a, N); }

static inline Vector low_nibbles(Vector a) { return and_(a, _mm512_set1_epi8(15)); }
static inline Vector high_nibbles(Vector a) { return low_nibbles(shift_right16<4>(a)); }
static inline Vector load_table(const uint8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector lookup(Vector table, Vector index) { return _mm512_shuffle_epi8(table, index); }

static inline Vector even_bytes(Vector a) { return and_(a, _mm512_set1_epi16(255)); }
static inline Vector odd_bytes(Vector a) { return shift_right16<8>(a); }
static inline void interleave16(Vector even, Vector odd, Vector& low, Vector& high) {
  const Vector a = _mm512_unpacklo_epi16(even, odd), b = _mm512_unpackhi_epi16(even, odd);
  low = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b);
  high = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b);
}

static inline Vector count_greater16(Vector count, Vector x, Vector limit) {
  return _mm512_mask_sub_epi16(count, _mm512_cmpgt_epi16_mask(x, limit), count, _mm512_set1_epi32(-1));
}
static inline Vector count_greater32(Vector count, Vector x, Vector limit) {
  return _mm512_mask_sub_epi32(count, _mm512_cmpgt_epi32_mask(x, limit), count, _mm512_set1_epi32(-1));
}
static inline Vector narrow16(Vector low, Vector high) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi16(low, high));
}
static inline Vector narrow32(Vector low, Vector high) {
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packs_epi32(low, high));
}

static inline Vector widen_signed(const uint8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline Vector widen_unsigned(const uint8_t* p) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// No sum of two products may pass int16.
static inline Vector multiply_bytes(Vector a, Vector b) { return _mm512_maddubs_epi16(a, b); }
static inline Vector multiply_pairs(Vector a, Vector b) { return _mm512_madd_epi16(a, b); }

#include "generic.inc"

static const Kernel kernels[] = {
    {"dictionary", 1, 8, 2 * kBytes, dictionary<1, 8, 2>},
    {"dictionary", 2, 8, kBytes, dictionary<2, 8, 1>},
    {"dictionary", 3, 4, kBytes, dictionary<3, 4, 1>},
    {"dictionary", 4, 4, kBytes, dictionary<4, 4, 1>},
    {"byte16", 8, 8, kBytes, bytes16<8, 2>},
    {"byte16", 8, 2, 2 * kBytes, bytes16<2, 4>},
    {"byte_unsigned", 8, 8, kBytes / 2, bytes<false, 8, 2>},
    {"byte_unsigned", 8, 2, kBytes, bytes<false, 2, 4>},
    {"byte_signed", 8, 8, kBytes / 2, bytes<true, 8, 2>},
    {"byte_signed", 8, 2, kBytes, bytes<true, 2, 4>},
    {"linear8", 16, kBytes / 2, 1, linear<1, 1, 2>},
    {"linear8", 16, kBytes / 2, 8, linear<1, 8, 2>},
    {"linear16", 16, kBytes / 2, 1, linear<2, 1, 2>},
    {"linear16", 16, kBytes / 2, 8, linear<2, 8, 2>},
};

}  // namespace bitbranch::avx512

namespace bitbranch {
extern const InstructionSet kAvx512 = INSTRUCTION_SET(avx512, "avx512");
}
#endif
