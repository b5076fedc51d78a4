// Coordinate descent over the low-bit weights of a layer, all outputs at once: twostep/descent.py says what it computes.
#pragma once
#include <cstdint>

#include "kernels.hpp"
#include "thread_pool.hpp"

namespace bitbranch {

// One group of a layer: n inputs. T is int32_t or double; it must hold every sum of the Gram matrix times weights.
template <class T>
struct Descent {
  int64_t inputs, outputs;
  const T* gram;            // [n][n] sums of products of inputs, integers
  const double* sum;        // [n] sums of inputs, integers
  const double* mean;       // [n]
  const double* curvature;  // [n] the diagonal of the centred Gram matrix
  const double* cross;      // [O][n] sums of inputs times z, integers
  const double* total;      // [O] sums of z, integers
  double unit;              // of z
  const double* scale;      // [O]
  double top, step;         // levels -top, -top + step, .., top
  double* weight;           // [O][n] levels, changed
  double* product;          // [O][n] the Gram matrix times the weights, kept up to date
};

// One cycle over the weights of every output; returns how many changed. Each output is on its own, and its integers are
// exact, so neither the threads nor the instruction set make a difference.
template <class T>
int64_t descend(const InstructionSet& isa, ThreadPool& pool, const Descent<T>& layer);

// The same, each weight together with the one of its partners that helps most; see Pairs for what they are.
template <class T>
int64_t descend_pairs(const InstructionSet& isa, ThreadPool& pool, const Descent<T>& layer, const int32_t* partner,
                      const double* covariance);

}  // namespace bitbranch
