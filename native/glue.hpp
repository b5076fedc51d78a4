// The steps that do not multiply and accumulate.
#pragma once
#include <vector>

#include "epilogue.hpp"
#include "step.hpp"

namespace bitbranch {

// The network's input: float32 through thresholds or uint8 through a table, to bytes.
class Encode final : public Step {
 public:
  Encode(const InstructionSet* isa, std::vector<float> thresholds, int multiplier, int add);

  const InstructionSet* isa;
  int channels = 0;
  const uint8_t* table = nullptr;  // stored bytes [channels][256], or null
  View target;

  void run(const Run& run) const override;

 private:
  std::vector<float> thresholds_;
  std::vector<int32_t> start_;
  FloatEncoder encoder_{};
};

// A copy in another form, with other pads, or split into the phases of a stride: pixel (y, x) of phase (py, px) is
// pixel (stride_y * y + py, stride_x * x + px). Planes of the target: [plane of the form][phase].
class Repack final : public Step {
 public:
  struct Phase {
    int y, x;
  };

  const InstructionSet* isa = nullptr;
  View source, target;  // target.height, width: of one phase
  Form from, to;
  int channels = 0;  // those of the last chunk beyond it become 0 in bit-planes, as dictionary words expect
  int stride_y = 1, stride_x = 1;
  std::vector<Phase> phases;

  void run(const Run& run) const override;

 private:
  void copy_row(int plane, int64_t first, const View& out, int64_t at, int count) const;
  void convert_row(int chunk, int64_t first, const View& out, int64_t at, int count) const;
};

// Codes to int16 values in the order channel, row, column, for a linear layer.
class Flatten final : public Step {
 public:
  explicit Flatten(const Form& form);

  View source;
  int channels = 0;
  int16_t* target = nullptr;  // [images][depth]
  int depth = 0;

  void run(const Run& run) const override;

 private:
  Form form_;
  std::vector<int16_t> values_;  // what a byte of a plane means: [planes of a unit][256][channels of a unit]
};

// Integers to codes.
class Threshold final : public Step {
 public:
  View source;
  int chunks = 0;
  Epilogue epilogue;

  void run(const Run& run) const override;
};

class Requantize final : public Step {
 public:
  const InstructionSet* isa = nullptr;
  View source, target;
  int channels = 0;
  const int32_t* multiplier = nullptr;
  const uint8_t* shift = nullptr;
  const int64_t* offset = nullptr;
  int64_t lo = 0, hi = 0;

  void run(const Run& run) const override;
};

class Add final : public Step {
 public:
  const InstructionSet* isa = nullptr;
  View left, right, target;
  int channels = 0;
  int32_t lo = 0, hi = 0;

  void run(const Run& run) const override;
};

struct Window {
  int kernel_y, kernel_x, stride_y, stride_x, top, left, dilation_y, dilation_x;
};

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

  void run(const Run& run) const override;
};

class Scale final : public Step {
 public:
  const InstructionSet* isa = nullptr;
  View source;
  int channels = 0;
  const float* scale = nullptr;
  const float* bias = nullptr;

  void run(const Run& run) const override;
};

}  // namespace bitbranch
