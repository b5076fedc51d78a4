// The dot-product path's algorithms, once, for the wrapper that the including file has defined in its namespace:
// Vector, kLanes (int32), kAcross (vectors of outputs in a register tile), kDown (pixels in it).
#define UNROLL _Pragma("GCC unroll 16")

template <int P>
static void dot_rows(const DotTile& t, int first, int output) {
  Vector sum[P][kAcross];
  UNROLL for (int p = 0; p < P; ++p)
    UNROLL for (int a = 0; a < kAcross; ++a)
      sum[p][a] = load(t.start + (first + p) * t.start_step + output + a * kLanes);
  const int8_t* weights = t.weights + output / 16 * (kDotChunk / 2) + output % 16 * 4;
  const uint8_t* const x0 = t.x + first * t.step;
  for (int c = 0; c < t.chunks; ++c) {
    const uint8_t* x = x0 + t.offsets[c];
    const int8_t* w = weights + int64_t{c} * kDotChunk;
    for (int q = 0; q < t.quads[c]; ++q) {
      Vector values[kAcross];
      UNROLL for (int a = 0; a < kAcross; ++a)
        values[a] = load(w + (a * kLanes / 16) * (kDotChunk / 2) + a * kLanes % 16 * 4);
      UNROLL for (int p = 0; p < P; ++p) {
        const Vector four = broadcast(x + p * t.step);
        UNROLL for (int a = 0; a < kAcross; ++a) sum[p][a] = dot(sum[p][a], four, values[a]);
      }
      x += 4;
      w += 64;
    }
  }
  UNROLL for (int p = 0; p < P; ++p)
    UNROLL for (int a = 0; a < kAcross; ++a) store(t.sums + (first + p) * kDotOutputs + output + a * kLanes, sum[p][a]);
}

static void dot_run(const DotTile& t) {
  for (int output = 0; output < kDotOutputs; output += kAcross * kLanes) {
    int p = 0;
    for (; p + kDown <= t.pixels; p += kDown) dot_rows<kDown>(t, p, output);
    for (; p + 4 <= t.pixels; p += 4) dot_rows<4>(t, p, output);
    for (; p < t.pixels; ++p) dot_rows<1>(t, p, output);
  }
}

static void depthwise(const DotDepthwise& d) {
  for (int p = 0; p < d.pixels; ++p) {
    Vector sum[kDotOutputs / kLanes];
    UNROLL for (int a = 0; a < kDotOutputs / kLanes; ++a) sum[a] = load(d.start + a * kLanes);
    const uint8_t* const x = d.x + p * d.step;
    for (int t = 0; t < d.taps; ++t)
      UNROLL for (int a = 0; a < kDotOutputs / kLanes; ++a)
        sum[a] = multiply_add(sum[a], widen(x + d.offsets[t] + a * kLanes), load(d.weights + t * kDotOutputs + a * kLanes));
    UNROLL for (int a = 0; a < kDotOutputs / kLanes; ++a) store(d.sums + p * kDotOutputs + a * kLanes, sum[a]);
  }
}

template <int Bits>
static void expand_bits(const int8_t* tables, const uint8_t* __restrict packed, int vectors, int8_t* __restrict out) {
  constexpr int fields = 4 / Bits, bytes = sizeof(Vector);
  Vector table[fields];
  UNROLL for (int f = 0; f < fields; ++f) table[f] = load_table(tables + 16 * f);
  for (int v = 0; v < vectors; ++v, packed += 64, out += 64 * 2 * fields)
    UNROLL for (int part = 0; part < 64; part += bytes) {
      const Vector all = load(packed + part);
      const Vector low = low_nibbles(all), high = high_nibbles(all);
      UNROLL for (int f = 0; f < fields; ++f) {
        store(out + 64 * f + part, lookup(table[f], low));
        store(out + 64 * (fields + f) + part, lookup(table[f], high));
      }
    }
}

static void expand(int bits, const int8_t* tables, const uint8_t* packed, int vectors, int8_t* out) {
  if (bits == 1) expand_bits<1>(tables, packed, vectors, out);
  else if (bits == 2) expand_bits<2>(tables, packed, vectors, out);
  else expand_bits<4>(tables, packed, vectors, out);
}

// What follows is plain loops over the 32 channels of a row, which the compiler vectorises.

static void requantize(const DotRows& rows, const int64_t* multiplier, const int64_t* shift, const int64_t* offset,
                       int32_t lo, int32_t hi) {
  for (int i = 0; i < rows.count; ++i) {
    int32_t* const v = rows.sums + rows.row[i] * kDotOutputs;
    for (int c = 0; c < kDotOutputs; ++c) {
      const int64_t x = (v[c] * multiplier[c] + offset[c]) >> shift[c];
      const int64_t y = x < lo ? lo : x;
      v[c] = static_cast<int32_t>(y > hi ? hi : y);
    }
  }
}

static void add(const DotRows& rows, const int32_t* const* other, int32_t lo, int32_t hi) {
  for (int i = 0; i < rows.count; ++i) {
    int32_t* const v = rows.sums + rows.row[i] * kDotOutputs;
    const int32_t* const o = other[i];
    for (int c = 0; c < kDotOutputs; ++c) {
      const int32_t x = v[c] + o[c], y = x < lo ? lo : x;
      v[c] = y > hi ? hi : y;
    }
  }
}

template <class T>
static inline void put(T* target, const T* values, int channels) {
  if (channels == kDotOutputs) std::memcpy(target, values, kDotOutputs * sizeof(T));
  else std::memcpy(target, values, channels * sizeof(T));
}

static void store_sums(const DotRows& rows, int32_t* const* target) {
  for (int i = 0; i < rows.count; ++i) put(target[i], rows.sums + rows.row[i] * kDotOutputs, rows.channels);
}

