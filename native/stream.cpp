#include "stream.hpp"

#include <algorithm>

namespace bitbranch {

void Threshold::run(const Run& run) const {
  const int64_t pixels = run.images * source.image_pixels();
  const int64_t blocks = (pixels + kMaxPixels - 1) / kMaxPixels;
  run.pool.parallel(blocks * chunks, plain_grain(kMaxPixels * kChunk), [&](int, int64_t begin, int64_t end) {
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
  run.pool.parallel(channels, plain_grain(count), [&](int, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      isa->requantize(reinterpret_cast<const int32_t*>(source.at(c, 0)), reinterpret_cast<int32_t*>(target.at(c, 0)),
                      count, multiplier[c], shift[c], offset[c], lo, hi);
  });
}

void Add::run(const Run& run) const {
  const int64_t count = run.images * left.image_pixels();
  run.pool.parallel(channels, plain_grain(count), [&](int, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      isa->add(reinterpret_cast<const int32_t*>(left.at(c, 0)), reinterpret_cast<const int32_t*>(right.at(c, 0)),
               reinterpret_cast<int32_t*>(target.at(c, 0)), count, lo, hi);
  });
}

void Scale::run(const Run& run) const {
  const int64_t plane = source.image_pixels();
  run.pool.parallel(int64_t{run.images} * channels, plain_grain(plane), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / channels, c = item % channels;
      isa->scale(reinterpret_cast<const int32_t*>(source.at(c, image * plane)), run.outputs[output] + item * plane, plane,
                 scale[c], bias[c]);
    }
  });
}

}  // namespace bitbranch
