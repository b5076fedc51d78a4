#include "glue.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace bitbranch {

namespace {

// Elements of plain work that make waking a thread worth it.
constexpr int64_t kGrain = 16384;

int64_t grain(int64_t elements) { return 1 + kGrain / std::max<int64_t>(elements, 1); }

struct Range {
  int begin, end;
};

// Kernel positions k for which start + k * dilation lies in 0 .. size.
Range inside(int64_t start, int kernel, int dilation, int size) {
  const int64_t begin = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const int64_t end = start < size ? (size - start + dilation - 1) / dilation : 0;
  return {static_cast<int>(std::min<int64_t>(begin, kernel)), static_cast<int>(std::min<int64_t>(end, kernel))};
}

// The ranks stored at one pixel for 8 channels.
void read_chunk(const View& view, const Form& form, int chunk, int64_t pixel, uint8_t out[kChunk]) {
  const uint8_t* const p = view.at(int64_t{chunk} * form.planes_per_chunk(), pixel);
  switch (form.bits) {
    case 1:
      for (int i = 0; i < kChunk; ++i) out[i] = p[0] >> i & 1;
      return;
    case 2:
      for (int i = 0; i < kChunk; ++i) {
        const int nibbles = p[i / 4 * view.stride] >> (i & 3);
        out[i] = static_cast<uint8_t>((nibbles & 1) | (nibbles >> 3 & 2));
      }
      return;
    default:
      for (int i = 0; i < kChunk; ++i) {
        const uint8_t* const group = p + i / 4 * 2 * view.stride;
        const int lower = group[0] >> (i & 3), upper = group[view.stride] >> (i & 3);
        out[i] = static_cast<uint8_t>((lower & 1) | (lower >> 3 & 2) | (upper & 1) << 2 | (upper >> 1 & 8));
      }
  }
}

// Bytes of 8 channels at one pixel.
void write_chunk(const View& view, int chunk, int64_t pixel, const uint8_t in[kChunk]) {
  uint8_t* const p = view.at(int64_t{chunk} * 4, pixel);
  for (int i = 0; i < 4; ++i) std::memcpy(p + i * view.stride, in + 2 * i, 2);
}

}  // namespace

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
  run.pool.parallel(int64_t{run.images} * pairs, grain(2 * plane), [&](int, int64_t begin, int64_t end) {
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
            if (run.input_is_float) {
              isa->encode(encoder_, static_cast<const float*>(run.input) + from, bytes[c], here * count);
            } else {
              const uint8_t* const pixels = static_cast<const uint8_t*>(run.input) + from;
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

void Repack::copy_row(int plane, int64_t first, const View& out, int64_t at, int count) const {
  const uint8_t* const x = source.at(plane, first);
  uint8_t* const y = out.at(plane, at);
  if (stride_x == 1) std::memcpy(y, x, static_cast<size_t>(count) * source.pixel_bytes);
  else (source.pixel_bytes == 1 ? isa->pick1 : isa->pick2)(x, y, stride_x, count);
}

void Repack::convert_row(int chunk, int64_t first, const View& out, int64_t at, int count) const {
  if (to.bits == 0) {
    for (int x = 0; x < count; ++x) {
      uint8_t numbers[kChunk];
      read_chunk(source, from, chunk, first + int64_t{x} * stride_x, numbers);
      for (uint8_t& n : numbers) n = static_cast<uint8_t>(from.multiplier * n + from.add);
      write_chunk(out, chunk, at + x, numbers);
    }
    return;
  }
  const int used = std::min(kChunk, channels - chunk * kChunk), planes = to.planes_per_chunk();
  for (int x = 0; x < count; x += kMaxPixels) {
    const int pixels = std::min(kMaxPixels, count - x);
    alignas(64) uint16_t pairs[4][kMaxPixels], picked[kMaxPixels];
    for (int pair = 0; pair < 4; ++pair) {
      if (2 * pair >= used) {
        std::memset(pairs[pair], 0, sizeof pairs[pair]);
        continue;
      }
      const uint8_t* bytes = source.at(int64_t{chunk} * 4 + pair, first + int64_t{x} * stride_x);
      if (stride_x > 1) {
        isa->pick2(bytes, picked, stride_x, pixels);
        bytes = reinterpret_cast<const uint8_t*>(picked);
      }
      isa->to_ranks(bytes, reinterpret_cast<uint8_t*>(pairs[pair]), to.add, to.multiplier - 1, 2 * pixels);
      if (2 * pair + 1 == used)
        for (uint16_t& p : pairs[pair]) p &= 255;
    }
    uint8_t* into[4];
    for (int plane = 0; plane < planes; ++plane) into[plane] = out.at(int64_t{chunk} * planes + plane, at + x);
    isa->pack_ranks(to.bits, pairs[0], kMaxPixels, into, pixels);
  }
}

void Repack::run(const Run& run) const {
  const int64_t phase_count = static_cast<int64_t>(phases.size());
  const int planes = from.planes_per_chunk();
  const int chunks = (channels + kChunk - 1) / kChunk;
  const bool same = from.bits == to.bits;
  const int64_t work = int64_t{target.height} * target.width * kChunk;
  run.pool.parallel(run.images * chunks * phase_count, grain(work), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / (chunks * phase_count);
      const int chunk = static_cast<int>(item / phase_count % chunks);
      const int64_t phase = item % phase_count;
      const Phase from_pixel = phases[phase];
      // Target planes of one phase are phase_count planes apart.
      View part = target;
      part.base += phase * target.stride;
      part.stride *= phase_count;
      const int width = std::min(target.width, (source.width - from_pixel.x + stride_x - 1) / stride_x);
      for (int y = 0; y < target.height && y * stride_y + from_pixel.y < source.height; ++y) {
        const int64_t first = source.pixel(image, y * stride_y + from_pixel.y, from_pixel.x);
        const int64_t at = part.pixel(image, y, 0);
        if (!same) convert_row(chunk, first, part, at, width);
        else
          for (int plane = chunk * planes; plane < (chunk + 1) * planes; ++plane)
            copy_row(plane, first, part, at, width);
      }
    }
  });
}

Flatten::Flatten(const Form& form) : form_(form) {
  // A byte's numbers weigh 1 and 2 (planes of bits 0 and 1), or 4 and 8; the summand is in the first plane's.
  const int planes = form.bits > 2 ? 2 : 1, channels = form.bits == 1 ? 8 : 4;
  if (form.bits == 0) return;
  for (int plane = 0; plane < planes; ++plane)
    for (int byte = 0; byte < 256; ++byte)
      for (int c = 0; c < channels; ++c) {
        const int low = byte >> (c & 3) & 1, high = byte >> (4 + (c & 3)) & 1;
        const int rank = form.bits == 1 ? (c < 4 ? low : high) : (low + 2 * high) << (2 * plane);
        values_.push_back(static_cast<int16_t>(form.multiplier * rank + (plane == 0 ? form.add : 0)));
      }
}

void Flatten::run(const Run& run) const {
  const int planes = form_.bits > 2 ? 2 : 1, per_unit = form_.bits == 0 ? 2 : form_.bits == 1 ? 8 : 4;
  const int units = (channels + per_unit - 1) / per_unit;
  const int64_t plane = int64_t{source.height} * source.width;
  run.pool.parallel(int64_t{run.images} * units, grain(plane * per_unit), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / units, unit = item % units;
      const int used = std::min<int>(per_unit, channels - static_cast<int>(unit) * per_unit);
      int16_t* out = target + image * depth + unit * per_unit * plane;
      for (int y = 0; y < source.height; ++y) {
        const uint8_t* const row = source.at(unit * planes, source.pixel(image, y, 0));
        for (int x = 0; x < source.width; ++x, ++out) {
          int16_t value[kChunk];
          if (form_.bits == 0) {
            for (int c = 0; c < 2; ++c) {
              const uint8_t byte = row[2 * x + c];
              value[c] = static_cast<int16_t>(form_.multiplier * (form_.is_signed ? static_cast<int8_t>(byte) : byte) +
                                              form_.add);
            }
          } else if (form_.bits == 1) {
            std::memcpy(value, &values_[row[x] * 8], 16);
          } else {
            std::memcpy(value, &values_[row[x] * 4], 8);
            if (planes == 2)
              for (int c = 0; c < 4; ++c) value[c] += values_[1024 + row[source.stride + x] * 4 + c];
          }
          if (plane == 1) std::memcpy(out, value, static_cast<size_t>(used) * 2);
          else
            for (int c = 0; c < used; ++c) out[c * plane] = value[c];
        }
      }
    }
  });
}

