// Images enlarged by whole factors.
#pragma once
#include <vector>

#include "step.hpp"

namespace bitbranch {

// Repeats pixels of any form.
class UpsampleNearest final : public Step {
 public:
  View source, target;
  int planes = 0;
  int factor_y = 1, factor_x = 1;

  void run(const Run& run) const override;
};

// Interpolated integers or bytes' values, times 4 factor_y factor_x; pixel centres are aligned, edges repeat.
class UpsampleBilinear final : public Step {
 public:
  UpsampleBilinear(const InstructionSet* isa, View source, bool bytes, Form form, View target, int channels,
                   int factor_y, int factor_x, int threads);
  void run(const Run& run) const override;

 private:
  void read_row(int64_t image, int64_t channel, int y, int32_t* out) const;

  const InstructionSet* isa_;
  View source_, target_;
  bool bytes_;
  Form form_;
  int channels_, factor_y_, factor_x_;
  size_t scratch_size_;                   // of a thread
  mutable std::vector<int32_t> scratch_;  // [threads]: a row of the source with its edges, two rows of the target
};

}  // namespace bitbranch
