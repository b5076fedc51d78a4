// From sums to codes: the rank of a sum is the number of limits it exceeds; ranks of 8 channels are packed into
// nibble bit-planes or pairs of bytes.
// Included inside the namespace of an instruction set, after its vector wrapper.

constexpr int kHalf = kBytes / 2;
// So many limits are compared one by one; more are searched.

// Ranks of kBytes pixels of one channel, in 16-bit lanes, pixels in order.
static inline void ranks(const int16_t* sums, const int32_t* limits, int thresholds, Vector& low, Vector& high) {
  const Vector a = load(sums), b = load(sums + kHalf);
  low = high = zero();
  for (int k = 0; k < thresholds; ++k) {
    const Vector limit = broadcast32(limits[k]);
    low = count_greater16(low, a, limit);
    high = count_greater16(high, b, limit);
  }
}

static inline void ranks(const int32_t* sums, const int32_t* limits, int thresholds, Vector& low, Vector& high) {
  const Vector a = load(sums), b = load(sums + kHalf / 2), c = load(sums + kHalf), d = load(sums + kHalf + kHalf / 2);
  Vector na = zero(), nb = zero(), nc = zero(), nd = zero();
  for (int k = 0; k < thresholds; ++k) {
    const Vector limit = broadcast32(limits[k]);
    na = count_greater32(na, a, limit);
    nb = count_greater32(nb, b, limit);
    nc = count_greater32(nc, c, limit);
    nd = count_greater32(nd, d, limit);
  }
  low = narrow32(na, nb);
  high = narrow32(nc, nd);
}

// Bit `From` of a rank, moved to bit `To` of its lane.
template <int From, int To>
static inline Vector move_bit(Vector rank) {
  const Vector bit = and_(rank, broadcast32((1 << From) * 0x10001));
  if constexpr (To >= From) return shift_left16<To - From>(bit);
  else return shift_right16<From - To>(bit);
}

// Adds channel J of a group of 4 to the group's one or two byte-planes.
template <int Bits, int J>
static inline void add_channel(Vector rank, Vector plane[2]) {
  plane[0] = or_(plane[0], move_bit<0, J>(rank));
  plane[0] = or_(plane[0], move_bit<1, 4 + J>(rank));
  if constexpr (Bits >= 3) plane[1] = or_(plane[1], move_bit<2, J>(rank));
  if constexpr (Bits >= 4) plane[1] = or_(plane[1], move_bit<3, 4 + J>(rank));
}

// The same from the sums themselves: the rank's bits from the top one down, as in a binary search.
template <int Bits, int J>
static inline void add_ranked(Vector x, const int32_t* limits, Vector plane[2]) {
  const auto bit = [](int place) { return broadcast32((1 << place) * 0x10001); };
  const auto pick = [&](Vector above, int yes, int no) {
    return where_greater16(x, above, broadcast32(limits[yes]), broadcast32(limits[no]));
  };
  constexpr int middle = (1 << Bits) / 2 - 1, half = (middle + 1) / 2, quarter = half / 2;
  const Vector top = broadcast32(limits[middle]);
  const Vector next = pick(top, middle + half, middle - half);
  if constexpr (Bits == 2) {
    plane[0] = add_where_greater16(plane[0], x, top, bit(4 + J));
    plane[0] = add_where_greater16(plane[0], x, next, bit(J));
    return;
  }
  const Vector third = where_greater16(x, next, pick(top, middle + half + quarter, middle - half + quarter),
                                       pick(top, middle + half - quarter, middle - half - quarter));
  if constexpr (Bits == 3) {
    plane[1] = add_where_greater16(plane[1], x, top, bit(J));
    plane[0] = add_where_greater16(plane[0], x, next, bit(4 + J));
    plane[0] = add_where_greater16(plane[0], x, third, bit(J));
  } else {
    const Vector last = where_greater16(x, third, where_greater16(x, next, pick(top, 14, 6), pick(top, 10, 2)),
                                        where_greater16(x, next, pick(top, 12, 4), pick(top, 8, 0)));
    plane[1] = add_where_greater16(plane[1], x, top, bit(4 + J));
    plane[1] = add_where_greater16(plane[1], x, next, bit(J));
    plane[0] = add_where_greater16(plane[0], x, third, bit(4 + J));
    plane[0] = add_where_greater16(plane[0], x, last, bit(J));
  }
}

template <int Bits, int J, class Sum>
static inline void pack_channel(const Codes& c, const Sum* sums, int channel, Vector low[2], Vector high[2]) {
  const Sum* const x = sums + (channel + J) * c.stride;
  const int32_t* const limits = c.limits + (channel + J) * c.thresholds;
  if constexpr (sizeof(Sum) == 2) {
    add_ranked<Bits, J>(load(x), limits, low);
    add_ranked<Bits, J>(load(x + kHalf), limits, high);
  } else {
    Vector a, b;
    ranks(x, limits, c.thresholds, a, b);
    add_channel<Bits, J>(a, low);
    add_channel<Bits, J>(b, high);
  }
}

