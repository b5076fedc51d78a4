// NEON, which every 64-bit ARM processor has: 16 bytes, 32 registers.
#include "../kernels.hpp"

#if defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>

namespace bitbranch::neon {

using Vector = uint8x16_t;
constexpr int kBytes = 16;

static inline int16x8_t halves(Vector a) { return vreinterpretq_s16_u8(a); }
static inline int32x4_t words(Vector a) { return vreinterpretq_s32_u8(a); }
static inline Vector bytes_of(uint16x8_t a) { return vreinterpretq_u8_u16(a); }
static inline Vector bytes_of(int16x8_t a) { return vreinterpretq_u8_s16(a); }
static inline Vector bytes_of(int32x4_t a) { return vreinterpretq_u8_s32(a); }

static inline Vector zero() { return vdupq_n_u8(0); }
static inline Vector load(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
static inline void store(void* p, Vector v) { vst1q_u8(static_cast<uint8_t*>(p), v); }
static inline Vector broadcast32(int32_t x) { return bytes_of(vdupq_n_s32(x)); }
static inline Vector and_(Vector a, Vector b) { return vandq_u8(a, b); }
static inline Vector or_(Vector a, Vector b) { return vorrq_u8(a, b); }
static inline Vector xor_(Vector a, Vector b) { return veorq_u8(a, b); }
static inline Vector add8(Vector a, Vector b) { return vaddq_u8(a, b); }
static inline Vector add16(Vector a, Vector b) { return bytes_of(vaddq_s16(halves(a), halves(b))); }
static inline Vector add32(Vector a, Vector b) { return bytes_of(vaddq_s32(words(a), words(b))); }
static inline Vector subtract32(Vector a, Vector b) { return bytes_of(vsubq_s32(words(a), words(b))); }
static inline Vector multiply32(Vector a, Vector b) { return bytes_of(vmulq_s32(words(a), words(b))); }
// Byte k of number i is byte 4 i + k.
static inline Vector lookup32(Vector numbers, Vector index) {
  const int32x4_t first = vmulq_s32(words(index), vdupq_n_s32(0x04040404));
  return vqtbl1q_u8(numbers, bytes_of(vaddq_s32(first, vdupq_n_s32(0x03020100))));
}
static inline Vector widen32(const int16_t* p) { return bytes_of(vmovl_s16(vld1_s16(p))); }
static inline Vector clamp32(Vector a, Vector lo, Vector hi) {
  return bytes_of(vminq_s32(vmaxq_s32(words(a), words(lo)), words(hi)));
}
// The low halves of (x * multiplier + offset) >> shift, of 64 bits; shift is at most 32.
static inline Vector shifted_products(Vector x, int32_t multiplier, int64_t offset, int shift) {
  const int64x2_t o = vdupq_n_s64(offset), by = vdupq_n_s64(-shift);
  const int64x2_t low = vshlq_s64(vmlal_n_s32(o, vget_low_s32(words(x)), multiplier), by);
  const int64x2_t high = vshlq_s64(vmlal_n_s32(o, vget_high_s32(words(x)), multiplier), by);
  return bytes_of(vcombine_s32(vmovn_s64(low), vmovn_s64(high)));
}
template <int N> static inline Vector shift_left16(Vector a) { return bytes_of(vshlq_n_s16(halves(a), N)); }
template <int N> static inline Vector shift_right16(Vector a) {
  return bytes_of(vshrq_n_u16(vreinterpretq_u16_u8(a), N));
}

static inline Vector low_nibbles(Vector a) { return vandq_u8(a, vdupq_n_u8(15)); }
static inline Vector high_nibbles(Vector a) { return vshrq_n_u8(a, 4); }
static inline Vector load_table(const uint8_t* p) { return vld1q_u8(p); }
static inline Vector lookup(Vector table, Vector index) { return vqtbl1q_u8(table, index); }

static inline Vector keep_and_flip(Vector x, Vector keep, Vector flip) { return xor_(and_(x, keep), flip); }
// Adds bits to bits of the same worth and returns what is carried, of twice that worth.
static inline Vector add_bits(Vector& sum, Vector a, Vector b) {
  const Vector differ = xor_(a, b), carry = or_(and_(a, b), and_(sum, differ));
  sum = xor_(sum, differ);
  return carry;
}

static inline Vector even_bytes(Vector a) { return vandq_u8(a, bytes_of(vdupq_n_u16(255))); }
static inline Vector odd_bytes(Vector a) { return shift_right16<8>(a); }
static inline void interleave16(Vector even, Vector odd, Vector& low, Vector& high) {
  low = bytes_of(vzip1q_s16(halves(even), halves(odd)));
  high = bytes_of(vzip2q_s16(halves(even), halves(odd)));
}

// A comparison is -1 where it holds.
static inline Vector count_greater16(Vector count, Vector x, Vector limit) {
  return bytes_of(vsubq_s16(halves(count), vreinterpretq_s16_u16(vcgtq_s16(halves(x), halves(limit)))));
}
static inline Vector count_greater32(Vector count, Vector x, Vector limit) {
  return bytes_of(vsubq_s32(words(count), vreinterpretq_s32_u32(vcgtq_s32(words(x), words(limit)))));
}
// x > limit ? a : b, and v + (x > limit ? bits : 0).
static inline Vector where_greater16(Vector x, Vector limit, Vector a, Vector b) {
  return vbslq_u8(bytes_of(vcgtq_s16(halves(x), halves(limit))), a, b);
}
static inline Vector add_where_greater16(Vector v, Vector x, Vector limit, Vector bits) {
  return add16(v, vandq_u8(bytes_of(vcgtq_s16(halves(x), halves(limit))), bits));
}
static inline Vector narrow16(Vector low, Vector high) { return vuzp1q_u8(low, high); }
// Saturates.
static inline Vector narrow32(Vector low, Vector high) {
  return bytes_of(vqmovn_high_s32(vqmovn_s32(words(low)), words(high)));
}

static inline Vector widen_signed(const uint8_t* p) { return bytes_of(vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)))); }
static inline Vector widen_unsigned(const uint8_t* p) { return bytes_of(vmovl_u8(vld1_u8(p))); }
// No sum of two products may pass int16.
static inline Vector multiply_bytes(Vector a, Vector b) {
  const int16x8_t even = vmulq_s16(halves(even_bytes(a)), vshrq_n_s16(vshlq_n_s16(halves(b), 8), 8));
  return bytes_of(vmlaq_s16(even, halves(odd_bytes(a)), vshrq_n_s16(halves(b), 8)));
}
static inline Vector multiply_pairs(Vector a, Vector b) {
  return bytes_of(vpaddq_s32(vmull_s16(vget_low_s16(halves(a)), vget_low_s16(halves(b))),
                             vmull_high_s16(halves(a), halves(b))));
}

