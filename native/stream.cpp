#include "stream.hpp"

#include <algorithm>

namespace bitbranch {

void Threshold::run(const Run& run) const {
  const int64_t pixels = run.images * source.image_pixels();
  const int64_t blocks = (pixels + kMaxPixels - 1) / kMaxPixels;
  const int group = epilogue.chunks_per_group();
  const int64_t groups = (chunks + group - 1) / group;
  run.pool.parallel(blocks * groups, plain_grain(kMaxPixels * kChunk), [&](int, int64_t begin, int64_t end) {
    Epilogue::Block block;
    int64_t described = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t index = item / groups, first = index * kMaxPixels;
      const int begin_chunk = static_cast<int>(item % groups) * group;
      if (index != described) {
        epilogue.describe(first, static_cast<int>(std::min<int64_t>(kMaxPixels, pixels - first)), block);
        described = index;
      }
      for (int chunk = begin_chunk; chunk < std::min(begin_chunk + group, chunks); ++chunk)
        epilogue.finish(chunk, source.at(int64_t{chunk} * kChunk, first), source.stride / 4, block);
    }
  });
}

namespace {

int32_t* integers(const View& view, int64_t channel, int64_t pixel) {
  return reinterpret_cast<int32_t*>(view.at(channel, pixel));
}

// Calls work(pixels.. of each view, count) for rows of a channel, or for all of them at once if they lie alike.
template <size_t N, class Work>
void along_rows(const View (&views)[N], int images, const Work& work) {
  bool alike = true;
  for (const View& v : views) alike = alike && v.rows == views[0].rows && v.pitch == views[0].pitch;
  int64_t at[N] = {};
  if (alike) return work(at, images * views[0].image_pixels());
  for (int image = 0; image < images; ++image)
    for (int y = 0; y < views[0].height; ++y) {
      for (size_t i = 0; i < N; ++i) at[i] = views[i].pixel(image, y, 0);
      work(at, views[0].width);
    }
}

}  // namespace

void Requantize::run(const Run& run) const {
  run.pool.parallel(channels, plain_grain(run.images * source.image_pixels()), [&](int, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      along_rows({source, target}, run.images, [&](const int64_t* at, int64_t count) {
        isa->rescale32(rescale[c], integers(source, c, at[0]), nullptr,
                       integers(target, c, at[1]), count);
      });
  });
}

void Add::run(const Run& run) const {
  run.pool.parallel(channels, plain_grain(run.images * left.image_pixels()), [&](int, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      along_rows({left, right, target}, run.images, [&](const int64_t* at, int64_t count) {
        isa->add(integers(left, c, at[0]), integers(right, c, at[1]),
                 integers(target, c, at[2]), count, lo, hi);
      });
  });
}

void Scale::run(const Run& run) const {
  const int64_t plane = int64_t{source.height} * source.width;
  run.pool.parallel(int64_t{run.images} * channels, plain_grain(plane), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / channels, c = item % channels;
      float* const out = run.outputs[output] + item * plane;
      for (int y = 0; y < source.height; ++y)
        isa->scale(integers(source, c, source.pixel(image, y, 0)), out + int64_t{y} * source.width, source.width,
                   scale[c], bias[c]);
    }
  });
}

}  // namespace bitbranch
