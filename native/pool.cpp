#include "pool.hpp"

#include <algorithm>
#include <cstring>

namespace bitbranch {

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
  else isa_->max_planes(form_.packing(), a.data, a.data + a.second, b.data, b.data + b.second, out, out + plane_, count);
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
  const int units = form_.groups(chunks_) * form_.planes_per_group() / joint_;
  run.pool.parallel(int64_t{run.images} * units, plain_grain(joint_ * plane_), [&](int part, int64_t begin, int64_t end) {
    uint8_t* const scratch = scratch_.data() + size_t{4} * joint_ * plane_ * part;
    for (int64_t item = begin; item < end; ++item) pool(item / units, item % units * joint_, scratch);
  });
}

void PoolIntegers::reserve(int threads) {
  columns_ = padded_columns(window, source.width, target.width);
  values_ = kind == Kind::sum_bytes ? int64_t{source.height} * source.width : 0;
  scratch_.resize((2 * size_t(columns_) + size_t(values_)) * threads);
}

void PoolIntegers::pool(int64_t image, int64_t channel, int32_t* scratch) const {
  const auto* first = reinterpret_cast<const int32_t*>(source.at(channel, source.pixel(image, 0, 0)));
  int pitch = source.pitch;
  if (kind == Kind::sum_bytes) {
    int32_t* const values = scratch + 2 * columns_;
    for (int y = 0; y < source.height; ++y)
      isa->values(source.at(channel / 2, source.pixel(image, y, 0)) + channel % 2, form.is_signed, form.multiplier,
                  form.add, values + int64_t{y} * source.width, source.width);
    first = values;
    pitch = source.width;
  }
  for (int y = 0; y < target.height; ++y) {
    WindowRow row = window_row(window, y, first, source.height, source.width, pitch);
    row.out = target.at(channel, target.pixel(image, y, 0));
    row.count = target.width;
    row.columns = columns_;
    row.scratch = scratch;
    if (row.rows > 0) (kind == Kind::max ? isa->max_row32 : isa->sum_row32)(row);
    else std::memset(row.out, 0, sizeof(int32_t) * static_cast<size_t>(target.width));  // a sum of nothing
  }
}

void PoolIntegers::run(const Run& run) const {
  const int64_t work = int64_t{target.height} * target.width * window.kernel_y * window.kernel_x;
  run.pool.parallel(int64_t{run.images} * channels, plain_grain(work), [&](int part, int64_t begin, int64_t end) {
    int32_t* const scratch = scratch_.data() + (2 * columns_ + values_) * part;
    for (int64_t item = begin; item < end; ++item) pool(item / channels, item % channels, scratch);
  });
}

}  // namespace bitbranch