// Writes kBytes pixels of a plane; those that do not exist become 0.
static inline void store_pixels(const Codes& c, int plane, int p, Vector v) {
  store(c.packed + plane * c.packed_stride + p, c.exists ? and_(v, load(c.exists + p)) : v);
}

template <int Bits, class Sum>
static void pack_planes(const Codes& c) {
  for (int p = 0; p < c.pixels; p += kBytes) {
    const Sum* const sums = static_cast<const Sum*>(c.sums) + p;
    if constexpr (Bits == 1) {
      Vector low = zero(), high = zero();
      for (int r = kChunk - 1; r >= 0; --r) {
        Vector a, b;
        ranks(sums + r * c.stride, c.limits + r, 1, a, b);
        low = or_(shift_left16<1>(low), a);
        high = or_(shift_left16<1>(high), b);
      }
      store_pixels(c, 0, p, narrow16(low, high));
    } else {
      for (int group = 0; group < 2; ++group) {
        Vector low[2] = {zero(), zero()}, high[2] = {zero(), zero()};
        pack_channel<Bits, 0>(c, sums, 4 * group, low, high);
        pack_channel<Bits, 1>(c, sums, 4 * group, low, high);
        pack_channel<Bits, 2>(c, sums, 4 * group, low, high);
        pack_channel<Bits, 3>(c, sums, 4 * group, low, high);
        constexpr int planes = Bits == 2 ? 1 : 2;
        for (int plane = 0; plane < planes; ++plane)
          store_pixels(c, group * planes + plane, p, narrow16(low[plane], high[plane]));
      }
    }
  }
}

// Channels go into a byte from the last to the first, which ends in the lowest bits.
template <int Bits, class Sum>
static void pack_sextets(const Codes& c) {
  constexpr int per_unit = 6 / Bits;
  const int first = c.third * kChunk;
  for (int p = 0; p < c.pixels; p += kBytes) {
    const Sum* const sums = static_cast<const Sum*>(c.sums) + p;
    Vector low = zero(), high = zero();
    for (int r = kChunk - 1; r >= 0; --r) {
      Vector a, b;
      ranks(sums + r * c.stride, c.limits + r * c.thresholds, c.thresholds, a, b);
      low = or_(shift_left16<Bits>(low), a);
      high = or_(shift_left16<Bits>(high), b);
      const int place = (first + r) % per_unit * Bits, plane = (first + r) / per_unit;
      if (place == 0) {
        store_pixels(c, plane, p, narrow16(low, high));
        low = high = zero();
      } else if (r == 0) {  // the chunk before began this byte
        if (place == 2) low = shift_left16<2>(low), high = shift_left16<2>(high);
        else low = shift_left16<4>(low), high = shift_left16<4>(high);
        const Vector begun = load(c.packed + plane * c.packed_stride + p);
        store_pixels(c, plane, p, or_(begun, narrow16(low, high)));
      }
    }
  }
}

// Nearly evenly spaced limits: a monotone guess, and a search among the few limits about it. Nothing else of a long
// list is read.
template <int Steps, class Sum>
static void rank_near(const Sum* __restrict sums, const int32_t* __restrict limits, int thresholds, const float* guess,
                      int multiplier, int add, uint8_t* __restrict out, int count) {
  constexpr int window = (1 << Steps) - 1;
  const float low = guess[0], scale = guess[1];
  const int32_t least = limits[0], greatest = limits[thresholds - 1], last = thresholds - window;
  for (int p = 0; p < count; ++p) {
    const int32_t sum = sums[p];
    int32_t y = sum > least ? sum : least;
    y = y < greatest ? y : greatest;
    int32_t rank = static_cast<int32_t>((static_cast<float>(y) - low) * scale + 0.5f) - window / 2;
    rank = rank > 0 ? rank : 0;
    rank = rank < last ? rank : last;
    UNROLL for (int step = 1 << (Steps - 1); step > 0; step /= 2) rank += sum > limits[rank + step - 1] ? step : 0;
    out[p] = static_cast<uint8_t>(multiplier * rank + add);
  }
}