#include "generic.inc"

static const Kernel kernels[] = {
    {"dictionary", 1, 4, 4 * kBytes, dictionary<1, 4, 4>},
    {"dictionary", 2, 4, 2 * kBytes, dictionary<2, 4, 2>},
    {"dictionary", 3, 2, 2 * kBytes, dictionary<3, 2, 2>},
    {"dictionary", 4, 2, 2 * kBytes, dictionary<4, 2, 2>},
    {"xnor", 1, 8, kBytes, xnor<1, false, 8>},
    {"xnor", 2, 8, kBytes, xnor<2, false, 8>},
    {"xnor", 4, 8, kBytes, xnor<4, false, 8>},
    {"xnor_ternary", 2, 8, kBytes, xnor<2, true, 8>},
    {"xnor_ternary", 4, 8, kBytes, xnor<4, true, 8>},
    {"byte16", 8, 4, 2 * kBytes, bytes16<4, 4>},
    {"byte16", 8, 2, 2 * kBytes, bytes16<2, 4>},
    {"byte_unsigned", 8, 4, kBytes, bytes<false, 4, 4>},
    {"byte_unsigned", 8, 2, kBytes, bytes<false, 2, 4>},
    {"byte_signed", 8, 4, kBytes, bytes<true, 4, 4>},
    {"byte_signed", 8, 2, kBytes, bytes<true, 2, 4>},
    {"linear1", 8, kBytes, 1, linear_packed<1, 1, 4>},
    {"linear1", 8, kBytes, 4, linear_packed<1, 4, 4>},
    {"linear2", 8, kBytes, 1, linear_packed<2, 1, 4>},
    {"linear2", 8, kBytes, 4, linear_packed<2, 4, 4>},
    {"linear4", 8, kBytes, 1, linear_packed<4, 1, 4>},
    {"linear4", 8, kBytes, 4, linear_packed<4, 4, 4>},
    {"linear8", 16, kBytes, 1, linear<1, 1, 4>},
    {"linear8", 16, kBytes, 4, linear<1, 4, 4>},
    {"linear16", 16, kBytes, 1, linear<2, 1, 4>},
    {"linear16", 16, kBytes, 4, linear<2, 4, 4>},
};

}  // namespace bitbranch::neon

namespace bitbranch {
extern const InstructionSet kNeon = INSTRUCTION_SET(neon, "neon");
}
#endif
