// Steps of the dot-product path: something that fills tiles of 32 pixels by 32 channels with sums, and a chain of
// operations that takes them on, block by block, to where the next layers want them.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "../encode.hpp"
#include "../step.hpp"
#include "kernels.hpp"

namespace bitbranch {

// Channels of a pixel lie side by side: image i, row y, column x is at base + ((i * rows + y) * pitch + x) * step.
// Codes are bytes `value + zero`, which pads hold for the real 0; integers are int32 or int16 without pads.
struct DotView {
  uint8_t* base = nullptr;
  ptrdiff_t step = 0;
  int rows = 0, pitch = 0;
  int height = 0, width = 0, channels = 0;
  bool exact = false;   // nothing may be written behind the last channel
  bool narrow = false;  // integers are int16

  ptrdiff_t image_bytes() const { return step * pitch * rows; }
  uint8_t* at(int64_t image, int64_t y, int64_t x) const { return base + ((image * rows + y) * pitch + x) * step; }
  // Whether every number lies where the other's does.
  bool is_at(const DotView& o) const {
    return base == o.base && step == o.step && rows == o.rows && pitch == o.pitch && narrow == o.narrow;
  }
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kWorthWaking = 2048;  // a thread, in about thousands of multiply-accumulates
constexpr int64_t kWorthFetching = 256;  // memory, while a tile is summed

// Which pixels a step goes through, and in what order they lie in its source.
struct DotWalk {
  enum class Kind {
    flat,   // all pixels of the source one after the other, pads among them
    rows,   // row by row
    images  // one pixel per image
  };
  Kind kind = Kind::flat;
  int height = 0, width = 0;            // pixels that exist
  int rows = 0, pitch = 0;              // flat: of the source
  int step_y = 1, step_x = 1;           // of the target, from pixel to pixel
  int first_y = 0, first_x = 0;         // in the target
};

// The pixels of a tile that exist: pieces of rows of the walk.
struct DotBlock {
  struct Segment {
    int count;
    int64_t image;  // the first one's pixel in the walk
    int y, x;
  };
  int32_t* sums;
  int count, segments;
  uint8_t row[kDotPixels];  // of the tile
  Segment segment[kDotPixels];
};

// One operation of a chain. Arrays are per block of 32 channels.
struct DotOp {
  enum class Kind { requantize, add, store, compare, line, fine_line, scale };
  Kind kind;
  DotView view;                         // where it writes; add: what it reads
  int32_t lo = 0, hi = 0;
  const int64_t* multiplier = nullptr;  // [blocks][32], also shift, offset
  const int64_t* shift = nullptr;
  const int64_t* offset = nullptr;
  bool narrow = false;                  // see DotSet::requantize
  const int32_t* limits = nullptr;      // [blocks][count][32]; of a line its jump's, [blocks][32], if it has one
  int count = 0;
  int ranks = 0;                        // of the jump
  const uint8_t* table = nullptr;       // [count + 1]
  const float* slope = nullptr;         // [blocks][32], also intercept; of scale the factor and the bias
  const float* intercept = nullptr;
  const double* fine_slope = nullptr;   // of fine_line
  const double* fine_intercept = nullptr;
  DotCode code{0, 0};
  int output = 0;                       // scale: which of the run's
};

// Rows of one image in memory of their own, instead of in a value that holds them all.
struct DotBand {
  uint8_t* memory = nullptr;
  int first_row = 0;

  uint8_t* at(const DotView& v, int64_t image, int64_t y, int64_t x) const {
    return memory ? memory + ((y - first_row) * v.pitch + x) * v.step : v.at(image, y, x);
  }
};

// A step whose sums a chain takes on, in blocks of up to 32 channels.
class DotChained : public Step {
 public:
  DotChained(const DotSet* set, DotWalk walk, int channels) : set(set), walk(walk), channels(channels) {}

  const DotSet* set;
  DotWalk walk;
  int channels;  // of the output
  std::vector<DotOp> chain;

