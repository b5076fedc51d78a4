// Every function of the dot-product path against the scalar set's, and the scalar set's products against plain loops.
#include "../dot/kernels.hpp"

#include <algorithm>
#include <functional>

#include "testing.hpp"

namespace bitbranch {
extern const DotSet kDotScalar;
}

namespace bitbranch::testing {

namespace {
static_assert((sizeof(DotSet) - offsetof(DotSet, begin)) / sizeof(void*) == 24,
              "every function of DotSet needs a case in this file");

constexpr int kTile = kDotPixels * kDotOutputs;

struct alignas(64) Line64 {
  uint8_t bytes[64];
};

// Memory that starts on a cache line, as a plan's does, with random numbers or zeros in it.
template <class T>
class Lines {
 public:
  explicit Lines(size_t count) : lines_(count * sizeof(T) / 64 + 3) {}
  Lines(Random& random, size_t count, int64_t lo, int64_t hi) : Lines(count) {
    const auto x = numbers<T>(random, count, lo, hi);
    std::copy(x.begin(), x.end(), data());
  }
  T* data() { return reinterpret_cast<T*>(lines_.data()); }

 private:
  std::vector<Line64> lines_;
};

int small(Random& random, int most) { return static_cast<int>(random.between(1, most)); }

Bytes products(const DotSet* set, Random& random) {
  constexpr int chunks_most = 4;
  const int chunks = small(random, chunks_most), step = static_cast<int>(random.between(1, 200));
  const int pixels = small(random, kDotPixels), outputs = 16 * small(random, 2);
  const int narrow_quads = random.between(0, 1) ? small(random, 40) : 0;
  const int most = narrow_quads ? 1 << random.between(0, 7) : 255;
  const int largest = narrow_quads ? std::min(128, 32767 / (2 * most * narrow_quads)) : 128;
  Lines<uint8_t> x(random, size_t{1} * kDotPixels * step + 1024, 0, most);
  Lines<int8_t> weights(random, chunks * kDotChunk, -largest, std::min(largest, 127));
  uint8_t quads[chunks_most];
  int32_t offsets[chunks_most];
  for (int c = 0; c < chunks; ++c) {
    offsets[c] = static_cast<int32_t>(random.between(0, 900));
    quads[c] = static_cast<uint8_t>(small(random, 16));
    for (int half = 0; half < 2; ++half)  // a set may multiply the quads that are not there
      std::fill_n(weights.data() + c * kDotChunk + half * (kDotChunk / 2) + quads[c] * 64, (16 - quads[c]) * 64, int8_t{0});
  }
  Lines<int32_t> start(random, kTile, -1000000, 1000000), sums(kTile);
  const int start_step = random.between(0, 1) ? kDotOutputs : 0;
  const bool in_place = start_step && random.between(0, 1);
  int32_t* const out = in_place ? start.data() : sums.data();
  if (set) {
    set->begin();
    set->run({x.data(), step, offsets, quads, chunks, weights.data(), start.data(), start_step, out, pixels, outputs, narrow_quads, 0});
    set->end();
  } else {
    for (int p = 0; p < pixels; ++p)
      for (int o = 0; o < kDotOutputs; ++o) {
        int32_t sum = start.data()[p * start_step + o];
        for (int c = 0; c < chunks; ++c)
          for (int k = 0; k < 4 * quads[c]; ++k)
            sum += x.data()[p * step + offsets[c] + k] *
                   weights.data()[c * kDotChunk + o / 16 * (kDotChunk / 2) + k / 4 * 64 + o % 16 * 4 + k % 4];
        out[p * kDotOutputs + o] = sum;
      }
  }
  Bytes bytes;
  for (int p = 0; p < pixels; ++p) append(bytes, out + p * kDotOutputs, outputs);
  return bytes;
}

Bytes depthwise(const DotSet* set, Random& random) {
  const int taps = small(random, 49), pixels = small(random, kDotPixels), step = static_cast<int>(random.between(1, 200));
  Lines<uint8_t> x(random, size_t{1} * kDotPixels * step + 1024, 0, 255);
  Lines<int32_t> weights(random, taps * kDotOutputs, -32768, 32767), start(random, kDotOutputs, -1000000, 1000000);
  Lines<int32_t> sums(kTile);
  const auto offsets = numbers<int32_t>(random, taps, 0, 900);
  if (set) {
    set->depthwise({x.data(), step, offsets.data(), taps, weights.data(), start.data(), sums.data(), pixels});
  } else {
    for (int p = 0; p < pixels; ++p)
      for (int o = 0; o < kDotOutputs; ++o) {
        int32_t sum = start.data()[o];
        for (int t = 0; t < taps; ++t) sum += x.data()[p * step + offsets[t] + o] * weights.data()[t * kDotOutputs + o];
        sums.data()[p * kDotOutputs + o] = sum;
      }
  }
  Bytes bytes;
  append(bytes, sums.data(), pixels * kDotOutputs);
  return bytes;
}

Bytes expand(const DotSet* set, Random& random) {
  const int bits = 1 << random.between(0, 2), vectors = small(random, 9), rows = 8 / bits;
  Lines<int8_t> tables(random, 4 / bits * 16, -128, 127), out(size_t{64} * vectors * rows);
  Lines<uint8_t> packed(random, size_t{64} * vectors, 0, 255);
  if (set) {
    set->expand(bits, tables.data(), packed.data(), vectors, out.data());
  } else {
    for (int v = 0; v < vectors; ++v)
      for (int row = 0; row < rows; ++row)
        for (int i = 0; i < 64; ++i) {
          const uint8_t byte = packed.data()[64 * v + i];
          const int field = row % (rows / 2), nibble = row < rows / 2 ? byte & 15 : byte >> 4;
          out.data()[64 * (v * rows + row) + i] = tables.data()[16 * field + nibble];
        }
  }
  Bytes bytes;
  append(bytes, out.data(), size_t{64} * vectors * rows);
  return bytes;
}

Bytes gather(const DotSet* set, Random& random) {
  const int piece = 16 << random.between(0, 2), pieces = small(random, 9), chunks = (pieces * piece + 63) / 64;
  Lines<uint8_t> x(random, 4096, 0, 255), out(size_t{1} * chunks * kDotPixels * kDotDepth);
  std::vector<const uint8_t*> from;
  std::vector<uint8_t> row;
  for (int p = 0; p < kDotPixels; ++p) {
    if (random.between(0, 3) == 0) continue;
    row.push_back(static_cast<uint8_t>(p));
    from.push_back(x.data() + random.between(0, 2000));
  }
  std::vector<int32_t> offsets;
  for (int k = 0; k < pieces; ++k) offsets.push_back(static_cast<int32_t>(random.between(0, 2000)));
  if (set) {
    set->gather({from.data(), row.data(), static_cast<int>(row.size()), offsets.data(), pieces, piece, out.data()});
  } else {
    for (size_t i = 0; i < row.size(); ++i)
      for (int at = 0; at < pieces * piece; ++at)
        out.data()[(at / 64 * kDotPixels + row[i]) * 64 + at % 64] = from[i][offsets[at / piece] + at % piece];
  }
  Bytes bytes;
  append(bytes, out.data(), size_t{1} * chunks * kDotPixels * kDotDepth);
  return bytes;
}

// What is done to the rows of a tile: sums, and a target of up to 32 numbers of 4 bytes for each row.
struct Chain {
  Lines<int32_t> sums;
  std::vector<uint8_t> row;
  Lines<uint8_t> memory;
  std::vector<void*> targets;
  DotRows rows;

