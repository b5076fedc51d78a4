// Plain loops over rows of numbers, which the compiler vectorises for the instruction set that includes them.

static void widen(const int16_t* __restrict part, int32_t* __restrict sums, int count, bool first) {
  if (first)
    for (int i = 0; i < count; ++i) sums[i] = part[i];
  else
    for (int i = 0; i < count; ++i) sums[i] += part[i];
}

// Modular arithmetic: the result is in range by the layer's bound even where a step on the way is not.
static void affine16(int16_t* sums, int count, int multiplier, int32_t constant) {
  const uint16_t m = static_cast<uint16_t>(multiplier), k = static_cast<uint16_t>(constant);
  for (int i = 0; i < count; ++i) sums[i] = static_cast<int16_t>(static_cast<uint16_t>(static_cast<uint16_t>(sums[i]) * m + k));
}

static void affine32(int32_t* sums, int count, int multiplier, int32_t constant) {
  const uint32_t m = static_cast<uint32_t>(multiplier), k = static_cast<uint32_t>(constant);
  for (int i = 0; i < count; ++i) sums[i] = static_cast<int32_t>(static_cast<uint32_t>(sums[i]) * m + k);
}

static void to_int32(const int16_t* __restrict sums, int32_t* __restrict out, int count) {
  for (int i = 0; i < count; ++i) out[i] = sums[i];
}

// Few thresholds: compare with each.
template <int Count>
static void encode_few(const FloatEncoder& e, const float* __restrict x, uint8_t* __restrict out, int count) {
  float thresholds[Count];
  for (int k = 0; k < Count; ++k) thresholds[k] = e.thresholds[k];
  const int multiplier = e.multiplier, add = e.add;
  for (int i = 0; i < count; ++i) {
    int rank = 0;
    UNROLL for (int k = 0; k < Count; ++k) rank += x[i] >= thresholds[k] ? 1 : 0;
    out[i] = static_cast<uint8_t>(multiplier * rank + add);
  }
}

// Many: the bucket is a monotone function of the real, so a threshold of a lower bucket is passed and one of a higher
// is not, exactly; only the thresholds of the real's own bucket are compared. Evenly spaced thresholds have a bucket
// each, and need no table of buckets.
template <bool Even>
static void encode_many(const FloatEncoder& e, const float* __restrict x, uint8_t* __restrict out, int count) {
  constexpr float greatest = 3.4028234663852886e38f;
  const float *const thresholds = e.thresholds, low = e.low, high = e.high, factor = e.scale;
  const int32_t* const start = e.start;
  const int last = e.buckets - 1, multiplier = e.multiplier, add = e.add, steps = Even ? 1 : e.steps;
  for (int i = 0; i < count; ++i) {
    const float real = x[i] < greatest ? x[i] : greatest;
    float y = real > low ? real : low;
    y = y < high ? y : high;
    int bucket = static_cast<int>((y - low) * factor + 0.5f);
    bucket = bucket < last ? bucket : last;
    int rank = Even ? bucket : start[bucket];
    for (int s = 0; s < steps; ++s) rank += real >= thresholds[rank] ? 1 : 0;
    out[i] = static_cast<uint8_t>(multiplier * rank + add);
  }
}

// The thresholds of a uniform quantizer, but for the first: no look-up.
static void encode_line(const FloatEncoder& e, const float* __restrict x, uint8_t* __restrict out, int count) {
  const double factor = e.factor, offset = e.offset;
  const float least = e.least, most = e.thresholds[e.count - 1];
  const int first = e.first, multiplier = e.multiplier, add = e.add;
  for (int i = 0; i < count; ++i) {
    float y = x[i] < most ? x[i] : most;
    y = y > least ? y : least;
    int rank = static_cast<int>(y * factor + offset);
    rank = rank > first ? rank : first;
    out[i] = static_cast<uint8_t>(multiplier * (x[i] > least ? rank : 0) + add);
  }
}

static void encode_reals(const FloatEncoder& e, const float* x, uint8_t* out, int count) {
  switch (e.count) {
    case 1: return encode_few<1>(e, x, out, count);
    case 2: return encode_few<2>(e, x, out, count);
    case 3: return encode_few<3>(e, x, out, count);
    case 7: return encode_few<7>(e, x, out, count);
    case 15: return encode_few<15>(e, x, out, count);
    default:
      if (e.factor > 0) return encode_line(e, x, out, count);
      return e.start ? encode_many<false>(e, x, out, count) : encode_many<true>(e, x, out, count);
  }
}

static bool encode(const FloatEncoder& e, const float* x, uint8_t* out, int count) {
  int nan = 0;
  for (int i = 0; i < count; ++i) nan |= x[i] != x[i] ? 1 : 0;
  encode_reals(e, x, out, count);
  return nan != 0;
}