 protected:
  virtual int blocks() const { return (channels + kDotOutputs - 1) / kDotOutputs; }
  virtual int first_channel(int block) const { return block * kDotOutputs; }
  virtual int block_channels(int block) const;
  virtual bool is_window() const { return false; }  // reads a band, else stores to it
  // Channels that are computed: kernels leave out the second half of a block where it is empty.
  static int computed(int channels) { return channels <= kDotOutputs / 2 ? kDotOutputs / 2 : kDotOutputs; }
  void finish(const Run& run, int block, const DotBand& band, DotBlock& pixels) const;
  // Before the sums are made: fetches the integers that the chain will add, and where it will store some.
  void fetch_ahead(int block, const DotBand& band, const DotBlock& pixels) const;

 private:
  // Where the operation's number of each pixel lies, `offset` bytes on.
  void places(const DotOp& op, const DotBand& band, const DotBlock& pixels, int offset, void** at) const;
};

// A step that goes through its walk tile by tile.
class DotStep : public DotChained {
 public:
  using DotChained::DotChained;
  void run(const Run& run) const override;
  // All blocks of some runs of a walk by rows; what is stored goes to the band, or is read from it.
  void run_rows(const Run& run, int part, int64_t first, int64_t count, const DotBand& band) const;

 protected:
  struct Span {
    int64_t tile;        // which
    int64_t run, first;  // pixels first .. first + count of a run of the walk
    int count;
  };
  struct Tiles {
    int64_t first_run, per_run, length, count;
  };
  // What lies in each slot of DotConvolution::gather_scratch: tile * lists + list.
  struct Gathered {
    static constexpr int kSlots = 16;
    int64_t at[kSlots];
    Gathered() { std::fill_n(at, kSlots, -1); }
  };
  virtual int64_t cost() const { return 64; }  // of a tile, in about thousands of multiply-accumulates
  virtual void fill(int block, int part, const Span& span, const DotBand& band, Gathered& gathered, DotBlock& pixels) const = 0;
  // All tiles by all blocks are `tiles.count * blocks()` items; this does some.
  virtual void run_tiles(const Run& run, int part, const Tiles& tiles, int64_t begin, int64_t end,
                         const DotBand& band) const;
  static Span span_of(const Tiles& tiles, int64_t tile);
  void describe(const Span& span, DotBlock& block) const;
};

class DotConvolution : public DotStep {
 public:
  using DotStep::DotStep;
  // Outputs that are summed together.
  struct Outputs {
    int first, channels, chunks;
    const int32_t* offsets;  // [chunks], or [pieces]
    int pieces;
    const uint8_t* quads;    // [chunks]
    const uint8_t* weights;
    const int32_t* start;    // [32]
    int list;                // of offsets, which outputs share
  };
  std::vector<Outputs> outputs;
  int lists = 1;
  DotView source;
  int stride_y = 1, stride_x = 1;
  int bits = 8;                    // of the weights in memory; below 8 they are expanded into scratch
  const int8_t* tables = nullptr;  // see DotSet::expand
  int narrow_quads = 0;            // see DotTile
  bool half = false;               // sums go modulo 2^16 to a band, where the chain would store them
  int8_t* scratch = nullptr;       // [threads][scratch_chunks][kDotChunk]
  int scratch_chunks = 0;
  // Where pixels do not lie as `run` wants them, pieces of them are put together first; offsets are then of the pieces.
  int piece = 0;                     // 16, 32 or 64 bytes; 0: read in place
  uint8_t* gather_scratch = nullptr;  // [threads][slots][gathered_chunks][32 pixels][64]
  int gathered_chunks = 0;
  std::vector<int32_t> gathered_offsets;  // [chunks] in that scratch: several may read the same
  int slots = 0;                     // tiles that are kept, up to Gathered::kSlots

