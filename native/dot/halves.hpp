// Winograd's filtering modulo 2^16: where an output is known to be within 14 bits, the two that its division takes are
// all it needs beyond, and everything between numbers and outputs fits half the memory and half the instructions. The
// wrapper adds
//   half_dot(sum, x, w): products added to int32 or, in pairs, to the two halves of one,
//   beside(a, b): the sums modulo 2^16 of both, in the low and in the high halves of the lanes,
//   halves(a, b): the low halves of a, the high ones of b,
//   up16, add16, sub16, multiply16, splat16, quarter_low(v) and quarter_high(v): the quarters of halves as int32.

template <int P, int Across>
ALWAYS_INLINE void half_rows(const DotTile& t, int first, int output) {
  Vector sum[P][Across] = {};
  accumulate(t, first, output, sum, [](Vector s, Vector x, Vector w) { return half_dot(s, x, w); });
  const int32_t* const from = t.start + output;
  const Vector start = halves(load(from), up16(load(from + (Across - 1) * kLanes)));
  UNROLL for (int p = 0; p < P; ++p)
    UNROLL for (int a = 0; a < Across; ++a) asm("" : "+v"(sum[p][a]));  // else gcc keeps two of each in the loop
  int16_t* const to = reinterpret_cast<int16_t*>(t.sums) + first * kDotOutputs + output;
  UNROLL for (int p = 0; p < P; ++p) store(to + p * kDotOutputs, add16(start, beside(sum[p][0], sum[p][Across - 1])));
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

static void products_half(const DotProducts& t) {
  if (t.side == 2) transform_products<Winograd<2>, Halves>(t);
  else transform_products<Winograd<3>, Halves>(t);
}
