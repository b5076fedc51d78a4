#include "encode.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace bitbranch {

Encode::Encode(const InstructionSet* set, std::vector<float> thresholds, int multiplier, int add)
    : isa(set), thresholds_(std::move(thresholds)) {
  const int count = static_cast<int>(thresholds_.size());
  float low = thresholds_.front(), high = thresholds_.back();
  // Thresholds so close or so far apart that floats overflow all go into one bucket: slow, and right.
  if (!std::isfinite(high - low) || !std::isfinite(1024 / (high - low))) low = high = 0;
  const auto scale_for = [&](int buckets) { return low < high ? (buckets - 1) / (high - low) : 0.0f; };
  // The same arithmetic as the kernel's, so that a threshold's bucket is where the kernel looks for it.
  const auto bucket_of = [&](int k, int buckets, float scale) {
    const float y = std::min(std::max(thresholds_[k], low), high);
    return std::min(static_cast<int>((y - low) * scale + 0.5f), buckets - 1);
  };

  int buckets = count, steps = 1;
  float scale = scale_for(buckets);
  bool even = true;
  for (int k = 0; k < count; ++k) even = even && bucket_of(k, buckets, scale) == k;
  if (!even) {
    buckets = 1024;
    scale = scale_for(buckets);
    std::vector<int> in_bucket(buckets);
    for (int k = 0; k < count; ++k) ++in_bucket[bucket_of(k, buckets, scale)];
    start_.resize(buckets);
    for (int b = 1; b < buckets; ++b) start_[b] = start_[b - 1] + in_bucket[b - 1];
    steps = *std::max_element(in_bucket.begin(), in_bucket.end());
  }
  thresholds_.push_back(std::numeric_limits<float>::infinity());
  encoder_ = {thresholds_.data(), count, even ? nullptr : start_.data(), buckets, low, high, scale, steps, multiplier,
              add};
}

void Encode::run(const Run& run) const {
  const int pairs = (channels + 1) / 2, height = target.height, width = target.width;
  const int64_t plane = int64_t{height} * width;
  // Rows that lie one after the other in the input are encoded together: short ones would not fill the vectors.
  constexpr int piece = 2048;
  const int columns = std::min(width, piece), rows = std::max(1, piece / width);
  const Images& input_images = run.inputs[input];
  run.pool.parallel(int64_t{run.images} * pairs, plain_grain(2 * plane), [&](int, int64_t begin, int64_t end) {
    uint8_t bytes[2][piece];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / pairs;
      const int first = static_cast<int>(item % pairs) * 2, used = std::min(2, channels - first);
      if (used == 1) std::memset(bytes[1], 0, piece);
      for (int y = 0; y < height; y += rows)
        for (int x = 0; x < width; x += columns) {
          const int here = std::min(rows, height - y), count = std::min(columns, width - x);
          for (int c = 0; c < used; ++c) {
            const int64_t from = (image * channels + first + c) * plane + int64_t{y} * width + x;
            if (input_images.is_float) {
              isa->encode(encoder_, static_cast<const float*>(input_images.data) + from, bytes[c], here * count);
            } else {
              const uint8_t* const pixels = static_cast<const uint8_t*>(input_images.data) + from;
              const uint8_t* const codes = table + (first + c) * 256;
              for (int i = 0; i < here * count; ++i) bytes[c][i] = codes[pixels[i]];
            }
          }
          for (int row = 0; row < here; ++row)
            isa->interleave(bytes[0] + row * count, bytes[1] + row * count,
                            target.at(first / 2, target.pixel(image, y + row, x)), count);
        }
    }
  });
}

}  // namespace bitbranch
