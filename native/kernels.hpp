// The kernel table: what a kernel is, and everything an instruction set provides. Plain types only: this header is
// compiled with different machine flags in different files, so it must not define a single inline function.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bitbranch {

// Channels that a convolution finishes at once: two whole groups of 4, one byte of 1-bit codes.
constexpr int kChunk = 8;
// Pixels of the widest tile of any kernel; buffers may be read this far past their last pixel.
constexpr int kMaxPixels = 128;

// One register tile of a kernel: `outputs` channels x `pixels` pixels, summed over a list of taps.
struct Tile {
  const void* activations;    // at the tile's first pixel; linear: int16 [images][depth], packed: int8
  const int32_t* offsets;     // [taps] bytes from `activations` to a tap's plane and shift
  const void* weights;        // [taps][outputs], in the family's form; xnor: [groups of 16 taps][outputs][16]
  int taps;                   // linear: depth / 2; packed: depth / 4, a multiple of 8 / (bits of a weight)
  const uint8_t* dictionary;  // [words][16], [words][64] for sextets, [words][4] for xnor, [words][8] for xnor_ternary
  int flush;                  // dictionaries: taps whose table entries sum to at most 255; packed: so many that sums
                              // fit int16, which is a multiple of 8 / (bits of a weight)
  ptrdiff_t second;           // bytes to the second plane of 3 and 4-bit codes; linear: bytes between images
  void* sums;                 // [outputs][stride] int16 or int32; linear: int32 [images][stride]
  int stride;                 // elements
  bool narrow;                // byte_unsigned, byte_signed: sums are int16, saturated
};

// A row of the table. Families:
//   dictionary     planes of `bits`-bit codes x dictionary words of 4 weights, lanes are pixels, int16 sums
//   sextets        planes of six bits x dictionary words of 6 / bits weights, lanes are pixels, int16 sums;
//                  up to 32 words, stored times 8
//   sextets64      the same, up to 256 words
//   xnor           planes of `bits`-bit codes x words of 8 / min(bits, 2) weights of +-1, lanes are pixels, int16 sums;
//                  an entry of the dictionary is a byte with the bits of weights -1, four times; words beyond the
//                  last tap have none; 1, 2 or 4 bits
//   xnor_ternary   the same for weights -1, 0, 1; before that a byte with the bits of weights not 0, four times
//   byte16         channel pairs of unsigned bytes x int8 weight pairs, lanes are pixels, int16 sums
//   byte_unsigned  channel pairs of bytes x int16 weight pairs, lanes are pixels, int32 sums
//   byte_signed    the same for signed bytes
//   linear8        int16 activations x int8 weights, lanes are outputs, `pixels` counts images, int32 sums
//   linear16       the same for int16 weights
//   linear1, linear2, linear4  int8 activations x ranks of so many bits, packed: `bits` 8, else the same
struct Kernel {
  const char* family;
  int bits;
  int outputs;
  int pixels;
  void (*run)(const Tile&);
};

// From sums to codes: how many of the channel's limits each of 8 channels' sums exceeds, packed.
struct Codes {
  const void* sums;       // [8][stride] int16 or int32
  int stride;             // elements
  int pixels;             // written in whole vectors, up to kMaxPixels
  const int32_t* limits;  // [8][thresholds], ascending; a sum passes where sum > limit. int16 sums, where there is no
                          // guess: both halves equal.
  int thresholds;         // with a guess: padded to 2^n - 1 with limits that no sum passes
  const float* guess;     // bytes of many limits: [8][3] low, scale, steps. Steps above 0: with x clamped to the limits,
                          // int((x - low) * scale + 0.5) is k for the k-th limit, or off by less than 2^(steps - 1),
                          // and there are 2^steps - 1 limits at least; up to 3. -1 - k: int(x * scale + low), clamped
                          // to 0 .. thresholds - k, is the rank less k, limits that every sum passes. 0: limits are
                          // too uneven for that.
  int multiplier, add;    // bytes: stored byte = multiplier * rank + add; multiplier 1 or 2
  uint8_t* packed;        // planes: 1, 2, 4, 4 for 1 to 4 bits, 4 of two bytes for `bytes`; sextets: of 24 channels
  ptrdiff_t packed_stride;  // bytes from plane to plane
  const uint8_t* exists;  // [pixels] 0xff, or 0 for a pixel whose bytes become 0; null: all exist
  int third;              // sextets: which 8 of the 24 channels; they are added to planes that the ones before began
};

