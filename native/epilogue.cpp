#include "epilogue.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace bitbranch {

namespace {

// Pixels of `size` bytes, `step` of them apart in `to` or in `from`.
template <class Pixel>
void copy_pixels(const uint8_t* from, int from_step, uint8_t* to, int to_step, int count) {
  for (int i = 0; i < count; ++i)
    std::memcpy(to + ptrdiff_t{i} * to_step * sizeof(Pixel), from + ptrdiff_t{i} * from_step * sizeof(Pixel),
                sizeof(Pixel));
}

void copy_pixels(int size, const uint8_t* from, int from_step, uint8_t* to, int to_step, int count) {
  if (from_step == 1 && to_step == 1) std::memcpy(to, from, static_cast<size_t>(count) * size);
  else if (size == 1) copy_pixels<uint8_t>(from, from_step, to, to_step, count);
  else if (size == 2) copy_pixels<uint16_t>(from, from_step, to, to_step, count);
  else copy_pixels<uint32_t>(from, from_step, to, to_step, count);
}

}  // namespace

void Epilogue::describe(int64_t first, int count, Block& block) const {
  block.first = first;
  block.pixels = count;
  block.segments = block.border_pixels = 0;
  block.complete = pitch == width && rows == height;
  std::memset(block.exists, 0, sizeof block.exists);
  const int64_t row = first / pitch;
  int64_t image = row / rows;
  int y = static_cast<int>(row % rows), x = static_cast<int>(first % pitch);
  for (int p = 0; p < count;) {
    const int here = std::min(count - p, pitch - x);
    const int used = y < height ? std::min(here, width - x) : 0;
    if (used > 0) {
      block.segment[block.segments++] = {p, used, image, y, x};
      std::memset(block.exists + p, 0xff, static_cast<size_t>(used));
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

void Epilogue::scatter(const View& target, const uint8_t* packed, ptrdiff_t packed_stride, int planes, int first_plane,
                       const Block& block) const {
  const int size = target.pixel_bytes;
  if (block.complete && flat(target)) {
    for (int plane = 0; plane < planes; ++plane)
      std::memcpy(target.at(first_plane + plane, block.first), packed + plane * packed_stride,
                  static_cast<size_t>(block.pixels) * size);
    return;
  }
  for (int s = 0; s < block.segments; ++s) {
    const Segment& segment = block.segment[s];
    const int64_t to = target.pixel(segment.image, segment.y, segment.x);
    for (int plane = 0; plane < planes; ++plane)
      copy_pixels(size, packed + plane * packed_stride + segment.from * size, 1, target.at(first_plane + plane, to),
                  target.step_x, segment.count);
  }
}

// The same pixels of one plane back into a block.
void Epilogue::gather(const View& target, uint8_t* packed, int plane, const Block& block) const {
  for (int s = 0; s < block.segments; ++s) {
    const Segment& segment = block.segment[s];
    copy_pixels(1, target.at(plane, target.pixel(segment.image, segment.y, segment.x)), target.step_x,
                packed + segment.from, 1, segment.count);
  }
}

int Epilogue::chunks_per_group() const {
  int chunks = 1;
  for (const Output& output : outputs) chunks = std::max(chunks, output.integers ? 1 : output.form.chunks_per_group());
  return chunks;
}

void Epilogue::write_integers(const Output& output, int chunk, const void* values, bool are_wide, ptrdiff_t stride,
                              const Block& block) const {
  alignas(64) int32_t widened[kChunk * kMaxPixels];
  if (!are_wide) {
    for (int r = 0; r < kChunk; ++r)
      isa->to_int32(static_cast<const int16_t*>(values) + r * stride, widened + r * kMaxPixels, block.pixels);
    values = widened;
    stride = kMaxPixels;
  }
  const int used = std::min(kChunk, output.channels - chunk * kChunk);
  scatter(output.target, static_cast<const uint8_t*>(values), stride * 4, used, chunk * kChunk, block);
}

// What the codes of a chunk are made of; where they go is left to fill in.
static Codes codes_of(const Epilogue::Output& output, int chunk, const void* values, ptrdiff_t stride, int pixels) {
  Codes codes{};
  codes.sums = values;
  codes.stride = static_cast<int>(stride);
  codes.pixels = pixels;
  codes.limits = output.limits + int64_t{chunk} * kChunk * output.thresholds;
  codes.thresholds = output.thresholds;
  codes.guess = output.guess ? output.guess + int64_t{chunk} * kChunk * 3 : nullptr;
  return codes;
}

void Epilogue::write_by_table(const Output& output, int chunk, const void* values, bool are_wide, ptrdiff_t stride,
                              const Block& block) const {
  alignas(64) uint16_t pairs[kChunk / 2][kMaxPixels];
  Codes codes = codes_of(output, chunk, values, stride, block.pixels);
  codes.multiplier = 1;
  codes.packed = reinterpret_cast<uint8_t*>(pairs);
  codes.packed_stride = sizeof pairs[0];
  (are_wide ? isa->codes32 : isa->codes16)(0, codes);
  const int used = std::min(kChunk, output.channels - chunk * kChunk);
  for (int pair = 0; pair < kChunk / 2; ++pair) {
    const bool first = 2 * pair < used, second = 2 * pair + 1 < used;
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(pairs[pair]);
    for (int p = 0; p < block.pixels; ++p) {
      bytes[2 * p] = first ? output.table[bytes[2 * p]] : 0;
      bytes[2 * p + 1] = second ? output.table[bytes[2 * p + 1]] : 0;
    }
  }
  const int bits = output.form.bits, count = output.form.planes_per_group();
  if (bits == 0)
    return scatter(output.target, codes.packed, codes.packed_stride, kChunk / 2, chunk * kChunk / 2, block);
  alignas(64) uint8_t packed[4][kMaxPixels];
  uint8_t* const planes[4] = {packed[0], packed[1], packed[2], packed[3]};
  isa->pack_ranks(bits, pairs[0], kMaxPixels, planes, block.pixels);
  scatter(output.target, packed[0], kMaxPixels, count, chunk * count, block);
}

void Epilogue::write(const Output& output, int chunk, const void* values, bool are_wide, ptrdiff_t stride,
                     const Block& block) const {
  const View& target = output.target;
  if (output.integers) return write_integers(output, chunk, values, are_wide, stride, block);
  if (output.table) return write_by_table(output, chunk, values, are_wide, stride, block);
  const Form& form = output.form;
  const int group = chunk / form.chunks_per_group(), third = chunk % form.chunks_per_group();
  const int first_plane = group * form.planes_per_group();
  const bool in_place = whole && flat(target);
  alignas(64) uint8_t packed[4 * 2 * kMaxPixels];
  Codes codes = codes_of(output, chunk, values, stride, block.pixels);
  codes.multiplier = form.multiplier;
  codes.add = form.add;
  codes.third = third;
  // Whole vectors of every plane belong to the block, so its pads may be written with zeros.
  codes.packed = in_place ? target.at(first_plane, block.first) : packed;
  codes.packed_stride = in_place ? target.stride : static_cast<ptrdiff_t>(kMaxPixels) * target.pixel_bytes;
  codes.exists = in_place ? block.exists : nullptr;
  // The planes of this third of a group; the first may be begun already.
  const int begin = form.sextets ? third * kChunk * form.bits / 6 : 0;
  const int end = form.sextets ? ((third + 1) * kChunk * form.bits + 5) / 6 : form.planes_per_group();
  if (!in_place && third > 0) gather(target, packed + begin * codes.packed_stride, first_plane + begin, block);
  (are_wide ? isa->codes32 : isa->codes16)(form.packing(), codes);
  if (!in_place)
    scatter(target, packed + begin * codes.packed_stride, codes.packed_stride, end - begin, first_plane + begin, block);
}

void Epilogue::finish_stream(int chunk, const void* sums, ptrdiff_t stride, const Block& block) const {
  alignas(64) int32_t buffer[kChunk * kMaxPixels], gathered[kMaxPixels];
  int32_t* values = buffer;
  ptrdiff_t values_stride = kMaxPixels;
  const Output* direct = nullptr;  // the copy that is computed where it belongs
  for (const Output& output : outputs)
    if (whole && output.of_stream && output.integers && flat(output.target) && (chunk + 1) * kChunk <= output.channels)
      direct = &output;
  if (direct) {
    values = reinterpret_cast<int32_t*>(direct->target.at(int64_t{chunk} * kChunk, block.first));
    values_stride = direct->target.stride / 4;
  }
  for (int r = 0; r < kChunk; ++r) {
    const int64_t channel = int64_t{chunk} * kChunk + r;
    const int32_t* other = nullptr;
    if (stream.other.base && flat(stream.other)) {
      other = reinterpret_cast<const int32_t*>(stream.other.at(channel, block.first));
    } else if (stream.other.base) {
      for (int s = 0; s < block.segments; ++s) {
        const Segment& segment = block.segment[s];
        copy_pixels(4, stream.other.at(channel, stream.other.pixel(segment.image, segment.y, segment.x)),
                    stream.other.step_x, reinterpret_cast<uint8_t*>(gathered + segment.from), 1, segment.count);
      }
      other = gathered;
    }
    int32_t* const out = values + r * values_stride;
    const Rescale& rescale = stream.rescale[channel];
    if (wide) isa->rescale32(rescale, static_cast<const int32_t*>(sums) + r * stride, other, out, block.pixels);
    else isa->rescale16(rescale, static_cast<const int16_t*>(sums) + r * stride, other, out, block.pixels);
  }
  for (const Output& output : outputs)
    if (output.of_stream && &output != direct) write(output, chunk, values, true, values_stride, block);
}

void Epilogue::finish(int chunk, void* sums, ptrdiff_t stride, const Block& block) const {
  if (constants) {
    if (wide) correct(chunk, static_cast<int32_t*>(sums), stride, block);
    else correct(chunk, static_cast<int16_t*>(sums), stride, block);
  }
  for (const Output& output : outputs)
    if (!output.of_stream) write(output, chunk, sums, wide, stride, block);
  if (stream.rescale) finish_stream(chunk, sums, stride, block);
}

}  // namespace bitbranch
