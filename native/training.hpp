// Quantizers of a training step over whole tensors, on several threads: quantizers/passes.py says what they compute.
#pragma once
#include "kernels.hpp"
#include "thread_pool.hpp"

namespace bitbranch {

template <class Real>
void run_levels(const InstructionSet& isa, ThreadPool& pool, const Grid& grid, const Real* x, Real* y, int64_t count);

// The gradient where lo < x < hi, else 0.
template <class Real>
void run_window(const InstructionSet& isa, ThreadPool& pool, float lo, float hi, const Real* x, const Real* gradient,
                Real* out, int64_t count);

// The gradient where lo < x / step < hi, else 0; returns the gradient to the step, whatever the threads.
template <class Real>
double run_step_gradient(const InstructionSet& isa, ThreadPool& pool, const Grid& grid, const Real* x,
                         const Real* gradient, Real* out, int64_t count);

struct Extremes {
  float least, most;
};
template <class Real>
Extremes run_extremes(const InstructionSet& isa, ThreadPool& pool, const Real* x, int64_t count);

}  // namespace bitbranch