void Threshold::run(const Run& run) const {
  const int64_t pixels = run.images * source.image_pixels();
  const int64_t blocks = (pixels + kMaxPixels - 1) / kMaxPixels;
  run.pool.parallel(blocks * chunks, grain(kMaxPixels * kChunk), [&](int, int64_t begin, int64_t end) {
    Epilogue::Block block;
    int64_t described = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t index = item / chunks, first = index * kMaxPixels;
      const int chunk = static_cast<int>(item % chunks);
      if (index != described) {
        epilogue.describe(first, static_cast<int>(std::min<int64_t>(kMaxPixels, pixels - first)), block);
        described = index;
      }
      epilogue.finish(chunk, source.at(int64_t{chunk} * kChunk, first), source.stride / 4, block);
    }
  });
}

void Requantize::run(const Run& run) const {
  const int64_t count = run.images * source.image_pixels();
  run.pool.parallel(channels, grain(count), [&](int, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      isa->requantize(reinterpret_cast<const int32_t*>(source.at(c, 0)), reinterpret_cast<int32_t*>(target.at(c, 0)),
                      count, multiplier[c], shift[c], offset[c], lo, hi);
  });
}

void Add::run(const Run& run) const {
  const int64_t count = run.images * left.image_pixels();
  run.pool.parallel(channels, grain(count), [&](int, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      isa->add(reinterpret_cast<const int32_t*>(left.at(c, 0)), reinterpret_cast<const int32_t*>(right.at(c, 0)),
               reinterpret_cast<int32_t*>(target.at(c, 0)), count, lo, hi);
  });
}

