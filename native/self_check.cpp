#include "self_check.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "dot/kernels.hpp"

namespace bitbranch {

extern const DotSet kDotScalar;

namespace {
constexpr uint8_t kUntouched = 0xA5;
constexpr int kReach = 256;  // bytes that taps lie apart at most

int32_t pick(Random& random, Numbers numbers, int32_t lo, int32_t hi) {
  switch (numbers) {
    case Numbers::largest: return hi;
    case Numbers::smallest: return lo;
    default: return static_cast<int32_t>(random.between(lo, hi));
  }
}

template <class T>
T at(const std::vector<uint8_t>& bytes, size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void fill(std::vector<uint8_t>& bytes, size_t count, Random& random, Numbers numbers, int32_t lo, int32_t hi) {
  bytes.resize(count * sizeof(T));
  for (size_t i = 0; i < count; ++i) {
    const T value = static_cast<T>(pick(random, numbers, lo, hi));
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
}
}  // namespace

KernelTrial::KernelTrial(const Kernel& kernel, int taps, uint64_t seed, Numbers numbers) : kernel_(kernel) {
  const std::string family = kernel.family;
  packed_ = family == "linear1" || family == "linear2" || family == "linear4" ? family.back() - '0' : 0;
  linear_ = packed_ || family == "linear8" || family == "linear16";
  dictionary_ = family == "dictionary" || family == "sextets" || family == "sextets64";
  xnor_ = family == "xnor" || family == "xnor_ternary";
  narrow_ = dictionary_ || xnor_ || family == "byte16";
  signed_ = family == "byte_signed";
  if (!linear_ && !narrow_ && !signed_ && family != "byte_unsigned")
    throw std::invalid_argument("native/self_check.cpp has no plain loops for kernels of the family " + family);
  Random random(seed);
  if (packed_) taps = (taps + 7) / 8 * 8;
  tile_.taps = taps;
  tile_.stride = linear_ ? kernel.outputs + 3 : kMaxPixels;

  const int plane = kReach + 2 * kMaxPixels + 64;
  if (linear_) {
    if (packed_) fill<int8_t>(activations_, size_t{4} * taps * kernel.pixels, random, numbers, -128, 127);
    else fill<int16_t>(activations_, size_t{2} * taps * kernel.pixels, random, numbers, -511, 511);
    tile_.second = static_cast<ptrdiff_t>(taps) * 4;
  } else {
    for (int t = 0; t < taps; ++t) offsets_.push_back(static_cast<int32_t>(random.between(0, kReach)));
    fill<uint8_t>(activations_, 2 * plane, random, numbers == Numbers::smallest ? Numbers::random : numbers, 0, 255);
    tile_.second = plane;
    if (kernel.bits == 3 && family == "dictionary")
      for (int i = plane; i < 2 * plane; ++i) activations_[i] &= 15;
    if (family.compare(0, 7, "sextets") == 0)
      for (uint8_t& x : activations_) x &= 63;
  }
  tile_.narrow = !linear_ && !narrow_ && seed % 2;
  make_weights(random, numbers);
  tile_.activations = activations_.data();
  tile_.offsets = offsets_.data();
  tile_.weights = weights_.data();
  tile_.dictionary = tables_.data();
}

void KernelTrial::make_weights(Random& random, Numbers numbers) {
  const std::string family = kernel_.family;
  const size_t count = size_t{1} * tile_.taps * kernel_.outputs;
  if (dictionary_) {
    const int words_per_tap = family == "dictionary" && kernel_.bits == 1 ? 2 : 1;
    bits_of_entry_ = family == "dictionary" ? 4 : 6;
    word_step_ = family == "dictionary" ? 16 : family == "sextets" ? 8 : 64;
    const int words = family == "sextets" ? 32 : 256;
    tile_.flush = static_cast<int>(random.between(1, 31));
    const int entry = 255 / (tile_.flush * words_per_tap);
    fill<uint8_t>(tables_, static_cast<size_t>(words) << bits_of_entry_, random, numbers, 0, entry);
    fill<uint8_t>(weights_, count * words_per_tap, random, Numbers::random, 0, words - 1);
    if (family == "sextets")
      for (uint8_t& word : weights_) word *= 8;
  } else if (xnor_) {
    constexpr int group = 16;
    word_step_ = family == "xnor" ? 4 : 8;
    std::vector<uint8_t> bytes;
    fill<uint8_t>(bytes, 256 * word_step_ / 4, random, numbers, 0, 255);
    for (int i = 0; i < word_step_ / 4; ++i) bytes[bytes.size() - 1 - i] = 0;  // the last word of all is of no weights
    for (const uint8_t byte : bytes) tables_.insert(tables_.end(), 4, byte);
    const int groups = (tile_.taps + group - 1) / group;
    fill<uint8_t>(weights_, size_t{group} * groups * kernel_.outputs, random, Numbers::random, 0, 255);
    for (int i = tile_.taps; i < groups * group; ++i)
      for (int r = 0; r < kernel_.outputs; ++r)
        weights_[(size_t{1} * (groups - 1) * kernel_.outputs + r) * group + i % group] = 255;
  } else if (family == "byte16") {
    // Neither a pair nor the sum may pass int16.
    int largest = 1 << random.between(0, 8);
    while (largest > 1 && 2 * tile_.taps * (largest - 1) > 32767) largest /= 2;
    for (uint8_t& x : activations_) x = static_cast<uint8_t>(x % largest);
    const int most = std::min(127, 32767 / std::max(1, 2 * tile_.taps * (largest - 1)));
    std::vector<uint8_t> pairs;
    fill<int8_t>(pairs, 2 * count, random, numbers, -most, most);
    for (size_t i = 0; i < count; ++i)
      for (int twice = 0; twice < 2; ++twice) weights_.insert(weights_.end(), &pairs[2 * i], &pairs[2 * i] + 2);
  } else if (packed_) {
    fill<uint8_t>(weights_, count * packed_ / 2, random, numbers, 0, 255);
    const int steps = 8 / packed_;
    tile_.flush = 32767 / (2 * ((1 << packed_) - 1) * 128) / steps * steps;
  } else if (family == "linear8") {
    fill<int8_t>(weights_, 2 * count, random, numbers, -128, 127);
  } else {
    fill<int16_t>(weights_, 2 * count, random, numbers, -32768, 32767);
  }
}

// The byte of a pixel, or one channel of a pair.
int32_t KernelTrial::activation(int tap, int channel, int pixel) const {
  if (linear_) return at<int16_t>(activations_, (size_t{1} * pixel * tile_.taps + tap) * 2 + channel);
  const uint8_t byte = activations_[offsets_[tap] + 2 * pixel + channel];
  return signed_ ? static_cast<int8_t>(byte) : byte;
}

int32_t KernelTrial::plain_sum(int output, int pixel) const {
  uint32_t sum = 0;
  for (int i = 0; packed_ && i < 4 * tile_.taps; ++i) {
    const int steps = 8 / packed_, group = i / (4 * steps), step = i / 4 % steps;
    const uint8_t byte = weights_[(size_t{1} * group * kernel_.outputs + output) * 4 + i % 4];
    const int rank = byte >> (step * packed_) & ((1 << packed_) - 1);
    sum += static_cast<uint32_t>(rank * at<int8_t>(activations_, size_t{4} * tile_.taps * pixel + i));
  }
  for (int tap = 0; !packed_ && tap < tile_.taps; ++tap) {
    const size_t place = size_t{1} * tap * kernel_.outputs + output;
    if (xnor_) {
      const uint8_t word = weights_[(size_t{1} * (tap / 16) * kernel_.outputs + output) * 16 + tap % 16];
      const uint8_t* const entry = &tables_[static_cast<size_t>(word_step_) * word];
      const int keep = word_step_ == 8 ? entry[0] : 255, flip = entry[word_step_ - 4];
      for (int bit = 0; bit < 8 * (kernel_.bits == 4 ? 2 : 1); ++bit) {
        const int x = (activations_[offsets_[tap] + pixel + bit / 8 * tile_.second] & keep) ^ flip;
        sum += static_cast<uint32_t>(x >> bit % 8 & 1) << (kernel_.bits == 1 ? 0 : bit / 4);
      }
    } else if (bits_of_entry_ == 6) {
      const int index = activations_[offsets_[tap] + pixel];
      sum += tables_[static_cast<size_t>(word_step_) * weights_[place] + index];
    } else if (dictionary_) {
      const uint8_t* const x = &activations_[offsets_[tap] + pixel];
      const int nibbles[4] = {x[0] & 15, x[0] >> 4, x[tile_.second] & 15, x[tile_.second] >> 4};
      if (kernel_.bits == 1) {
        const uint8_t* const words = &weights_[size_t{2} * tap * kernel_.outputs];
        sum += tables_[16 * words[output] + nibbles[0]] + tables_[16 * words[kernel_.outputs + output] + nibbles[1]];
      } else {
        for (int b = 0; b < kernel_.bits; ++b) sum += static_cast<uint32_t>(tables_[16 * weights_[place] + nibbles[b]]) << b;
      }
    } else {
      for (int channel = 0; channel < 2; ++channel) {
        const int32_t weight = narrow_ ? at<int8_t>(weights_, 4 * place + channel)
                               : weights_.size() == 2 * size_t(tile_.taps) * kernel_.outputs
                                   ? at<int8_t>(weights_, 2 * place + channel)
                                   : at<int16_t>(weights_, 2 * place + channel);
        sum += static_cast<uint32_t>(activation(tap, channel, pixel) * weight);
      }
    }
  }
  return static_cast<int32_t>(sum);
}

bool KernelTrial::passes() {
  const int rows = linear_ ? kernel_.pixels : kernel_.outputs, columns = linear_ ? kernel_.outputs : kernel_.pixels;
  const size_t size = narrow_ || tile_.narrow ? 2 : 4;
  std::vector<uint8_t> got(size * rows * tile_.stride + 64, kUntouched), expected = got;
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column) {
      int32_t sum = linear_ ? plain_sum(column, row) : plain_sum(row, column);
      if (tile_.narrow) sum = std::min(std::max(sum, -32768), 32767);
      std::memcpy(&expected[size * (size_t{1} * row * tile_.stride + column)], &sum, size);  // little-endian: the low half
    }
  tile_.sums = got.data();
  kernel_.run(tile_);
  return got == expected;
}

namespace {
std::string kernel_fault(const InstructionSet& set) {
  for (int i = 0; i < set.kernel_count; ++i) {
    const Kernel& k = set.kernels[i];
    const bool bytes = std::strncmp(k.family, "byte_", 5) == 0;
    for (int seed = 0; seed < (bytes ? 2 : 1); ++seed)
      if (!KernelTrial(k, 4, 2 * static_cast<uint64_t>(i) + seed, Numbers::random).passes())
        return std::string("kernel ") + k.family + " of " + std::to_string(k.bits) + " bits, " +
               std::to_string(k.outputs) + " x " + std::to_string(k.pixels);
  }
  return "";
}

// What a set makes of some numbers by its transforms of Winograd's filtering.
void append_winograd(const DotSet& set, int side, const std::vector<uint8_t>& bytes, std::vector<int32_t>& results) {
  constexpr int largest = 25, kernels = 9 * kDotChunk;
  const int planes = (side + 2) * (side + 2);
  std::vector<int8_t> taps(kernels), weights(largest * kDotChunk);
  std::vector<int32_t> products(largest * kDotOutputs);
  std::vector<uint8_t> pixels(largest * kDotDepth);
  for (int i = 0; i < kernels; ++i) taps[i] = static_cast<int8_t>(bytes[i % 2048]);
  for (int i = 0; i < planes * kDotOutputs; ++i) products[i] = bytes[i] << 16 | bytes[i + 1];
  alignas(64) int32_t sums[kDotPixels * kDotOutputs] = {};
  set.patches({side, bytes.data(), kDotDepth, 5 * kDotDepth, 1, kDotDepth, bytes.data(), pixels.data(), kDotDepth});
  set.kernels({side, taps.data(), weights.data(), kDotChunk});
  set.products({side, products.data(), kDotOutputs, 1, kDotOutputs, sums});
  results.insert(results.end(), pixels.begin(), pixels.end());
  results.insert(results.end(), weights.begin(), weights.end());
  results.insert(results.end(), std::begin(sums), std::end(sums));
}

// Its products and their way to outputs, modulo 2^16 where the set has that: multiples of 36, so that the division leaves
// no rest, and so small that outputs are within 14 bits.
void append_filtered(const DotSet& set, int side, const std::vector<uint8_t>& bytes, std::vector<int32_t>& results) {
  constexpr int planes_most = 25, pixels = 3, plane = kDotPixels * kDotOutputs;
  const int planes = (side + 2) * (side + 2);
  const bool half = set.run_half != nullptr;
  const int32_t offset = 0;
  const uint8_t quads = 3;
  std::vector<uint8_t> x(kDotPixels * kDotDepth);
  std::vector<int8_t> weights(kDotChunk);
  std::vector<int32_t> products(planes_most * plane);
  for (size_t i = 0; i < x.size(); ++i) x[i] = bytes[i] % 4;
  for (int half_chunk = 0; half_chunk < 2; ++half_chunk)
    for (int i = 0; i < quads * 64; ++i)
      weights[half_chunk * (kDotChunk / 2) + i] = static_cast<int8_t>(36 * (bytes[half_chunk * 256 + i] % 3 - 1));
  alignas(64) int32_t start[kDotOutputs], sums[kDotPixels * kDotOutputs] = {};
  set.begin();
  for (int i = 0; i < planes; ++i) {
    for (int o = 0; o < kDotOutputs; ++o) start[o] = 36 * (bytes[i * kDotOutputs + o] % 16 - 8);
    int32_t* const to = products.data() + i * plane / (half ? 2 : 1);
    const DotTile tile{x.data(), kDotDepth, &offset, &quads, 1, weights.data(), start, 0, to, pixels, kDotOutputs, 0, kDotOutputs};
    half ? set.run_half(tile) : set.run(tile);
  }
  (half ? set.products_half : set.products)({side, products.data(), plane, pixels, kDotOutputs, sums});
  set.end();
  results.insert(results.end(), std::begin(sums), std::end(sums));
}

std::string dot_fault(const DotSet& set) {
  constexpr int chunks = 2, pixels = 7, step = 96;
  Random random(1);
  std::vector<uint8_t> x, weights, numbers;
  fill<uint8_t>(x, (kDotPixels + 2) * step + 2 * kDotDepth, random, Numbers::random, 0, 255);
  fill<int8_t>(weights, chunks * kDotChunk, random, Numbers::random, -128, 127);
  fill<int32_t>(numbers, kDotOutputs * chunks, random, Numbers::random, -32768, 32767);
  alignas(64) int32_t start[kDotOutputs], depth_weights[chunks * kDotOutputs];
  std::memcpy(start, numbers.data(), sizeof start);
  std::memcpy(depth_weights, numbers.data(), sizeof depth_weights);
  const int32_t offsets[chunks] = {3, 64};
  const uint8_t quads[chunks] = {16, 5};
  // What the quads that are not there would multiply is 0, since all 64 bytes of a chunk may be.
  for (int half = 0; half < 2; ++half)
    std::memset(&weights[kDotChunk + half * (kDotChunk / 2) + quads[1] * 64], 0, (16 - quads[1]) * 64);
  constexpr int narrow_quads = 8;  // 2 * 255 * 8 * 8 is within int16
  std::vector<int8_t> small(weights.begin(), weights.end());
  for (int8_t& w : small) w /= 16;
  std::vector<int32_t> sums[2];
  for (const DotSet* s : {&kDotScalar, &set}) {
    std::vector<int32_t>& got = sums[s == &set];
    alignas(64) int32_t out[3][kDotPixels * kDotOutputs];
    s->begin();
    s->run({x.data(), step, offsets, quads, chunks, reinterpret_cast<const int8_t*>(weights.data()), start, 0, out[0], pixels, kDotOutputs, 0, 0});
    s->run({x.data(), step, offsets, quads, chunks, small.data(), start, 0, out[2], pixels, kDotOutputs, narrow_quads, 0});
    s->depthwise({x.data(), step, offsets, chunks, depth_weights, start, out[1], pixels});
    s->end();
    for (const auto& tile : out) got.insert(got.end(), tile, tile + pixels * kDotOutputs);
    for (int side = 2; side <= 3; ++side) {
      append_winograd(*s, side, x, got);
      append_filtered(*s, side, x, got);
    }
  }
  return sums[0] == sums[1] ? "" : "products of the dot-product path";
}
}  // namespace

std::string first_fault(const InstructionSet& set) {
  const std::string fault = kernel_fault(set);
  return fault.empty() && set.dot ? dot_fault(*set.dot) : fault;
}

}  // namespace bitbranch