// Any limits: binary search; where there are many pixels, one pass over them for each halving, in vectors.
template <class Sum>
static void rank_any(const Sum* __restrict sums, const int32_t* __restrict limits, int thresholds, int multiplier,
                     int add, uint8_t* __restrict out, int count) {
  if (count < kBytes / 4) {
    for (int p = 0; p < count; ++p) {
      int32_t rank = 0;
      for (int step = (thresholds + 1) / 2; step > 0; step /= 2) rank += sums[p] > limits[rank + step - 1] ? step : 0;
      out[p] = static_cast<uint8_t>(multiplier * rank + add);
    }
    return;
  }
  int32_t rank[kMaxPixels];
  for (int p = 0; p < count; ++p) rank[p] = 0;
  for (int step = (thresholds + 1) / 2; step > 0; step /= 2)
    for (int p = 0; p < count; ++p) rank[p] += sums[p] > limits[rank[p] + step - 1] ? step : 0;
  for (int p = 0; p < count; ++p) out[p] = static_cast<uint8_t>(multiplier * rank[p] + add);
}

// Limits along a line that counts them.
template <class Sum>
static void rank_line(const Sum* __restrict sums, float slope, float intercept, int last, int multiplier, int add,
                      uint8_t* __restrict out, int count) {
  const float top = static_cast<float>(last);
  for (int p = 0; p < count; ++p) {
    float y = static_cast<float>(sums[p]) * slope + intercept;
    y = y > 0 ? y : 0;
    y = y < top ? y : top;
    out[p] = static_cast<uint8_t>(multiplier * static_cast<int>(y) + add);
  }
}

template <class Sum>
static void rank_bytes(const Codes& c, int channel, uint8_t* out) {
  const Sum* const sums = static_cast<const Sum*>(c.sums) + channel * c.stride;
  const int32_t* const limits = c.limits + channel * c.thresholds;
  const float* const guess = c.guess + 3 * channel;
  const auto near = guess[2] == 1 ? rank_near<1, Sum> : guess[2] == 2 ? rank_near<2, Sum> : rank_near<3, Sum>;
  const int passed = -1 - static_cast<int>(guess[2]);  // of a line
  if (guess[2] < 0)
    rank_line(sums, guess[1], guess[0], c.thresholds - passed, c.multiplier, c.add + c.multiplier * passed, out, c.pixels);
  else if (guess[2] > 0) near(sums, limits, c.thresholds, guess, c.multiplier, c.add, out, c.pixels);
  else rank_any(sums, limits, c.thresholds, c.multiplier, c.add, out, c.pixels);
}

// Few limits: compare with each, a pair of channels in the bytes of 16-bit lanes.
template <class Sum>
static void pack_few(const Codes& c) {
  const Vector summand = broadcast32(static_cast<int32_t>((c.add & 255u) * 0x01010101u));
  for (int pair = 0; pair < kChunk / 2; ++pair) {
    const Sum* const sums = static_cast<const Sum*>(c.sums) + 2 * pair * c.stride;
    const int32_t* const limits = c.limits + 2 * pair * c.thresholds;
    uint8_t* const out = c.packed + pair * c.packed_stride;
    for (int p = 0; p < c.pixels; p += kBytes) {
      Vector even[2], odd[2];
      ranks(sums + p, limits, c.thresholds, even[0], even[1]);
      ranks(sums + c.stride + p, limits + c.thresholds, c.thresholds, odd[0], odd[1]);
      for (int half = 0; half < 2 && p + half * kHalf < c.pixels; ++half) {
        Vector v = or_(even[half], shift_left16<8>(odd[half]));
        if (c.multiplier == 2) v = add8(v, v);
        v = add8(v, summand);
        if (c.exists) v = and_(v, widen_signed(c.exists + p + half * kHalf));
        store(out + 2 * p + half * kBytes, v);
      }
    }
  }
}

template <class Sum>
static void pack_bytes(const Codes& c) {
  if (!c.guess) return pack_few<Sum>(c);
  uint8_t even[kMaxPixels] = {}, odd[kMaxPixels] = {};
  for (int pair = 0; pair < kChunk / 2; ++pair) {
    rank_bytes<Sum>(c, 2 * pair, even);
    rank_bytes<Sum>(c, 2 * pair + 1, odd);
    uint8_t* const out = c.packed + pair * c.packed_stride;
    for (int p = 0; p < c.pixels; p += kHalf) {
      Vector v = or_(widen_unsigned(even + p), shift_left16<8>(widen_unsigned(odd + p)));
      if (c.exists) v = and_(v, widen_signed(c.exists + p));
      store(out + 2 * p, v);
    }
  }
}

template <class Sum>
static void codes(int packing, const Codes& c) {
  switch (packing) {
    case 0: return pack_bytes<Sum>(c);
    case 1: return pack_planes<1, Sum>(c);
    case 2: return pack_planes<2, Sum>(c);
    case 3: return pack_planes<3, Sum>(c);
    case 4: return pack_planes<4, Sum>(c);
    case 9: return pack_sextets<1, Sum>(c);
    default: return pack_sextets<2, Sum>(c);
  }
}
