#include "encode.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace bitbranch {

namespace {
// Thresholds of a uniform quantizer: a line in double gives the rank. It is monotone, so it is right for every real if
// it is right at each threshold and at the greatest real below it. The first threshold may be off the line, or several
// in one, as where a quantizer makes zero of what is small: ranks in front of the others are 0 or what passes it.
bool find_line(const std::vector<float>& thresholds, FloatEncoder& e) {
  const int count = static_cast<int>(thresholds.size());
  if (count < 2 || !(thresholds.front() < thresholds.back())) return false;
  const auto below = [](float x) { return std::nextafter(x, -std::numeric_limits<float>::infinity()); };
  const float least = below(thresholds.front());
  const int first = static_cast<int>(std::upper_bound(thresholds.begin(), thresholds.end(), thresholds.front()) -
                                     thresholds.begin());
  const auto fits = [&](double factor, double offset) {
    if (!std::isfinite(factor) || !std::isfinite(offset)) return false;
    const auto is_rank = [&](float x, int rank) {
      const double y = x * factor + offset;
      return y > -1 && y < count + 2.0 && (x > least ? std::max(first, static_cast<int>(y)) : 0) == rank;
    };
    int passed = 0;  // by the greatest real below a threshold
    for (int k = 0; k < count; ++k) {
      if (k && thresholds[k - 1] < thresholds[k]) passed = k;
      const bool last_of_equals = k + 1 == count || thresholds[k] < thresholds[k + 1];
      if ((last_of_equals && !is_rank(thresholds[k], k + 1)) || !is_rank(below(thresholds[k]), passed)) return false;
    }
    return true;
  };
  for (const int base : {0, first}) {  // a threshold on the line
    if (base + 1 >= count) continue;
    const double step = (double{thresholds.back()} - thresholds[base]) / (count - 1 - base);
    const float near_step = static_cast<float>(step);
    for (const double s : {double{near_step}, double{below(near_step)}, -double{below(-near_step)}, step}) {
      // Thresholds are most often multiples of half a step, and reals right on one pass it, or are the last not to.
      const double place = thresholds[base] / s, near = std::round(2 * place) / 2;
      const double offset = base + 1 - (std::abs(place - near) < 1e-4 ? near : place);
      for (const double aside : {0x1p-40, -0x1p-40})
        if (fits(1 / s, offset + aside)) {
          e.factor = 1 / s;
          e.offset = offset + aside;
          e.least = least;
          e.first = first;
          return true;
        }
    }
  }
  return false;
}
}  // namespace

InputCodes::InputCodes(const InstructionSet* set, std::vector<float> thresholds, int multiplier, int add)
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
  FloatEncoder line{};
  find_line(thresholds_, line);
  thresholds_.push_back(std::numeric_limits<float>::infinity());
  encoder_ = {thresholds_.data(), count, even ? nullptr : start_.data(), buckets, low, high, scale, steps, line.factor,
              line.offset, line.least, line.first, multiplier, add};
}

void InputCodes::encode(const Run& run, int channel, int64_t from, uint8_t* bytes, int count) const {
  const Images& images = run.inputs[input];
  if (images.is_float) {
    if (isa->encode(encoder_, static_cast<const float*>(images.data) + from, bytes, count)) run.not_a_number = input;
    return;
  }
  const uint8_t* const pixels = static_cast<const uint8_t*>(images.data) + from;
  const uint8_t* const codes = table + channel * 256;
  for (int i = 0; i < count; ++i) bytes[i] = codes[pixels[i]];
}

void Encode::run(const Run& run) const { target.pixel_bytes == 1 ? run_single(run) : run_pairs(run); }

namespace {
// Rows that lie one after the other in the input are encoded together: short ones would not fill the vectors.
constexpr int kPiece = 2048;
}  // namespace

void Encode::run_single(const Run& run) const {
  const int64_t plane = int64_t{height} * width;
  const int columns = std::min(width, kPiece / stride_x * stride_x), rows = std::max(1, kPiece / width);
  run.pool.parallel(int64_t{run.images} * channels, plain_grain(plane), [&](int, int64_t begin, int64_t end) {
    uint8_t bytes[kPiece];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / channels;
      const int channel = static_cast<int>(item % channels);
      for (int y = 0; y < height; y += rows)
        for (int x = 0; x < width; x += columns) {
          const int here = std::min(rows, height - y), count = std::min(columns, width - x);
          encode(run, channel, item * plane + int64_t{y} * width + x, bytes, here * count);
          for (int row = 0; row < here; ++row) {
            const int phase_row = (y + row) % stride_y;
            for (int phase = 0; phase < std::min(stride_x, count); ++phase) {
              uint8_t* const out = target.at((int64_t{channel} * stride_y + phase_row) * stride_x + phase,
                                             target.pixel(image, (y + row) / stride_y, x / stride_x));
              isa->pick1(bytes + row * count + phase, out, stride_x, (count - phase + stride_x - 1) / stride_x);
            }
          }
        }
    }
  });
}

void Encode::run_pairs(const Run& run) const {
  const int pairs = (channels + 1) / 2;
  const int64_t plane = int64_t{height} * width;
  const int columns = std::min(width, kPiece), rows = std::max(1, kPiece / width);
  run.pool.parallel(int64_t{run.images} * pairs, plain_grain(2 * plane), [&](int, int64_t begin, int64_t end) {
    uint8_t bytes[2][kPiece];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / pairs;
      const int first = static_cast<int>(item % pairs) * 2, used = std::min(2, channels - first);
      if (used == 1) std::memset(bytes[1], 0, kPiece);
      for (int y = 0; y < height; y += rows)
        for (int x = 0; x < width; x += columns) {
          const int here = std::min(rows, height - y), count = std::min(columns, width - x);
          for (int c = 0; c < used; ++c)
            encode(run, first + c, (image * channels + first + c) * plane + int64_t{y} * width + x,
                   bytes[c], here * count);
          for (int row = 0; row < here; ++row)
            isa->interleave(bytes[0] + row * count, bytes[1] + row * count,
                            target.at(first / 2, target.pixel(image, y + row, x)), count);
        }
    }
  });
}

void PairUp::run(const Run& run) const {
  const int64_t pixels = head + run.images * source.image_pixels();
  const int64_t pieces = (pixels + kPiece - 1) / kPiece, count = static_cast<int64_t>(planes.size());
  run.pool.parallel(pieces * count, plain_grain(2 * kPiece), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / count * kPiece - head, plane = item % count;
      const Halves& halves = planes[plane];
      isa->interleave(source.at(halves.first, first), source.at(halves.second, first + halves.distance),
                      target.at(plane, first), static_cast<int>(std::min<int64_t>(kPiece, pixels - head - first)));
    }
  });
}

}  // namespace bitbranch
