#include "upsample.hpp"

#include <cstring>

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
        (size == 1 ? repeat_row<uint8_t> : repeat_row<uint16_t>)(from, to, factor_x, source.width);
        for (int k = 1; k < factor_y; ++k)
          std::memcpy(to + int64_t{k} * target.pitch * size, to, static_cast<size_t>(target.width) * size);
      }
    }
  });
}

}  // namespace bitbranch