MaxPoolCodes::MaxPoolCodes(const InstructionSet* isa, View source, View target, Form form, int chunks, Window window,
                           int threads)
    : isa_(isa), source_(source), target_(target), form_(form), chunks_(chunks), window_(window) {
  // What the windows cover, from the first to the last row and column.
  const int rows = (target.height - 1) * window.stride_y + (window.kernel_y - 1) * window.dilation_y + 1;
  const int columns = (target.width - 1) * window.stride_x + (window.kernel_x - 1) * window.dilation_x + 1;
  joint_ = form.bits >= 3 ? 2 : 1;
  padded_ = window.top > 0 || window.left > 0 || rows > source.height || columns > source.width;
  height_ = padded_ ? std::max(rows, window.top + source.height) : source.height;
  pitch_ = padded_ ? std::max(columns, window.left + source.width) : source.pitch;
  plane_ = int64_t{height_} * pitch_ * source.pixel_bytes;
  scratch_.resize(static_cast<size_t>(4 * joint_ * plane_) * threads);
}

void MaxPoolCodes::larger(Planes a, Planes b, uint8_t* out, int64_t pixels) const {
  const int count = static_cast<int>(pixels * source_.pixel_bytes);
  if (form_.bits == 0) isa_->max_bytes(form_.is_signed, a.data, b.data, out, count);
  else isa_->max_planes(form_.bits, a.data, a.data + a.second, b.data, b.data + b.second, out, out + plane_, count);
}

