// The network's input.
#pragma once
#include <vector>

#include "step.hpp"

namespace bitbranch {

// Float32 through thresholds or uint8 through a table, to bytes.
class Encode final : public Step {
 public:
  Encode(const InstructionSet* isa, std::vector<float> thresholds, int multiplier, int add);

  const InstructionSet* isa;
  int input = 0;  // which of the run's
  int channels = 0;
  const uint8_t* table = nullptr;  // stored bytes [channels][256], or null
  View target;

  const FloatEncoder& encoder() const { return encoder_; }
  void run(const Run& run) const override;

 private:
  std::vector<float> thresholds_;
  std::vector<int32_t> start_;
  FloatEncoder encoder_{};
};

}  // namespace bitbranch
