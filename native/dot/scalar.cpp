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
template <class Each>
static inline Vector lanes(const Each& each) {
  Vector v;
  for (int i = 0; i < 16; ++i) v.lane[i] = each(i);
  return v;
}
static inline Vector zero() { return lanes([](int) { return 0; }); }
static inline Vector splat(int32_t x) { return lanes([=](int) { return x; }); }
template <class Each>
static inline Vector bytes(const Each& each) {
  Vector v;
  for (int i = 0; i < 64; ++i) v.byte[i] = static_cast<uint8_t>(each(i));
  return v;
}
static inline Vector splat8(int x) { return bytes([=](int) { return x; }); }
static inline Vector add8(const Vector& a, const Vector& b) { return bytes([&](int i) { return a.byte[i] + b.byte[i]; }); }
static inline Vector sub8(const Vector& a, const Vector& b) { return bytes([&](int i) { return a.byte[i] - b.byte[i]; }); }
template <class Each>
static inline Vector modular(const Vector& a, const Vector& b, const Each& each) {
  return lanes([&](int i) { return static_cast<int32_t>(each(static_cast<uint32_t>(a.lane[i]), static_cast<uint32_t>(b.lane[i]))); });
}
static inline Vector sub32(const Vector& a, const Vector& b) {
  return modular(a, b, [](uint32_t x, uint32_t y) { return x - y; });
}
static inline Vector multiply32(const Vector& a, const Vector& b) {
  return modular(a, b, [](uint32_t x, uint32_t y) { return x * y; });
}
static inline Vector quarter(const Vector& a) { return lanes([&](int i) { return a.lane[i] >> 2; }); }
static inline Vector add32(const Vector& a, const Vector& b) {
  return modular(a, b, [](uint32_t x, uint32_t y) { return x + y; });
}
static inline Vector larger(const Vector& a, const Vector& b) {
  return lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
static inline Vector larger8(const Vector& a, const Vector& b) {
  return bytes([&](int i) { return a.byte[i] > b.byte[i] ? a.byte[i] : b.byte[i]; });
}
static inline Vector smaller(const Vector& a, const Vector& b) {
  return lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
static inline Vector widen16(const int16_t* p) { return lanes([=](int i) { return int32_t{p[i]}; }); }
static inline void narrow16(int16_t* p, const Vector& v) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(v.lane[i]);
}
static inline void narrow8(uint8_t* p, const Vector& v) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(v.lane[i]);
}
static inline Vector count_reached(const Vector& count, const Vector& v, const Vector& bar) {
  return lanes([&](int i) { return count.lane[i] + (v.lane[i] >= bar.lane[i] ? 1 : 0); });
}
static inline Vector add_reached(const Vector& sum, const Vector& v, const Vector& bar, const Vector& summand) {
  return lanes([&](int i) { return sum.lane[i] + (v.lane[i] >= bar.lane[i] ? summand.lane[i] : 0); });
}
static inline void requantize_row(int32_t* v, const int64_t* multiplier, const int64_t* shift, const int64_t* offset,
                                  int32_t lo, int32_t hi) {
  for (int c = 0; c < kDotOutputs; ++c) {
    const int64_t x = (v[c] * multiplier[c] + offset[c]) >> shift[c], y = x < lo ? lo : x;
    v[c] = static_cast<int32_t>(y > hi ? hi : y);
  }
}

// Nothing is gained here where numbers are narrow.
static inline bool requantize_narrow(const DotRows&, const int64_t*, const int64_t*, const int64_t*, int32_t, int32_t) {
  return false;
}

// Nothing is gained here by comparing 32 channels at once.
template <int Count>
static inline bool compare_whole(const DotRows&, const int32_t*, DotCode, uint8_t* const*) {
  return false;
}

template <class Real>
struct LineOf {
  const Real *slope, *intercept;
  Real last;
  LineOf(const Real* a, const Real* b, Real n) : slope(a), intercept(b), last(n) {}
  Vector operator()(const Vector& v) const {
    return lanes([&](int i) {
      const Real product = static_cast<Real>(v.lane[i]) * slope[i];
      Real y = product + intercept[i];
      y = y > 0 ? y : 0;
      return static_cast<int32_t>(y < last ? y : last);
    });
  }
};
using Line = LineOf<float>;
using FineLine = LineOf<double>;
static void nothing() {}

#include "generic.hpp"
constexpr void (*run_half)(const DotTile&) = nullptr;
constexpr void (*products_half)(const DotProducts&) = nullptr;
constexpr void (*max_half)(const DotMembers&, int32_t*) = nullptr;

}  // namespace bitbranch::dot_scalar

namespace bitbranch {
extern const DotSet kDotScalar =
    DOT_SET(dot_scalar, "scalar", false, false, false, dot_scalar::nothing, dot_scalar::nothing, dot_scalar::dot_run);
}
