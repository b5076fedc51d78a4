// Every row of the kernel table against plain loops, and what happens to a set that computes wrongly.
#include "../instruction_sets.hpp"
#include "testing.hpp"

namespace bitbranch {
extern const InstructionSet kScalar;
}

namespace bitbranch::testing {

void test_kernels(const InstructionSet& set) {
  for (int i = 0; i < set.kernel_count; ++i) {
    const Kernel& k = set.kernels[i];
    const std::string name = std::string(set.name) + " " + k.family + " " + std::to_string(k.bits) + " " +
                             std::to_string(k.outputs) + "x" + std::to_string(k.pixels);
    for (const int taps : {1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 100})
      for (const Numbers numbers : {Numbers::random, Numbers::largest, Numbers::smallest})
        for (uint64_t seed = 0; seed < (numbers == Numbers::random ? 6 : 2); ++seed)
          expect(KernelTrial(k, taps, seed * 1000 + taps, numbers).passes(),
                 name + ", " + std::to_string(taps) + " taps, seed " + std::to_string(seed));
  }
}

namespace {
// The scalar set's first kernel, and the first of its last sum wrong by one.
void nearly_right(const Tile& tile) {
  const Kernel& k = kScalar.kernels[0];
  k.run(tile);
  ++static_cast<int16_t*>(tile.sums)[(k.outputs - 1) * tile.stride + k.pixels - 1];
}
}  // namespace

void test_self_check() {
  std::vector<InstructionSet> sets;
  offer(sets, kScalar);
  expect(sets.size() == 1, "the scalar set passes its check");
  std::vector<Kernel> rows(kScalar.kernels, kScalar.kernels + kScalar.kernel_count);
  rows[0].run = nearly_right;
  InstructionSet wrong = kScalar;
  wrong.name = "wrong on purpose";
  wrong.kernels = rows.data();
  offer(sets, wrong);
  expect(sets.size() == 1, "a set with a wrong sum is left out");
  rows[0] = kScalar.kernels[0];
  rows.push_back({"unheard-of", 1, 8, 8, nearly_right});
  wrong.kernels = rows.data();
  wrong.kernel_count = static_cast<int>(rows.size());
  bool refused = false;
  try {
    offer(sets, wrong);
  } catch (const std::exception&) {
    refused = true;
  }
  expect(refused, "a family that has no plain loops is refused");
}

}  // namespace bitbranch::testing
