// The dot-product path: codes lie as bytes, the channels of a pixel side by side, and a convolution is a product of
// bytes along channels and taps, as VNNI, AMX and their kin compute it. What a set of instructions provides for it.
// Plain types only: this header is compiled with different machine flags in different files, so it must not define a
// single inline function.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bitbranch {

constexpr int kDotOutputs = 32;  // channels of a tile
constexpr int kDotPixels = 32;   // pixels of a tile
constexpr int kDotDepth = 64;    // bytes of a chunk of taps
constexpr int kDotChunk = kDotDepth * kDotOutputs;  // bytes of its weights

// sums[p][o] = start[p][o] + sum over chunks and their bytes of x[p][byte] * weights[byte][o], for a tile of pixels.
// All 32 rows may be computed and read, and all 32 outputs, however few are asked for.
struct DotTile {
  const uint8_t* x;        // first pixel
  ptrdiff_t step;          // bytes from pixel to pixel
  const int32_t* offsets;  // [chunks] bytes from a pixel to the chunk
  const uint8_t* quads;    // [chunks] groups of four bytes that have weights, 1..16
  int chunks;
  const int8_t* weights;   // [chunks][2][16 quads][16 outputs][4]
  const int32_t* start;    // [start_step ? 32 : 1][32]
  int start_step;          // 0, or 32 to go on with sums
  int32_t* sums;           // [32][32]; of run_half as many int16
  int pixels;              // 1..32
  int outputs;             // that are wanted, 16 or 32
  int narrow_quads;        // quads whose sums of pairs fit int16, start aside; 0: not even one
  ptrdiff_t half_step;     // of run_half: int16 from row to row
};

// One weight per channel and tap.
struct DotDepthwise {
  const uint8_t* x;
  ptrdiff_t step;
  const int32_t* offsets;  // [taps]
  int taps;
  const int32_t* weights;  // [taps][32], within int16
  const int32_t* start;    // [32]
  int32_t* sums;
  int pixels;
};

// Puts the bytes that a tile's pixels are multiplied by side by side: [chunks][32 pixels][64 bytes].
struct DotGather {
  const uint8_t* const* x;  // [count] pixels
  const uint8_t* row;       // [count] which of the 32 each is
  int count;
  const int32_t* offsets;   // [pieces] bytes from a pixel
  int pieces;
  int piece;                // bytes of each: 16, 32 or 64
  uint8_t* out;
};

// Of an interpolated row or column: the two of the source that it lies between.
struct DotBetween {
  int at[2], weight[2];  // weights 0 .. 2^15 - 1
};

// Pixels of one row, interpolated between two rows of the source.
struct DotBlend {
  const uint8_t* rows[2];    // at their first column
  ptrdiff_t step;            // bytes from column to column
  int down[2];               // the rows' weights, as above
  const DotBetween* across;  // [count] of each pixel, ascending; not more than count + 1 columns from first to last
  const uint8_t* row;        // [count] which of the 32 rows of sums each is
  int count;
  int channels;              // that are wanted; the other sums may become anything
  int size;                  // bytes of a number: 1, of codes; 2 or 4, of integers
  int32_t add;               // to each sum
  int32_t* sums;             // [32][32]
};

// The rows of a tile that are pixels of the image.
struct DotRows {
  int32_t* sums;       // [32][32]
  int count;
  const uint8_t* row;  // [count] which
  int channels;        // of 32 that exist; pointers are to the first of them
};

// rank -> (rank << shift) + add
struct DotCode {
  int shift, add;
};

// Ranks that a sum has from a channel's limit [32] on, beside those of a line; without limits none.
struct DotJump {
  const int32_t* limits;
  int ranks;
};

// Winograd's filtering of 3 x 3 kernels (stride 1): a patch of n x n pixels, n = side + 2, gives side x side outputs by
// n x n products a channel. All of it in integers: factors of c = 2 or 6 are shared out among the rows of G, for the
// weights, and the columns of A^T, for the outputs, which are then c^2 times too large (Winograd 1980; Lavin and Gray,
// CVPR 2016).
// Patches of a row, side by side, to numbers modulo 256; planes are the n x n numbers of a patch.
struct DotPatches {
  int side;             // 2 or 3
  const uint8_t* x;     // first pixel of the first patch; the next patch begins `side` columns on
  ptrdiff_t step, row;  // bytes from column to column, and from row to row
  int count;
  int bytes;            // of a pixel, a multiple of 64
  const uint8_t* add;   // [n * n] to the numbers of a plane
  uint8_t* out;         // [n * n] planes of [count][bytes]
  ptrdiff_t plane;      // bytes from plane to plane
};

