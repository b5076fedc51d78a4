// What quantizers compute on every activation of a training step, in float32: forwards the levels, backwards which
// gradients pass. Plain loops, which the compiler turns into vectors; every set gives the same, bit for bit. The level
// of NaN is NaN, and its gradient 0.

static inline float read_real(float x) { return x; }
static inline float read_real(Brain x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
static inline void write_real(float* p, float value) { *p = value; }
// To the nearest, of two to the even one.
static inline void write_real(Brain* p, float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  p->bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

static inline float clamp_real(float x, float lo, float hi) {
  x = x < lo ? lo : x;
  return x > hi ? hi : x;
}

template <class Real, class Level>
static inline void each_level(const Real* __restrict x, Real* __restrict y, int64_t count, const Level& level) {
  for (int64_t i = 0; i < count; ++i) write_real(&y[i], level(read_real(x[i])));
}

template <class Real>
static void levels(const Grid& g, const Real* x, Real* y, int64_t count) {
  const float lo = g.lo, hi = g.hi, step = g.step;
  switch (g.kind) {
    case Grid::uniform:
      return each_level(x, y, count, [=](float v) { return clamp_real(__builtin_floorf(v / step + 0.5f), lo, hi) * step; });
    case Grid::sparse:
      return each_level(x, y, count, [=](float v) {
        const float level = __builtin_ceilf(clamp_real(v / step - 0.5f, 0.5f, hi)) * step;
        return v <= lo ? 0.0f : level;
      });
    case Grid::bipolar:
      return each_level(x, y, count, [=](float v) {
        return (__builtin_floorf(clamp_real(v, lo, 1.0f) * hi * 0.5f) * 2.0f + 1.0f) * step;
      });
    case Grid::affine:
      return each_level(x, y, count, [=](float v) { return __builtin_floorf(clamp_real(v, lo, 1.0f) * hi + 0.5f) * step; });
  }
}

template <class Real>
static void window(float lo, float hi, const Real* __restrict x, const Real* __restrict gradient, Real* __restrict out,
                   int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float v = read_real(x[i]), passed = read_real(gradient[i]);
    write_real(&out[i], (v > lo) & (v < hi) ? passed : 0.0f);
  }
}

// Sums of a fixed number of lanes, so that no set's vectors show in them.
template <class Real>
static double step_gradient(const Grid& g, const Real* __restrict x, const Real* __restrict gradient,
                            Real* __restrict out, int64_t count) {
  constexpr int lanes = 32;
  const float lo = g.lo, hi = g.hi, step = g.step;
  double sums[lanes] = {};
  const auto one = [&](int64_t i, double& sum) __attribute__((always_inline)) {
    const float at = read_real(x[i]) / step, passed = read_real(gradient[i]);
    const bool inside = (at > lo) & (at < hi);
    const float slope = clamp_real(__builtin_floorf(at + 0.5f), lo, hi) - (inside ? at : 0.0f);
    sum += double{passed} * double{slope};
    write_real(&out[i], inside ? passed : 0.0f);
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (int lane = 0; lane < lanes; ++lane) one(i + lane, sums[lane]);
  for (int lane = 0; i < count; ++i, ++lane) one(i, sums[lane]);
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

// {least, greatest}; NaN is passed over.
template <class Real>
static void extremes(const Real* x, int64_t count, float* out) {
  constexpr int lanes = 64;
  float least[lanes], most[lanes];
  for (int lane = 0; lane < lanes; ++lane) least[lane] = out[0], most[lane] = out[1];
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (int lane = 0; lane < lanes; ++lane) {
      const float v = read_real(x[i + lane]);
      least[lane] = v < least[lane] ? v : least[lane];
      most[lane] = v > most[lane] ? v : most[lane];
    }
  for (; i < count; ++i) {
    const float v = read_real(x[i]);
    least[0] = v < least[0] ? v : least[0];
    most[0] = v > most[0] ? v : most[0];
  }
  for (int lane = 0; lane < lanes; ++lane) {
    out[0] = least[lane] < out[0] ? least[lane] : out[0];
    out[1] = most[lane] > out[1] ? most[lane] : out[1];
  }
}