void MaxPoolCodes::pool(int64_t image, int64_t plane, uint8_t* scratch) const {
  const Window& w = window_;
  const int size = source_.pixel_bytes;
  Planes x{source_.at(plane, source_.pixel(image, 0, 0)), source_.stride};
  uint8_t* const buffers[4] = {scratch, scratch + joint_ * plane_, scratch + 2 * joint_ * plane_,
                               scratch + 3 * joint_ * plane_};
  if (padded_) {
    // Rank 0, or the least byte, never wins against a code.
    std::memset(buffers[3], form_.bits == 0 && form_.is_signed ? 0x80 : 0, static_cast<size_t>(joint_ * plane_));
    for (int j = 0; j < joint_; ++j)
      for (int y = 0; y < source_.height; ++y)
        std::memcpy(buffers[3] + j * plane_ + (int64_t{w.top + y} * pitch_ + w.left) * size,
                    x.data + j * x.second + int64_t{y} * source_.pitch * size,
                    static_cast<size_t>(source_.width) * size);
    x = {buffers[3], plane_};
  }

  // Every pixel with the ones below it, then every pixel with the ones to its right; the last pixel that is wanted
  // ends the work.
  const int64_t last = int64_t{target_.height - 1} * w.stride_y * pitch_ + int64_t{target_.width - 1} * w.stride_x;
  const int64_t along = int64_t{w.kernel_x - 1} * w.dilation_x;
  Planes column = x;
  for (int k = 1; k < w.kernel_y; ++k) {
    uint8_t* const out = column.data == buffers[0] ? buffers[1] : buffers[0];
    const Planes below{x.data + int64_t{k} * w.dilation_y * pitch_ * size, x.second};
    larger(column, below, out, last + 1 + along);
    column = {out, plane_};
  }
  uint8_t* const spare = column.data == buffers[0] ? buffers[1] : buffers[0];
  Planes best = column;
  for (int k = 1; k < w.kernel_x; ++k) {
    uint8_t* const out = best.data == spare ? buffers[2] : spare;
    const Planes right{column.data + int64_t{k} * w.dilation_x * size, column.second};
    larger(best, right, out, last + 1);
    best = {out, plane_};
  }
  for (int j = 0; j < joint_; ++j)
    for (int y = 0; y < target_.height; ++y)
      (size == 1 ? isa_->pick1 : isa_->pick2)(best.data + j * best.second + int64_t{y} * w.stride_y * pitch_ * size,
                                              target_.at(plane + j, target_.pixel(image, y, 0)), w.stride_x,
                                              target_.width);
}

void MaxPoolCodes::run(const Run& run) const {
  const int units = chunks_ * form_.planes_per_chunk() / joint_;
  run.pool.parallel(int64_t{run.images} * units, grain(joint_ * plane_), [&](int part, int64_t begin, int64_t end) {
    uint8_t* const scratch = scratch_.data() + size_t{4} * joint_ * plane_ * part;
    for (int64_t item = begin; item < end; ++item) pool(item / units, item % units * joint_, scratch);
  });
}

void PoolIntegers::run(const Run& run) const {
  const Window& w = window;
  const int64_t work = int64_t{target.height} * target.width * w.kernel_y * w.kernel_x;
  run.pool.parallel(int64_t{run.images} * channels, grain(work), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / channels, c = item % channels;
      const auto value = [&](int64_t pixel) -> int32_t {
        if (kind != Kind::sum_bytes) return *reinterpret_cast<const int32_t*>(source.at(c, pixel));
        const uint8_t byte = source.at(c / 2, pixel)[c % 2];
        return form.multiplier * (form.is_signed ? static_cast<int8_t>(byte) : byte) + form.add;
      };
      for (int y = 0; y < target.height; ++y)
        for (int x = 0; x < target.width; ++x) {
          const int64_t row = int64_t{y} * w.stride_y - w.top, column = int64_t{x} * w.stride_x - w.left;
          const Range rows = inside(row, w.kernel_y, w.dilation_y, source.height);
          const Range columns = inside(column, w.kernel_x, w.dilation_x, source.width);
          int64_t total = kind == Kind::max ? std::numeric_limits<int32_t>::min() : 0;
          for (int i = rows.begin; i < rows.end; ++i) {
            const int64_t pixel = source.pixel(image, row + int64_t{i} * w.dilation_y, column);
            for (int j = columns.begin; j < columns.end; ++j) {
              const int32_t v = value(pixel + int64_t{j} * w.dilation_x);
              total = kind == Kind::max ? std::max<int64_t>(total, v) : total + v;
            }
          }
          *reinterpret_cast<int32_t*>(target.at(c, target.pixel(image, y, x))) = static_cast<int32_t>(total);
        }
    }
  });
}

void Scale::run(const Run& run) const {
  const int64_t plane = source.image_pixels();
  run.pool.parallel(int64_t{run.images} * channels, grain(plane), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / channels, c = item % channels;
      isa->scale(reinterpret_cast<const int32_t*>(source.at(c, image * plane)), run.output + item * plane, plane,
                 scale[c], bias[c]);
    }
  });
}

}  // namespace bitbranch
