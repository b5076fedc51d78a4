// Largest or sum of a sliding window.
#pragma once
#include <vector>

#include "step.hpp"
#include "window.hpp"

namespace bitbranch {

// Largest code of each window, on bit-planes or bytes as they are: first down the columns of a whole plane, then along
// its rows, then every stride-th.
class MaxPoolCodes final : public Step {
 public:
  MaxPoolCodes(const InstructionSet* isa, View source, View target, Form form, int chunks, Window window, int threads);
  void run(const Run& run) const override;

 private:
  // A plane, and the distance to the second one for 3 and 4 bits.
  struct Planes {
    const uint8_t* data;
    ptrdiff_t second;
  };

  void pool(int64_t image, int64_t plane, uint8_t* scratch) const;
  void larger(Planes a, Planes b, uint8_t* out, int64_t pixels) const;

  const InstructionSet* isa_;
  View source_, target_;
  Form form_;
  int chunks_;
  Window window_;
  int joint_;               // planes that are compared together
  bool padded_;             // whether planes are copied first, into pads that never win
  int height_, pitch_;      // of the planes that are pooled
  int64_t plane_;           // bytes of such a plane
  mutable std::vector<uint8_t> scratch_;  // [parts][4][joint][plane]
};

// Largest integer, or sum of integers or of bytes' values, of each window.
class PoolIntegers final : public Step {
 public:
  enum class Kind { max, sum, sum_bytes };

  Kind kind = Kind::max;
  View source, target;
  Form form;
  int channels = 0;
  Window window{};
  const InstructionSet* isa = nullptr;

  void reserve(int threads);  // when all of the above is there
  void run(const Run& run) const override;

 private:
  void pool(int64_t image, int64_t channel, int32_t* scratch) const;

  int columns_ = 0;     // of a padded row
  int64_t values_ = 0;  // of a channel, where they are bytes
  mutable std::vector<int32_t> scratch_;  // [parts]: two padded rows, values
};

}  // namespace bitbranch