  Chain(Random& random, int64_t spread) : sums(random, kTile, -spread, spread), memory(random, kTile * 4, 0, 255) {
    for (int p = 0; p < kDotPixels; ++p)
      if (random.between(0, 3)) row.push_back(static_cast<uint8_t>(p));
    for (size_t i = 0; i < row.size(); ++i) targets.push_back(memory.data() + i * kDotOutputs * 4);
    rows = {sums.data(), static_cast<int>(row.size()), row.data(), random.between(0, 2) ? kDotOutputs : small(random, 32)};
  }
  template <class T>
  T* const* to() {
    return reinterpret_cast<T* const*>(targets.data());
  }
  // All that may have been written; of rows and channels that are not there, what was there before.
  Bytes bytes(bool with_sums) {
    Bytes all;
    append(all, memory.data(), kTile * 4);
    if (with_sums)
      for (const uint8_t r : row) append(all, sums.data() + r * kDotOutputs, kDotOutputs);
    return all;
  }
};

Bytes requantize(const DotSet* set, Random& random) {
  Chain c(random, int64_t{1} << random.between(4, 30));
  Lines<int64_t> multiplier(random, kDotOutputs, -(1 << 30), 1 << 30), shift(random, kDotOutputs, 0, 40);
  Lines<int64_t> offset(random, kDotOutputs, -(int64_t{1} << 60), int64_t{1} << 60);
  const auto lo = static_cast<int32_t>(random.between(-1000000, 0)), hi = static_cast<int32_t>(random.between(0, 1000000));
  const bool narrow = random.between(0, 1);
  if (narrow)
    for (int o = 0; o < kDotOutputs; ++o) {  // at most 2^29, and 2^26 for the offset
      shift.data()[o] = std::min<int64_t>(shift.data()[o], 32);
      multiplier.data()[o] >>= 30 - std::min<int64_t>(30, shift.data()[o]);
      offset.data()[o] >>= 63 - 29 - std::min<int64_t>(30, shift.data()[o]);
      for (const uint8_t r : c.row) c.sums.data()[r * kDotOutputs + o] >>= 1;
    }
  if (set) {
    set->requantize(c.rows, multiplier.data(), shift.data(), offset.data(), lo, hi, narrow);
  } else {
    for (const uint8_t r : c.row)
      for (int o = 0; o < kDotOutputs; ++o) {
        int32_t& v = c.sums.data()[r * kDotOutputs + o];
        const int64_t product = v * multiplier.data()[o] + offset.data()[o], unit = int64_t{1} << shift.data()[o];
        v = static_cast<int32_t>(std::clamp<int64_t>(product / unit - (product % unit < 0), lo, hi));
      }
  }
  return c.bytes(true);
}

Bytes add(const DotSet& set, Random& random) {
  Chain c(random, 1000000);
  const bool narrow = random.between(0, 1);
  set.add(c.rows, c.to<const void>(), narrow, -70000, static_cast<int32_t>(random.between(0, 70000)));
  return narrow ? c.bytes(true) : Bytes();
}

Bytes add_wide(const DotSet& set, Random& random) {
  Chain c(random, 1000000);
  Lines<int32_t> other(random, kTile, -(1 << 30), 1 << 30);
  for (size_t i = 0; i < c.targets.size(); ++i) c.targets[i] = other.data() + i * kDotOutputs;
  set.add(c.rows, c.to<const void>(), false, static_cast<int32_t>(random.between(-70000, 0)), 70000);
  return c.bytes(true);
}

Bytes store(const DotSet& set, Random& random) {
  Chain c(random, 32767);
  set.store(c.rows, random.between(0, 1), c.targets.data());
  return c.bytes(false);
}

// Ascending limits [count][32].
Lines<int32_t> ascending(Random& random, int count, int64_t spread) {
  Lines<int32_t> limits(random, size_t{1} * count * kDotOutputs, -spread, spread);
  for (int o = 0; o < kDotOutputs; ++o) {
    std::vector<int32_t> column(count);
    for (int k = 0; k < count; ++k) column[k] = limits.data()[k * kDotOutputs + o];
    std::sort(column.begin(), column.end());
    for (int k = 0; k < count; ++k) limits.data()[k * kDotOutputs + o] = column[k];
  }
  return limits;
}

DotCode code(Random& random) {
  return {static_cast<int>(random.between(0, 1)), static_cast<int>(random.between(-128, 0))};
}

Bytes compare(const DotSet* set, Random& random) {
  const int64_t spread = int64_t{1} << random.between(2, 30);
  const int count = (1 << random.between(1, 6)) - 1;
  Chain c(random, spread);
  auto limits = ascending(random, count, spread);
  const auto table = numbers<uint8_t>(random, count + 1, 0, 255);
  const uint8_t* const mapped = random.between(0, 3) ? nullptr : table.data();
  const DotCode how = code(random);
  if (set) {
    set->compare(c.rows, limits.data(), count, mapped, how, c.to<uint8_t>());
  } else {
    for (size_t i = 0; i < c.row.size(); ++i)
      for (int o = 0; o < c.rows.channels; ++o) {
        int rank = 0;
        for (int k = 0; k < count; ++k) rank += c.sums.data()[c.row[i] * kDotOutputs + o] >= limits.data()[k * kDotOutputs + o];
        rank = mapped ? mapped[rank] : rank;
        static_cast<uint8_t*>(c.targets[i])[o] = static_cast<uint8_t>((rank << how.shift) + how.add);
      }
  }
  return c.bytes(false);
}

template <class Real, class Run>
Bytes lines(Random& random, int most_bits, const Run& run) {
  const int64_t spread = int64_t{1} << random.between(4, most_bits);
  const int last = (1 << random.between(1, 8)) - 1;
  Chain c(random, spread);
  Lines<Real> slope(kDotOutputs), intercept(kDotOutputs);
  for (int o = 0; o < kDotOutputs; ++o) {
    slope.data()[o] = static_cast<Real>(random.between(-1000, 1000)) * static_cast<Real>(last) / static_cast<Real>(1000 * spread);
    intercept.data()[o] = static_cast<Real>(random.between(-1000, 1000)) * static_cast<Real>(1e-2);
  }
  const auto limits = numbers<int32_t>(random, kDotOutputs, -spread, spread);
  const DotJump jump{random.between(0, 1) ? limits.data() : nullptr, static_cast<int>(random.between(1, 255))};
  const DotCode how = code(random);
  run(c.rows, slope.data(), intercept.data(), last, jump, how, c.to<uint8_t>());
  return c.bytes(false);
}

Bytes scale(const DotSet& set, Random& random) {
  Chain c(random, (int64_t{1} << 31) - 1);
  Lines<float> factor(kDotOutputs), bias(kDotOutputs);
  for (int o = 0; o < kDotOutputs; ++o) {
    factor.data()[o] = static_cast<float>(random.between(-100000, 100000)) * 1e-7f;
    bias.data()[o] = static_cast<float>(random.between(-100000, 100000)) * 1e-3f;
  }
  if (random.between(0, 1)) {
    set.scale(c.rows, factor.data(), bias.data(), c.to<float>(), 1);
  } else {
    c.memory = Lines<uint8_t>(kTile * 4);
    for (size_t i = 0; i < c.targets.size(); ++i) c.targets[i] = c.memory.data() + 4 * i;
    set.scale(c.rows, factor.data(), bias.data(), c.to<float>(), kDotPixels);
  }
  return c.bytes(false);
}

// Some places in memory, and what is made of them.
struct Places {
  Lines<uint8_t> memory;
  std::vector<const uint8_t*> at;
  Places(Random& random, int count, int size) : memory(random, size_t{1} * count * (size + 8) + 256, 0, 255) {
    for (int i = 0; i < count; ++i) at.push_back(memory.data() + i * (size + 8));
  }
};

// Windows beside one another, of members anywhere in some memory.
struct Windows {
  Lines<uint8_t> memory;
  std::vector<ptrdiff_t> offsets;
  DotMembers members;
  Windows(Random& random, int count, int windows, int size) : memory(random, size_t{1} * (count + windows) * (size + 8) + 256, 0, 255) {
    for (int i = 0; i < count; ++i) offsets.push_back(i * (size + 8));
    members = {memory.data(), offsets.data(), count, size + 8, windows, random.between(0, 1) == 1};
  }
};

Bytes max_bytes(const DotSet& set, Random& random) {
  const int count = small(random, 9), windows = small(random, 5), bytes = small(random, 300);
  const Windows w(random, count, windows, bytes);
  const int step = bytes + small(random, 70) - 1;
  Lines<uint8_t> out(random, size_t{1} * windows * step + 64, 0, 255);
  set.max_bytes(w.members, bytes, out.data(), step);
  return {out.data(), out.data() + windows * step};
}

Bytes max_sums(const DotSet& set, Random& random) {
  const int count = small(random, 9), windows = small(random, kDotPixels);
  const Windows w(random, count, windows, 4 * kDotOutputs);
  Lines<int32_t> sums(random, windows * kDotOutputs, -1000000, 1000000);
  set.max_sums(w.members, random.between(0, 1), sums.data());
  Bytes out;
  append(out, sums.data(), windows * kDotOutputs);
  return out;
}

Bytes sum_members(const DotSet& set, Random& random) {
  const int count = small(random, 49), windows = small(random, kDotPixels);
  const Windows w(random, count, windows, 4 * kDotOutputs);
  Lines<int32_t> sums(random, windows * kDotOutputs, -1000000, 1000000);
  set.sum_members(w.members, 1 << random.between(0, 2), static_cast<int>(random.between(-255, 255)), sums.data());
  Bytes out;
  append(out, sums.data(), windows * kDotOutputs);
  return out;
}

Bytes blend(const DotSet& set, Random& random) {
  const int size = 1 << random.between(0, 2), count = small(random, kDotPixels), channels = small(random, kDotOutputs);
  const auto step = static_cast<ptrdiff_t>(size * kDotOutputs + 4 * random.between(0, 9));
  const int first = static_cast<int>(random.between(0, 3));
  Places p(random, 2, static_cast<int>(step) * (first + count + 1) + size * kDotOutputs);
  if (size == 4)
    for (const uint8_t* at : p.at)
      for (int i = 0; i <= first + count; ++i)
        for (int c = 0; c < kDotOutputs; ++c) {
          const auto number = static_cast<int32_t>(random.between(-(1 << 20), 1 << 20));
          std::memcpy(const_cast<uint8_t*>(at) + i * step + 4 * c, &number, 4);
        }
  const auto weight = [&] { return static_cast<int>(random.between(0, 128)); };
  DotBetween across[kDotPixels];
  uint8_t row[kDotPixels];
  int column = first;
  for (int i = 0; i < count; ++i) {
    row[i] = static_cast<uint8_t>(kDotPixels - 1 - i);
    const int next = column + static_cast<int>(random.between(0, 1));
    across[i] = {{column, next}, {weight(), weight()}};
    column = next;
  }
  const auto add = static_cast<int32_t>(random.between(-100000, 100000));
  Lines<int32_t> sums(kDotPixels * kDotOutputs);
  set.blend({{p.at[0], p.at[1]}, step, {weight(), weight()}, across, row, count, channels, size, add, sums.data()});
  Bytes out;
  for (int i = 0; i < count; ++i) append(out, sums.data() + row[i] * kDotOutputs, channels);
  return out;
}

Bytes interleave(const DotSet& set, Random& random) {
  const int count = small(random, 300), used = small(random, 4);
  Places p(random, 4, count);
  Lines<uint8_t> made(used * count);
  set.interleave(p.at.data(), used, made.data(), count);
  Bytes out;
  append(out, made.data(), used * count);
  return out;
}

// The factors of Winograd's filtering by side, as they are defined.
struct Factors {
  int pixels[5][5], weights[5][3], outputs[3][5], divisor;
};
constexpr Factors kFactors[] = {
    {{{1, 0, -1}, {0, 1, 1}, {0, -1, 1}, {0, 1, 0, -1}},
     {{2}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}},
     {{1, 1, 1}, {0, 1, -1, -1}},
     4},
    {{{2, -1, -2, 1}, {0, 2, 1, -1}, {0, -2, 3, -1}, {0, -1, 0, 1}, {0, 2, -1, -2, 1}},
     {{3}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {0, 0, 3}},
     {{1, 3, 1, 1}, {0, 3, -1, 2}, {0, 3, 1, 4, 2}},
     36}};

// left * x * left^T, rows x across of the result from `size` x `size` numbers.
template <class Left>
int64_t both_sides(const Left& left, int row, int column, int size, const std::function<int64_t(int, int)>& x) {
  int64_t sum = 0;
  for (int a = 0; a < size; ++a)
    for (int b = 0; b < size; ++b) sum += int64_t{left[row][a]} * left[column][b] * x(a, b);
  return sum;
}

Bytes patches(const DotSet* set, Random& random) {
  const int side = static_cast<int>(random.between(2, 3)), n = side + 2, count = small(random, 9);
  const int bytes = 64 * small(random, 3), step = bytes + 32 * static_cast<int>(random.between(0, 2));
  const int columns = count * side + 2, row = step * (columns + static_cast<int>(random.between(0, 3)));
  Lines<uint8_t> x(random, size_t{1} * n * row, 0, 255), add(random, 25, 0, 255);
  const int64_t plane = int64_t{count} * bytes + 64;
  Lines<uint8_t> made(n * n * plane);
  const Factors& f = kFactors[side - 2];
  if (set) set->patches({side, x.data(), step, row, count, bytes, add.data(), made.data(), plane});
  for (int i = 0; i < n * n && !set; ++i)
    for (int k = 0; k < count; ++k)
      for (int c = 0; c < bytes; ++c)
        made.data()[i * plane + k * bytes + c] = static_cast<uint8_t>(
            add.data()[i] + both_sides(f.pixels, i / n, i % n, n,
                                       [&](int y, int z) { return x.data()[y * row + (k * side + z) * step + c]; }));
  Bytes out;
  append(out, made.data(), n * n * plane);
  return out;
}

Bytes kernels(const DotSet* set, Random& random) {
  const int side = static_cast<int>(random.between(2, 3)), n = side + 2;
  const int64_t plane = int64_t{kDotChunk} * small(random, 2) + 64;
  Lines<int8_t> taps(random, 9 * kDotChunk, -128, 127), made(n * n * plane);
  const Factors& f = kFactors[side - 2];
  if (set) set->kernels({side, taps.data(), made.data(), plane});
  for (int i = 0; i < n * n && !set; ++i)
    for (int at = 0; at < kDotChunk; ++at)
      made.data()[i * plane + at] = static_cast<int8_t>(
          both_sides(f.weights, i / n, i % n, 3, [&](int y, int z) { return taps.data()[(3 * y + z) * kDotChunk + at]; }));
  Bytes out;
  append(out, made.data(), n * n * plane);
  return out;
}

// Products are such that the division leaves no rest: of transformed pixels and weights of one channel.
Bytes filtered(const DotSet* set, Random& random) {
  const int side = static_cast<int>(random.between(2, 3)), n = side + 2, most = kDotPixels / (side * side);
  const int count = small(random, most), outputs = 16 * small(random, 2);
  const int64_t plane = int64_t{kDotOutputs} * count + 16 * random.between(0, 2);
  const Factors& f = kFactors[side - 2];
  Lines<int32_t> products(n * n * plane), sums(kTile);
  bool exact = true;
  for (int k = 0; k < count; ++k)
    for (int o = 0; o < kDotOutputs; ++o) {
      const auto x = numbers<int32_t>(random, n * n, -300, 300), g = numbers<int32_t>(random, 9, -100, 100);
      for (int i = 0; i < n * n; ++i) {
        const int64_t pixel = both_sides(f.pixels, i / n, i % n, n, [&](int y, int z) { return x[y * n + z]; });
        const int64_t weight = both_sides(f.weights, i / n, i % n, 3, [&](int y, int z) { return g[3 * y + z]; });
        products.data()[i * plane + k * kDotOutputs + o] = static_cast<int32_t>(pixel * weight);
      }
      for (int i = 0; i < side * side && !set; ++i) {
        int32_t& sum = sums.data()[((i / side * most + k) * side + i % side) * kDotOutputs + o];
        for (int t = 0; t < 9; ++t) sum += g[t] * x[(i / side + t / 3) * n + i % side + t % 3];
        const int64_t transformed = both_sides(f.outputs, i / side, i % side, n, [&](int y, int z) {
          return products.data()[(y * n + z) * plane + k * kDotOutputs + o];
        });
        exact = exact && transformed == int64_t{f.divisor} * sum;
      }
    }
  if (!set) expect(exact, "Winograd's factors");
  if (set) set->products({side, products.data(), plane, count, outputs, sums.data()});
  Bytes out;
  for (int row = 0; row < kDotPixels; ++row) append(out, sums.data() + row * kDotOutputs, outputs);
  return out;
}

// Codes and weights of few bits from numbers to outputs modulo 2^16, on which no product or sum on the way has a bound.
Bytes filtered_half(const DotSet* set, Random& random) {
  if (set && !set->run_half) set = &kDotScalar;
  const int side = static_cast<int>(random.between(2, 3)), n = side + 2, most = kDotPixels / (side * side);
  const int count = small(random, most), outputs = 16 * small(random, 2), quads = small(random, 16), chunks = small(random, 3);
  const int channels = chunks * kDotDepth, codes = random.between(0, 1) ? 3 : 1;
  const Factors& f = kFactors[side - 2];
  const int64_t plane = kDotPixels * kDotOutputs + 32;
  Lines<uint8_t> pixels(kDotPixels * channels);
  Lines<int8_t> weights(chunks * kDotChunk);
  Lines<int32_t> starts(kDotOutputs), products(n * n * plane), sums(kTile);
  const auto used = [&](int c) { return c % kDotDepth < 4 * quads; };
  const auto x = numbers<int32_t>(random, int64_t{count} * channels * n * n, 0, codes);
  const auto g = numbers<int32_t>(random, int64_t{kDotOutputs} * channels * 9, -1, 1);
  const auto x_at = [&](int k, int c) { return &x[(k * channels + c) * n * n]; };
  const auto g_at = [&](int o, int c) { return &g[(o * channels + c) * 9]; };
  const DotSet* const s = set ? set : &kDotScalar;
  const bool half = s->run_half != nullptr;
  for (int i = 0; i < n * n; ++i) {
    int64_t least = 0;
    for (int t = 0; t < n * n; ++t) least += codes * std::min(0, f.pixels[i / n][t / n] * f.pixels[i % n][t % n]);
    for (int k = 0; k < count; ++k)
      for (int c = 0; c < channels; ++c)
        pixels.data()[k * channels + c] = static_cast<uint8_t>(
            both_sides(f.pixels, i / n, i % n, n, [&](int y, int z) { return x_at(k, c)[y * n + z]; }) - least);
    for (int o = 0; o < kDotOutputs; ++o) {
      int64_t start = 0;
      for (int c = 0; c < channels; ++c) {
        const int64_t w = used(c) ? both_sides(f.weights, i / n, i % n, 3, [&](int y, int z) { return g_at(o, c)[3 * y + z]; }) : 0;
        const int k = c % kDotDepth;
        weights.data()[c / kDotDepth * kDotChunk + o / 16 * (kDotChunk / 2) + k / 4 * 64 + o % 16 * 4 + k % 4] = static_cast<int8_t>(w);
        start += least * w;
      }
      starts.data()[o] = static_cast<int32_t>(start);
    }
    const uint8_t each[] = {static_cast<uint8_t>(quads), static_cast<uint8_t>(quads), static_cast<uint8_t>(quads)};
    const int32_t offsets[] = {0, kDotDepth, 2 * kDotDepth};
    uint8_t* const to = reinterpret_cast<uint8_t*>(products.data()) + i * plane * (half ? 2 : 4);
    DotTile t{pixels.data(), channels, offsets, each, chunks, weights.data(), starts.data(), 0, reinterpret_cast<int32_t*>(to), count, outputs, 0, kDotOutputs};
    half ? s->run_half(t) : s->run(t);
  }
  (half ? s->products_half : s->products)({side, products.data(), plane, count, outputs, sums.data()});
  Bytes out;
  for (int dy = 0; dy < side; ++dy)
    for (int k = 0; k < count; ++k)
      for (int dx = 0; dx < side; ++dx) {
        int32_t* const row = sums.data() + ((dy * most + k) * side + dx) * kDotOutputs;
        for (int o = 0; o < outputs && !set; ++o) {
          row[o] = 0;
          for (int c = 0; c < channels; ++c)
            for (int t = 0; t < 9 && used(c); ++t) row[o] += g_at(o, c)[t] * x_at(k, c)[(dy + t / 3) * n + dx + t % 3];
        }
        append(out, row, outputs);
      }
  return out;
}
// The largest of sums modulo 2^16, which lie in the set's own order, `step` apart.
Bytes largest_half(const DotSet* set, Random& random) {
  const bool half = set && set->run_half;
  const int quads = small(random, 16), count = small(random, 9), reach = small(random, 12), windows = small(random, kDotPixels - reach);
  const int outputs = 16 * small(random, 2), step = kDotOutputs * small(random, 3);
  Lines<uint8_t> x(random, size_t{1} * kDotPixels * kDotDepth, 0, 127);
  Lines<int8_t> weights(random, kDotChunk, -3, 3);
  Lines<int32_t> start(random, kDotOutputs, -8000, 8000), found(kTile), most(random, kTile, -20000, 20000);
  Lines<int16_t> band(kDotPixels * step + 64);
  const int32_t offset = 0;
  const uint8_t chunk = static_cast<uint8_t>(quads);
  DotTile t{x.data(), kDotDepth, &offset, &chunk, 1, weights.data(), start.data(), 0, found.data(), kDotPixels, outputs, 0, step};
  kDotScalar.run(t);
  t.sums = reinterpret_cast<int32_t*>(band.data());
  if (half) set->run_half(t);
  ptrdiff_t members[9];
  for (int i = 0; i < count; ++i) members[i] = static_cast<ptrdiff_t>(random.between(0, reach - 1)) * step * 2;
  const bool more = random.between(0, 1) != 0;
  if (half) set->max_half({reinterpret_cast<const uint8_t*>(band.data()), members, count, 2 * step, windows, more}, most.data());
  Bytes out;
  for (int w = 0; w < windows; ++w) {
    int32_t* const row = most.data() + w * kDotOutputs;
    for (int o = 0; o < outputs && !half; ++o)
      for (int i = 0; i < count; ++i) {
        const int32_t sum = found.data()[(w + members[i] / (2 * step)) * kDotOutputs + o];
        row[o] = i == 0 && !more ? sum : std::max(row[o], sum);
      }
    append(out, row, outputs);
  }
  return out;
}
}  // namespace

