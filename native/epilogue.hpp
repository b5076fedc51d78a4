// What happens to a block of sums: to accumulators, to a residual stream, and of either to codes or integers, where
// the next layers want them.
#pragma once
#include <vector>

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

  // A residual stream of the accumulators: rescaled, and added to another stream if there is one.
  struct Stream {
    const Rescale* rescale = nullptr;  // [chunks * 8]; null: there is no stream
    View other;                        // int32; without a base: nothing is added
  };
  Stream stream;

  // One copy of a value in one form.
  struct Output {
    bool of_stream = false;  // else of the accumulators
    bool integers = false;   // int32 planes instead of codes
    Form form;                        // of the codes
    const int32_t* limits = nullptr;  // see Codes::limits, [chunks * 8][thresholds]
    int thresholds = 0;
    const float* guess = nullptr;     // see Codes::guess, [chunks * 8][3]
    const uint8_t* table = nullptr;   // [256] what is stored for a rank: bytes, or for planes another rank; or null
    int channels = 0;                 // those beyond are not written as integers, and are 0 after a table
    View target;
  };
  std::vector<Output> outputs;
  bool whole = true;  // whether blocks begin with whole vectors and end with them or with the last image

  struct Segment {
    int from, count;  // pixels of the block
    int64_t image;
    int y, x;
  };
  struct BorderPixel {
    int pixel, border_class;
  };
  // The pixels of a block that exist, as pieces of rows and as a mask of bytes.
  struct Block {
    int64_t first = 0;
    int pixels = 0, segments = 0, border_pixels = 0;
    Segment segment[kMaxPixels];
    BorderPixel border[kMaxPixels];
    bool complete = false;  // all of them exist
    alignas(64) uint8_t exists[kMaxPixels];
  };

  // Describes pixels first .. first + count.
  void describe(int64_t first, int count, Block& block) const;

  // Chunks that one thread finishes one after the other.
  int chunks_per_group() const;

  // Finishes 8 channels of a block. `sums` [8][stride] of int16 or int32 may be changed.
  void finish(int chunk, void* sums, ptrdiff_t stride, const Block& block) const;

 private:
  template <class Sum>
  void correct(int chunk, Sum* sums, ptrdiff_t stride, const Block& block) const;
  void finish_stream(int chunk, const void* sums, ptrdiff_t stride, const Block& block) const;
  void write(const Output& output, int chunk, const void* values, bool are_wide, ptrdiff_t stride,
             const Block& block) const;
  void write_integers(const Output& output, int chunk, const void* values, bool are_wide, ptrdiff_t stride,
                      const Block& block) const;
  void write_by_table(const Output& output, int chunk, const void* values, bool are_wide, ptrdiff_t stride,
                      const Block& block) const;
  void scatter(const View& target, const uint8_t* packed, ptrdiff_t packed_stride, int planes, int first_plane,
               const Block& block) const;
  void gather(const View& target, uint8_t* packed, int plane, const Block& block) const;
  // Whether a block's pixels lie in the view as they lie in the block.
  bool flat(const View& view) const {
    return view.rows == rows && view.pitch == pitch && view.step_y == 1 && view.step_x == 1;
  }
};

}  // namespace bitbranch
