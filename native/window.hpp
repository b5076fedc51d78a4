// A window that slides over an image.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels.hpp"

namespace bitbranch {

struct Window {
  int kernel_y, kernel_x, stride_y, stride_x, top, left, dilation_y, dilation_x;
};

struct Range {
  int begin, end;
};

// Kernel positions k for which start + k * dilation lies in 0 .. size.
inline Range inside(int64_t start, int kernel, int dilation, int size) {
  const int64_t begin = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const int64_t end = start < size ? (size - start + dilation - 1) / dilation : 0;
  return {static_cast<int>(std::min<int64_t>(begin, kernel)), static_cast<int>(std::min<int64_t>(end, kernel))};
}

// Columns of a padded row of `width` pixels that `count` windows see.
inline int padded_columns(const Window& w, int width, int count) {
  return std::max(w.left + width, (count - 1) * w.stride_x + (w.kernel_x - 1) * w.dilation_x + 1);
}

// Row `y` of the windows over an image of one channel; where it goes is left to the caller.
template <class Sum>
WindowRow window_row(const Window& w, int y, const Sum* first_row, int height, int width, int pitch) {
  const int64_t start = int64_t{y} * w.stride_y - w.top;
  const Range rows = inside(start, w.kernel_y, w.dilation_y, height);
  WindowRow row{};
  row.x = first_row + (start + int64_t{rows.begin} * w.dilation_y) * pitch;
  row.row_stride = ptrdiff_t{w.dilation_y} * pitch;
  row.rows = rows.end - rows.begin;
  row.width = width;
  row.left = w.left;
  row.kernel = w.kernel_x;
  row.dilation = w.dilation_x;
  row.stride = w.stride_x;
  return row;
}

}  // namespace bitbranch
