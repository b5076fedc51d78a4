// AVX2: 32 bytes, 16 registers.
#include "../kernels.hpp"

#if defined(__AVX2__)
#include <immintrin.h>

namespace bitbranch::avx2 {

using Vector = __m256i;
constexpr int kBytes = 32;

static inline Vector zero() { return _mm256_setzero_si256(); }
static inline Vector load(const void* p) { return _mm256_loadu_si256(static_cast<const Vector*>(p)); }
static inline void store(void* p, Vector v) { _mm256_storeu_si256(static_cast<Vector*>(p), v); }
static inline Vector broadcast32(int32_t x) { return _mm256_set1_epi32(x); }
static inline Vector and_(Vector a, Vector b) { return _mm256_and_si256(a, b); }
static inline Vector or_(Vector a, Vector b) { return _mm256_or_si256(a, b); }
static inline Vector xor_(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
static inline Vector add8(Vector a, Vector b) { return _mm256_add_epi8(a, b); }
static inline Vector add16(Vector a, Vector b) { return _mm256_add_epi16(a, b); }
static inline Vector add32(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
static inline Vector subtract32(Vector a, Vector b) { return _mm256_sub_epi32(a, b); }
static inline Vector multiply32(Vector a, Vector b) { return _mm256_mullo_epi32(a, b); }
static inline Vector lookup32(Vector numbers, Vector index) { return _mm256_permutevar8x32_epi32(numbers, index); }
static inline Vector widen32(const int16_t* p) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector clamp32(Vector a, Vector lo, Vector hi) { return _mm256_min_epi32(_mm256_max_epi32(a, lo), hi); }
// The low halves of (x * multiplier + offset) >> shift, of 64 bits; shift is at most 32.
static inline Vector shifted_products(Vector x, int32_t multiplier, int64_t offset, int shift) {
  const Vector m = broadcast32(multiplier), o = _mm256_set1_epi64x(offset);
  const Vector even = _mm256_add_epi64(_mm256_mul_epi32(x, m), o);
  const Vector odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(x, 32), m), o);
  return _mm256_blend_epi32(_mm256_srl_epi64(even, _mm_cvtsi32_si128(shift)),
                            _mm256_sll_epi64(odd, _mm_cvtsi32_si128(32 - shift)), 0xAA);
}
template <int N> static inline Vector shift_left16(Vector a) { return _mm256_slli_epi16(a, N); }
template <int N> static inline Vector shift_right16(Vector a) { return _mm256_srli_epi16(a, N); }

static inline Vector low_nibbles(Vector a) { return and_(a, _mm256_set1_epi8(15)); }
static inline Vector high_nibbles(Vector a) { return low_nibbles(shift_right16<4>(a)); }
static inline Vector load_table(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector lookup(Vector table, Vector index) { return _mm256_shuffle_epi8(table, index); }

static inline Vector keep_and_flip(Vector x, Vector keep, Vector flip) { return xor_(and_(x, keep), flip); }
// Adds bits to bits of the same worth and returns what is carried, of twice that worth.
static inline Vector add_bits(Vector& sum, Vector a, Vector b) {
  const Vector differ = xor_(a, b), carry = or_(and_(a, b), and_(sum, differ));
  sum = xor_(sum, differ);
  return carry;
}

static inline Vector even_bytes(Vector a) { return and_(a, _mm256_set1_epi16(255)); }
static inline Vector odd_bytes(Vector a) { return shift_right16<8>(a); }
static inline void interleave16(Vector even, Vector odd, Vector& low, Vector& high) {
  const Vector a = _mm256_unpacklo_epi16(even, odd), b = _mm256_unpackhi_epi16(even, odd);
  low = _mm256_permute2x128_si256(a, b, 0x20);
  high = _mm256_permute2x128_si256(a, b, 0x31);
}

static inline Vector count_greater16(Vector count, Vector x, Vector limit) {
  return _mm256_sub_epi16(count, _mm256_cmpgt_epi16(x, limit));
}
static inline Vector count_greater32(Vector count, Vector x, Vector limit) {
  return _mm256_sub_epi32(count, _mm256_cmpgt_epi32(x, limit));
}
// x > limit ? a : b, and v + (x > limit ? bits : 0).
static inline Vector where_greater16(Vector x, Vector limit, Vector a, Vector b) {
  return _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi16(x, limit));
}
static inline Vector add_where_greater16(Vector v, Vector x, Vector limit, Vector bits) {
  return add16(v, and_(_mm256_cmpgt_epi16(x, limit), bits));
}
static inline Vector narrow16(Vector low, Vector high) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xD8);
}
// Saturates.
static inline Vector narrow32(Vector low, Vector high) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
}

static inline Vector widen_signed(const uint8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline Vector widen_unsigned(const uint8_t* p) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// No sum of two products may pass int16.
static inline Vector multiply_bytes(Vector a, Vector b) { return _mm256_maddubs_epi16(a, b); }
static inline Vector multiply_pairs(Vector a, Vector b) { return _mm256_madd_epi16(a, b); }

#include "generic.inc"

static const Kernel kernels[] = {
    {"dictionary", 1, 4, 2 * kBytes, dictionary<1, 4, 2>},
    {"dictionary", 2, 4, kBytes, dictionary<2, 4, 1>},
    {"dictionary", 3, 2, kBytes, dictionary<3, 2, 1>},
    {"dictionary", 4, 2, kBytes, dictionary<4, 2, 1>},
    {"xnor", 1, 8, kBytes, xnor<1, false, 8>},
    {"xnor", 2, 8, kBytes, xnor<2, false, 8>},
    {"xnor", 4, 8, kBytes, xnor<4, false, 8>},
    {"xnor_ternary", 2, 8, kBytes, xnor<2, true, 8>},
    {"xnor_ternary", 4, 8, kBytes, xnor<4, true, 8>},
    {"byte16", 8, 4, kBytes, bytes16<4, 2>},
    {"byte16", 8, 2, 2 * kBytes, bytes16<2, 4>},
    {"byte_unsigned", 8, 4, kBytes / 2, bytes<false, 4, 2>},
    {"byte_unsigned", 8, 2, kBytes, bytes<false, 2, 4>},
    {"byte_signed", 8, 4, kBytes / 2, bytes<true, 4, 2>},
    {"byte_signed", 8, 2, kBytes, bytes<true, 2, 4>},
    {"linear1", 8, kBytes / 2, 1, linear_packed<1, 1, 2>},
    {"linear1", 8, kBytes / 2, 4, linear_packed<1, 4, 2>},
    {"linear2", 8, kBytes / 2, 1, linear_packed<2, 1, 2>},
    {"linear2", 8, kBytes / 2, 4, linear_packed<2, 4, 2>},
    {"linear4", 8, kBytes / 2, 1, linear_packed<4, 1, 2>},
    {"linear4", 8, kBytes / 2, 4, linear_packed<4, 4, 2>},
    {"linear8", 16, kBytes / 2, 1, linear<1, 1, 2>},
    {"linear8", 16, kBytes / 2, 4, linear<1, 4, 2>},
    {"linear16", 16, kBytes / 2, 1, linear<2, 1, 2>},
    {"linear16", 16, kBytes / 2, 4, linear<2, 4, 2>},
};

}  // namespace bitbranch::avx2

namespace bitbranch {
extern const InstructionSet kAvx2 = INSTRUCTION_SET(avx2, "avx2");
}
#endif