static void interleave(const uint8_t* __restrict even, const uint8_t* __restrict odd, uint8_t* __restrict out,
                       int count) {
  for (int i = 0; i < count; ++i) {
    out[2 * i] = even[i];
    out[2 * i + 1] = odd[i];
  }
}

// Pairs of ranks [4][stride] to the one, two or four planes of 8 channels; `stride` is in pixels.
static void pack_ranks(int bits, const uint16_t* __restrict pairs, int stride, uint8_t* const planes[4], int count) {
  const uint16_t *const p0 = pairs, *const p1 = pairs + stride, *const p2 = pairs + 2 * stride,
                 *const p3 = pairs + 3 * stride;
  if (bits == 1) {
    uint8_t* __restrict out = planes[0];
    for (int i = 0; i < count; ++i) {
      const uint16_t all = static_cast<uint16_t>(p0[i] | p1[i] << 2 | p2[i] << 4 | p3[i] << 6);  // odd ones in bits 8..
      out[i] = static_cast<uint8_t>(all | all >> 7);
    }
    return;
  }
  const int per_group = bits == 2 ? 1 : 2;
  for (int plane = 0; plane < 2 * per_group; ++plane) {
    const uint16_t* const a = plane < per_group ? p0 : p2;
    const uint16_t* const b = plane < per_group ? p1 : p3;
    const int shift = 2 * (plane % per_group);
    uint8_t* __restrict out = planes[plane];
    for (int i = 0; i < count; ++i) {
      const uint16_t first = static_cast<uint16_t>(a[i] >> shift), second = static_cast<uint16_t>(b[i] >> shift);
      const uint16_t low = static_cast<uint16_t>((first & 0x0101) | (second & 0x0101) << 2);
      const uint16_t high = static_cast<uint16_t>((first & 0x0202) << 3 | (second & 0x0202) << 5);
      const uint16_t all = low | high;
      out[i] = static_cast<uint8_t>(all | all >> 7);
    }
  }
}