  // Whether the weights of all blocks fit the scratch.
  bool blocks_together() const { return static_cast<int64_t>(outputs.size()) * outputs[0].chunks <= scratch_chunks; }

 protected:
  int blocks() const override { return static_cast<int>(outputs.size()); }
  int first_channel(int block) const override { return outputs[block].first; }
  int block_channels(int block) const override { return outputs[block].channels; }
  int64_t cost() const override { return 64 + 64 * outputs[0].chunks; }
  void fill(int block, int part, const Span& span, const DotBand& band, Gathered& gathered, DotBlock& pixels) const override;
  void run_tiles(const Run& run, int part, const Tiles& tiles, int64_t begin, int64_t end,
                 const DotBand& band) const override;

 private:
  int8_t* expanded(int block, int part) const {
    return scratch + (int64_t{part} * scratch_chunks + int64_t{block} * outputs[0].chunks) * kDotChunk;
  }
  void expand(const Outputs& o, int first, int chunks, int8_t* out) const;
  void run_halves(int part, const Tiles& tiles, const DotBand& band) const;
  DotTile place(const Outputs& o, int part, const Span& span, Gathered& gathered, const DotBlock& pixels) const;
  const uint8_t* gather(const Outputs& o, int part, const Span& span, Gathered& gathered, const DotBlock& pixels) const;
};

class DotDepthwiseConvolution : public DotStep {
 public:
  using DotStep::DotStep;
  DotView source;
  int stride_y = 1, stride_x = 1, taps = 0;
  const int32_t* offsets = nullptr;  // [taps]
  const int32_t* weights = nullptr;  // [blocks][taps][32]
  const int32_t* start = nullptr;    // [blocks][32]

 protected:
  void fill(int block, int part, const Span& span, const DotBand& band, Gathered& gathered, DotBlock& pixels) const override;
};

// Sums or the largest of a window of the source, an interpolation, or the source itself.
class DotWindow : public DotStep {
 public:
  using DotStep::DotStep;
  enum class Kind { largest, sum, copy, between };
  Kind kind = Kind::copy;
  DotView source;
  bool bytes = false;  // codes, else integers
  bool half = false;   // a band of sums modulo 2^16
  int zero = 0;        // of codes
  int kernel_y = 1, kernel_x = 1, stride_y = 1, stride_x = 1, top = 0, left = 0, dilation_y = 1, dilation_x = 1;
  std::vector<DotBetween> down, across;  // of pixels between others; with a `zero`, all across have weights of one sum

 protected:
  bool is_window() const override { return true; }
  void fill(int block, int part, const Span& span, const DotBand& band, Gathered& gathered, DotBlock& pixels) const override;

 private:
  int number_bytes() const { return bytes ? 1 : source.narrow ? 2 : 4; }
  void interpolate(int block, const DotBand& band, DotBlock& pixels) const;
};

// A convolution and the window over its sums, band by band: the sums stay in the cache.
class DotBanded : public Step {
 public:
  std::unique_ptr<DotStep> convolution;
  std::unique_ptr<DotWindow> window;
  int band_rows = 1;         // of the window's output
  uint8_t* scratch = nullptr;  // [threads][scratch_bytes]
  int64_t scratch_bytes = 0;
  void run(const Run& run) const override;
};

// Codes to codes of the same type: the largest of a window, or pixels repeated.
class DotBytes : public Step {
 public:
  const DotSet* set = nullptr;
  DotView source, target;
  int kernel_y = 1, kernel_x = 1, stride_y = 1, stride_x = 1, top = 0, left = 0, dilation_y = 1, dilation_x = 1;
  int factor_y = 1, factor_x = 1;
  void run(const Run& run) const override;
};

// The network's input, float32 or uint8 planes, to codes.
class DotEncode : public Step, public InputCodes {
 public:
  using InputCodes::InputCodes;
  const DotSet* set = nullptr;
  DotView target;
  void run(const Run& run) const override;
};

}  // namespace bitbranch
