// Integers or bytes' values between two rows and two columns each, and what follows: codes, integers or an output.
#pragma once
#include <vector>

#include "epilogue.hpp"
#include "step.hpp"

namespace bitbranch {

class Interpolate final : public Step {
 public:
  // Which two neighbours each of the rows or columns lies between, and their weights. Neighbours beyond the last have
  // weight 0.
  struct Axis {
    std::vector<int32_t> at, weight, next;
  };
  // Reals: float(v) * scale + bias.
  struct Reals {
    int output = 0;
    const float *scale = nullptr, *bias = nullptr;  // [channels]; null: there is no such output
  };

  Interpolate(const InstructionSet* isa, View source, bool bytes, Form form, int channels, Axis down, Axis across,
              Epilogue epilogue, Reals reals, int threads);
  void run(const Run& run) const override;

 private:
  void fill(int64_t image, int64_t channel, int y, int x, int count, int32_t* scratch, int32_t* out) const;
  const int32_t* row(int64_t image, int64_t channel, int y, int first, int count, int32_t* scratch) const;

  const InstructionSet* isa_;
  View source_;
  bool bytes_;
  Form form_;
  int channels_;
  Axis down_, across_;
  Between between_;  // of across_
  bool moves_;       // whether across_ changes anything
  Epilogue epilogue_;
  Reals reals_;
  size_t scratch_size_;                   // of a thread
  mutable std::vector<int32_t> scratch_;  // [threads][3 rows of the source]
};

}  // namespace bitbranch
