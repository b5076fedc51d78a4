// Where a value lies in memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bitbranch {

// Planes of pixels: image i, row y, column x is pixel (i * rows + y) * pitch + x of every plane. Rows share one block
// of pad columns (the right pad of a row is the left pad of the next) and images share pad rows, so a batch is one
// tall image and a convolution tap is a constant distance. Pad pixels are 0 and never written.
//
//   codes of 1 and 2 bits   one plane of bytes for 8 and 4 channels: nibbles of the channels' bits
//   sextets                one plane of bytes for 6 channels of 1 bit or 3 of 2 bits, side by side
//   codes of 3 and 4 bits   two planes of bytes for 4 channels
//   bytes                   one plane of byte pairs for 2 channels
//   integers                one plane of int32 for a channel, without pads
struct View {
  uint8_t* base = nullptr;  // pixel 0 of plane 0
  ptrdiff_t stride = 0;     // bytes from plane to plane
  int pixel_bytes = 1;
  int height = 0, width = 0;
  int rows = 0, pitch = 0;
  int step_y = 1, step_x = 1;  // every so many rows and columns; what lies between belongs to other views

  int64_t image_pixels() const { return int64_t{rows} * pitch; }
  int64_t pixel(int64_t image, int64_t y, int64_t x) const { return (image * rows + y * step_y) * pitch + x * step_x; }
  uint8_t* at(int64_t plane, int64_t pixel) const { return base + plane * stride + pixel * pixel_bytes; }
};

// How stored numbers are read. bits 1..4: nibble bit-planes of ranks, value = multiplier * rank + add.
// bits 0: bytes, value = multiplier * byte + add, the byte signed or not.
struct Form {
  int bits = 0;
  bool is_signed = false;
  int multiplier = 1, add = 0;
  bool sextets = false;  // bits 1 and 2: six bits of neighbouring channels in a byte

  int chunks_per_group() const { return sextets ? 3 : 1; }  // chunks of 8 channels that fill whole planes
  int planes_per_group() const { return sextets ? 4 * bits : bits == 1 ? 1 : bits == 2 ? 2 : 4; }
  int groups(int chunks) const { return (chunks + chunks_per_group() - 1) / chunks_per_group(); }
  int packing() const { return sextets ? kSextets + bits : bits; }  // 0: bytes, 1..4: nibbles

  static constexpr int kSextets = 8;
};

}  // namespace bitbranch
