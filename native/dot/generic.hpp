// The dot-product path's algorithms, once, for the wrapper that the including file has defined in its namespace:
// Vector, kLanes (int32), kAcross (vectors of outputs in a register tile), kDown (pixels in it).
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE __attribute__((always_inline)) static inline

// Adds a tile's products to sums of `P` rows from `first` on and of `Across` vectors from `output` on. Inlined, so that
// what a tile's pieces share is computed once.
template <int P, int Across, class Product>
ALWAYS_INLINE void accumulate(const DotTile& t, int first, int output, Vector (&sum)[P][Across], const Product& product) {
  const int8_t* weights = t.weights + output / 16 * (kDotChunk / 2) + output % 16 * 4;
  const uint8_t* const x0 = t.x + first * t.step;
  const ptrdiff_t step = t.step;
  for (int c = 0, chunks = t.chunks; c < chunks; ++c) {
    const uint8_t* x = x0 + t.offsets[c];
    const int8_t* w = weights + int64_t{c} * kDotChunk;
    int quads = t.quads[c];
    do {
      Vector values[Across];
      UNROLL for (int a = 0; a < Across; ++a)
        values[a] = load(w + (a * kLanes / 16) * (kDotChunk / 2) + a * kLanes % 16 * 4);
      UNROLL for (int p = 0; p < P; ++p) {
        const Vector four = broadcast(x + p * step);
        UNROLL for (int a = 0; a < Across; ++a) sum[p][a] = product(sum[p][a], four, values[a]);
      }
      x += 4;
      w += 64;
    } while (--quads != 0);
  }
}

template <int P, int Across>
ALWAYS_INLINE void dot_rows(const DotTile& t, int first, int output) {
  Vector sum[P][Across];
  UNROLL for (int p = 0; p < P; ++p)
    UNROLL for (int a = 0; a < Across; ++a)
      sum[p][a] = load(t.start + (first + p) * t.start_step + output + a * kLanes);
  accumulate(t, first, output, sum, [](Vector s, Vector x, Vector w) { return dot(s, x, w); });
  int32_t* const to = t.sums + first * kDotOutputs + output;
  UNROLL for (int p = 0; p < P; ++p)
    UNROLL for (int a = 0; a < Across; ++a) store(to + p * kDotOutputs + a * kLanes, sum[p][a]);
}

template <int N>
struct Fixed {
  static constexpr int value = N;
};

// The rows and outputs of a tile in pieces that registers hold: `piece(rows, across, first row, first output)`.
template <int Down, class Piece>
static inline void in_pieces(const DotTile& t, const Piece& piece) {
  const auto column = [&](auto across, int output) {
    int p = 0;
    for (; p + Down <= t.pixels; p += Down) piece(Fixed<Down>{}, across, p, output);
    for (; p + 1 < t.pixels && p + 4 <= kDotPixels; p += 4) piece(Fixed<4>{}, across, p, output);  // some may not be there
    for (; p < t.pixels; ++p) piece(Fixed<1>{}, across, p, output);
  };
  if (t.outputs <= kLanes) return column(Fixed<1>{}, 0);
  for (int output = 0; output < t.outputs; output += kAcross * kLanes) column(Fixed<kAcross>{}, output);
}

