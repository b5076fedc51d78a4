// Plain C++, for every processor: what the others are checked against.
#include <cstring>

#include "kernels.hpp"

namespace bitbranch::dot_scalar {

constexpr int kLanes = 16, kAcross = 1, kDown = 2;

struct Vector {
  union {
    int32_t lane[16];
    uint8_t byte[64];
  };
};

static inline Vector load(const void* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(void* p, const Vector& v) { std::memcpy(p, &v, sizeof v); }
static inline Vector broadcast(const uint8_t* p) {
  Vector v;
  for (int i = 0; i < 64; ++i) v.byte[i] = p[i % 4];
  return v;
}
static inline Vector dot(const Vector& sum, const Vector& x, const Vector& w) {
  Vector v;
  for (int i = 0; i < 16; ++i) {
    uint32_t s = static_cast<uint32_t>(sum.lane[i]);
    for (int k = 4 * i; k < 4 * i + 4; ++k) s += static_cast<uint32_t>(x.byte[k] * static_cast<int8_t>(w.byte[k]));
    v.lane[i] = static_cast<int32_t>(s);
  }
  return v;
}
static inline Vector widen(const uint8_t* p) {
  Vector v;
  for (int i = 0; i < 16; ++i) v.lane[i] = p[i];
  return v;
}
static inline Vector multiply_add(const Vector& sum, const Vector& x, const Vector& w) {
  Vector v;
  for (int i = 0; i < 16; ++i)
    v.lane[i] = static_cast<int32_t>(static_cast<uint32_t>(sum.lane[i]) + static_cast<uint32_t>(x.lane[i] * w.lane[i]));
  return v;
}
static inline Vector load_table(const int8_t* p) {
  Vector v;
  for (int i = 0; i < 64; ++i) v.byte[i] = static_cast<uint8_t>(p[i % 16]);
  return v;
}
static inline Vector low_nibbles(const Vector& a) {
  Vector v;
  for (int i = 0; i < 64; ++i) v.byte[i] = a.byte[i] & 15;
  return v;
}
static inline Vector high_nibbles(const Vector& a) {
  Vector v;
  for (int i = 0; i < 64; ++i) v.byte[i] = a.byte[i] >> 4;
  return v;
}
static inline Vector lookup(const Vector& table, const Vector& index) {
  Vector v;
  for (int i = 0; i < 64; ++i) v.byte[i] = table.byte[i / 16 * 16 + index.byte[i]];
  return v;
}
static void nothing() {}

#include "generic.hpp"

}  // namespace bitbranch::dot_scalar

namespace bitbranch {
extern const DotSet kDotScalar =
    DOT_SET(dot_scalar, "scalar", dot_scalar::nothing, dot_scalar::nothing, dot_scalar::dot_run);
}