// Bytes of values to ranks: (byte - add) >> shift.
static void to_ranks(const uint8_t* __restrict x, uint8_t* __restrict out, int add, int shift, int count) {
  for (int i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(static_cast<uint8_t>(x[i] - add) >> shift);
}

static void add(const int32_t* a, const int32_t* b, int32_t* __restrict y, int64_t count, int32_t lo, int32_t hi) {
  for (int64_t i = 0; i < count; ++i) {
    int32_t v = a[i] + b[i];
    v = v < lo ? lo : v;
    y[i] = v > hi ? hi : v;
  }
}

// Multiplied, then added: the build forbids fusing the two (-ffp-contract=off).
static void scale(const int32_t* __restrict x, float* __restrict y, int64_t count, float factor, float bias) {
  for (int64_t i = 0; i < count; ++i) {
    const float product = static_cast<float>(x[i]) * factor;
    y[i] = product + bias;
  }
}

// Largest of two ranks in nibble bit-planes, decided from the top bit down: where a > b, take a.
static void max_planes(int packing, const uint8_t* a, const uint8_t* a2, const uint8_t* b, const uint8_t* b2,
                       uint8_t* __restrict out, uint8_t* __restrict out2, int count) {
  if (packing == 1 || packing == 9) {
    for (int i = 0; i < count; ++i) out[i] = a[i] | b[i];
  } else if (packing == 10) {
    for (int i = 0; i < count; ++i) {
      const uint8_t greater = a[i] & ~b[i], equal = static_cast<uint8_t>(~(a[i] ^ b[i]));
      const uint8_t wins = ((greater >> 1) | ((equal >> 1) & greater)) & 0x15;
      out[i] = b[i] ^ ((a[i] ^ b[i]) & static_cast<uint8_t>(wins | (wins << 1)));
    }
  } else if (packing == 2) {
    for (int i = 0; i < count; ++i) {
      const uint8_t greater = a[i] & ~b[i], equal = static_cast<uint8_t>(~(a[i] ^ b[i]));
      const uint8_t wins = ((greater >> 4) | ((equal >> 4) & greater)) & 15;
      out[i] = b[i] ^ ((a[i] ^ b[i]) & static_cast<uint8_t>(wins | (wins << 4)));
    }
  } else {
    for (int i = 0; i < count; ++i) {
      const uint8_t greater = a[i] & ~b[i], equal = static_cast<uint8_t>(~(a[i] ^ b[i]));
      const uint8_t greater2 = a2[i] & ~b2[i], equal2 = static_cast<uint8_t>(~(a2[i] ^ b2[i]));
      const uint8_t lower = (greater >> 4) | ((equal >> 4) & greater);
      const uint8_t upper = (greater2 >> 4) | ((equal2 >> 4) & greater2);
      const uint8_t wins = (upper | ((equal2 >> 4) & equal2 & lower)) & 15;
      const uint8_t mask = static_cast<uint8_t>(wins | (wins << 4));
      out[i] = b[i] ^ ((a[i] ^ b[i]) & mask);
      out2[i] = b2[i] ^ ((a2[i] ^ b2[i]) & mask);
    }
  }
}

static void max_bytes(bool is_signed, const uint8_t* a, const uint8_t* b, uint8_t* __restrict out, int count) {
  if (is_signed) {
    for (int i = 0; i < count; ++i) out[i] = static_cast<int8_t>(a[i]) > static_cast<int8_t>(b[i]) ? a[i] : b[i];
  } else {
    for (int i = 0; i < count; ++i) out[i] = a[i] > b[i] ? a[i] : b[i];
  }
}

// Every `step`-th pixel of a row.
template <class Pixel>
static void pick(const void* from, void* to, int step, int count) {
  const Pixel* __restrict const x = static_cast<const Pixel*>(from);
  Pixel* __restrict const y = static_cast<Pixel*>(to);
  if (step == 2)
    for (int i = 0; i < count; ++i) y[i] = x[2 * i];
  else if (step == 4)
    for (int i = 0; i < count; ++i) y[i] = x[4 * i];
  else
    for (int i = 0; i < count; ++i) y[i] = x[static_cast<int64_t>(i) * step];
}

// Each window's numbers taken together, of which `none` changes nothing.
template <class Sum, class Both>
static void combine_row(const WindowRow& row, Sum none, const Both& both) {
  const WindowRow w = row;  // what is written could overlap the caller's, which would forbid vectors
  Sum* __restrict const column = static_cast<Sum*>(w.scratch);
  Sum* __restrict const all = column + w.columns;
  for (int i = 0; i < w.left; ++i) column[i] = none;
  for (int i = w.left + w.width; i < w.columns; ++i) column[i] = none;
  Sum* __restrict const inner = column + w.left;
  const Sum *__restrict const x = static_cast<const Sum*>(w.x), *const x1 = x + w.row_stride,
            *const x2 = x1 + w.row_stride;
  if (w.rows == 1)
    for (int i = 0; i < w.width; ++i) inner[i] = x[i];
  else if (w.rows == 2)
    for (int i = 0; i < w.width; ++i) inner[i] = both(x[i], x1[i]);
  else
    for (int i = 0; i < w.width; ++i) inner[i] = both(both(x[i], x1[i]), x2[i]);
  for (int r = 3; r < w.rows; ++r) {
    const Sum* __restrict const below = x + r * w.row_stride;
    for (int i = 0; i < w.width; ++i) inner[i] = both(inner[i], below[i]);
  }
  Sum* __restrict const out = static_cast<Sum*>(w.out);
  if (w.stride == 2 && w.dilation == 1 && (w.kernel == 2 || w.kernel == 3)) {
    if (w.kernel == 2)
      for (int i = 0; i < w.count; ++i) out[i] = both(column[2 * i], column[2 * i + 1]);
    else
      for (int i = 0; i < w.count; ++i) out[i] = both(both(column[2 * i], column[2 * i + 1]), column[2 * i + 2]);
    return;
  }
  const int last = (w.count - 1) * w.stride + 1;
  for (int i = 0; i < last; ++i) all[i] = column[i];
  for (int k = 1; k < w.kernel; ++k) {
    const Sum* __restrict const right = column + k * w.dilation;
    for (int i = 0; i < last; ++i) all[i] = both(all[i], right[i]);
  }
  if (w.stride == 2)
    for (int i = 0; i < w.count; ++i) out[i] = all[2 * i];
  else
    for (int i = 0; i < w.count; ++i) out[i] = all[static_cast<int64_t>(i) * w.stride];
}

template <class Sum>
static void max_row(const WindowRow& row) {
  combine_row<Sum>(row, static_cast<Sum>(Sum{1} << (8 * sizeof(Sum) - 1)), [](Sum a, Sum b) { return a > b ? a : b; });
}

static void sum_row(const WindowRow& row) {
  combine_row<uint32_t>(row, 0, [](uint32_t a, uint32_t b) { return a + b; });
}

template <class Byte>
static void values_of(const uint8_t* __restrict pairs, int multiplier, int add, int32_t* __restrict out, int count) {
  for (int i = 0; i < count; ++i) out[i] = multiplier * static_cast<Byte>(pairs[2 * i]) + add;
}

static void values(const uint8_t* pairs, bool is_signed, int multiplier, int add, int32_t* out, int count) {
  (is_signed ? values_of<int8_t> : values_of<uint8_t>)(pairs, multiplier, add, out, count);
}

static void blend_rows(const int32_t* a, int32_t weight_a, const int32_t* b, int32_t weight_b, int32_t* __restrict out,
                       int count) {
  const uint32_t first = static_cast<uint32_t>(weight_a), second = static_cast<uint32_t>(weight_b);
  for (int i = 0; i < count; ++i)
    out[i] = static_cast<int32_t>(static_cast<uint32_t>(a[i]) * first + static_cast<uint32_t>(b[i]) * second);
}
