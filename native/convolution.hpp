// The steps that multiply and accumulate.
#pragma once
#include <vector>

#include "epilogue.hpp"
#include "step.hpp"
#include "window.hpp"

namespace bitbranch {

// A convolution whose lanes are the flattened pixels of the batch. Every `kernel.outputs` channels share a list of
// taps: all (channel group, kernel position) pairs, or with grouped channels the ones that they read.
class Convolution final : public Step {
 public:
  const InstructionSet* isa = nullptr;
  Kernel kernel{};
  View source;
  const int32_t* offsets = nullptr;    // bytes from an output pixel to each tap, lists one after the other
  const int32_t* first_tap = nullptr;  // [tiles] start of each tile's list in `offsets`
  const int32_t* taps = nullptr;       // [tiles] its length
  const int64_t* weights_at = nullptr; // [tiles] bytes into `weights`
  const uint8_t* weights = nullptr;
  const uint8_t* dictionary = nullptr;
  ptrdiff_t second = 0;  // bytes to the second plane of 3 and 4-bit codes
  int word_bytes = 0;  // of `weights` per tap
  int flush = 0;       // see Tile
  int span = 0;        // taps whose int16 sums are added up in int32; 0: the kernel makes the whole sums
  int chunks = 0;
  Epilogue epilogue;

  // The largest sums of windows, if they are taken: `before` makes accumulators of sums as far as windows need them,
  // `epilogue` has the pixels of the pooled image, without pads.
  bool pooled = false;
  Window window{};
  Epilogue before;

  void reserve(int threads);  // when all of the above is there
  void run(const Run& run) const override;

 private:
  void sum_tile(int tile, const uint8_t* x, void* sums, int stride) const;
  void sum_pixels(int chunk, int64_t first, int count, uint8_t* sums, int stride) const;
  int block_pixels() const;
  int sum_bytes() const { return epilogue.wide ? 4 : 2; }
  void run_pooled(const Run& run) const;
  struct Rows {
    int first, last;
  };
  Rows rows_of(int band) const;
  template <class Sum>
  void pool_band(int64_t image, int band, int chunk, uint8_t* scratch, int slot, bool follows) const;

  int shared_rows_ = 0;                      // by neighbouring windows; negative: rows between them
  int slots_ = 1;                            // bands of sums in the scratch, one for each chunk that is made together
  int band_stride_ = 0, pooled_stride_ = 0;  // elements of a channel's sums in a band, before and after
  int columns_ = 0;                          // see WindowRow
  size_t scratch_bytes_ = 0;
  mutable std::vector<uint8_t> scratch_;  // [threads][scratch_bytes_]
};

// Outputs of one pixel: lanes are outputs, activations are decoded to int16 [images][depth], or to int8 for packed
// weights.
class Linear final : public Step {
 public:
  Kernel single{}, several{};  // one image, and a few at once
  const uint8_t* activations = nullptr;
  int depth = 0;  // whole taps
  const uint8_t* weights = nullptr;
  int weight_bits = 8;  // below 8: ranks, weight = step * rank + low
  int step = 1, low = 0;
  int flush = 0;  // see Tile
  int outputs = 0;
  Epilogue epilogue;

  void reserve(int images) { totals_.resize(images); }
  void run(const Run& run) const override;

 private:
  mutable std::vector<int32_t> totals_;  // of each image's activations, times `low`
};

}  // namespace bitbranch
