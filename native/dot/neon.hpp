// The wrapper for NEON but for the products, shared by its sets.

constexpr int kLanes = 4, kAcross = 4;
using Vector = int32x4_t;

static inline uint8x16_t bytes_of(Vector v) { return vreinterpretq_u8_s32(v); }
static inline Vector of_bytes(uint8x16_t v) { return vreinterpretq_s32_u8(v); }

static inline Vector load(const void* p) { return of_bytes(vld1q_u8(static_cast<const uint8_t*>(p))); }
static inline void store(void* p, Vector v) { vst1q_u8(static_cast<uint8_t*>(p), bytes_of(v)); }
static inline uint32_t four_bytes(const uint8_t* p) {
  uint32_t four;
  std::memcpy(&four, p, 4);
  return four;
}
// Products are of signed bytes: activations are taken 128 lower, and `run` makes up for it.
static inline Vector broadcast(const uint8_t* p) {
  return of_bytes(veorq_u8(vreinterpretq_u8_u32(vdupq_n_u32(four_bytes(p))), vdupq_n_u8(0x80)));
}
static inline Vector widen(const uint8_t* p) {
  const uint8x8_t four = vreinterpret_u8_u32(vdup_n_u32(four_bytes(p)));
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four))));
}
static inline Vector multiply_add(Vector sum, Vector x, Vector w) { return vmlaq_s32(sum, x, w); }
static inline Vector load_table(const int8_t* p) { return load(p); }
static inline Vector low_nibbles(Vector a) { return of_bytes(vandq_u8(bytes_of(a), vdupq_n_u8(15))); }
static inline Vector high_nibbles(Vector a) { return of_bytes(vshrq_n_u8(bytes_of(a), 4)); }
static inline Vector lookup(Vector table, Vector index) { return of_bytes(vqtbl1q_u8(bytes_of(table), bytes_of(index))); }
static inline Vector zero() { return vdupq_n_s32(0); }
static inline Vector splat(int32_t x) { return vdupq_n_s32(x); }
static inline Vector splat8(int x) { return of_bytes(vdupq_n_u8(static_cast<uint8_t>(x))); }
static inline Vector add8(Vector a, Vector b) { return of_bytes(vaddq_u8(bytes_of(a), bytes_of(b))); }
static inline Vector sub8(Vector a, Vector b) { return of_bytes(vsubq_u8(bytes_of(a), bytes_of(b))); }
static inline Vector sub32(Vector a, Vector b) { return vsubq_s32(a, b); }
static inline Vector quarter(Vector a) { return vshrq_n_s32(a, 2); }
static inline Vector multiply32(Vector a, Vector b) { return vmulq_s32(a, b); }
static inline Vector add32(Vector a, Vector b) { return vaddq_s32(a, b); }
static inline Vector larger(Vector a, Vector b) { return vmaxq_s32(a, b); }
static inline Vector larger8(Vector a, Vector b) { return of_bytes(vmaxq_u8(bytes_of(a), bytes_of(b))); }
static inline Vector smaller(Vector a, Vector b) { return vminq_s32(a, b); }
static inline Vector widen16(const int16_t* p) { return vmovl_s16(vld1_s16(p)); }
// What is above is cut off, as in a conversion.
static inline void narrow16(int16_t* p, Vector v) { vst1_s16(p, vmovn_s32(v)); }
static inline void narrow8(uint8_t* p, Vector v) {
  const uint16x4_t halves = vmovn_u32(vreinterpretq_u32_s32(v));
  const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(halves, halves))), 0);
  std::memcpy(p, &four, 4);
}
// A comparison is -1 where it holds.
static inline Vector count_reached(Vector count, Vector v, Vector bar) {
  return vsubq_s32(count, vreinterpretq_s32_u32(vcgeq_s32(v, bar)));
}
static inline Vector add_reached(Vector sum, Vector v, Vector bar, Vector summand) {
  return vaddq_s32(sum, vandq_s32(vreinterpretq_s32_u32(vcgeq_s32(v, bar)), summand));
}
static inline void requantize_row(int32_t* v, const int64_t* multiplier, const int64_t* shift, const int64_t* offset,
                                  int32_t lo, int32_t hi) {
  const int64x2_t least = vdupq_n_s64(lo), greatest = vdupq_n_s64(hi);
  for (int c = 0; c < 32; c += 2) {
    const int64x2_t product = vmull_s32(vld1_s32(v + c), vmovn_s64(vld1q_s64(multiplier + c)));
    int64x2_t x = vshlq_s64(vaddq_s64(product, vld1q_s64(offset + c)), vnegq_s64(vld1q_s64(shift + c)));
    x = vbslq_s64(vcltq_s64(x, least), least, x);
    vst1_s32(v + c, vmovn_s64(vbslq_s64(vcgtq_s64(x, greatest), greatest, x)));
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

struct Line {
  float32x4_t slope, intercept, last;
  Line(const float* a, const float* b, float n) : slope(vld1q_f32(a)), intercept(vld1q_f32(b)), last(vdupq_n_f32(n)) {}
  Vector operator()(Vector v) const {
    const float32x4_t y = vaddq_f32(vmulq_f32(vcvtq_f32_s32(v), slope), intercept);
    return vcvtq_s32_f32(vminq_f32(vmaxq_f32(y, vdupq_n_f32(0)), last));
  }
};
// The same in double precision, half a vector at a time.
struct FineLine {
  float64x2_t slope[2], intercept[2], last;
  FineLine(const double* a, const double* b, double n)
      : slope{vld1q_f64(a), vld1q_f64(a + 2)}, intercept{vld1q_f64(b), vld1q_f64(b + 2)}, last(vdupq_n_f64(n)) {}
  int32x2_t half(int32x2_t v, int k) const {
    const float64x2_t y = vaddq_f64(vmulq_f64(vcvtq_f64_s64(vmovl_s32(v)), slope[k]), intercept[k]);
    return vmovn_s64(vcvtq_s64_f64(vminq_f64(vmaxq_f64(y, vdupq_n_f64(0)), last)));
  }
  Vector operator()(Vector v) const { return vcombine_s32(half(vget_low_s32(v), 0), half(vget_high_s32(v), 1)); }
};
static inline void nothing() {}
