// What happens to a block of sums: to accumulators, to codes or integers, to where the next layer wants them.
#pragma once
#include "kernels.hpp"
#include "view.hpp"

namespace bitbranch {

struct Epilogue {
  const InstructionSet* isa = nullptr;
  bool wide = true;  // sums are int32, else int16
  int height = 0, width = 0, rows = 0, pitch = 0;  // the flattened pixels that blocks are taken from

  // accumulator = multiplier * sum + constants[channel] + border term; without constants the sum is taken as it is,
  // and the thresholds allow for the difference.
  int multiplier = 1;
  const int32_t* constants = nullptr;      // [chunks * 8]
  const int32_t* border_class = nullptr;   // [rows * pitch], 0 inside; or null
  const int32_t* border_terms = nullptr;   // [chunks][classes][8]
  int border_classes = 0;

  Form form;                        // of the codes
  bool integers = false;            // int32 planes instead of codes
  const int32_t* limits = nullptr;  // see Codes::limits, [chunks * 8][thresholds]
  int thresholds = 0;
  const float* guess = nullptr;     // see Codes::guess, [chunks * 8][2]
  View target;

  struct Segment {
    int from, count;  // pixels of the block
    int64_t to;       // first pixel in the target
  };
  struct BorderPixel {
    int pixel, border_class;
  };
  // The pixels of a block that exist, as pieces of rows.
  struct Block {
    int pixels = 0, segments = 0, border_pixels = 0;
    Segment segment[kMaxPixels];
    BorderPixel border[kMaxPixels];
  };

  // Describes pixels first .. first + count.
  void describe(int64_t first, int count, Block& block) const;

  // Finishes 8 channels of a block. `sums` [8][stride] of int16 or int32 may be changed.
  void finish(int chunk, void* sums, ptrdiff_t stride, const Block& block) const;

 private:
  template <class Sum>
  void correct(int chunk, Sum* sums, ptrdiff_t stride, const Block& block) const;
  void scatter(const uint8_t* packed, ptrdiff_t packed_stride, int planes, int first_plane, const Block& block) const;
};

}  // namespace bitbranch