// Fixed-point rescaling of one channel's accumulators: (acc * multiplier + offset) >> shift, saturated; and another
// stream added to that, if there is one, and saturated again.
struct Rescale {
  int32_t multiplier = 0;
  int32_t shift = 0;
  int64_t offset = 0;              // with the half that rounds
  int64_t lo = 0, hi = 0;          // within int32
  int32_t sum_lo = 0, sum_hi = 0;  // of the sum
  bool narrow = true;              // whether the shifted number fits int32 before it is saturated
};

// One row of windows over the integers of a channel: down the columns, then along the row, then every `stride`-th.
struct WindowRow {
  const void* x;         // first of the rows that exist
  ptrdiff_t row_stride;  // elements from one of them to the next
  int rows;              // at least 1
  int width;             // of a row
  int left, kernel, dilation, stride;  // columns of padding, and of the window
  void* out;
  int count;
  void* scratch;  // [2][columns]
  int columns;    // the padded row's, at least; no window reaches further
};

// Numbers that lie between two neighbours of a row: x[at] * weight + x[at + 1] * next, modular.
struct Between {
  const int32_t *at, *weight, *next;  // [.. and a vector more], `at` ascending
  bool near;  // what the numbers of a vector read fits a vector; it is read, and they are written, in whole vectors
};

struct FloatEncoder {
  const float* thresholds;  // [count] and +infinity behind
  int count;
  const int32_t* start;     // [buckets]: thresholds that every real of the bucket passes; null: bucket k holds the k-th
  int buckets;
  float low, high, scale;   // bucket = int((clamp(x, low, high) - low) * scale + 0.5)
  int steps;                // most thresholds in one bucket
  double factor, offset;    // above `least` rank = max(first, int(min(x, high) * factor + offset)), in double;
  float least;              // the greatest real that passes no threshold; factor 0: no such line
  int first;                // the least rank but 0
  int multiplier, add;      // stored byte = multiplier * rank + add
};

constexpr int kPanel = 32;  // columns of a Gram matrix that coordinate descent takes at once

// A weight of coordinate descent that changed, and by how much.
struct WeightChange {
  int32_t weight, by;
};

constexpr int kPartners = 32;  // inputs that a weight of coordinate descent is tried together with

// Coordinate descent over pairs of weights: what all outputs of a group share. T is int32_t or double.
template <class T>
struct Pairs {
  int64_t inputs;
  const T* gram;             // [n][n] sums of products of inputs, integers
  const double* sum;         // [n] sums of inputs, integers
  const double* mean;        // [n]
  const double* curvature;   // [n] the diagonal of the centred Gram matrix
  const double* inverse;     // [n] 1 / curvature; 0 for inputs that never vary
  const int32_t* partner;    // [n][kPartners]
  const double* covariance;  // [n][kPartners] of the centred Gram matrix
  double top, step;          // levels -top, -top + step, .., top
};

// One output of it.
template <class T>
struct PairsOutput {
  double scale, sum;     // sum: of inputs times weights, over all samples
  const double* wanted;  // [n] products of the centred inputs with z
  double* weight;        // [n] levels, changed
  T* product;            // [n] the Gram matrix times the weights, kept up to date
  double* gradient;      // [n] half the objective's slope, for the kernel's own use
};

// A bfloat16 number: the upper half of a float32.
struct Brain {
  uint16_t bits;
};

// The levels of a quantizer in training.
//   uniform   step * clamp(floor(x / step + 1/2), lo, hi)
//   sparse    0 where x <= lo, else step * ceil(clamp(x / step - 1/2, 1/2, hi))
//   bipolar   step * (2 floor(clamp(x, lo, 1) * hi / 2) + 1)
//   affine    step * floor(clamp(x, lo, 1) * hi + 1/2)
struct Grid {
  enum Kind { uniform, sparse, bipolar, affine } kind;
  float lo, hi, step;
};

struct DotSet;  // dot/kernels.hpp

