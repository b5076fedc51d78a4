// The machine's ceiling: a kernel by itself, on data that stays in the first cache.
#pragma once
#include <cstdint>

#include "kernels.hpp"

namespace bitbranch {

struct Rate {
  double seconds;
  int64_t macs;
};

// Runs a kernel `repeat` times on one tile of `taps` taps. Throws std::invalid_argument for a family that it has no
// data for.
Rate measure_kernel(const Kernel& kernel, int taps, int repeat);

}  // namespace bitbranch
