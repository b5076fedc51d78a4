// Every function of an instruction set but its kernels, against plain loops. A case returns what the set's function
// wrote, or where there is no set what it must write, for the same random numbers.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>

#include "../encode.hpp"
#include "../view.hpp"
#include "testing.hpp"

namespace bitbranch::testing {

namespace {
// A function more, and a case is missing below.
static_assert((offsetof(InstructionSet, dot) - offsetof(InstructionSet, codes16)) / sizeof(void*) == 36,
              "every function of InstructionSet needs a case in this file");

constexpr int64_t kMost32 = std::numeric_limits<int32_t>::max(), kLeast32 = std::numeric_limits<int32_t>::min();

// The last sum that a line counts less than `rank` limits for. The least sum must be one.
template <class Sum>
int32_t last_below(const float* line, int rank) {
  int64_t passes = int64_t{std::numeric_limits<Sum>::max()} + 1, below = std::numeric_limits<Sum>::min();
  while (passes - below > 1) {
    const int64_t middle = below + (passes - below) / 2;
    const float y = static_cast<float>(static_cast<Sum>(middle)) * line[1] + line[0];
    (y >= static_cast<float>(rank) ? passes : below) = middle;
  }
  return static_cast<int32_t>(below);
}

template <class Sum>
Bytes codes(const InstructionSet* set, Random& random, int packing) {
  constexpr bool narrow = sizeof(Sum) == 2;
  constexpr int64_t most = std::numeric_limits<Sum>::max(), least = std::numeric_limits<Sum>::min();
  const bool sextets = packing > Form::kSextets, bytes = packing == 0, few = bytes && random.between(0, 1);
  const int bits = sextets ? packing - Form::kSextets : bytes ? static_cast<int>(random.between(1, few ? 5 : 8)) : packing;
  const int thresholds = few ? static_cast<int>(random.between(1, 31)) : (1 << bits) - 1, pixels = static_cast<int>(random.between(1, kMaxPixels));
  const int64_t spread = int64_t{1} << random.between(1, narrow ? 14 : 30);
  const auto sums = numbers<Sum>(random, kChunk * kMaxPixels, random.between(0, 3) ? -spread : least,
                                 random.between(0, 3) ? spread : most);
  std::vector<int32_t> limits(kChunk * thresholds), plain;
  std::vector<float> guess(3 * kChunk);
  for (int r = 0; r < kChunk; ++r) {
    int32_t* const row = &limits[r * thresholds];
    const bool even = bytes && !few && random.between(0, 1);
    const int64_t step = 1 + spread / (thresholds + 1), uneven = random.between(0, 4);
    for (int k = 0; k < thresholds; ++k)
      row[k] = static_cast<int32_t>(even ? k * step - spread / 2 + random.between(-step, step) * uneven / 2
                                         : random.between(-spread, spread));
    if (!even && random.between(0, 2) == 0) row[0] = static_cast<int32_t>(most);  // which no sum passes
    std::sort(row, row + thresholds);
    float* const g = &guess[3 * r];
    if (bytes && !few && !even && random.between(0, 1)) {
      const bool above = narrow || std::find(sums.begin(), sums.end(), least) == sums.end();  // all sums, of a limit
      const int passed = above && random.between(0, 1) ? static_cast<int>(random.between(0, thresholds - 1)) : 0;
      g[2] = static_cast<float>(-1 - passed);
      g[1] = static_cast<float>(thresholds + 1) / static_cast<float>(spread) * static_cast<float>(random.between(1, 9));
      g[0] = static_cast<float>(random.between(-300, 0)) / 3;
      for (int k = 0; k < thresholds; ++k)
        row[k] = k < passed ? std::numeric_limits<int32_t>::min() : last_below<Sum>(g, k - passed + 1);
    }
    if (!even || row[0] == row[thresholds - 1]) continue;
    g[0] = static_cast<float>(row[0]);
    g[1] = static_cast<float>(thresholds - 1) / (static_cast<float>(row[thresholds - 1]) - g[0]);
    int off = 0;
    for (int k = 0; k < thresholds; ++k)
      off = std::max(off, std::abs(static_cast<int>((static_cast<float>(row[k]) - g[0]) * g[1] + 0.5f) - k));
    const int steps = off == 0 ? 1 : off == 1 ? 2 : 3;
    if (off <= 3 && (1 << steps) <= thresholds + 1) g[2] = static_cast<float>(steps);
  }
  plain = limits;
  if (narrow && (!bytes || few))
    for (int32_t& limit : limits) limit = static_cast<int32_t>((static_cast<uint32_t>(limit) & 0xffff) * 0x10001u);

  Codes c{};
  c.sums = sums.data();
  c.stride = kMaxPixels;
  c.pixels = pixels;
  c.limits = limits.data();
  c.thresholds = thresholds;
  c.guess = few ? nullptr : guess.data();
  c.multiplier = static_cast<int>(random.between(1, 2));
  c.add = static_cast<int>(random.between(-128, 0));
  c.third = sextets ? static_cast<int>(random.between(0, 2)) : 0;
  auto exists = numbers<uint8_t>(random, kMaxPixels, 0, 1);
  for (uint8_t& e : exists) e = e ? 0xff : 0;
  c.exists = random.between(0, 1) ? exists.data() : nullptr;
  const int per_unit = sextets ? 6 / bits : bits == 1 ? 8 : 4, size = bytes ? 2 : 1;
  const int first = c.third * kChunk;
  const int planes = bytes ? 4 : sextets ? 24 / per_unit : bits == 1 ? 1 : bits == 2 ? 2 : 4;
  c.packed_stride = size * kMaxPixels;
  auto packed = numbers<uint8_t>(random, planes * c.packed_stride, 0, 255);
  if (first % per_unit)  // begun by the channels before
    for (int p = 0; p < kMaxPixels; ++p)
      packed[first / per_unit * c.packed_stride + p] &= static_cast<uint8_t>((1 << (first % per_unit * bits)) - 1);
  c.packed = packed.data();

  if (set) {
    (narrow ? set->codes16 : set->codes32)(packing, c);
  } else {
    const auto there = [&](int p) { return !c.exists || c.exists[p]; };
    const auto byte = [&](int plane, int p) -> uint8_t& { return packed[plane * c.packed_stride + p]; };
    for (int r = 0; r < kChunk; ++r)
      for (int p = 0; p < pixels; ++p) {
        int rank = 0;
        for (int k = 0; k < thresholds; ++k) rank += sums[r * kMaxPixels + p] > plain[r * thresholds + k];
        const int channel = first + r;
        if (bytes) {
          byte(r / 2, 2 * p + r % 2) = static_cast<uint8_t>(there(p) ? c.multiplier * rank + c.add : 0);
        } else if (sextets) {
          uint8_t& b = byte(channel / per_unit, p);
          b = static_cast<uint8_t>((channel % per_unit ? b : 0) | rank << channel % per_unit * bits);
          if (!there(p)) b = 0;
        } else {
          const int group = r / per_unit, place = r % per_unit;
          for (int bit = 0; bit < bits; ++bit) {
            uint8_t& b = byte(bits <= 2 ? group : 2 * group + bit / 2, p);
            if (place == 0 && bit % 2 == 0) b = 0;
            b = static_cast<uint8_t>(b | (there(p) ? rank >> bit & 1 : 0) << (bit % 2 * 4 + place));
          }
        }
      }
  }
  Bytes out;
  const int last = sextets ? (first + kChunk - 1) / per_unit + 1 : planes;
  for (int plane = first / per_unit; plane < last; ++plane)
    append(out, &packed[plane * c.packed_stride], size_t{1} * size * pixels);
  return out;
}

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes out;
  append(out, values.data(), values.size());
  return out;
}

int some(Random& random) { return static_cast<int>(random.between(1, 300)); }

Bytes widen(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const bool first = random.between(0, 1);
  const auto part = numbers<int16_t>(random, count, -32768, 32767);
  auto sums = numbers<int32_t>(random, count, -1000000, 1000000);
  if (set) set->widen(part.data(), sums.data(), count, first);
  else
    for (int i = 0; i < count; ++i) sums[i] = part[i] + (first ? 0 : sums[i]);
  return bytes_of(sums);
}

template <class Sum>
Bytes affine(const InstructionSet* set, Random& random) {
  const int count = some(random), multiplier = static_cast<int>(random.between(-2, 2));
  const auto constant = static_cast<int32_t>(random.between(kLeast32, kMost32));
  auto sums = numbers<Sum>(random, count, std::numeric_limits<Sum>::min(), std::numeric_limits<Sum>::max());
  if (!set)
    for (Sum& s : sums) s = static_cast<Sum>(static_cast<uint64_t>(int64_t{s} * multiplier + constant));
  else if constexpr (sizeof(Sum) == 2) set->affine16(sums.data(), count, multiplier, constant);
  else set->affine32(sums.data(), count, multiplier, constant);
  return bytes_of(sums);
}

Bytes to_int32(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const auto sums = numbers<int16_t>(random, count, -32768, 32767);
  std::vector<int32_t> out(sums.begin(), sums.end());
  if (set) {
    out.assign(count, 0);
    set->to_int32(sums.data(), out.data(), count);
  }
  return bytes_of(out);
}

// Reals at thresholds and beside them, the extremes and the infinities.
Bytes encode(const InstructionSet* set, Random& random) {
  const int count = some(random), levels = (1 << random.between(1, 8)) - static_cast<int>(random.between(0, 1));
  const int kind = static_cast<int>(random.between(0, 3));  // evenly spaced, not, extreme, and of a uniform quantizer
  const bool open = random.between(0, 1) == 0;    // a real right on a threshold does not pass it
  const bool sparse = random.between(0, 1) == 0;  // what is small becomes zero: the first thresholds are one
  constexpr float most = std::numeric_limits<float>::max(), infinity = std::numeric_limits<float>::infinity();
  std::vector<float> thresholds(std::max(1, levels - 1));
  for (size_t k = 0; k < thresholds.size(); ++k)
    thresholds[k] = kind == 0 ? 0.0173f * static_cast<float>(k) - 1
                              : static_cast<float>(random.between(-1000000, 1000000)) * (kind == 1 ? 1e-6f : 3e32f);
  const float step = static_cast<float>(random.between(1, 1 << 24)) * 1e-8f;
  for (size_t k = 0; kind == 3 && k < thresholds.size(); ++k) {
    const double exact = (static_cast<double>(k) + 0.5 - levels / 2) * step;
    thresholds[k] = static_cast<float>(exact);
    if (open ? thresholds[k] <= exact : thresholds[k] < exact) thresholds[k] = std::nextafter(thresholds[k], infinity);
  }
  std::sort(thresholds.begin(), thresholds.end());
  const size_t last_equal = random.next() % thresholds.size();
  if (sparse && last_equal + 1 < thresholds.size()) {
    const float share = kind == 2 ? 0.3f : 0.3f * static_cast<float>(random.between(-1, 1));  // of the way to the next
    std::fill_n(thresholds.begin(), last_equal + 1,
                thresholds[last_equal] * (1 - share) + thresholds[last_equal + 1] * share);
  }
  std::sort(thresholds.begin(), thresholds.end());
  std::vector<float> x(count);
  for (float& v : x) {
    const float t = thresholds[random.next() % thresholds.size()];
    const float choices[] = {t, std::nextafter(t, -infinity), std::nextafter(t, infinity), infinity, -infinity, most,
                             -most, 0.0f, -0.0f, static_cast<float>(random.between(-3000, 3000)) * 1e-3f};
    v = choices[random.next() % 10];
  }
  const bool nan = random.between(0, 3) == 0;  // at one place, whose code does not matter
  const size_t place = random.next() % x.size();
  if (nan) x[place] = std::numeric_limits<float>::quiet_NaN();
  const int multiplier = static_cast<int>(random.between(1, 2)), add = static_cast<int>(random.between(-128, 0));
  Bytes out(count);
  if (set) {
    const Encode made(set, thresholds, multiplier, add);
    out.push_back(set->encode(made.encoder(), x.data(), out.data(), count));
  } else {
    out.push_back(nan);
    for (int i = 0; i < count; ++i) {
      const auto rank = std::count_if(thresholds.begin(), thresholds.end(), [&](float t) { return x[i] >= t; });
      out[i] = static_cast<uint8_t>(multiplier * rank + add);
    }
  }
  if (nan) out[place] = 0;
  return out;
}

Bytes interleave(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const auto even = numbers<uint8_t>(random, count, 0, 255), odd = numbers<uint8_t>(random, count, 0, 255);
  Bytes out(2 * count);
  if (set) set->interleave(even.data(), odd.data(), out.data(), count);
  else
    for (int i = 0; i < 2 * count; ++i) out[i] = (i % 2 ? odd : even)[i / 2];
  return out;
}

template <class Acc>
Bytes rescale(const InstructionSet* set, Random& random) {
  const int count = some(random);
  Rescale r;
  r.narrow = random.between(0, 1);
  r.shift = static_cast<int32_t>(random.between(0, 31));
  const int64_t top = r.narrow ? int64_t{1} << (30 + r.shift) : int64_t{1} << 61;  // of what is shifted
  const int64_t acc_top = sizeof(Acc) == 2 ? 32767 : int64_t{1} << random.between(4, 31);
  const int64_t multiplier_top = std::min<int64_t>(kMost32, top / 2 / acc_top);
  r.multiplier = static_cast<int32_t>(random.between(-multiplier_top, multiplier_top));
  r.offset = random.between(-top / 2, top / 2);
  r.lo = random.between(-100000, 0);
  r.hi = random.between(0, 100000);
  r.sum_lo = static_cast<int32_t>(random.between(-100000, 0));
  r.sum_hi = static_cast<int32_t>(random.between(0, 100000));
  const auto acc = numbers<Acc>(random, count, std::max<int64_t>(-acc_top, kLeast32), std::min(acc_top, kMost32));
  const auto other = numbers<int32_t>(random, count, -100000, 100000);
  const int32_t* const added = random.between(0, 1) ? other.data() : nullptr;
  std::vector<int32_t> out(count);
  if (!set) {
    for (int i = 0; i < count; ++i) {
      const int64_t product = int64_t{acc[i]} * r.multiplier + r.offset, unit = int64_t{1} << r.shift;
      const int64_t floor = product / unit - (product % unit < 0 ? 1 : 0);
      int64_t v = std::clamp(floor, r.lo, r.hi);
      if (added) v = std::clamp<int64_t>(v + added[i], r.sum_lo, std::max(r.sum_lo, r.sum_hi));
      out[i] = static_cast<int32_t>(v);
    }
  } else if constexpr (sizeof(Acc) == 2) {
    set->rescale16(r, acc.data(), added, out.data(), count);
  } else {
    set->rescale32(r, acc.data(), added, out.data(), count);
  }
  return bytes_of(out);
}

Bytes add(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const auto a = numbers<int32_t>(random, count, -(1 << 30), (1 << 30) - 1);
  const auto b = numbers<int32_t>(random, count, -(1 << 30), (1 << 30) - 1);
  const auto lo = static_cast<int32_t>(random.between(kLeast32, 0)), hi = static_cast<int32_t>(random.between(0, kMost32));
  std::vector<int32_t> y(count);
  if (set) set->add(a.data(), b.data(), y.data(), count, lo, hi);
  else
    for (int i = 0; i < count; ++i) y[i] = std::clamp(a[i] + b[i], lo, hi);
  return bytes_of(y);
}

Bytes scale(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const auto x = numbers<int32_t>(random, count, kLeast32, kMost32);
  const float factor = static_cast<float>(random.between(-100000, 100000)) * 1e-7f;
  const float bias = static_cast<float>(random.between(-100000, 100000)) * 1e-3f;
  std::vector<float> y(count);
  if (set) set->scale(x.data(), y.data(), count, factor, bias);
  else
    for (int i = 0; i < count; ++i) {
      volatile float product = static_cast<float>(x[i]) * factor;  // rounded before the sum, whatever the compiler does
      y[i] = product + bias;
    }
  return bytes_of(y);
}

// The bits of one channel's ranks of nibble planes: plane and bit of rank bit `bit`.
struct Place {
  int plane, shift;
};
Place place_of(int bits, int channel, int bit) {
  if (bits == 1) return {0, channel};
  const int group = channel / 4;
  return {bits == 2 ? group : 2 * group + bit / 2, bit % 2 * 4 + channel % 4};
}

Bytes pack_ranks(const InstructionSet* set, Random& random) {
  const int count = some(random), bits = static_cast<int>(random.between(1, 4)), stride = count + 5;
  std::vector<uint16_t> pairs(4 * stride);
  const auto ranks = numbers<uint8_t>(random, 8 * stride, 0, (1 << bits) - 1);
  for (int channel = 0; channel < 8; ++channel)
    for (int i = 0; i < stride; ++i)
      pairs[channel / 2 * stride + i] |= static_cast<uint16_t>(ranks[channel * stride + i] << channel % 2 * 8);
  const int planes = bits == 1 ? 1 : bits == 2 ? 2 : 4;
  std::vector<Bytes> out(4, Bytes(count));
  uint8_t* const targets[4] = {out[0].data(), out[1].data(), out[2].data(), out[3].data()};
  if (set) set->pack_ranks(bits, pairs.data(), stride, targets, count);
  else
    for (int channel = 0; channel < 8; ++channel)
      for (int bit = 0; bit < bits; ++bit)
        for (int i = 0; i < count; ++i) {
          const Place at = place_of(bits, channel, bit);
          out[at.plane][i] = static_cast<uint8_t>(out[at.plane][i] | (ranks[channel * stride + i] >> bit & 1) << at.shift);
        }
  Bytes all;
  for (int plane = 0; plane < planes; ++plane) append(all, out[plane].data(), count);
  return all;
}

Bytes to_ranks(const InstructionSet* set, Random& random) {
  const int count = some(random), shift = static_cast<int>(random.between(0, 1));
  const int add = static_cast<int>(random.between(-128, 0));
  const auto x = numbers<uint8_t>(random, count, 0, 255);
  Bytes out(count);
  if (set) set->to_ranks(x.data(), out.data(), add, shift, count);
  else
    for (int i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(((x[i] - add) & 255) >> shift);
  return out;
}

// Codes of 1..4 bits in nibbles, and of 1 and 2 bits side by side.
Bytes max_planes(const InstructionSet* set, Random& random) {
  const int packings[] = {1, 2, 3, 4, 9, 10};
  const int count = some(random), packing = packings[random.next() % 6];
  const bool sextets = packing > Form::kSextets;
  const int bits = sextets ? packing - Form::kSextets : packing;
  const int used = sextets ? 63 : 255, used2 = bits == 3 ? 15 : bits == 4 ? 255 : 0;
  const auto a = numbers<uint8_t>(random, count, 0, used), b = numbers<uint8_t>(random, count, 0, used);
  const auto a2 = numbers<uint8_t>(random, count, 0, used2), b2 = numbers<uint8_t>(random, count, 0, used2);
  Bytes out(count), out2(count);
  if (set) {
    set->max_planes(packing, a.data(), a2.data(), b.data(), b2.data(), out.data(), out2.data(), count);
  } else {
    for (int i = 0; i < count; ++i) {
      const int channels = sextets ? 6 / bits : bits == 1 ? 8 : 4;
      const auto bit_of = [&](int channel, int bit) {
        return sextets ? channel * bits + bit : bits == 1 ? channel : bit / 2 * 8 + bit % 2 * 4 + channel;
      };
      const int x = a[i] | a2[i] << 8, y = b[i] | b2[i] << 8;
      int most = 0;
      for (int channel = 0; channel < channels; ++channel) {
        int rank[2] = {0, 0};
        for (int bit = 0; bit < bits; ++bit) {
          rank[0] |= (x >> bit_of(channel, bit) & 1) << bit;
          rank[1] |= (y >> bit_of(channel, bit) & 1) << bit;
        }
        for (int bit = 0; bit < bits; ++bit) most |= (std::max(rank[0], rank[1]) >> bit & 1) << bit_of(channel, bit);
      }
      out[i] = static_cast<uint8_t>(most);
      out2[i] = static_cast<uint8_t>(most >> 8);
    }
  }
  if (bits >= 3) append(out, out2.data(), count);
  return out;
}

Bytes max_bytes(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const bool is_signed = random.between(0, 1);
  const auto a = numbers<uint8_t>(random, count, 0, 255), b = numbers<uint8_t>(random, count, 0, 255);
  Bytes out(count);
  const auto value = [&](uint8_t byte) { return is_signed ? static_cast<int8_t>(byte) : int{byte}; };
  if (set) set->max_bytes(is_signed, a.data(), b.data(), out.data(), count);
  else
    for (int i = 0; i < count; ++i) out[i] = value(a[i]) > value(b[i]) ? a[i] : b[i];
  return out;
}

// Windows over rows with padding; `seen`: none holds padding only.
WindowRow window_row(Random& random, bool seen) {
  WindowRow w{};
  w.rows = static_cast<int>(random.between(1, 4));
  w.width = some(random);
  w.left = static_cast<int>(random.between(0, 3));
  w.kernel = static_cast<int>(random.between(seen ? w.left + 1 : 1, w.left + 3));
  w.dilation = static_cast<int>(random.between(1, 2));
  w.stride = static_cast<int>(random.between(1, 3));
  w.row_stride = w.width + 7;
  const int reach = (w.kernel - 1) * w.dilation + 1, right = static_cast<int>(random.between(0, 2));
  w.columns = std::max(w.left + w.width + right, reach);
  w.count = (w.columns - reach) / w.stride + 1;
  return w;
}

template <class Sum>
Bytes max_row(const InstructionSet* set, Random& random) {
  constexpr Sum least = std::numeric_limits<Sum>::min();
  WindowRow w = window_row(random, true);
  const auto x = numbers<Sum>(random, w.rows * w.row_stride, least, std::numeric_limits<Sum>::max());
  std::vector<Sum> out(w.count), scratch(2 * w.columns);
  w.x = x.data();
  w.out = out.data();
  w.scratch = scratch.data();
  if (!set) {
    for (int i = 0; i < w.count; ++i) {
      out[i] = least;
      for (int row = 0; row < w.rows; ++row)
        for (int k = 0; k < w.kernel; ++k) {
          const int column = i * w.stride + k * w.dilation - w.left;
          if (column >= 0 && column < w.width) out[i] = std::max(out[i], x[row * w.row_stride + column]);
        }
    }
  } else if constexpr (sizeof(Sum) == 2) {
    set->max_row16(w);
  } else {
    set->max_row32(w);
  }
  return bytes_of(out);
}

Bytes sum_row(const InstructionSet* set, Random& random) {
  WindowRow w = window_row(random, false);
  const auto x = numbers<int32_t>(random, w.rows * w.row_stride, -1000000, 1000000);
  std::vector<int32_t> out(w.count), scratch(2 * w.columns);
  w.x = x.data();
  w.out = out.data();
  w.scratch = scratch.data();
  if (set) set->sum_row32(w);
  else
    for (int i = 0; i < w.count; ++i)
      for (int row = 0; row < w.rows; ++row)
        for (int k = 0; k < w.kernel; ++k) {
          const int column = i * w.stride + k * w.dilation - w.left;
          if (column >= 0 && column < w.width) out[i] += x[row * w.row_stride + column];
        }
  return bytes_of(out);
}

Bytes values(const InstructionSet* set, Random& random) {
  const int count = some(random), multiplier = static_cast<int>(random.between(1, 2));
  const int summand = static_cast<int>(random.between(-128, 128));
  const bool is_signed = random.between(0, 1);
  const auto pairs = numbers<uint8_t>(random, 2 * count, 0, 255);
  std::vector<int32_t> out(count);
  if (set) set->values(pairs.data(), is_signed, multiplier, summand, out.data(), count);
  else
    for (int i = 0; i < count; ++i)
      out[i] = multiplier * (is_signed ? static_cast<int8_t>(pairs[2 * i]) : int{pairs[2 * i]}) + summand;
  return bytes_of(out);
}

// Neighbours near each other, as in what is enlarged, or anywhere.
Bytes between(const InstructionSet* set, Random& random) {
  constexpr int spare = 64;
  const int width = some(random) + 1, count = some(random), first = static_cast<int>(random.between(0, 1)) * 64;
  const bool near = random.between(0, 1);
  const auto x = numbers<int32_t>(random, width + spare, -100000, 100000);
  std::vector<int32_t> at(first + count + spare);
  for (size_t i = 0; i < at.size(); ++i)
    at[i] = near ? std::min<int32_t>(width - 2, static_cast<int32_t>(i / 2 + i % 2)) : static_cast<int32_t>(random.between(0, width - 2));
  const auto weight = numbers<int32_t>(random, at.size(), -64, 64), next = numbers<int32_t>(random, at.size(), -64, 64);
  std::vector<int32_t> out(count + spare);
  if (set) set->between({at.data(), weight.data(), next.data(), near}, x.data(), first, count, out.data());
  else
    for (int i = 0; i < count; ++i) {
      const int k = first + i;
      out[i] = x[at[k]] * weight[k] + x[at[k] + 1] * next[k];
    }
  out.resize(count);
  return bytes_of(out);
}

Bytes blend_rows(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const auto a = numbers<int32_t>(random, count, -100000, 100000), b = numbers<int32_t>(random, count, -100000, 100000);
  const auto first = static_cast<int32_t>(random.between(0, 64)), second = static_cast<int32_t>(random.between(0, 64));
  std::vector<int32_t> out(count);
  if (set) set->blend_rows(a.data(), first, b.data(), second, out.data(), count);
  else
    for (int i = 0; i < count; ++i) out[i] = a[i] * first + b[i] * second;
  return bytes_of(out);
}

template <class Pixel>
Bytes pick(const InstructionSet* set, Random& random) {
  const int count = some(random), step = static_cast<int>(random.between(1, 5));
  const auto x = numbers<Pixel>(random, size_t{1} * count * step, 0, std::numeric_limits<Pixel>::max());
  std::vector<Pixel> out(count);
  if (set) (sizeof(Pixel) == 1 ? set->pick1 : set->pick2)(x.data(), out.data(), step, count);
  else
    for (int i = 0; i < count; ++i) out[i] = x[i * step];
  return bytes_of(out);
}

// In double the sums go beyond int32.
template <class T>
Bytes add_changes(const InstructionSet* set, Random& random) {
  constexpr int inputs = 50;
  const int64_t most = sizeof(T) == 4 ? 60000 : int64_t{1} << 40;
  const auto panel = numbers<T>(random, inputs * kPanel, -most, most);
  auto sums = numbers<T>(random, kPanel, -most, most);
  std::vector<WeightChange> changes(random.between(0, 100));
  for (WeightChange& c : changes)
    c = {static_cast<int32_t>(random.between(0, inputs - 1)), static_cast<int32_t>(random.between(-254, 254))};
  const auto count = static_cast<int64_t>(changes.size());
  if (!set) {
    for (const WeightChange& c : changes)
      for (int r = 0; r < kPanel; ++r) sums[r] += static_cast<T>(c.by) * panel[c.weight * kPanel + r];
  } else if constexpr (sizeof(T) == 4) {
    set->add_changes32(sums.data(), panel.data(), changes.data(), count);
  } else {
    set->add_changes_double(sums.data(), panel.data(), changes.data(), count);
  }
  return bytes_of(sums);
}

// Reference: all pairs' objectives, from the very definition, but in the kernel's order.
template <class T>
Bytes improve_pairs(const InstructionSet* set, Random& random) {
  const int n = static_cast<int>(random.between(2, 70)), samples = 40;
  const int top = static_cast<int>(random.between(1, 7)), step = random.between(0, 1) ? 1 : 2;
  const auto x = numbers<int32_t>(random, size_t{1} * n * samples, 0, sizeof(T) == 4 ? 3 : 60000);
  const auto levels = numbers<int32_t>(random, n, 0, 2 * top / step), wishes = numbers<int32_t>(random, n, -900, 900);
  const auto partner = numbers<int32_t>(random, size_t{1} * n * kPartners, 0, n - 1);
  std::vector<T> gram(size_t{1} * n * n), product(n);
  std::vector<double> sum(n), mean(n), curvature(n), inverse(n), wanted(n), weight(n), gradient(n);
  for (int i = 0; i < n; ++i) {
    for (int p = 0; p < samples; ++p) sum[i] += x[i * samples + p];
    mean[i] = sum[i] / samples;
    for (int j = 0; j < n; ++j)
      for (int p = 0; p < samples; ++p) gram[i * n + j] += static_cast<T>(x[i * samples + p]) * x[j * samples + p];
    weight[i] = static_cast<double>(levels[i]) * step - top;
  }
  double through = 0;
  for (int i = 0; i < n; ++i) {
    curvature[i] = i % 7 == 3 ? 0 : static_cast<double>(gram[i * n + i]) - sum[i] * mean[i];
    inverse[i] = curvature[i] > 0 ? 1 / curvature[i] : 0;
    through += sum[i] * weight[i];
    wanted[i] = wishes[i] * 0.01 * curvature[i];
    for (int j = 0; j < n; ++j) product[i] += gram[i * n + j] * static_cast<T>(weight[j]);
  }
  std::vector<double> covariance(partner.size());
  for (size_t k = 0; k < partner.size(); ++k) {
    const int i = static_cast<int>(k / kPartners), j = partner[k];
    covariance[k] = static_cast<double>(gram[i * n + j]) - sum[i] * mean[j];
  }
  const double scale = 0.3;
  const Pairs<T> shared{n,  gram.data(), sum.data(), mean.data(), curvature.data(), inverse.data(), partner.data(),
                        covariance.data(), static_cast<double>(top), static_cast<double>(step)};
  const PairsOutput<T> output{scale, through, wanted.data(), weight.data(), product.data(), gradient.data()};
  int64_t changed = 0;
  if (set) {
    if constexpr (sizeof(T) == 4) changed = set->improve_pairs32(shared, output);
    else changed = set->improve_pairs_double(shared, output);
  } else {
    const auto slope = [&](int r) {
      return scale * (static_cast<double>(product[r]) - mean[r] * through) - wanted[r];
    };
    const auto move = [&](int r, double by) {
      weight[r] += by;
      through += sum[r] * by;
      for (int j = 0; j < n; ++j) product[j] += static_cast<T>(by) * gram[r * n + j];
    };
    for (int i = 0; i < n; ++i) {
      double best = -1e-9 * (scale * curvature[i]), by = 0, by_partner = 0;
      int who = 0;
      for (int steps = -2; steps <= 2 && curvature[i] > 0; ++steps) {
        const double change = steps * step;
        if (!steps || weight[i] + change < -top || weight[i] + change > top) continue;
        const double alone = change * (scale * curvature[i] * change + 2 * slope(i));
        double least = 0, answer = 0;
        int which = 0;
        for (int k = 0; k < kPartners; ++k) {
          const int j = partner[i * kPartners + k];
          const double theirs = slope(j) + scale * change * covariance[i * kPartners + k];
          const double aim = std::clamp(weight[j] - theirs * (inverse[j] * (1 / scale)), -1.0 * top, 1.0 * top);
          const double a = std::nearbyint((aim + top) * (1.0 / step)) * step - top - weight[j];
          const double gain = a * (scale * curvature[j] * a + 2 * theirs);
          if (gain < least) least = gain, answer = a, which = j;
        }
        if (alone + least < best) best = alone + least, by = change, by_partner = answer, who = which;
      }
      if (by == 0) continue;
      ++changed;
      move(i, by);
      if (by_partner != 0) move(who, by_partner);
    }
  }
  Bytes out = bytes_of(weight);
  for (const Bytes& more : {bytes_of(product), bytes_of(std::vector<int64_t>{changed})})
    out.insert(out.end(), more.begin(), more.end());
  return out;
}

// Reals of training: on thresholds of a quarter's multiples, between them, huge, infinite, of both zeros; no NaN.
template <class Real>
std::vector<Real> reals(Random& random, int64_t count) {
  std::vector<Real> x(count);
  for (Real& v : x) {
    const int64_t kind = random.between(0, 9);
    float value = static_cast<float>(random.between(-40, 40)) * 0.25f;
    if (kind > 4) value = static_cast<float>(random.between(-1000000, 1000000)) * 3e-6f;
    if (kind == 1) value = random.between(0, 1) ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
    if (kind == 2) value = random.between(0, 1) ? 3e38f : -0.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if constexpr (sizeof(Real) == 2) v = {static_cast<uint16_t>(bits >> 16)};
    else v = value;
  }
  return x;
}

float real(float x) { return x; }
float real(Brain x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The nearest bfloat16 number, found among the two around.
template <class Real>
Real nearest(float value) {
  if constexpr (sizeof(Real) == 4) {
    return value;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const Brain below{static_cast<uint16_t>(bits >> 16)};
    if (real(below) == value || std::isinf(value)) return below;
    const Brain above{static_cast<uint16_t>(below.bits + 1)};
    const double far = std::fabs(double{value} - real(below));
    const double near = std::isinf(real(above)) ? std::ldexp(1.0, 120) - far : std::fabs(real(above) - double{value});
    return far < near || (far == near && below.bits % 2 == 0) ? below : above;
  }
}

Grid grid(Random& random, Grid::Kind kind) {
  const float step = random.between(0, 1) ? 0.25f : static_cast<float>(random.between(1, 1000)) * 1e-3f;
  const int bits = static_cast<int>(random.between(1, 8)), most = (1 << bits) - 1;
  switch (kind) {
    case Grid::uniform: return {kind, -static_cast<float>(random.between(0, 1) * most), static_cast<float>(most), step};
    case Grid::sparse: return {kind, static_cast<float>(random.between(0, 1000)) * 1e-3f, static_cast<float>(most), step};
    default: return {kind, -static_cast<float>(random.between(0, 1)), static_cast<float>(most), 1 / static_cast<float>(most)};
  }
}

template <class Real>
Bytes levels(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const auto kind = static_cast<Grid::Kind>(random.between(0, 3));
  const Grid g = grid(random, kind);
  const auto x = reals<Real>(random, count);
  std::vector<Real> y(count);
  if (!set) {
    for (int i = 0; i < count; ++i) {
      const float v = real(x[i]), clipped = std::min(std::max(v, g.lo), 1.0f);
      float level = 0;
      if (kind == Grid::uniform) level = std::min(std::max(std::floor(v / g.step + 0.5f), g.lo), g.hi) * g.step;
      else if (kind == Grid::sparse)
        level = v <= g.lo ? 0 : std::min(std::max(std::ceil(v / g.step - 0.5f), 1.0f), g.hi) * g.step;
      else if (kind == Grid::bipolar) level = (2 * std::floor(clipped * g.hi / 2) + 1) * g.step;
      else level = std::floor(clipped * g.hi + 0.5f) * g.step;
      y[i] = nearest<Real>(level);
    }
  } else if constexpr (sizeof(Real) == 4) {
    set->levels32(g, x.data(), y.data(), count);
  } else {
    set->levels16(g, x.data(), y.data(), count);
  }
  return bytes_of(y);
}

template <class Real>
Bytes window(const InstructionSet* set, Random& random) {
  const int count = some(random);
  const auto x = reals<Real>(random, count), gradient = reals<Real>(random, count);
  const float lo = static_cast<float>(random.between(-8, 0)) * 0.25f, hi = static_cast<float>(random.between(0, 8)) * 0.25f;
  std::vector<Real> out(count);
  if (!set) {
    for (int i = 0; i < count; ++i)
      if (real(x[i]) > lo && real(x[i]) < hi) out[i] = gradient[i];
  } else if constexpr (sizeof(Real) == 4) {
    set->window32(lo, hi, x.data(), gradient.data(), out.data(), count);
  } else {
    set->window16(lo, hi, x.data(), gradient.data(), out.data(), count);
  }
  return bytes_of(out);
}

// Gradients are small multiples of a half and steps powers of two, so that the sum is exact in any order.
template <class Real>
Bytes step_gradient(const InstructionSet* set, Random& random) {
  const int count = some(random);
  Grid g = grid(random, Grid::uniform);
  g.step = std::ldexp(1.0f, static_cast<int>(random.between(-6, 2)));
  std::vector<Real> x(count), gradient(count), out(count);
  for (Real& v : x) v = nearest<Real>(static_cast<float>(random.between(-120, 120)) * 0.25f);
  for (Real& v : gradient) v = nearest<Real>(static_cast<float>(random.between(-20, 20)) * 0.5f);
  double sum = 0;
  if (!set) {
    for (int i = 0; i < count; ++i) {
      const float at = real(x[i]) / g.step, level = std::min(std::max(std::floor(at + 0.5f), g.lo), g.hi);
      const bool inside = at > g.lo && at < g.hi;
      sum += double{real(gradient[i])} * (inside ? level - at : level);
      if (inside) out[i] = gradient[i];
    }
  } else if constexpr (sizeof(Real) == 4) {
    sum = set->step_gradient32(g, x.data(), gradient.data(), out.data(), count);
  } else {
    sum = set->step_gradient16(g, x.data(), gradient.data(), out.data(), count);
  }
  Bytes all = bytes_of(out);
  sum += 0.0;  // one zero of two
  append(all, &sum, 1);
  return all;
}

template <class Real>
Bytes extremes(const InstructionSet* set, Random& random) {
  const int count = some(random);
  std::vector<Real> x(count);
  for (Real& v : x) v = nearest<Real>(static_cast<float>(random.between(-1000000, 1000000)));
  float ends[2] = {0.5f, -0.5f};
  if (!set) {
    for (const Real v : x) ends[0] = std::min(ends[0], real(v)), ends[1] = std::max(ends[1], real(v));
  } else if constexpr (sizeof(Real) == 4) {
    set->extremes32(x.data(), count, ends);
  } else {
    set->extremes16(x.data(), count, ends);
  }
  Bytes all;
  append(all, ends, 2);
  return all;
}
}  // namespace

void test_functions(const InstructionSet& set) {
  using Case = std::function<Bytes(const InstructionSet*, Random&)>;
  struct Named {
    const char* name;
    Case run;
  };
  std::vector<Named> cases = {
      {"widen", widen},           {"affine16", affine<int16_t>},   {"affine32", affine<int32_t>},
      {"to_int32", to_int32},     {"encode", encode},              {"interleave", interleave},
      {"rescale16", rescale<int16_t>}, {"rescale32", rescale<int32_t>}, {"add", add},
      {"scale", scale},           {"pack_ranks", pack_ranks},      {"to_ranks", to_ranks},
      {"max_planes", max_planes}, {"max_bytes", max_bytes},        {"max_row16", max_row<int16_t>},
      {"max_row32", max_row<int32_t>}, {"sum_row32", sum_row},       {"values", values},
      {"between", between}, {"blend_rows", blend_rows},   {"pick1", pick<uint8_t>},   {"pick2", pick<uint16_t>},
      {"add_changes32", add_changes<int32_t>}, {"add_changes_double", add_changes<double>},
      {"improve_pairs32", improve_pairs<int32_t>}, {"improve_pairs_double", improve_pairs<double>},
      {"levels32", levels<float>}, {"levels16", levels<Brain>},    {"window32", window<float>}, {"window16", window<Brain>},
      {"step_gradient32", step_gradient<float>}, {"step_gradient16", step_gradient<Brain>},
      {"extremes32", extremes<float>}, {"extremes16", extremes<Brain>},
  };
  for (const int packing : {0, 1, 2, 3, 4, 9, 10}) {
    cases.push_back({"codes16", [=](const InstructionSet* s, Random& r) { return codes<int16_t>(s, r, packing); }});
    cases.push_back({"codes32", [=](const InstructionSet* s, Random& r) { return codes<int32_t>(s, r, packing); }});
  }
  for (size_t i = 0; i < cases.size(); ++i)
    for (uint64_t seed = 0; seed < 60; ++seed) {
      Random one(seed * 100 + i), other(seed * 100 + i);
      expect(cases[i].run(&set, one) == cases[i].run(nullptr, other),
             std::string(set.name) + " " + cases[i].name + ", case " + std::to_string(i) + ", seed " + std::to_string(seed));
    }
}

}  // namespace bitbranch::testing