// Everything the engine needs from one instruction set.
struct InstructionSet {
  const char* name;
  int width;  // bytes of a vector
  const Kernel* kernels;
  int kernel_count;

  void (*codes16)(int packing, const Codes&);  // see Form::packing
  void (*codes32)(int packing, const Codes&);
  void (*widen)(const int16_t* part, int32_t* sums, int count, bool first);
  void (*affine16)(int16_t* sums, int count, int multiplier, int32_t constant);
  void (*affine32)(int32_t* sums, int count, int multiplier, int32_t constant);
  void (*to_int32)(const int16_t* sums, int32_t* out, int count);

  bool (*encode)(const FloatEncoder&, const float* x, uint8_t* out, int count);  // whether there is a NaN
  void (*interleave)(const uint8_t* even, const uint8_t* odd, uint8_t* out, int count);
  void (*rescale16)(const Rescale& r, const int16_t* acc, const int32_t* other, int32_t* out, int64_t count);
  void (*rescale32)(const Rescale& r, const int32_t* acc, const int32_t* other, int32_t* out, int64_t count);
  void (*add)(const int32_t* a, const int32_t* b, int32_t* y, int64_t count, int32_t lo, int32_t hi);
  void (*scale)(const int32_t* x, float* y, int64_t count, float scale, float bias);
  void (*pack_ranks)(int bits, const uint16_t* pairs, int stride, uint8_t* const planes[4], int count);
  void (*to_ranks)(const uint8_t* x, uint8_t* out, int add, int shift, int count);
  void (*max_planes)(int packing, const uint8_t* a, const uint8_t* a2, const uint8_t* b, const uint8_t* b2, uint8_t* out,
                     uint8_t* out2, int count);
  void (*max_bytes)(bool is_signed, const uint8_t* a, const uint8_t* b, uint8_t* out, int count);
  void (*max_row16)(const WindowRow&);  // padding never wins
  void (*max_row32)(const WindowRow&);
  void (*sum_row32)(const WindowRow&);  // padding counts 0; modular
  void (*values)(const uint8_t* pairs, bool is_signed, int multiplier, int add, int32_t* out, int count);  // even bytes
  void (*between)(const Between&, const int32_t* x, int first, int count, int32_t* out);
  void (*blend_rows)(const int32_t* a, int32_t weight_a, const int32_t* b, int32_t weight_b, int32_t* out, int count);
  void (*pick1)(const void* x, void* out, int step, int count);  // pixels of 1 byte
  void (*pick2)(const void* x, void* out, int step, int count);  // pixels of 2 bytes

  // sums[r] += by * panel[weight][r] for every change and r < kPanel; integers, in int32 or in double.
  void (*add_changes32)(int32_t* sums, const int32_t* panel, const WeightChange* changes, int64_t count);
  void (*add_changes_double)(double* sums, const double* panel, const WeightChange* changes, int64_t count);

  // Every weight in turn, together with the partner that helps most; returns how many times one or two changed.
  int64_t (*improve_pairs32)(const Pairs<int32_t>&, const PairsOutput<int32_t>&);
  int64_t (*improve_pairs_double)(const Pairs<double>&, const PairsOutput<double>&);

  // Training, float32 and bfloat16: see Grid; the gradient where lo < x < hi, else 0; the same for lo < x / step < hi,
  // and the sum of gradient times slope to the step of a uniform grid; {least, greatest} of x and of what is there.
  void (*levels32)(const Grid& g, const float* x, float* y, int64_t count);
  void (*levels16)(const Grid& g, const Brain* x, Brain* y, int64_t count);
  void (*window32)(float lo, float hi, const float* x, const float* gradient, float* out, int64_t count);
  void (*window16)(float lo, float hi, const Brain* x, const Brain* gradient, Brain* out, int64_t count);
  double (*step_gradient32)(const Grid& g, const float* x, const float* gradient, float* out, int64_t count);
  double (*step_gradient16)(const Grid& g, const Brain* x, const Brain* gradient, Brain* out, int64_t count);
  void (*extremes32)(const float* x, int64_t count, float* ends);
  void (*extremes16)(const Brain* x, int64_t count, float* ends);

  const DotSet* dot;  // what it has for the dot-product path, or null
};

}  // namespace bitbranch