void test_dot(const InstructionSet& set) {
  if (!set.dot) return;
  const auto repeat = [&](const char* name, const std::function<Bytes(Random&)>& got, const std::function<Bytes(Random&)>& expected) {
    for (uint64_t seed = 0; seed < 60; ++seed) {
      Random one(seed), other(seed);
      expect(got(one) == expected(other), std::string(set.name) + " dot " + name + ", seed " + std::to_string(seed));
    }
  };
  // Against plain loops.
  using Plain = Bytes (*)(const DotSet*, Random&);
  const std::pair<const char*, Plain> plain[] = {
      {"run", products}, {"depthwise", depthwise}, {"expand", expand}, {"gather", gather}, {"requantize", requantize}, {"compare", compare},
      {"patches", patches}, {"kernels", kernels}, {"products", filtered},
      {"products_half", filtered_half}, {"max_half", largest_half}};
  for (const auto& [name, run] : plain) {
    const Plain f = run;
    repeat(name, [&](Random& r) { return f(set.dot, r); }, [&](Random& r) { return f(nullptr, r); });
  }
  // Against the scalar set.
  using Like = Bytes (*)(const DotSet&, Random&);
  const std::pair<const char*, Like> like[] = {
      {"add", add},           {"add, wide", add_wide}, {"store", store},         {"scale", scale},
      {"max_bytes", max_bytes}, {"max_sums", max_sums}, {"sum_members", sum_members},
      {"interleave", interleave}, {"blend", blend},
      {"line", [](const DotSet& s, Random& r) { return lines<float>(r, 24, s.line); }},
      {"fine_line", [](const DotSet& s, Random& r) { return lines<double>(r, 30, s.fine_line); }}};
  for (const auto& [name, run] : like) {
    const Like f = run;
    repeat(name, [&](Random& r) { return f(*set.dot, r); }, [&](Random& r) { return f(kDotScalar, r); });
  }
}

}  // namespace bitbranch::testing
