#include "convolution.hpp"

#include <algorithm>
#include <cstring>

namespace bitbranch {

namespace {
// Vector multiply-accumulates that make waking a thread worth it, about 2 microseconds of work.
constexpr int64_t kGrain = 2048;
// What finishing a block costs beside them.
constexpr int64_t kFinish = 64;
// Rows of windows that are pooled together: more of them share rows, fewer stay in the cache.
constexpr int kBand = 4;
// Images whose outputs a linear layer finishes together.
constexpr int kLinearBlock = 64;
}  // namespace

void Convolution::sum_tile(int tile, const uint8_t* x, void* sums, int stride) const {
  Tile t{x, offsets + first_tap[tile], weights + weights_at[tile], taps[tile], dictionary, flush, second, sums,
         stride, span == 0 && !epilogue.wide};
  if (span == 0) return kernel.run(t);
  alignas(64) int16_t part[kChunk * kMaxPixels];
  t.sums = part;
  t.stride = kMaxPixels;
  int32_t* const total = static_cast<int32_t*>(sums);
  for (int done = 0; done < taps[tile]; done += span) {
    t.taps = std::min(span, taps[tile] - done);
    kernel.run(t);
    for (int r = 0; r < kernel.outputs; ++r)
      isa->widen(part + r * kMaxPixels, total + r * stride, kernel.pixels, done == 0);
    t.offsets += t.taps;
    t.weights = static_cast<const uint8_t*>(t.weights) + int64_t{t.taps} * word_bytes;
  }
}

// Whole vectors of the epilogue.
int Convolution::block_pixels() const { return std::max(kernel.pixels, isa->width); }

// Sums of 8 channels for pixels first .. first + count, whole tiles of them.
void Convolution::sum_pixels(int chunk, int64_t first, int count, uint8_t* sums, int stride) const {
  const int tiles = kChunk / kernel.outputs;
  for (int tile = 0; tile < tiles; ++tile)
    for (int p = 0; p < count; p += kernel.pixels)
      sum_tile(chunk * tiles + tile, source.base + (first + p) * source.pixel_bytes,
               sums + (int64_t{tile} * kernel.outputs * stride + p) * sum_bytes(), stride);
}

void Convolution::run(const Run& run) const {
  if (pooled) return run_pooled(run);
  const int64_t pixels = run.images * source.image_pixels();
  const int width = block_pixels();
  const int64_t blocks = (pixels + width - 1) / width;
  const int group = epilogue.chunks_per_group();
  const int64_t groups = (chunks + group - 1) / group;
  const int64_t grain = 1 + kGrain / ((int64_t{taps[0]} * kChunk + kFinish) * group);

  // Pixels outside, channels inside: a block's activations stay in the first cache while the weights stream by.
  run.pool.parallel(blocks * groups, grain, [&](int, int64_t begin, int64_t end) {
    alignas(64) uint8_t sums[kChunk * kMaxPixels * 4];
    Epilogue::Block block;
    int64_t described = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t index = item / groups, first = index * width;
      if (index != described) {
        epilogue.describe(first, static_cast<int>(std::min<int64_t>(width, pixels - first)), block);
        described = index;
      }
      if (block.segments == 0) continue;
      const int begin_chunk = static_cast<int>(item % groups) * group;
      for (int chunk = begin_chunk; chunk < std::min(begin_chunk + group, chunks); ++chunk) {
        sum_pixels(chunk, first, width, sums, kMaxPixels);
        epilogue.finish(chunk, sums, kMaxPixels, block);
      }
    }
  });
}

void Convolution::reserve(int threads) {
  if (!pooled) return;
  const int rows = std::min(before.height, (kBand - 1) * window.stride_y + (window.kernel_y - 1) * window.dilation_y + 1);
  const auto whole = [](int pixels) { return (pixels + 2 * kMaxPixels - 1) / kMaxPixels * kMaxPixels; };
  shared_rows_ = (window.kernel_y - 1) * window.dilation_y + 1 - window.stride_y;
  slots_ = shared_rows_ > 0 ? epilogue.chunks_per_group() : 1;
  band_stride_ = whole(rows * before.pitch);
  pooled_stride_ = whole(kBand * epilogue.width);
  columns_ = padded_columns(window, before.width, epilogue.width);
  scratch_bytes_ =
      (size_t{kChunk} * (slots_ * size_t(band_stride_) + pooled_stride_) + 2 * size_t(columns_)) * sum_bytes() + 63;
  scratch_bytes_ = scratch_bytes_ / 64 * 64;
  scratch_.resize(scratch_bytes_ * threads + 63);
}

// The rows that the windows of a band see.
Convolution::Rows Convolution::rows_of(int band) const {
  const int top = band * kBand, bottom = std::min(top + kBand, epilogue.height);
  const int reach = (window.kernel_y - 1) * window.dilation_y;
  return {std::max(0, top * window.stride_y - window.top),
          std::min(before.height - 1, (bottom - 1) * window.stride_y - window.top + reach)};
}