// Weights of a chunk of channels, whose transform fits int8.
struct DotKernels {
  int side;
  const int8_t* taps;  // [9] chunks, rows of the kernel after one another
  int8_t* out;         // [n * n] planes of a chunk
  ptrdiff_t plane;
};

// Sums of products to outputs.
struct DotProducts {
  int side;
  const void* products;     // [n * n] planes of [count][32], int32; of products_half int16
  ptrdiff_t plane;          // numbers from plane to plane
  int count;                // patches, not more than most = 32 / (side * side)
  int outputs;              // that are wanted, 16 or 32
  int32_t* sums;            // [32][32], row (dy * most + patch) * side + dx
};

// Windows side by side: member i of window p lies at x + p * step + offsets[i].
struct DotMembers {
  const uint8_t* x;
  const ptrdiff_t* offsets;  // [count]
  int count;                 // at least one
  ptrdiff_t step;            // bytes from window to window
  int windows;
  bool more;                 // of windows whose largest so far is in the target
};

struct DotSet {
  const char* name;
  bool fast;        // products of bytes are instructions; else the path is for what no other can run
  bool whole_rows;  // `run` reads whole chunks of pixels, which should not lie in two cache lines
  bool narrow_sums;  // `run` heeds narrow_quads
  void (*begin)();  // around what a thread does
  void (*end)();
  void (*run)(const DotTile&);
  void (*depthwise)(const DotDepthwise&);
  void (*gather)(const DotGather&);
  // Weights of 1, 2 or 4 bits to bytes: `packed` vectors of 64 bytes to 8 / bits rows each. `tables` [4 / bits][16] are
  // the values of a nibble's fields.
  void (*expand)(int bits, const int8_t* tables, const uint8_t* packed, int vectors, int8_t* out);

  // `narrow`: shifts are at most 32, and what is shifted fits int32 before it is saturated.
  void (*requantize)(const DotRows&, const int64_t* multiplier, const int64_t* shift, const int64_t* offset, int32_t lo,
                     int32_t hi, bool narrow);
  // Integers in memory are int32 or, `narrow`, int16; 32 channels of a row are read even where fewer exist.
  void (*add)(const DotRows&, const void* const* other, bool narrow, int32_t lo, int32_t hi);
  void (*store)(const DotRows&, bool narrow, void* const* target);
  // How many of `count` ascending limits [count][32] a sum reaches; with `table`, the rank at that number.
  void (*compare)(const DotRows&, const int32_t* limits, int count, const uint8_t* table, DotCode, uint8_t* const* target);
  // int(clamp(sum * slope + intercept, 0, last)), per channel, and the jump's ranks.
  void (*line)(const DotRows&, const float* slope, const float* intercept, int last, DotJump, DotCode,
               uint8_t* const* target);
  void (*fine_line)(const DotRows&, const double* slope, const double* intercept, int last, DotJump, DotCode,
                    uint8_t* const* target);
  void (*scale)(const DotRows&, const float* scale, const float* bias, float* const* target, int64_t channel_step);

  // `bytes` channels of each window to out + window * step.
  void (*max_bytes)(const DotMembers&, int bytes, uint8_t* out, ptrdiff_t step);
  void (*max_sums)(const DotMembers&, bool narrow, int32_t* sums);  // 32 channels of each window to a row
  // Adds 32 channels of each window, less `zero` a member, to a row; numbers of 1 byte, which are codes, or 2 or 4.
  void (*sum_members)(const DotMembers&, int size, int zero, int32_t* sums);
  void (*blend)(const DotBlend&);
  // The bytes of four rows, or the first 1 to 3 of them, side by side.
  void (*interleave)(const uint8_t* const* rows, int used, uint8_t* out, int count);
  void (*patches)(const DotPatches&);
  void (*kernels)(const DotKernels&);
  void (*products)(const DotProducts&);
  // What follows is null where a set has no such. The same as `run`, modulo 2^16, where the start is one for all rows and
  // no sum of two products is beyond int16; its outputs are in an order that the other two know.
  void (*run_half)(const DotTile&);
  void (*products_half)(const DotProducts&);  // of outputs within 14 bits
  void (*max_half)(const DotMembers&, int32_t* sums);  // of outputs within 16 bits: as max_sums
};

}  // namespace bitbranch
