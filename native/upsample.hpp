// Images enlarged by whole factors.
#pragma once
#include "step.hpp"

namespace bitbranch {

// Repeats pixels of codes, of one or two bytes.
class UpsampleNearest final : public Step {
 public:
  View source, target;
  int planes = 0;
  int factor_y = 1, factor_x = 1;

  void run(const Run& run) const override;
};

}  // namespace bitbranch
