// Steps on integers: residual streams, codes from them, and the output.
#pragma once
#include "epilogue.hpp"
#include "step.hpp"

namespace bitbranch {

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
  const Rescale* rescale = nullptr;  // [channels]

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

class Scale final : public Step {
 public:
  const InstructionSet* isa = nullptr;
  View source;
  int output = 0;  // which of the run's
  int channels = 0;
  const float* scale = nullptr;
  const float* bias = nullptr;

  void run(const Run& run) const override;
};

}  // namespace bitbranch
