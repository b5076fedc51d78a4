#include "epilogue.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace bitbranch {

void Epilogue::describe(int64_t first, int count, Block& block) const {
  block.pixels = count;
  block.segments = block.border_pixels = 0;
  const int64_t row = first / pitch;
  int64_t image = row / rows;
  int y = static_cast<int>(row % rows), x = static_cast<int>(first % pitch);
  for (int p = 0; p < count;) {
    const int here = std::min(count - p, pitch - x);
    const int used = y < height ? std::min(here, width - x) : 0;
    if (used > 0) {
      block.segment[block.segments++] = {p, used, target.pixel(image, y, x)};
      if (border_class) {
        const int32_t* const classes = border_class + int64_t{y} * pitch + x;
        for (int i = 0; i < used; ++i)
          if (classes[i] != 0) block.border[block.border_pixels++] = {p + i, classes[i]};
      }
    }
    p += here;
    x = 0;
    if (++y == rows) {
      y = 0;
      ++image;
    }
  }
}

template <class Sum>
void Epilogue::correct(int chunk, Sum* sums, ptrdiff_t stride, const Block& block) const {
  for (int r = 0; r < kChunk; ++r) {
    const int32_t constant = constants[chunk * kChunk + r];
    if constexpr (std::is_same_v<Sum, int16_t>) isa->affine16(sums + r * stride, block.pixels, multiplier, constant);
    else isa->affine32(sums + r * stride, block.pixels, multiplier, constant);
  }
  // Modular like the above: the accumulator is in range, what leads to it need not be.
  using Modular = std::make_unsigned_t<Sum>;
  for (int i = 0; i < block.border_pixels; ++i) {
    const BorderPixel& b = block.border[i];
    const int32_t* const term = border_terms + (int64_t{chunk} * border_classes + b.border_class) * kChunk;
    for (int r = 0; r < kChunk; ++r) {
      Sum& sum = sums[r * stride + b.pixel];
      sum = static_cast<Sum>(static_cast<Modular>(static_cast<Modular>(sum) + static_cast<Modular>(term[r])));
    }
  }
}

void Epilogue::scatter(const uint8_t* packed, ptrdiff_t packed_stride, int planes, int first_plane,
                       const Block& block) const {
  const int size = target.pixel_bytes;
  for (int plane = 0; plane < planes; ++plane)
    for (int s = 0; s < block.segments; ++s) {
      const Segment& segment = block.segment[s];
      std::memcpy(target.at(first_plane + plane, segment.to), packed + plane * packed_stride + segment.from * size,
                  static_cast<size_t>(segment.count) * size);
    }
}

void Epilogue::finish(int chunk, void* sums, ptrdiff_t stride, const Block& block) const {
  if (constants) {
    if (wide) correct(chunk, static_cast<int32_t*>(sums), stride, block);
    else correct(chunk, static_cast<int16_t*>(sums), stride, block);
  }

  if (integers) {
    alignas(64) int32_t widened[kChunk * kMaxPixels];
    const int32_t* out = static_cast<const int32_t*>(sums);
    if (!wide) {
      for (int r = 0; r < kChunk; ++r)
        isa->to_int32(static_cast<const int16_t*>(sums) + r * stride, widened + r * kMaxPixels, block.pixels);
      out = widened;
      stride = kMaxPixels;
    }
    scatter(reinterpret_cast<const uint8_t*>(out), stride * 4, kChunk, chunk * kChunk, block);
    return;
  }

  alignas(64) uint8_t packed[4 * 2 * kMaxPixels];
  Codes codes{};
  codes.sums = sums;
  codes.stride = static_cast<int>(stride);
  codes.pixels = block.pixels;
  codes.limits = limits + int64_t{chunk} * kChunk * thresholds;
  codes.thresholds = thresholds;
  codes.guess = guess ? guess + int64_t{chunk} * kChunk * 2 : nullptr;
  codes.multiplier = form.multiplier;
  codes.add = form.add;
  codes.packed = packed;
  (wide ? isa->codes32 : isa->codes16)(form.bits, codes);
  scatter(packed, static_cast<ptrdiff_t>(kMaxPixels) * target.pixel_bytes, form.planes_per_chunk(),
          chunk * form.planes_per_chunk(), block);
}

}  // namespace bitbranch
