// The network's input.
#pragma once
#include <vector>

#include "step.hpp"

namespace bitbranch {

// Float32 through thresholds or uint8 through a table, to bytes.
class InputCodes {
 public:
  InputCodes(const InstructionSet* isa, std::vector<float> thresholds, int multiplier, int add);

  const InstructionSet* isa;
  int input = 0;                   // which of the run's
  const uint8_t* table = nullptr;  // stored bytes [channels][256], or null

  const FloatEncoder& encoder() const { return encoder_; }
  // `count` pixels of a channel from one on; tells the run of a NaN among them.
  void encode(const Run& run, int channel, int64_t from, uint8_t* bytes, int count) const;

 private:
  std::vector<float> thresholds_;
  std::vector<int32_t> start_;
  FloatEncoder encoder_{};
};

// The bytes in pairs of channels, or single ones (a target of one byte per pixel) in the phases of a stride, whose
// planes are [channel][phase row][phase column].
class Encode final : public Step, public InputCodes {
 public:
  using InputCodes::InputCodes;
  int channels = 0;
  View target;                     // single: height, width of one phase
  int height = 0, width = 0;       // of an image
  int stride_y = 1, stride_x = 1;

  void run(const Run& run) const override;

 private:
  void run_single(const Run& run) const;
  void run_pairs(const Run& run) const;
};

// Planes of pairs from planes of single bytes: pixel p of a pair's plane holds pixel p of one plane and pixel
// p + distance of another, pads included, so that two taps of a convolution are neighbours in memory.
class PairUp final : public Step {
 public:
  struct Halves {
    int first, second;  // planes of the source
    int64_t distance;   // pixels, at least 0
  };

  const InstructionSet* isa = nullptr;
  View source, target;
  int64_t head = 0;  // pixels before the first one that are pads too
  std::vector<Halves> planes;

  void run(const Run& run) const override;
};

}  // namespace bitbranch
