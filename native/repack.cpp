#include "repack.hpp"

#include <algorithm>
#include <cstring>

namespace bitbranch {

namespace {

// The numbers stored at one pixel for 8 channels.
void read_chunk(const View& view, const Form& form, int chunk, int64_t pixel, uint8_t out[kChunk]) {
  if (form.sextets) {
    const int per_plane = 6 / form.bits;
    for (int i = 0; i < kChunk; ++i) {
      const int channel = chunk * kChunk + i, place = channel % per_plane * form.bits;
      out[i] = static_cast<uint8_t>(view.at(channel / per_plane, pixel)[0] >> place & ((1 << form.bits) - 1));
    }
    return;
  }
  const uint8_t* const p = view.at(int64_t{chunk} * form.planes_per_group(), pixel);
  switch (form.bits) {
    case 0:
      for (int i = 0; i < 4; ++i) std::memcpy(out + 2 * i, p + i * view.stride, 2);
      return;
    case 1:
      for (int i = 0; i < kChunk; ++i) out[i] = p[0] >> i & 1;
      return;
    case 2:
      for (int i = 0; i < kChunk; ++i) {
        const int nibbles = p[i / 4 * view.stride] >> (i & 3);
        out[i] = static_cast<uint8_t>((nibbles & 1) | (nibbles >> 3 & 2));
      }
      return;
    default:
      for (int i = 0; i < kChunk; ++i) {
        const uint8_t* const group = p + i / 4 * 2 * view.stride;
        const int lower = group[0] >> (i & 3), upper = group[view.stride] >> (i & 3);
        out[i] = static_cast<uint8_t>((lower & 1) | (lower >> 3 & 2) | (upper & 1) << 2 | (upper >> 1 & 8));
      }
  }
}

// Bytes of 8 channels at one pixel.
void write_chunk(const View& view, int chunk, int64_t pixel, const uint8_t in[kChunk]) {
  uint8_t* const p = view.at(int64_t{chunk} * 4, pixel);
  for (int i = 0; i < 4; ++i) std::memcpy(p + i * view.stride, in + 2 * i, 2);
}

}  // namespace

void Repack::copy_row(int plane, int64_t first, const View& out, int64_t at, int count) const {
  const uint8_t* const x = source.at(plane, first);
  uint8_t* const y = out.at(plane, at);
  if (stride_x == 1) std::memcpy(y, x, static_cast<size_t>(count) * source.pixel_bytes);
  else (source.pixel_bytes == 1 ? isa->pick1 : isa->pick2)(x, y, stride_x, count);
}

void Repack::convert_row(int chunk, int64_t first, const View& out, int64_t at, int count) const {
  // The number that means the same: (from.multiplier * n + from.add - to.add) / to.multiplier, in bytes. One of the
  // two multipliers is 1, or they are equal.
  const int factor = std::max(1, from.multiplier / to.multiplier), divide = to.multiplier > from.multiplier ? 1 : 0;
  const int summand = (from.add - to.add) / (divide ? 1 : to.multiplier);
  if (to.bits == 0) {
    for (int x = 0; x < count; ++x) {
      uint8_t numbers[kChunk];
      read_chunk(source, from, chunk, first + int64_t{x} * stride_x, numbers);
      for (uint8_t& n : numbers) n = static_cast<uint8_t>(static_cast<uint8_t>(factor * n + summand) >> divide);
      write_chunk(out, chunk, at + x, numbers);
    }
    return;
  }
  const int used = std::min(kChunk, channels - chunk * kChunk), planes = to.planes_per_group();
  for (int x = 0; x < count; x += kMaxPixels) {
    const int pixels = std::min(kMaxPixels, count - x);
    alignas(64) uint16_t pairs[4][kMaxPixels], picked[kMaxPixels];
    for (int pair = 0; pair < 4; ++pair) {
      if (2 * pair >= used) {
        std::memset(pairs[pair], 0, sizeof pairs[pair]);
        continue;
      }
      const uint8_t* bytes = source.at(int64_t{chunk} * 4 + pair, first + int64_t{x} * stride_x);
      if (stride_x > 1) {
        isa->pick2(bytes, picked, stride_x, pixels);
        bytes = reinterpret_cast<const uint8_t*>(picked);
      }
      isa->to_ranks(bytes, reinterpret_cast<uint8_t*>(pairs[pair]), -summand, divide, 2 * pixels);
      if (2 * pair + 1 == used)
        for (uint16_t& p : pairs[pair]) p &= 255;
    }
    uint8_t* into[4];
    for (int plane = 0; plane < planes; ++plane) into[plane] = out.at(int64_t{chunk} * planes + plane, at + x);
    isa->pack_ranks(to.bits, pairs[0], kMaxPixels, into, pixels);
  }
}

// Phases of one pixel: a plane of the target is one pixel of every image.
void Repack::gather_pixels(const Run& run, int plane_count) const {
  const auto pick = source.pixel_bytes == 1 ? isa->pick1 : isa->pick2;
  const int64_t phase_count = static_cast<int64_t>(phases.size());
  const int step = static_cast<int>(source.image_pixels());
  run.pool.parallel(plane_count * phase_count, plain_grain(run.images), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const Phase& phase = phases[item % phase_count];
      if (phase.y < source.height && phase.x < source.width)
        pick(source.at(item / phase_count, source.pixel(0, phase.y, phase.x)), target.at(item, 0), step, run.images);
    }
  });
}

