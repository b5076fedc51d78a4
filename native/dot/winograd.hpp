// A 3 x 3 convolution with stride 1 by Winograd's filtering: see kernels.hpp.
#pragma once
#include <vector>

#include "steps.hpp"

namespace bitbranch {

// Patches are gone through row by row, image after image, in groups; a group's numbers meet the weights of all blocks.
class DotWinograd : public DotChained {
 public:
  using DotChained::DotChained;
  static constexpr int kBatch = 24;  // patches that are multiplied at once
  // What is read or written side by side would lie in one set of a cache, were it a power of two apart.
  static constexpr int kLine = 64;
  static constexpr int kPlane = (kDotPixels + 1) * kDotOutputs;  // numbers between planes of products
  struct Outputs {
    int first, channels;
    const uint8_t* weights;  // [chunks][9], packed
    const int32_t* start;    // [n * n][32]
  };
  int side = 2;  // of the outputs of a patch
  int top = 0, left = 0;
  DotView source;
  std::vector<Outputs> outputs;
  std::vector<int32_t> offsets;     // [chunks] of a number's channels
  std::vector<uint8_t> quads, add;  // [chunks]; [n * n], see DotPatches
  int bits = 8;                     // of the packed weights
  const int8_t* tables = nullptr;   // see DotSet::expand
  int narrow_quads = 0;             // see DotTile
  bool half = false;                // products are modulo 2^16, see DotSet
  int group = kBatch;               // patches
  bool together = true;             // all blocks' weights are held; else those of one
  uint8_t* scratch = nullptr;       // [threads][scratch_bytes()]

  int64_t scratch_bytes() const {
    return scratch_bytes(side, static_cast<int>(offsets.size()), group, together ? blocks() : 1);
  }
  // For the weights of so many blocks.
  static int64_t scratch_bytes(int side, int chunks, int group, int held_blocks) {
    const int64_t planes = (side + 2) * (side + 2), numbers = chunks * kDotDepth;
    return planes * (chunks * kDotChunk + kLine) * held_blocks + planes * (group * numbers + kLine) +
           kDotPixels * numbers + planes * kPlane * int64_t{sizeof(int32_t)};
  }
  void run(const Run& run) const override;

 protected:
  int blocks() const override { return static_cast<int>(outputs.size()); }
  int first_channel(int block) const override { return outputs[block].first; }
  int block_channels(int block) const override { return outputs[block].channels; }

 private:
  int size() const { return side + 2; }
  int64_t product_bytes() const { return half ? 2 : 4; }
  int planes() const { return size() * size(); }
  int chunks() const { return static_cast<int>(offsets.size()); }
  int patches() const { return kDotPixels / (side * side); }
  int rows() const { return (walk.height + side - 1) / side; }
  int columns() const { return (walk.width + side - 1) / side; }
  int64_t weights_plane() const { return int64_t{chunks()} * kDotChunk + kLine; }
  int64_t weights_bytes() const { return planes() * weights_plane(); }
  int64_t numbers_plane() const { return int64_t{group} * chunks() * kDotDepth + kLine; }
  int64_t numbers_bytes() const { return planes() * numbers_plane() + int64_t{kDotPixels} * chunks() * kDotDepth; }

  // A thread's memory: transformed weights, transformed pixels of a group, and products of a batch.
  struct Scratch {
    int8_t* weights;
    uint8_t* numbers;
    uint8_t* products;
  };
  struct Batch {
    int64_t first;  // patch
    int at, count;  // within its group
  };
  void prepare_weights(int block, int8_t* out) const;
  void prepare_numbers(int64_t first, int count, uint8_t* out) const;
  void describe_patches(int64_t first, int count, DotBlock& block) const;
  void multiply(const Scratch& own, const Batch& batch, int block) const;
  void run_batch(const Run& run, const Scratch& own, const Batch& batch, int first_block, int last_block) const;
};

}  // namespace bitbranch
