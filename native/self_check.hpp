// Whether an instruction set computes right on this processor: its kernels on random tiles, against plain loops.
#pragma once
#include <string>
#include <vector>

#include "kernels.hpp"

namespace bitbranch {

// Numbers for checks; the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  // lo .. hi, both possible.
  int64_t between(int64_t lo, int64_t hi) {
    const uint64_t wide = uint64_t{next()} << 32;
    return lo + static_cast<int64_t>((wide | next()) % (static_cast<uint64_t>(hi - lo) + 1));
  }

 private:
  uint64_t state_;
};

enum class Numbers { random, largest, smallest };

// A tile for a kernel with random activations, taps and weights, within what the family's contract allows.
class KernelTrial {
 public:
  // Throws std::invalid_argument for a family without plain loops here. Odd seeds: a kernel of bytes saturates.
  KernelTrial(const Kernel& kernel, int taps, uint64_t seed, Numbers numbers);

  // Whether the kernel makes the sums that plain loops make, and writes nothing else.
  bool passes();

 private:
  void make_weights(Random& random, Numbers numbers);
  int32_t activation(int tap, int channel, int pixel) const;
  int32_t plain_sum(int output, int pixel) const;

  Kernel kernel_;
  Tile tile_{};
  bool linear_, dictionary_, xnor_, narrow_, signed_;  // narrow: int16 sums of int8 weights or words
  int packed_ = 0;                     // bits of a packed weight
  int bits_of_entry_ = 4;              // bits that index a dictionary's table
  int word_step_ = 16;                 // bytes from a stored word to the next
  std::vector<uint8_t> activations_, tables_;
  std::vector<int32_t> offsets_;
  std::vector<uint8_t> weights_;
};

// Where a set first differs from plain loops or, in the dot-product path, from the scalar set: one line, empty if it
// does nowhere. Checks every kernel once on a few taps, in a fraction of a millisecond.
std::string first_fault(const InstructionSet& set);

}  // namespace bitbranch
