#include "convolution.hpp"

#include <algorithm>
#include <cstring>

namespace bitbranch {

namespace {
// Vector multiply-accumulates that make waking a thread worth it, about 2 microseconds of work.
constexpr int64_t kGrain = 2048;
// What finishing a block costs beside them.
constexpr int64_t kFinish = 64;
// Images whose outputs a linear layer finishes together.
constexpr int kLinearBlock = 64;
}  // namespace

void Convolution::sum_tile(int tile, const uint8_t* x, void* sums) const {
  Tile t{x, offsets + first_tap[tile], weights + weights_at[tile], taps[tile], dictionary, flush, second, sums,
         kMaxPixels};
  if (span == 0) return kernel.run(t);
  alignas(64) int16_t part[kChunk * kMaxPixels];
  t.sums = part;
  int32_t* const total = static_cast<int32_t*>(sums);
  for (int done = 0; done < taps[tile]; done += span) {
    t.taps = std::min(span, taps[tile] - done);
    kernel.run(t);
    for (int r = 0; r < kernel.outputs; ++r)
      isa->widen(part + r * kMaxPixels, total + r * kMaxPixels, kernel.pixels, done == 0);
    t.offsets += t.taps;
    t.weights = static_cast<const uint8_t*>(t.weights) + int64_t{t.taps} * word_bytes;
  }
}

void Convolution::run(const Run& run) const {
  const int64_t pixels = run.images * source.image_pixels();
  const int block_pixels = std::max(kernel.pixels, isa->width);  // whole vectors of the epilogue
  const int64_t blocks = (pixels + block_pixels - 1) / block_pixels;
  const int tiles = kChunk / kernel.outputs;
  const int sum_bytes = epilogue.wide ? 4 : 2;
  const int64_t grain = 1 + kGrain / (int64_t{taps[0]} * kChunk + kFinish);

  // Pixels outside, channels inside: a block's activations stay in the first cache while the weights stream by.
  run.pool.parallel(blocks * chunks, grain, [&](int, int64_t begin, int64_t end) {
    alignas(64) uint8_t sums[kChunk * kMaxPixels * 4];
    Epilogue::Block block;
    int64_t described = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t index = item / chunks, first = index * block_pixels;
      const int chunk = static_cast<int>(item % chunks);
      if (index != described) {
        epilogue.describe(first, static_cast<int>(std::min<int64_t>(block_pixels, pixels - first)), block);
        described = index;
      }
      if (block.segments == 0) continue;
      for (int tile = 0; tile < tiles; ++tile)
        for (int p = 0; p < block_pixels; p += kernel.pixels)
          sum_tile(chunk * tiles + tile, source.base + (first + p) * source.pixel_bytes,
                   sums + (tile * kernel.outputs * kMaxPixels + p) * sum_bytes);
      epilogue.finish(chunk, sums, kMaxPixels, block);
    }
  });
}

void Linear::run(const Run& run) const {
  const int lanes = single.outputs;
  const int64_t columns = (outputs + lanes - 1) / lanes;
  const int64_t blocks = (run.images + kLinearBlock - 1) / kLinearBlock;
  const int64_t column_bytes = int64_t{depth} * lanes * weight_bytes;
  const int64_t grain = 1 + kGrain / (int64_t{depth} * std::min(run.images, kLinearBlock));

  run.pool.parallel(blocks * columns, grain, [&](int, int64_t begin, int64_t end) {
    constexpr int max_lanes = 32, max_images = 8;
    alignas(64) int32_t sums[max_lanes * kMaxPixels];
    alignas(64) int32_t rows[max_images * max_lanes];
    Epilogue::Block block;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / columns * kLinearBlock, column = item % columns;
      const int count = static_cast<int>(std::min<int64_t>(kLinearBlock, run.images - first));
      epilogue.describe(first, count, block);
      for (int i = 0; i < count;) {
        const Kernel& kernel = count - i >= several.pixels ? several : single;
        kernel.run({activations + (first + i) * depth, nullptr, weights + column * column_bytes, depth / 2, nullptr, 0,
                    static_cast<ptrdiff_t>(depth) * 2, rows, lanes});
        for (int k = 0; k < kernel.pixels; ++k)
          for (int lane = 0; lane < lanes; ++lane) sums[lane * kMaxPixels + i + k] = rows[k * lanes + lane];
        i += kernel.pixels;
      }
      for (int lane = 0; lane < lanes && column * lanes + lane < outputs; lane += kChunk)
        epilogue.finish(static_cast<int>(column * lanes + lane) / kChunk, sums + lane * kMaxPixels, kMaxPixels, block);
    }
  });
}

}  // namespace bitbranch