// A few rows of windows for 8 channels: the sums of all rows that they see, the largest of each window, the rest.
// `follows`: the band before was the last one in this slot, whose sums are there.
template <class Sum>
void Convolution::pool_band(int64_t image, int band, int chunk, uint8_t* scratch, int slot, bool follows) const {
  Sum* const sums = reinterpret_cast<Sum*>(scratch) + ptrdiff_t{slot} * kChunk * band_stride_;
  Sum* const largest = reinterpret_cast<Sum*>(scratch) + ptrdiff_t{slots_} * kChunk * band_stride_;
  const int height = before.height, width = before.width, pitch = before.pitch;
  const int top = band * kBand, bottom = std::min(top + kBand, epilogue.height);
  const auto [first_row, last_row] = rows_of(band);
  int kept = 0;
  if (follows) {
    const Rows last = rows_of(band - 1);
    kept = std::max(0, last.last + 1 - first_row) * pitch;
    for (int r = 0; kept && r < kChunk; ++r) {
      Sum* const row = sums + ptrdiff_t{r} * band_stride_;
      std::memmove(row, row + (first_row - last.first) * pitch, kept * sizeof(Sum));
    }
  }
  const int64_t first = (image * before.rows + first_row) * pitch;
  const int count = (last_row - first_row) * pitch + width;
  if (kept < count)
    sum_pixels(chunk, first + kept, count - kept, reinterpret_cast<uint8_t*>(sums + kept), band_stride_);
  Epilogue::Block block;
  for (int p = kept; before.constants && p < count; p += kMaxPixels) {
    before.describe(first + p, std::min(kMaxPixels, count - p), block);
    before.finish(chunk, sums + p, band_stride_, block);
  }
  for (int r = 0; r < kChunk; ++r)
    for (int y = top; y < bottom; ++y) {
      const Sum* const image_sums = sums + ptrdiff_t{r} * band_stride_ - ptrdiff_t{first_row} * pitch;
      WindowRow row = window_row(window, y, image_sums, height, width, pitch);
      row.out = largest + ptrdiff_t{r} * pooled_stride_ + ptrdiff_t{y - top} * epilogue.width;
      row.count = epilogue.width;
      row.columns = columns_;
      row.scratch = largest + ptrdiff_t{kChunk} * pooled_stride_;
      (sizeof(Sum) == 2 ? isa->max_row16 : isa->max_row32)(row);
    }
  const int pooled_count = (bottom - top) * epilogue.width;
  const int64_t to = (image * epilogue.height + top) * epilogue.width;
  for (int p = 0; p < pooled_count; p += kMaxPixels) {
    epilogue.describe(to + p, std::min(kMaxPixels, pooled_count - p), block);
    epilogue.finish(chunk, largest + p, pooled_stride_, block);
  }
}

void Convolution::run_pooled(const Run& run) const {
  const int64_t bands = (epilogue.height + kBand - 1) / kBand;
  const int group = epilogue.chunks_per_group();
  const int64_t groups = (chunks + group - 1) / group;
  run.pool.parallel(run.images * bands * groups, 1, [&](int part, int64_t begin, int64_t end) {
    const auto aligned = (reinterpret_cast<uintptr_t>(scratch_.data()) + 63) / 64 * 64;
    uint8_t* const scratch = reinterpret_cast<uint8_t*>(aligned) + scratch_bytes_ * part;
    for (int64_t item = begin; item < end; ++item) {
      // Bands that share rows come one after the other, else the channels of a band, whose activations are shared.
      const int64_t image = item / (bands * groups), within = item % (bands * groups);
      const int band = static_cast<int>(shared_rows_ > 0 ? within % bands : within / groups);
      const int first = static_cast<int>(shared_rows_ > 0 ? within / bands : within % groups) * group;
      const bool follows = shared_rows_ > 0 && band > 0 && item > begin;
      for (int chunk = first; chunk < std::min(first + group, chunks); ++chunk) {
        const int slot = slots_ > 1 ? chunk - first : 0;
        if (epilogue.wide) pool_band<int32_t>(image, band, chunk, scratch, slot, follows);
        else pool_band<int16_t>(image, band, chunk, scratch, slot, follows);
      }
    }
  });
}

void Linear::run(const Run& run) const {
  const int lanes = single.outputs;
  const int64_t columns = (outputs + lanes - 1) / lanes;
  const int64_t blocks = (run.images + kLinearBlock - 1) / kLinearBlock;
  const int64_t column_bytes = int64_t{depth} * lanes * weight_bits / 8;
  const bool packed = weight_bits < 8;
  const int64_t row_bytes = int64_t{depth} * (packed ? 1 : 2);
  if (packed)
    run.pool.parallel(run.images, plain_grain(depth), [&](int, int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        const int8_t* const x = reinterpret_cast<const int8_t*>(activations) + image * row_bytes;
        int32_t total = 0;
        for (int i = 0; i < depth; ++i) total += x[i];
        totals_[image] = low * total;
      }
    });
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
        kernel.run({activations + (first + i) * row_bytes, nullptr, weights + column * column_bytes,
                    depth / (packed ? 4 : 2), nullptr, flush, row_bytes, rows, lanes, false});
        for (int k = 0; k < kernel.pixels; ++k) {
          const int32_t total = packed ? totals_[first + i + k] : 0;
          for (int lane = 0; lane < lanes; ++lane)
            sums[lane * kMaxPixels + i + k] = step * rows[k * lanes + lane] + total;
        }
        i += kernel.pixels;
      }
      for (int lane = 0; lane < lanes && column * lanes + lane < outputs; lane += kChunk)
        epilogue.finish(static_cast<int>(column * lanes + lane) / kChunk, sums + lane * kMaxPixels, kMaxPixels, block);
    }
  });
}

}  // namespace bitbranch
