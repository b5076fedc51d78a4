// The same kernels on every machine: vectors of 16 bytes in plain C++ (gcc's and clang's vector types).
#include "../kernels.hpp"

#include <cstring>

namespace bitbranch::scalar {

typedef uint8_t Vector __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef int16_t SignedHalves __attribute__((vector_size(16)));
typedef int32_t Words __attribute__((vector_size(16)));
typedef uint32_t UnsignedWords __attribute__((vector_size(16)));
constexpr int kBytes = 16;

static inline Vector zero() { return Vector{}; }
static inline Vector load(const void* p) {
  Vector v;
  std::memcpy(&v, p, kBytes);
  return v;
}
static inline void store(void* p, Vector v) { std::memcpy(p, &v, kBytes); }
static inline Vector broadcast32(int32_t x) { return (Vector)(Words{x, x, x, x}); }
static inline Vector and_(Vector a, Vector b) { return a & b; }
static inline Vector or_(Vector a, Vector b) { return a | b; }
static inline Vector xor_(Vector a, Vector b) { return a ^ b; }
static inline Vector add8(Vector a, Vector b) { return a + b; }
static inline Vector add16(Vector a, Vector b) { return (Vector)((Halves)a + (Halves)b); }
static inline Vector add32(Vector a, Vector b) { return (Vector)((UnsignedWords)a + (UnsignedWords)b); }
static inline Vector subtract32(Vector a, Vector b) { return (Vector)((Words)a - (Words)b); }
static inline Vector multiply32(Vector a, Vector b) { return (Vector)((UnsignedWords)a * (UnsignedWords)b); }
static inline Vector lookup32(Vector numbers, Vector index) {
  const Words from = (Words)numbers, i = (Words)index;
  return (Vector)(Words{from[i[0]], from[i[1]], from[i[2]], from[i[3]]});
}
static inline Vector widen32(const int16_t* p) { return (Vector)(Words{p[0], p[1], p[2], p[3]}); }
static inline Vector clamp32(Vector a, Vector lo, Vector hi) {
  Words x = (Words)a;
  x = x < (Words)lo ? (Words)lo : x;
  return (Vector)(x > (Words)hi ? (Words)hi : x);
}
// The low halves of (x * multiplier + offset) >> shift, of 64 bits; shift is at most 32.
static inline Vector shifted_products(Vector x, int32_t multiplier, int64_t offset, int shift) {
  Words y = (Words)x;
  for (int i = 0; i < 4; ++i) y[i] = static_cast<int32_t>((int64_t{y[i]} * multiplier + offset) >> shift);
  return (Vector)y;
}
template <int N> static inline Vector shift_left16(Vector a) { return (Vector)((Halves)a << N); }
template <int N> static inline Vector shift_right16(Vector a) { return (Vector)((Halves)a >> N); }

static inline Vector low_nibbles(Vector a) { return a & broadcast32(0x0f0f0f0f); }
static inline Vector high_nibbles(Vector a) { return a >> 4; }
static inline Vector load_table(const uint8_t* p) { return load(p); }
static inline Vector lookup(Vector table, Vector index) {
  uint8_t t[kBytes], x[kBytes];  // through memory: faster than taking vectors apart
  store(t, table);
  store(x, index);
  for (int i = 0; i < kBytes; ++i) x[i] = t[x[i]];
  return load(x);
}

static inline Vector keep_and_flip(Vector x, Vector keep, Vector flip) { return xor_(and_(x, keep), flip); }
// Adds bits to bits of the same worth and returns what is carried, of twice that worth.
static inline Vector add_bits(Vector& sum, Vector a, Vector b) {
  const Vector differ = xor_(a, b), carry = or_(and_(a, b), and_(sum, differ));
  sum = xor_(sum, differ);
  return carry;
}

// Bytes of a little-endian machine: the even byte is the low one.
static inline Vector even_bytes(Vector a) { return a & broadcast32(0x00ff00ff); }
static inline Vector odd_bytes(Vector a) { return (Vector)((Halves)a >> 8); }
static inline void interleave16(Vector even, Vector odd, Vector& low, Vector& high) {
  const Halves e = (Halves)even, o = (Halves)odd;
  low = (Vector)(Halves{e[0], o[0], e[1], o[1], e[2], o[2], e[3], o[3]});
  high = (Vector)(Halves{e[4], o[4], e[5], o[5], e[6], o[6], e[7], o[7]});
}

// A comparison is -1 where it holds.
static inline Vector count_greater16(Vector count, Vector x, Vector limit) {
  return (Vector)((SignedHalves)count - ((SignedHalves)x > (SignedHalves)limit));
}
static inline Vector count_greater32(Vector count, Vector x, Vector limit) {
  return (Vector)((Words)count - ((Words)x > (Words)limit));
}
// x > limit ? a : b, and v + (x > limit ? bits : 0).
static inline Vector where_greater16(Vector x, Vector limit, Vector a, Vector b) {
  const Vector greater = (Vector)((SignedHalves)x > (SignedHalves)limit);
  return (a & greater) | (b & ~greater);
}
static inline Vector add_where_greater16(Vector v, Vector x, Vector limit, Vector bits) {
  return add16(v, (Vector)((SignedHalves)x > (SignedHalves)limit) & bits);
}
static inline Vector narrow16(Vector low, Vector high) {
  Vector v;
  for (int i = 0; i < 8; ++i) v[i] = low[2 * i], v[8 + i] = high[2 * i];
  return v;
}
// Saturates.
static inline Vector narrow32(Vector low, Vector high) {
  const auto clamp = [](int32_t x) { return static_cast<int16_t>(x < -32768 ? -32768 : x > 32767 ? 32767 : x); };
  int32_t a[4], b[4];
  int16_t v[8];
  store(a, low);
  store(b, high);
  for (int i = 0; i < 4; ++i) v[i] = clamp(a[i]), v[4 + i] = clamp(b[i]);
  return load(v);
}

static inline Vector widen_signed(const uint8_t* p) {
  int16_t v[8];
  for (int i = 0; i < 8; ++i) v[i] = static_cast<int8_t>(p[i]);
  return load(v);
}
static inline Vector widen_unsigned(const uint8_t* p) {
  int16_t v[8];
  for (int i = 0; i < 8; ++i) v[i] = p[i];
  return load(v);
}
// No sum of two products may pass int16.
static inline Vector multiply_bytes(Vector a, Vector b) {
  const Halves even = (Halves)a & 255, odd = (Halves)a >> 8;
  const SignedHalves first = (SignedHalves)((Halves)b << 8) >> 8, second = (SignedHalves)b >> 8;
  return (Vector)((SignedHalves)even * first + (SignedHalves)odd * second);
}
static inline Vector multiply_pairs(Vector a, Vector b) {
  int16_t x[8], y[8], upper[8];
  store(x, a);
  store(y, b);
  for (int i = 0; i < 8; ++i) upper[i] = static_cast<int16_t>((x[i] * y[i]) >> 16);
  // Halves of the products, put together to the even and the odd ones.
  const UnsignedWords low = (UnsignedWords)((Halves)a * (Halves)b), high = (UnsignedWords)load(upper);
  return (Vector)(((low & 0xffff) | (high << 16)) + ((low >> 16) | (high & 0xffff0000)));
}

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

}  // namespace bitbranch::scalar

namespace bitbranch {
extern const InstructionSet kScalar = INSTRUCTION_SET(scalar, "scalar");
}