template <int Count>
static void compare_few(const DotRows& rows, const int32_t* __restrict limits, DotCode code, uint8_t* const* target) {
  int32_t bars[Count][kDotOutputs];
  std::memcpy(bars, limits, sizeof bars);
  for (int i = 0; i < rows.count; ++i) {
    const int32_t* const v = rows.sums + rows.row[i] * kDotOutputs;
    alignas(64) uint8_t out[kDotOutputs];
    for (int c = 0; c < kDotOutputs; ++c) {
      int32_t rank = 0;
      UNROLL for (int k = 0; k < Count; ++k) rank += v[c] >= bars[k][c] ? 1 : 0;
      out[c] = static_cast<uint8_t>((rank << code.shift) + code.add);
    }
    put(target[i], out, rows.channels);
  }
}

static void compare(const DotRows& rows, const int32_t* limits, int count, const uint8_t* table, DotCode code,
                    uint8_t* const* target) {
  if (!table && count == 1) return compare_few<1>(rows, limits, code, target);
  if (!table && count == 3) return compare_few<3>(rows, limits, code, target);
  for (int i = 0; i < rows.count; ++i) {
    const int32_t* const v = rows.sums + rows.row[i] * kDotOutputs;
    alignas(64) int32_t rank[kDotOutputs] = {};
    for (int k = 0; k < count; ++k)
      for (int c = 0; c < kDotOutputs; ++c) rank[c] += v[c] >= limits[k * kDotOutputs + c] ? 1 : 0;
    if (table)
      for (int c = 0; c < kDotOutputs; ++c) rank[c] = table[rank[c]];
    alignas(64) uint8_t out[kDotOutputs];
    for (int c = 0; c < kDotOutputs; ++c) out[c] = static_cast<uint8_t>((rank[c] << code.shift) + code.add);
    put(target[i], out, rows.channels);
  }
}

// Multiplied, then added: the build forbids fusing the two (-ffp-contract=off).
static void line(const DotRows& rows, const float* __restrict slope, const float* __restrict intercept, int last,
                 DotCode code, uint8_t* const* target) {
  const float top = static_cast<float>(last);
  for (int i = 0; i < rows.count; ++i) {
    const int32_t* const v = rows.sums + rows.row[i] * kDotOutputs;
    alignas(64) uint8_t out[kDotOutputs];
    for (int c = 0; c < kDotOutputs; ++c) {
      const float product = static_cast<float>(v[c]) * slope[c];
      float y = product + intercept[c];
      y = y > 0.0f ? y : 0.0f;
      y = y < top ? y : top;
      out[c] = static_cast<uint8_t>((static_cast<int32_t>(y) << code.shift) + code.add);
    }
    put(target[i], out, rows.channels);
  }
}

static void scale(const DotRows& rows, const float* factor, const float* bias, float* const* target,
                  int64_t channel_step) {
  for (int i = 0; i < rows.count; ++i) {
    const int32_t* const v = rows.sums + rows.row[i] * kDotOutputs;
    alignas(64) float out[kDotOutputs];
    for (int c = 0; c < kDotOutputs; ++c) {
      const float product = static_cast<float>(v[c]) * factor[c];
      out[c] = product + bias[c];
    }
    if (channel_step == 1) put(target[i], out, rows.channels);
    else
      for (int c = 0; c < rows.channels; ++c) target[i][c * channel_step] = out[c];
  }
}

static void load_sums(const int32_t* const* x, int count, int channels, int32_t* sums) {
  for (int i = 0; i < count; ++i) put(sums + i * kDotOutputs, x[i], channels);
}

static void max_bytes(const uint8_t* const* x, int count, int bytes, uint8_t* __restrict out) {
  std::memcpy(out, x[0], bytes);
  for (int i = 1; i < count; ++i) {
    const uint8_t* const other = x[i];
    for (int b = 0; b < bytes; ++b) out[b] = out[b] > other[b] ? out[b] : other[b];
  }
}

static void max_sums(const int32_t* const* x, int count, int channels, int32_t* __restrict sums) {
  std::memcpy(sums, x[0], channels * sizeof(int32_t));
  for (int i = 1; i < count; ++i)
    for (int c = 0; c < channels; ++c) sums[c] = sums[c] > x[i][c] ? sums[c] : x[i][c];
}

// sums += multiplier * x
static void sum_bytes(const uint8_t* const* x, int count, int channels, int multiplier, int32_t* __restrict sums) {
  for (int i = 0; i < count; ++i)
    for (int c = 0; c < channels; ++c) sums[c] += multiplier * x[i][c];
}

static void sum_sums(const int32_t* const* x, int count, int channels, int multiplier, int32_t* __restrict sums) {
  for (int i = 0; i < count; ++i)
    for (int c = 0; c < channels; ++c) sums[c] += multiplier * x[i][c];
}

static void interleave4(const uint8_t* const* rows, uint8_t* __restrict out, int count) {
  const uint8_t *__restrict a = rows[0], *__restrict b = rows[1], *__restrict c = rows[2], *__restrict d = rows[3];
  uint32_t* const words = reinterpret_cast<uint32_t*>(out);
  for (int i = 0; i < count; ++i)
    words[i] = a[i] | static_cast<uint32_t>(b[i]) << 8 | static_cast<uint32_t>(c[i]) << 16 | static_cast<uint32_t>(d[i]) << 24;
}

#define DOT_SET(space, name, begin, end, run)                                                                       \
  {                                                                                                                 \
    name, begin, end, run, space::depthwise, space::expand, space::requantize, space::add, space::store_sums,       \
        space::compare, space::line, space::scale, space::load_sums, space::max_bytes, space::max_sums,             \
        space::sum_bytes, space::sum_sums, space::interleave4                                                       \
  }