static void dot_run(const DotTile& t) {
  in_pieces<kDown>(t, [&](auto rows, auto across, int first, int output) {
    dot_rows<decltype(rows)::value, decltype(across)::value>(t, first, output);
  });
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

template <int Piece>
static void gather_pieces(const DotGather& g) {
  constexpr int in_chunk = kDotDepth / Piece;
  const int32_t* const offsets = g.offsets;
  const int pieces = g.pieces, count = g.count;  // once: what is written might be anything
  for (int i = 0; i < count; ++i) {
    const uint8_t* const x = g.x[i];
    uint8_t* row = g.out + g.row[i] * kDotDepth;
    int k = 0;
    for (; k + in_chunk <= pieces; k += in_chunk, row += kDotPixels * kDotDepth)
      UNROLL for (int j = 0; j < in_chunk; ++j) std::memcpy(row + j * Piece, x + offsets[k + j], Piece);
    for (int j = 0; k + j < pieces; ++j) std::memcpy(row + j * Piece, x + offsets[k + j], Piece);
  }
}

static void gather(const DotGather& g) {
  if (g.piece == 16) gather_pieces<16>(g);
  else if (g.piece == 32) gather_pieces<32>(g);
  else gather_pieces<64>(g);
}

template <int Bits>
static void expand_bits(const int8_t* tables, const uint8_t* __restrict packed, int vectors, int8_t* __restrict out) {
  constexpr int fields = 4 / Bits, bytes = sizeof(Vector);
  Vector table[fields];
  UNROLL for (int f = 0; f < fields; ++f) table[f] = load_table(tables + 16 * f);
  constexpr int ahead = 4608;  // what is asked for next, mostly: further than the processor foresees
  for (int v = 0; v < vectors; ++v, packed += 64, out += 64 * 2 * fields) {
    __builtin_prefetch(packed + ahead);
    UNROLL for (int part = 0; part < 64; part += bytes) {
      const Vector all = load(packed + part);
      const Vector low = low_nibbles(all), high = high_nibbles(all);
      UNROLL for (int f = 0; f < fields; ++f) {
        store(out + 64 * f + part, lookup(table[f], low));
        store(out + 64 * (fields + f) + part, lookup(table[f], high));
      }
    }
  }
}

static void expand(int bits, const int8_t* tables, const uint8_t* packed, int vectors, int8_t* out) {
  if (bits == 1) expand_bits<1>(tables, packed, vectors, out);
  else if (bits == 2) expand_bits<2>(tables, packed, vectors, out);
  else expand_bits<4>(tables, packed, vectors, out);
}

// From here on a vector is channels of a pixel; the arrays of a chain are per channel.

constexpr int kParts = kDotOutputs / kLanes;

static void requantize(const DotRows& rows, const int64_t* multiplier, const int64_t* shift, const int64_t* offset,
                       int32_t lo, int32_t hi, bool narrow) {
  if (narrow && requantize_narrow(rows, multiplier, shift, offset, lo, hi)) return;
  for (int i = 0; i < rows.count; ++i)
    requantize_row(rows.sums + rows.row[i] * kDotOutputs, multiplier, shift, offset, lo, hi);
}

static void add(const DotRows& rows, const void* const* other, bool narrow, int32_t lo, int32_t hi) {
  const Vector low = splat(lo), high = splat(hi);
  for (int i = 0; i < rows.count; ++i)
    UNROLL for (int a = 0; a < kParts; ++a) {
      int32_t* const v = rows.sums + rows.row[i] * kDotOutputs + a * kLanes;
      const Vector o = narrow ? widen16(static_cast<const int16_t*>(other[i]) + a * kLanes)
                              : load(static_cast<const int32_t*>(other[i]) + a * kLanes);
      store(v, smaller(larger(add32(load(v), o), low), high));
    }
}

template <class T>
static inline void copy(void* to, const T* from, int count) {
  std::memcpy(to, from, count * sizeof(T));
}

// Blocks of up to 16 channels are half the work; loops of a known length become vectors without a rest.
template <class Piece>
static inline void half_or_whole(int channels, const Piece& piece) {
  channels <= kDotOutputs / 2 ? piece(Fixed<kDotOutputs / 2>{}) : piece(Fixed<kDotOutputs>{});
}

// Numbers of a row as they lie in memory.
template <int Channels>
static inline void store_row(const int32_t* sums, bool narrow, void* to) {
  UNROLL for (int c = 0; c < Channels; c += kLanes) {
    if (narrow) narrow16(static_cast<int16_t*>(to) + c, load(sums + c));
    else store(static_cast<int32_t*>(to) + c, load(sums + c));
  }
}

static void store_sums(const DotRows& rows, bool narrow, void* const* target) {
  const int count = rows.count, channels = rows.channels;
  half_or_whole(channels, [&](auto computed) {
    constexpr int most = decltype(computed)::value;
    if (channels == most) {
      for (int i = 0; i < count; ++i) store_row<most>(rows.sums + rows.row[i] * kDotOutputs, narrow, target[i]);
      return;
    }
    for (int i = 0; i < count; ++i) {
      alignas(64) int32_t kept[most];
      store_row<most>(rows.sums + rows.row[i] * kDotOutputs, narrow, kept);
      copy(target[i], reinterpret_cast<const char*>(kept), channels * (narrow ? 2 : 4));
    }
  });
}

// Finishes a part of every row with rank(sums), a vector of ranks.
template <class Rank>
static inline void each_part(const DotRows& rows, int part, DotCode code, uint8_t* const* target, const Rank& rank) {
  const Vector summand = splat(code.add);
  const int here = rows.channels - part * kLanes, count = rows.count;
  if (here <= 0) return;
  const int32_t* const sums = rows.sums + part * kLanes;
  const uint8_t* const row = rows.row;
  const auto stored = [&](int i) {
    const Vector v = rank(load(sums + row[i] * kDotOutputs));
    return add32(code.shift ? add32(v, v) : v, summand);
  };
  if (here >= kLanes) {
    for (int i = 0; i < count; ++i) narrow8(target[i] + part * kLanes, stored(i));
    return;
  }
  for (int i = 0; i < count; ++i) {
    alignas(64) uint8_t kept[kLanes];
    narrow8(kept, stored(i));
    copy(target[i] + part * kLanes, kept, here);
  }
}

template <int Count>
static void compare_few(const DotRows& rows, const int32_t* limits, DotCode code, uint8_t* const* target) {
  if (rows.channels == kDotOutputs && compare_whole<Count>(rows, limits, code, target)) return;
  for (int part = 0; part < kParts; ++part) {
    Vector bar[Count];
    UNROLL for (int k = 0; k < Count; ++k) bar[k] = load(limits + k * kDotOutputs + part * kLanes);
    each_part(rows, part, code, target, [&](Vector v) {
      Vector count = zero();
      UNROLL for (int k = 0; k < Count; ++k) count = count_reached(count, v, bar[k]);
      return count;
    });
  }
}

static void compare(const DotRows& rows, const int32_t* limits, int count, const uint8_t* table, DotCode code,
                    uint8_t* const* target) {
  if (!table && count == 1) return compare_few<1>(rows, limits, code, target);
  if (!table && count == 3) return compare_few<3>(rows, limits, code, target);
  for (int part = 0; part < kParts; ++part)
    each_part(rows, part, code, target, [&](Vector v) {
      Vector reached = zero();
      for (int k = 0; k < count; ++k) reached = count_reached(reached, v, load(limits + k * kDotOutputs + part * kLanes));
      if (!table) return reached;
      alignas(64) int32_t rank[kLanes];
      store(rank, reached);
      for (int c = 0; c < kLanes; ++c) rank[c] = table[rank[c]];
      return load(rank);
    });
}

// Multiplied, then added, never fused: what the slopes were checked for.
template <class Along, class Real>
static inline void line_of(const DotRows& rows, const Real* slope, const Real* intercept, int last, DotJump jump,
                           DotCode code, uint8_t* const* target) {
  for (int part = 0; part < kParts; ++part) {
    const Along along(slope + part * kLanes, intercept + part * kLanes, static_cast<Real>(last));
    if (!jump.limits) {
      each_part(rows, part, code, target, [&](Vector v) { return along(v); });
      continue;
    }
    const Vector limit = load(jump.limits + part * kLanes), ranks = splat(jump.ranks);
    each_part(rows, part, code, target, [&](Vector v) { return add_reached(along(v), v, limit, ranks); });
  }
}

static void line(const DotRows& rows, const float* slope, const float* intercept, int last, DotJump jump, DotCode code,
                 uint8_t* const* target) {
  line_of<Line>(rows, slope, intercept, last, jump, code, target);
}

static void fine_line(const DotRows& rows, const double* slope, const double* intercept, int last, DotJump jump,
                      DotCode code, uint8_t* const* target) {
  line_of<FineLine>(rows, slope, intercept, last, jump, code, target);
}

// What follows is plain loops over channels, which the compiler vectorises.

typedef float Four __attribute__((vector_size(16)));
typedef uint8_t SixteenBytes __attribute__((vector_size(16)));
#ifdef __clang__
#define SHUFFLE(Mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t FourPlaces __attribute__((vector_size(16)));
#define SHUFFLE(Mask, a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

// Four rows of four numbers to the first `used` of their columns.
static inline void transpose4(const float* from, ptrdiff_t from_step, float* out, ptrdiff_t out_step, int used) {
  Four row[4];
  UNROLL for (int i = 0; i < 4; ++i) std::memcpy(&row[i], from + i * from_step, sizeof(Four));
  const Four a = SHUFFLE(FourPlaces, row[0], row[1], 0, 4, 1, 5), b = SHUFFLE(FourPlaces, row[2], row[3], 0, 4, 1, 5);
  const Four c = SHUFFLE(FourPlaces, row[0], row[1], 2, 6, 3, 7), d = SHUFFLE(FourPlaces, row[2], row[3], 2, 6, 3, 7);
  const Four column[4] = {SHUFFLE(FourPlaces, a, b, 0, 1, 4, 5), SHUFFLE(FourPlaces, a, b, 2, 3, 6, 7),
                          SHUFFLE(FourPlaces, c, d, 0, 1, 4, 5), SHUFFLE(FourPlaces, c, d, 2, 3, 6, 7)};
  if (used == 4) {
    UNROLL for (int i = 0; i < 4; ++i) std::memcpy(out + i * out_step, &column[i], sizeof(Four));
  } else {
    for (int i = 0; i < used; ++i) std::memcpy(out + i * out_step, &column[i], sizeof(Four));
  }
}

// The first three bytes of each of four words; four bytes behind them are written, too.
static inline void first_three(const uint32_t* words, uint8_t* out) {
  SixteenBytes v;
  std::memcpy(&v, words, sizeof v);
  v = SHUFFLE(SixteenBytes, v, v, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
  std::memcpy(out, &v, sizeof v);
}

static void scale(const DotRows& rows, const float* factor, const float* bias, float* const* target,
                  int64_t channel_step) {
  alignas(64) float out[kDotPixels][kDotOutputs];
  const int count = rows.count, channels = rows.channels;
  half_or_whole(channels, [&](auto computed) {
    for (int i = 0; i < count; ++i) {
      const int32_t* const v = rows.sums + rows.row[i] * kDotOutputs;
      for (int c = 0; c < computed.value; ++c) {
        const float product = static_cast<float>(v[c]) * factor[c];
        out[i][c] = product + bias[c];
      }
      if (channel_step == 1) copy(target[i], out[i], channels);
    }
  });
  if (channel_step == 1) return;
  // Pixels mostly lie side by side; channels often lie a multiple of the cache's size apart.
  for (int i = 0; i < count;) {
    float* const first = target[i];
    int run = 1;
    while (i + run < count && target[i + run] == first + run) ++run;
    int k = 0;
    for (int line = 0; line < run; line += 16)
      for (int c = 0; c < channels; ++c) __builtin_prefetch(first + c * channel_step + line + 2 * kDotPixels, 1);
    for (; k + 4 <= run; k += 4)
      for (int c = 0; c < channels; c += 4)
        transpose4(&out[i + k][c], kDotOutputs, first + c * channel_step + k, channel_step, channels - c < 4 ? channels - c : 4);
    for (; k < run; ++k)
      for (int c = 0; c < channels; ++c) first[c * channel_step + k] = out[i + k][c];
    i += run;
  }
}

static void max_bytes(const DotMembers& m, int bytes, uint8_t* out, ptrdiff_t step) {
  constexpr int whole = sizeof(Vector);
  const uint8_t* x = m.x;
  for (int p = 0; p < m.windows; ++p, x += m.step, out += step) {
    const auto largest = [&](int b, Vector most) {
      for (int i = 0; i < m.count; ++i) most = larger8(most, load(x + m.offsets[i] + b));
      return most;
    };
    int b = 0;
    for (; b + whole <= bytes; b += whole) store(out + b, largest(b, m.more ? load(out + b) : load(x + m.offsets[0] + b)));
    if (b == bytes) continue;
    alignas(64) uint8_t kept[whole];  // what lies behind may be read, not written
    if (m.more) copy(kept, out + b, bytes - b);
    store(kept, largest(b, m.more ? load(kept) : load(x + m.offsets[0] + b)));
    for (; b + 16 <= bytes; b += 16) copy(out + b, kept + b % whole, 16);
    if (b < bytes) copy(out + b, kept + b % whole, bytes - b);
  }
}

// The 32 channels from each pointer on, of int32 or, `narrow`, int16.
static inline Vector number(const void* p, bool narrow, int at) {
  return narrow ? widen16(static_cast<const int16_t*>(p) + at) : load(static_cast<const int32_t*>(p) + at);
}

static void max_sums(const DotMembers& m, bool narrow, int32_t* sums) {
  const auto all = [&](auto is_narrow) {
    const uint8_t* x = m.x;
    for (int p = 0; p < m.windows; ++p, x += m.step, sums += kDotOutputs)
      UNROLL for (int a = 0; a < kParts; ++a) {
        Vector most = m.more ? load(sums + a * kLanes) : number(x + m.offsets[0], is_narrow.value, a * kLanes);
        for (int i = 0; i < m.count; ++i) most = larger(most, number(x + m.offsets[i], is_narrow.value, a * kLanes));
        store(sums + a * kLanes, most);
      }
  };
  narrow ? all(Fixed<1>{}) : all(Fixed<0>{});
}

static void sum_members(const DotMembers& m, int size, int zero_code, int32_t* sums) {
  const auto all = [&](auto fixed) {
    constexpr int bytes = decltype(fixed)::value;
    const auto number_at = [](const uint8_t* at, int a) {
      if constexpr (bytes == 1) return widen(at + a * kLanes);
      else return number(at, bytes == 2, a * kLanes);
    };
    const Vector start = splat(-m.count * zero_code);
    const uint8_t* x = m.x;
    for (int p = 0; p < m.windows; ++p, x += m.step, sums += kDotOutputs)
      UNROLL for (int a = 0; a < kParts; ++a) {
        Vector sum = add32(load(sums + a * kLanes), start);
        for (int i = 0; i < m.count; ++i) sum = add32(sum, number_at(x + m.offsets[i], a));
        store(sums + a * kLanes, sum);
      }
  };
  size == 1 ? all(Fixed<1>{}) : size == 2 ? all(Fixed<2>{}) : all(Fixed<4>{});
}

// Down first: a column of the source serves all pixels beside it. Of one or two bytes it fits the multiply-add.
template <int Size, int Channels>
static void blend_row(const DotBlend& b) {
  const int first = b.across[0].at[0], columns = b.across[b.count - 1].at[1] - first + 1;
  alignas(64) uint32_t column[kDotPixels + 1][kDotOutputs];
  for (int j = 0; j < columns; ++j) {
    const uint8_t *const upper = b.rows[0] + (first + j) * b.step, *const lower = b.rows[1] + (first + j) * b.step;
    if constexpr (Size == 4) {
      const auto *const x = reinterpret_cast<const int32_t*>(upper), *const y = reinterpret_cast<const int32_t*>(lower);
      const uint32_t above = b.down[0], below = b.down[1];
      for (int c = 0; c < Channels; ++c) column[j][c] = static_cast<uint32_t>(x[c]) * above + static_cast<uint32_t>(y[c]) * below;
    } else {
      const auto number = [](const uint8_t* row, int c) {
        if constexpr (Size == 1) return widen(row + c);
        else return widen16(reinterpret_cast<const int16_t*>(row) + c);
      };
      UNROLL for (int c = 0; c < Channels; c += kLanes)
        store(&column[j][c], multiply_add(multiply_add(zero(), number(upper, c), splat(b.down[0])), number(lower, c), splat(b.down[1])));
    }
  }
  for (int i = 0; i < b.count; ++i) {
    const DotBetween& at = b.across[i];
    const uint32_t *const x = column[at.at[0] - first], *const y = column[at.at[1] - first];
    const uint32_t left = at.weight[0], right = at.weight[1], add = b.add;
    int32_t* const __restrict out = b.sums + b.row[i] * kDotOutputs;
    for (int c = 0; c < Channels; ++c) out[c] = static_cast<int32_t>(x[c] * left + y[c] * right + add);
  }
}

static void blend(const DotBlend& b) {
  half_or_whole(b.channels, [&](auto computed) {
    constexpr int channels = decltype(computed)::value;
    if (b.size == 1) blend_row<1, channels>(b);
    else if (b.size == 2) blend_row<2, channels>(b);
    else blend_row<4, channels>(b);
  });
}

static void interleave(const uint8_t* const* rows, int used, uint8_t* __restrict out, int count) {
  const uint8_t *__restrict a = rows[0], *__restrict b = rows[1], *__restrict c = rows[2], *__restrict d = rows[3];
  if (used == 1) return copy(out, a, count);
  if (used == 2) {
    for (int i = 0; i < count; ++i) {
      out[2 * i] = a[i];
      out[2 * i + 1] = b[i];
    }
    return;
  }
  const auto word = [&](int i) {
    return a[i] | static_cast<uint32_t>(b[i]) << 8 | static_cast<uint32_t>(c[i]) << 16 | static_cast<uint32_t>(d[i]) << 24;
  };
  if (used == 4) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(out);
    for (int i = 0; i < count; ++i) words[i] = word(i);
    return;
  }
  constexpr int together = 32;
  int i = 0;
  for (; i + together + 2 <= count; i += together) {  // four bytes too many are written, and then those that belong there
    alignas(64) uint32_t words[together];
    for (int k = 0; k < together; ++k) words[k] = word(i + k);
    for (int k = 0; k < together; k += 4) first_three(words + k, out + 3 * (i + k));
  }
  for (; i < count; ++i)
    for (int k = 0; k < 3; ++k) out[3 * i + k] = rows[k][i];
}

#include "winograd_kernels.hpp"

#define DOT_SET(space, name, fast, whole_rows, narrow_sums, begin, end, run)                                                                   \
  {                                                                                                                 \
    name, fast, whole_rows, narrow_sums, begin, end, run, space::depthwise, space::gather, space::expand, space::requantize, space::add, space::store_sums,       \
        space::compare, space::line, space::fine_line, space::scale, space::max_bytes, space::max_sums,             \
        space::sum_members, space::blend, space::interleave,                                                    \
        space::patches, space::kernels, space::products, space::run_half, space::products_half, space::max_half                       \
  }