void Repack::run(const Run& run) const {
  const int64_t phase_count = static_cast<int64_t>(phases.size());
  const int planes = from.planes_per_group();
  const bool same = from.bits == to.bits && from.sextets == to.sextets && from.multiplier == to.multiplier && from.add == to.add;
  const int all_chunks = (channels + kChunk - 1) / kChunk;
  const int chunks = same ? from.groups(all_chunks) : all_chunks;  // or groups of them, where whole planes are copied
  if (same && target.image_pixels() == 1) return gather_pixels(run, chunks * planes);
  const int64_t work = int64_t{target.height} * target.width * kChunk;
  run.pool.parallel(run.images * chunks * phase_count, plain_grain(work), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / (chunks * phase_count);
      const int chunk = static_cast<int>(item / phase_count % chunks);
      const int64_t phase = item % phase_count;
      const Phase from_pixel = phases[phase];
      // Target planes of one phase are phase_count planes apart.
      View part = target;
      part.base += phase * target.stride;
      part.stride *= phase_count;
      const int width = std::min(target.width, (source.width - from_pixel.x + stride_x - 1) / stride_x);
      for (int y = 0; y < target.height && y * stride_y + from_pixel.y < source.height; ++y) {
        const int64_t first = source.pixel(image, y * stride_y + from_pixel.y, from_pixel.x);
        const int64_t at = part.pixel(image, y, 0);
        if (!same) convert_row(chunk, first, part, at, width);
        else
          for (int plane = chunk * planes; plane < (chunk + 1) * planes; ++plane)
            copy_row(plane, first, part, at, width);
      }
    }
  });
}

Flatten::Flatten(const Form& form) : form_(form) {
  // A byte's numbers weigh 1 and 2 (planes of bits 0 and 1), or 4 and 8; the summand is in the first plane's.
  const int planes = form.bits > 2 ? 2 : 1, channels = form.bits == 1 ? 8 : 4;
  if (form.bits == 0) return;
  if (form.sextets) {
    for (int byte = 0; byte < 256; ++byte)
      for (int c = 0; c < channels; ++c)
        values_.push_back(static_cast<int16_t>(form.multiplier * (byte >> c * form.bits & ((1 << form.bits) - 1)) + form.add));
    return;
  }
  for (int plane = 0; plane < planes; ++plane)
    for (int byte = 0; byte < 256; ++byte)
      for (int c = 0; c < channels; ++c) {
        const int low = byte >> (c & 3) & 1, high = byte >> (4 + (c & 3)) & 1;
        const int rank = form.bits == 1 ? (c < 4 ? low : high) : (low + 2 * high) << (2 * plane);
        values_.push_back(static_cast<int16_t>(form.multiplier * rank + (plane == 0 ? form.add : 0)));
      }
}

void Flatten::run(const Run& run) const { narrow ? run_as<int8_t>(run) : run_as<int16_t>(run); }

template <class Value>
void Flatten::run_as(const Run& run) const {
  const int planes = form_.bits > 2 ? 2 : 1, per_unit = form_.bits == 0 ? 2 : form_.sextets ? 6 / form_.bits : form_.bits == 1 ? 8 : 4;
  const int units = (channels + per_unit - 1) / per_unit;
  const int64_t plane = int64_t{source.height} * source.width;
  run.pool.parallel(int64_t{run.images} * units, plain_grain(plane * per_unit), [&](int, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / units, unit = item % units;
      const int used = std::min<int>(per_unit, channels - static_cast<int>(unit) * per_unit);
      Value* out = reinterpret_cast<Value*>(target) + image * depth + unit * per_unit * plane;
      for (int y = 0; y < source.height; ++y) {
        const uint8_t* const row = source.at(unit * planes, source.pixel(image, y, 0));
        for (int x = 0; x < source.width; ++x, ++out) {
          int16_t value[kChunk];
          if (form_.bits == 0) {
            for (int c = 0; c < 2; ++c) {
              const uint8_t byte = row[2 * x + c];
              value[c] = static_cast<int16_t>(form_.multiplier * (form_.is_signed ? static_cast<int8_t>(byte) : byte) +
                                              form_.add);
            }
          } else if (form_.bits == 1) {
            std::memcpy(value, &values_[row[x] * 8], 16);
          } else {
            std::memcpy(value, &values_[row[x] * 4], 8);
            if (planes == 2)
              for (int c = 0; c < 4; ++c) value[c] += values_[1024 + row[source.stride + x] * 4 + c];
          }
          for (int c = 0; c < used; ++c) out[c * plane] = static_cast<Value>(value[c]);
        }
      }
    }
  });
}

}  // namespace bitbranch
