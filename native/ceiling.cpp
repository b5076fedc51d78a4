#include "ceiling.hpp"

#include <chrono>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace bitbranch {

namespace {
constexpr int kAlign = 64;
constexpr int kTapBytes = 4 * kMaxPixels;  // room for four channels in bytes
constexpr int kTableEntries = 16 * 256;

// Channels of one output and pixel that a tap adds up.
int channels_per_tap(const Kernel& kernel) {
  const std::string family = kernel.family;
  if (family == "dictionary" || family == "xnor" || family == "xnor_ternary") return kernel.bits == 1 ? 8 : 4;
  if (family == "sextets" || family == "sextets64") return 6 / kernel.bits;
  if (family == "byte16" || family == "byte_unsigned" || family == "byte_signed") return 2;
  if (family == "linear1" || family == "linear2" || family == "linear4") return 4;
  if (family == "linear8" || family == "linear16") return 2;
  throw std::invalid_argument("no micro-benchmark of kernel family " + family);
}

uint8_t* aligned(std::vector<uint8_t>& bytes) {
  const auto at = reinterpret_cast<uintptr_t>(bytes.data());
  return bytes.data() + (kAlign - at % kAlign) % kAlign;
}
}  // namespace

Rate measure_kernel(const Kernel& kernel, int taps, int repeat) {
  if (taps < 1 || repeat < 1) throw std::invalid_argument("taps and repeat must be at least 1");
  const int channels = channels_per_tap(kernel);
  const bool linear = std::strncmp(kernel.family, "linear", 6) == 0;

  // Small numbers everywhere: no sum of any family can overflow.
  const int64_t plane = int64_t{taps} * kTapBytes + kTapBytes;
  std::vector<uint8_t> activations(static_cast<size_t>(2 * plane * (linear ? kernel.pixels : 1) + kAlign), 1);
  std::vector<uint8_t> weights(static_cast<size_t>(int64_t{taps} * kernel.outputs * 8 + 4 * kAlign), 1);
  std::vector<uint8_t> dictionary(kTableEntries + kAlign, 1);
  std::vector<uint8_t> sums(static_cast<size_t>(kernel.outputs) * kernel.pixels * 4 + 4 * kMaxPixels * kChunk + kAlign);
  std::vector<int32_t> offsets(static_cast<size_t>(taps) + 1);
  for (int i = 0; i < taps; ++i) offsets[static_cast<size_t>(i)] = i * kTapBytes;

  const int flush = linear ? 32 : 255 / 4 / (kernel.bits == 1 ? 2 : 1);  // of ternary words
  Tile tile{aligned(activations), offsets.data(), aligned(weights), taps, aligned(dictionary), flush,
            linear ? static_cast<ptrdiff_t>(taps) * 4 : static_cast<ptrdiff_t>(plane), aligned(sums),
            linear ? kernel.outputs : kernel.pixels, false};
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeat; ++i) kernel.run(tile);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {seconds, int64_t{channels} * taps * kernel.outputs * kernel.pixels * repeat};
}

}  // namespace bitbranch
