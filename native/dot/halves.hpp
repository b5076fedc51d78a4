// Sums modulo 2^16, which are known to be within it in the end: half the memory and half the instructions for what comes
// behind them. Of Winograd's filtering the outputs are within 14 bits, for its division takes two. The wrapper adds
//   half_dot(sum, x, w): products added to int32 or, in pairs, to the two halves of one,
//   beside(a, b): the sums modulo 2^16 of both, in the low and in the high halves of the lanes,
//   halves(a, b): the low halves of a, the high ones of b,
//   half_low(v), half_high(v), quarter_low(v), quarter_high(v): the low or the high halves, or their quarters, as int32,
//   up16, add16, sub16, multiply16, larger16, splat16.

template <int P, int Across>
ALWAYS_INLINE void half_rows(const DotTile& t, int first, int output) {
  Vector sum[P][Across] = {};
  accumulate(t, first, output, sum, [](Vector s, Vector x, Vector w) { return half_dot(s, x, w); });
  const int32_t* const from = t.start + output;
  const Vector start = halves(load(from), up16(load(from + (Across - 1) * kLanes)));
  UNROLL for (int p = 0; p < P; ++p)
    UNROLL for (int a = 0; a < Across; ++a) asm("" : "+v"(sum[p][a]));  // else gcc keeps two of each in the loop
  int16_t* const to = reinterpret_cast<int16_t*>(t.sums) + first * t.half_step + output;
  UNROLL for (int p = 0; p < P; ++p) store(to + p * t.half_step, add16(start, beside(sum[p][0], sum[p][Across - 1])));
}

static void run_half(const DotTile& t) {
  static_assert(kAcross == 2, "two vectors of outputs become one");
  in_pieces<kHalfDown>(t, [&](auto rows, auto across, int first, int output) {
    half_rows<decltype(rows)::value, decltype(across)::value>(t, first, output);
  });
}

struct Halves {
  Vector v;
  static constexpr int kOutputs = 2 * kLanes;
  using Stored = int16_t;
  friend Halves operator+(Halves a, Halves b) { return {add16(a.v, b.v)}; }
  friend Halves operator-(Halves a, Halves b) { return {sub16(a.v, b.v)}; }
  Halves ninth() const { return {multiply16(v, splat16(0x8E39))}; }  // of a multiple: times the inverse modulo 2^16
  void store_quarter(int32_t* out) const {
    store(out, quarter_low(v));
    store(out + kLanes, quarter_high(v));
  }
};

static void max_half(const DotMembers& m, int32_t* sums) {
  const uint8_t* x = m.x;
  for (int p = 0; p < m.windows; ++p, x += m.step, sums += kDotOutputs)
    UNROLL for (int a = 0; a < kDotOutputs; a += 2 * kLanes) {
      const uint8_t* const at = x + a * sizeof(int16_t);
      Vector most = load(at + m.offsets[0]);
      for (int i = 1; i < m.count; ++i) most = larger16(most, load(at + m.offsets[i]));
      const Vector low = half_low(most), high = half_high(most);
      store(sums + a, m.more ? larger(low, load(sums + a)) : low);
      store(sums + a + kLanes, m.more ? larger(high, load(sums + a + kLanes)) : high);
    }
}

static void products_half(const DotProducts& t) {
  if (t.side == 2) transform_products<Winograd<2>, Halves>(t);
  else transform_products<Winograd<3>, Halves>(t);
}
