#include "upsample.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace bitbranch {

namespace {

template <class Pixel>
void repeat_row(const uint8_t* from, uint8_t* to, int factor, int count) {
  const Pixel* __restrict const x = reinterpret_cast<const Pixel*>(from);
  Pixel* __restrict const y = reinterpret_cast<Pixel*>(to);
  if (factor == 2)
    for (int i = 0; i < count; ++i) y[2 * i] = y[2 * i + 1] = x[i];
  else
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < factor; ++k) y[i * factor + k] = x[i];
}

}  // namespace

void UpsampleNearest::run(const Run& run) const {
  const int size = source.pixel_bytes;
  const int64_t work = int64_t{target.height} * target.width;
  run.pool.parallel(int64_t{run.images} * planes, plain_grain(work), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / planes, plane = item % planes;
      for (int y = 0; y < source.height; ++y) {
        const uint8_t* const from = source.at(plane, source.pixel(image, y, 0));
        uint8_t* const to = target.at(plane, target.pixel(image, int64_t{y} * factor_y, 0));
        (size == 1 ? repeat_row<uint8_t> : size == 2 ? repeat_row<uint16_t> : repeat_row<uint32_t>)(
            from, to, factor_x, source.width);
        for (int k = 1; k < factor_y; ++k)
          std::memcpy(to + int64_t{k} * target.pitch * size, to, static_cast<size_t>(target.width) * size);
      }
    }
  });
}

UpsampleBilinear::UpsampleBilinear(const InstructionSet* isa, View source, bool bytes, Form form, View target,
                                   int channels, int factor_y, int factor_x, int threads)
    : isa_(isa), source_(source), target_(target), bytes_(bytes), form_(form), channels_(channels),
      factor_y_(factor_y), factor_x_(factor_x), scratch_size_(static_cast<size_t>(source.width) + 2 + 2 * static_cast<size_t>(target.width)),
      scratch_(scratch_size_ * threads) {}

// A row's values, and a copy of the first and last beyond its ends.
void UpsampleBilinear::read_row(int64_t image, int64_t channel, int y, int32_t* out) const {
  const int width = source_.width;
  const uint8_t* const row = source_.at(bytes_ ? channel / 2 : channel, source_.pixel(image, y, 0));
  if (bytes_) isa_->values(row + channel % 2, form_.is_signed, form_.multiplier, form_.add, out + 1, width);
  else std::memcpy(out + 1, row, static_cast<size_t>(width) * 4);
  out[0] = out[1];
  out[width + 1] = out[width];
}

void UpsampleBilinear::run(const Run& run) const {
  const int64_t work = int64_t{target_.height} * target_.width * 2;
  run.pool.parallel(int64_t{run.images} * channels_, plain_grain(work), [&](int part, int64_t begin, int64_t end) {
    int32_t* const scratch = scratch_.data() + scratch_size_ * part;
    int32_t* rows[2] = {scratch, scratch + target_.width};
    int32_t* const narrow = scratch + 2 * size_t(target_.width);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / channels_, channel = item % channels_;
      int held[2] = {-1, -1};  // rows of the source that are there, enlarged
      for (int y = 0; y < target_.height; ++y) {
        const int twice = 2 * y + 1 + factor_y_;  // a pixel further than where it lies, so that it is not negative
        const int at = twice / (2 * factor_y_), weight = twice % (2 * factor_y_);
        const int wanted[2] = {std::max(at - 1, 0), std::min(at, source_.height - 1)};
        if (held[0] != wanted[0] && held[1] == wanted[0]) {
          std::swap(rows[0], rows[1]);
          std::swap(held[0], held[1]);
        }
        for (int i = 0; i < 2; ++i)
          if (held[i] != wanted[i]) {
            read_row(image, channel, wanted[i], narrow);
            isa_->enlarge_row(narrow + 1, factor_x_, rows[i], source_.width);
            held[i] = wanted[i];
          }
        isa_->blend_rows(rows[0], 2 * factor_y_ - weight, rows[1], weight,
                         reinterpret_cast<int32_t*>(target_.at(channel, target_.pixel(image, y, 0))), target_.width);
      }
    }
  });
}

}  // namespace bitbranch
